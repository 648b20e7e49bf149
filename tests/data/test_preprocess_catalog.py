"""Preprocessing of every set of weights of the catalog beside its project's own transform, on photographs."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.torchvision_import import import_torchvision
from tlx.data.preprocess import preprocess_fn
from tlx.models import ALIASES
from tlx.weights import catalog


def entries(project):
    return sorted(
        name
        for name, meta in catalog.entries().items()
        if (meta.source.startswith("hub:") if project == "timm" else meta.tag.startswith("tv"))
    )


def photographs(shared):
    """A wide, a tall, a grey one and one with an alpha channel, of real pictures."""
    folder = shared / "data" / "hymenoptera" / "val"
    wide, other = (Image.open(sorted(folder.glob(f"{name}/*.jpg"))[3]) for name in ("ants", "bees"))
    small = other.resize((150, 170))
    return [wide.convert("RGB"), wide.transpose(Image.Transpose.ROTATE_90).convert("RGB"), small]


def pixels(values, mean, std):
    """[H, W, 3] float, 0 to 255, of normalised values."""
    return (np.asarray(values, np.float64) * std + mean) * 255


def compare(name, theirs, mean, std, shared):
    preprocess = catalog.entries()[name].preprocess
    ours = preprocess_fn(preprocess)
    for picture in photographs(shared):
        expected = pixels(theirs(picture).numpy().transpose(1, 2, 0), mean, std)
        found = pixels(ours(picture), preprocess.mean, preprocess.std)
        assert found.shape == expected.shape
        difference = np.abs(found - expected)
        assert difference.max() <= 1 and difference.mean() <= 0.2, name


def torchvision_weights(name):
    """The enum of torchvision that the catalog's entry was made of."""
    models = import_torchvision().models
    meta = catalog.entries()[name]
    for other in (
        meta.architecture,
        *(a for a, own in ALIASES.items() if own == meta.architecture),
    ):
        if other in models.list_models(module=models):
            for weights in models.get_model_weights(other):
                if weights.url == meta.source:
                    return weights
    raise AssertionError(name)


@pytest.mark.parity
@pytest.mark.shared
@pytest.mark.parametrize("name", entries("torchvision"))
def test_torchvisions_weights(name, shared):
    transform = torchvision_weights(name).transforms()
    compare(name, transform, transform.mean, transform.std, shared)


@pytest.mark.parity
@pytest.mark.shared
@pytest.mark.parametrize("name", entries("timm"))
def test_timms_weights(name, shared):
    import_torchvision()
    import timm

    meta = catalog.entries()[name]
    config = timm.get_pretrained_cfg(f"{meta.source.rpartition('/')[2]}")
    settings = timm.data.resolve_data_config(pretrained_cfg=dataclasses.asdict(config))
    transform = timm.data.create_transform(**settings)
    compare(name, transform, settings["mean"], settings["std"], shared)
