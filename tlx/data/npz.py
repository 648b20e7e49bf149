"""Source `npz`: pictures as arrays in one file, and examples held in memory."""

from __future__ import annotations

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tlx.config import DataConfig
from tlx.data.source import Splits
from tlx.data.split import digest
from tlx.errors import InputError, InputFileNotFoundError

_EXPECTED = "train_images [N,H,W] or [N,H,W,C] uint8 and train_labels [N] of integers"
_SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Pictures held as one uint8 array [N, H, W] or [N, H, W, C]; itself `PictureExamples`."""

    images: np.ndarray
    labels: np.ndarray  # int32 [N]
    class_names: tuple[str, ...]
    title: str  # the examples are called title[0], title[1], ...

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image | np.ndarray:
        pixels = self.images[index]
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim == 3 and pixels.shape[-1] != 3:
            return pixels
        return Image.fromarray(pixels).convert("RGB")

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    @functools.cached_property
    def fingerprint(self) -> str:
        pixels = np.ascontiguousarray(self.images)
        shape = repr((self.images.shape, self.class_names)).encode()
        return digest((shape, pixels.tobytes(), self.labels.astype("<i4").tobytes()))


def load(config: DataConfig, name: str, training: bool = True) -> Splits:
    """Reads `config.root`, a file that `np.savez` wrote.

    Arrays: `train_images` uint8 [N, H, W] or [N, H, W, C], `train_labels` integers [N] or [N, 1],
    optionally the same as `val_*` and `test_*`, and `class_names` [classes]. Without names the
    classes are 0 .. largest label. One channel is grey, three are red, green and blue; others are
    taken as they are by a network with as many. Evaluation (`training` False) needs no `train_*`
    where there are others. Pickled objects are never loaded.

    Raises:
      InputError: a missing array, a wrong dtype or shape, lengths that differ, labels out of range.
      InputFileNotFoundError: there is no such file.
    """
    del name
    path = Path(config.root).expanduser()
    if not config.root or not path.is_file():
        raise InputFileNotFoundError(
            f"data source npz: config.data.root is {config.root!r}, expected a .npz file with "
            f"{_EXPECTED}"
        )
    arrays = _read(path)
    there = [s for s in _SPLITS if f"{s}_images" in arrays or f"{s}_labels" in arrays]
    if "train" not in there and (training or not there):
        there.insert(0, "train")
    labels = {split: _labels(path, arrays, split) for split in there}
    names = _class_names(path, arrays, labels)
    parts = {}
    for split, values in labels.items():
        if split != "test" and "test" in labels and not training:
            continue
        _check_range(path, f"{split}_labels", values, names)
        images = _images(path, arrays, split, len(values))
        parts[split] = ArrayExamples(images, values.astype(np.int32), names, split)
    known = {f"{split}_{part}" for split in _SPLITS for part in ("images", "labels")}
    unused = sorted(set(arrays) - known - {"class_names"})
    notes = (f"{path.name}: arrays not used: {', '.join(unused)}",) if unused else ()
    numbered = "class_names" not in arrays
    return Splits(parts.get("train"), parts.get("val"), parts.get("test"), notes, numbered=numbered)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds one unnamed array; expected a .npz with {_EXPECTED}")
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        what = " ".join(str(error).split())
        if "pickle" in what:
            what = "it holds Python objects or is no .npz; only plain arrays are read"
        raise InputError(f"{path} cannot be read as .npz: {what}") from error


def _array(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise InputError(
            f"{path}: there is no array {name!r} (there are: "
            f"{', '.join(sorted(arrays)) or 'none'}); "
            f"expected {_EXPECTED}"
        )
    return arrays[name]


def _labels(path: Path, arrays: Mapping[str, np.ndarray], split: str) -> np.ndarray:
    labels = _array(path, arrays, f"{split}_labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {split}_labels is {labels.dtype} {list(labels.shape)}, expected integers [N]"
        )
    return labels


def _images(path: Path, arrays: Mapping[str, np.ndarray], split: str, count: int) -> np.ndarray:
    images = _array(path, arrays, f"{split}_images")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise InputError(
            f"{path}: {split}_images is {images.dtype} {list(images.shape)}, expected uint8 (0 to "
            "255) [N,H,W] or [N,H,W,C]"
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3):
        raise InputError(
            f"{path}: {split}_images is {list(images.shape)}, which looks like [N,C,H,W]; channels come last here: "
            "write images.transpose(0, 2, 3, 1)"
        )
    if len(images) != count:
        raise InputError(f"{path}: {len(images)} {split}_images but {count} {split}_labels")
    return images


def _class_names(
    path: Path, arrays: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    if "class_names" not in arrays:
        largest = max((int(values.max()) for values in labels.values() if len(values)), default=-1)
        if largest >= 1_000_000:
            raise InputError(f"{path}: a label is {largest}; give class_names if that is right")
        return tuple(str(label) for label in range(largest + 1))
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise InputError(
            f"{path}: class_names is {names.dtype} {list(names.shape)}, expected strings [classes]"
        )
    if len(set(names.tolist())) != len(names):
        raise InputError(f"{path}: class_names has a name twice: {', '.join(names.tolist()[:20])}")
    return tuple(names.tolist())


def _check_range(path: Path, array: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))  # before a cast could hide it
    if len(wrong):
        raise InputError(
            f"{path}: {array}[{wrong[0]}] is {labels[wrong[0]]}, outside 0..{len(names) - 1} "
            f"({len(names)} classes); {len(wrong)} label(s) are"
        )
