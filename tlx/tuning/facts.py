"""What tune.method=auto decides from: facts of the training data, the weights and the model's structure."""

from __future__ import annotations

import statistics
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tlx.data.source import Examples, PictureExamples, Splits
from tlx.errors import InputError
from tlx.models.base import Model
from tlx.models.leaves import is_within, module_of, values, with_values
from tlx.models.vgg import MapLinear
from tlx.pretrained import Source
from tlx.tuning.auto import SMALL_INPUT, SMALL_PICTURE, Facts

LOOKED_AT = 25  # training pictures, evenly spaced, whose sizes are looked at


def facts(splits: Splits, source: Source, *, multiple: int = 1) -> Facts:
    """Returns the facts of the training data and of a model with its weights.

    Args:
      splits: with one of training; some of its pictures are decoded.
      source: the model's values, fitted to the config.
      multiple: what a batch must be a multiple of.

    Raises:
      InputError: a broken picture.
    """
    assert splits.train is not None
    examples, model, found = splits.train, source.model, source.leaves
    labels = examples.labels
    attention = any(".attention." in path for path in found)
    picture = picture_size(examples)
    changed = {module_of(path) for path in source.fresh}
    if source.file is not None and source.file.meta.stem != model.meta.stem:
        changed.add(model.stages[0])
    return Facts(
        examples=len(examples),
        labels=int(labels.sum()) if labels.ndim == 2 else len(labels),
        class_names=examples.class_names,
        picture=picture,
        input_size=model.meta.image.size,
        takes_small=picture < SMALL_PICTURE and not attention and _takes_small(model),
        attention=attention,
        batchnorm=any(path.endswith(".mean") for path in found),
        stages=model.stages,
        pretrained=source.loaded is not None,
        fresh_stages=tuple(stage for stage in model.stages if stage in changed),
        new_head=source.loaded is None
        or any(is_within(p, model.classifiers) for p in source.fresh),
        numbered=splits.numbered,
        multiple=multiple,
        adapters=source.trained.files.method if source.trained else "",
    )


def picture_size(examples: Examples) -> int:
    """Returns the median over some pictures of the root of their area, in pixels. Raises InputError for a broken one."""
    pictures = cast(PictureExamples, examples)
    places = np.unique(np.linspace(0, len(examples) - 1, LOOKED_AT).round().astype(int))
    return round(statistics.median(_side(pictures.image(int(place))) for place in places))


def _side(picture: Image.Image | np.ndarray) -> float:
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size
    return float(height * width) ** 0.5


def _takes_small(model: Model) -> bool:
    """Whether the stages leave something of SMALL_INPUT pixels, and none of them reads a map of one size."""
    if any(isinstance(module, MapLinear) for _, module in nnx.iter_modules(model)):
        return False
    shape = (1, SMALL_INPUT, SMALL_INPUT, model.meta.image.channels)
    try:
        jax.eval_shape(
            lambda arrays, x: with_values(model, arrays).run(x),
            values(model),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
    except InputError:
        return False
    return True
