"""Source `folder`: one's own pictures, a folder for each class.

`DIR/{train,val,test}/CLASS/*` or `DIR/CLASS/*`. Without a `test` folder, `val` is the held-out test
(it is the only data that training did not see), and selection uses `val_fraction` of training.
Evaluation reads the held-out folder only, and needs no other.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tlx.config import DataConfig
from tlx.data.image import FORMATS, sniff
from tlx.data.picture_files import SPLIT_NAMES, PictureFiles
from tlx.data.source import Splits, given_splits
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import printable

EXPECTED = "DIR/{train,val,test}/CLASS/*.jpg or DIR/CLASS/*.jpg"

# Taken for pictures by name: what is wrong with one is said when it is decoded.
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"),
    *(".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2"),
)
_JUNK = frozenset(["thumbs.db", "desktop.ini", "__macosx"])


def load(config: DataConfig, name: str, training: bool = True) -> Splits:
    """Lists the pictures below `config.root`; reads names and sizes, decodes nothing.

    Class names are the sorted folder names. Folders inside a class are read too, links are
    followed. Files that are no pictures, hidden files, and anything beside the class folders are
    passed over and counted in the notes; a file without a picture's suffix counts as one if its
    content begins as one. With `training` False only the held-out folder is read, where there is one.

    Raises:
      InputError: no class or one class, an empty class folder, class folders that differ between
        splits.
      InputFileNotFoundError: the folder does not exist.
    """
    del name
    root = Path(config.root).expanduser()
    if not config.root or not root.is_dir():
        what = "is a file" if config.root and root.is_file() else "is no folder"
        raise InputFileNotFoundError(
            f"config.data.root={config.root!r} {what}; expected a folder of pictures as {EXPECTED}"
        )
    folders, loose = _children(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise InputError(f"{root}: both {splits[split].name!r} and {folder.name!r} are {split}")
        if split:
            splits[split] = folder
    if not splits:
        examples, notes = _read_split(root)
        return Splits(train=examples, notes=tuple(notes))
    beside = [f.name for f in folders if f not in splits.values()] + loose
    held_out = splits.get("test") or splits.get("val")
    if held_out and not training:
        examples, notes = _read_split(held_out)
        return Splits(None, test=examples, notes=(f"evaluated: {held_out}", *notes))
    if "train" not in splits:
        there = ", ".join(folder.name for folder in folders)
        raise InputError(
            f"{root}: no folder 'train' beside {there}; expected {EXPECTED} (--mode=evaluate needs "
            "no 'train')"
        )
    return _given_splits(splits, _beside_note(root, beside))


def _given_splits(folders: dict[str, Path], notes: list[str]) -> Splits:
    parts: dict[str, PictureFiles] = {}
    for split, folder in folders.items():
        parts[split], more = _read_split(folder)
        notes += more
    for split, examples in parts.items():
        _check_same_classes(folders["train"], parts["train"], folders[split], examples)
    val = folders["val"].name if "val" in folders else ""
    return given_splits(parts, notes, kind="folder", val=val)


def _check_same_classes(
    train_root: Path, train: PictureFiles, root: Path, other: PictureFiles
) -> None:
    extra = sorted(set(other.class_names) - set(train.class_names))
    missing = sorted(set(train.class_names) - set(other.class_names))
    differences = [
        f"only {folder.name} has {', '.join(names[:10])}"
        for folder, names in ((root, extra), (train_root, missing))
        if names
    ]
    if differences:
        raise InputError(
            f"{root} and {train_root} have different class folders: {'; '.join(differences)}"
        )


def _read_split(root: Path) -> tuple[PictureFiles, list[str]]:
    folders, loose = _children(root)
    if len(folders) < 2:
        there = f"one folder, {folders[0].name!r}" if folders else "no folder"
        hint = f"; is {folders[0]} meant?" if folders and _children(folders[0])[0] else ""
        raise InputError(
            f"{root} holds {there}, but at least two class folders are needed ({EXPECTED}){hint}"
        )
    files: list[str] = []
    labels: list[int] = []
    passed_over: list[str] = []
    for label, folder in enumerate(folders):
        found, other = pictures_below(folder)
        if not found:
            detail = f" (but {len(other)} other files, as {Path(other[0]).name})" if other else ""
            raise InputError(f"class folder {printable(folder)} has no pictures{detail}")
        files += [path.relative_to(root).as_posix() for path in found]
        labels += [label] * len(found)
        passed_over += other
    notes = _beside_note(root, loose)
    if passed_over:
        example = printable(Path(passed_over[0]).relative_to(root))
        notes.append(
            f"{root}: {len(passed_over)} files are not pictures and not used, as {example}"
        )
    sizes = np.array([size_of(root / file) for file in files], np.int64)
    names = tuple(printable(Path(folder.name)) for folder in folders)
    return PictureFiles(root, tuple(files), sizes, np.array(labels, np.int32), names), notes


def _children(root: Path) -> tuple[list[Path], list[str]]:
    """Returns the visible folders, and the names of the visible files, both sorted."""
    try:
        entries = sorted(root.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{printable(root)} cannot be read: {error.strerror}") from error
    visible = [path for path in entries if not _is_junk(path.name)]
    return [p for p in visible if p.is_dir()], [p.name for p in visible if not p.is_dir()]


def pictures_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns the pictures below a folder, in the order of their paths, and all other files."""

    def fail(error: OSError) -> None:
        raise InputError(f"{printable(Path(error.filename))} cannot be read: {error.strerror}")

    found: list[Path] = []
    other: list[str] = []
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(current)
        folders[:] = [] if real in seen else sorted(f for f in folders if not _is_junk(f))
        if real in seen:  # a link to a folder above it
            continue
        seen.add(real)
        for name in names:
            path = Path(current, name)
            (found.append(path) if is_picture(path) else other.append(str(path)))
    return sorted(found), sorted(other)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def is_picture(path: Path) -> bool:
    """Returns whether a file is taken for a picture: by its name, or by what it begins with."""
    if _is_junk(path.name):
        return False
    if path.name.lower().endswith(_SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return sniff(file.read(16)).upper() in FORMATS
    except OSError:
        return False


def size_of(path: Path) -> int:
    """Returns a file's size in bytes, -1 where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:  # a broken link: decoding it says so
        return -1


def _beside_note(root: Path, names: list[str]) -> list[str]:
    if not names:
        return []
    example = printable(Path(names[0]))
    return [f"{root}: {len(names)} entries beside the folders in use are not used, as {example}"]
