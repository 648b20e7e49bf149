"""Finding a source's files: one file, or those of a folder whose names say which split they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tlx.data.picture_files import SPLIT_NAMES
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import printable


def find_split_files(
    text: str, suffixes: Sequence[str], expected: str, what: str = "file"
) -> tuple[dict[str, Path], list[str]]:
    """Returns split -> file in the order train, val, test, one file as train; and notes for the user.

    Args:
      text: data.root.
      suffixes: of such files, in lower case.
      expected: what an error says should be there.
      what: one such file is called.

    Raises:
      InputError: a file of another suffix, or two files of one split.
      InputFileNotFoundError: nothing is there, or a folder without such files.
    """
    root = Path(text).expanduser()
    if root.is_dir() and text:
        return _in_folder(root, suffixes, expected, what)
    if not text or not root.exists():
        raise InputFileNotFoundError(f"config.data.root={text!r} is not there; expected {expected}")
    if not root.is_file() or root.suffix.lower() not in suffixes:
        raise InputError(f"config.data.root={text!r} is no {what}; expected {expected}")
    return {"train": root}, []


def _in_folder(
    root: Path, suffixes: Sequence[str], expected: str, what: str
) -> tuple[dict[str, Path], list[str]]:
    try:
        entries = sorted(root.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{printable(root)} cannot be read: {error.strerror}") from error
    files = [
        p for p in entries if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file()
    ]
    found: dict[str, Path] = {}
    for path in files:
        split = SPLIT_NAMES.get(path.stem.lower())
        if split in found:
            raise InputError(
                f"{printable(root)}: both {found[split].name!r} and {path.name!r} are {split}"
            )
        if split:
            found[split] = path
    beside = [path for path in files if path not in found.values()]
    if not found:
        hint = f"; is {printable(beside[0])} meant?" if beside else ""
        raise InputFileNotFoundError(
            f"{printable(root)} holds no train{suffixes[0]}, val{suffixes[0]} or test{suffixes[0]}; expected {expected}{hint}"
        )
    notes = []
    if beside:
        example = printable(Path(beside[0].name))
        notes.append(f"{printable(root)}: {len(beside)} {what}s are not used, as {example}")
    return {split: found[split] for split in ("train", "val", "test") if split in found}, notes
