"""Source `tfds:NAME[/CONFIG][:VERSION]` of pictures: data sets of TensorFlow Datasets, read by tlx/data/tfds_reader.py."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image

from tlx.config import DataConfig
from tlx.data.image import decode, upright_rgb
from tlx.data.source import Splits
from tlx.data.split import digest
from tlx.data.tfds_prepare import Wanted, tfds_module
from tlx.data.tfds_reader import Records, open_splits, printable
from tlx.errors import InputError


class TfdsExamples:
    """One split of a prepared data set, decoded when asked for; itself `PictureExamples`."""

    def __init__(self, records: Records):
        self._records = records
        self.class_names = tuple(map(printable, records.features["label"].names))

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [N]; one pass over the records that decodes no picture."""
        return np.fromiter((label for (label,) in self._records.values("label")), np.int32)

    def image(self, index: int) -> Image.Image:
        value = self._records.value(index, "image")
        if isinstance(value, bytes):
            return decode(value, name=self.name(index))
        pixels = np.asarray(value)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        return upright_rgb(Image.fromarray(pixels))

    def name(self, index: int) -> str:
        return self._records.name(index)

    @functools.cached_property
    def fingerprint(self) -> str:
        info = self._records.builder.info
        facts = [info.full_name, self._records.split, *self.class_names]
        facts += [str(split.num_bytes) for _, split in sorted(info.splits.items())]
        return digest(("\0".join(facts).encode(), self.labels.astype("<i4").tobytes()))


def load(config: DataConfig, name: str, training: bool = True) -> Splits:
    """Opens a prepared data set with features `image` and `label`; raises as `open_splits`."""
    opened = open_splits(config, name, training, _check_features)
    parts = {split: TfdsExamples(opened.records(split)) for split in opened.expressions}
    return Splits(parts.get("train"), parts.get("val"), parts.get("test"), opened.notes)


def _check_features(features: Any, wanted: Wanted) -> str:
    """Returns the label's feature. Raises InputError where they are not those of labelled pictures."""
    tfds = tfds_module()
    listed = ", ".join(f"{key} ({type(features[key]).__name__})" for key in features)
    if "image" not in features or "label" not in features:
        raise InputError(f"{wanted} has no features 'image' and 'label', but: {listed}")
    image, label = features["image"], features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"{wanted}: its label is not a class label: {listed}")
    is_file = isinstance(image, tfds.features.Image) and image.np_dtype in (
        np.uint8,
        np.uint16,
    )
    is_array = (
        type(image) is tfds.features.Tensor
        and image.np_dtype == np.uint8
        and (len(image.shape) == 2 or (len(image.shape) == 3 and image.shape[-1] in (1, 3)))
    )
    if not is_file and not is_array:
        raise InputError(
            f"{wanted}: its image is {type(image).__name__} {image.shape} of {image.np_dtype}, "
            "expected "
            "a picture of 8 bits"
        )
    return "label"
