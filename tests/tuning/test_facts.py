"""What tune.method=auto decides from, taken from real splits, weights and models."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import tlx
from tests import levels
from tlx import pretrained
from tlx.config import DataConfig
from tlx.data.npz import ArrayExamples
from tlx.data.source import Splits, load_splits
from tlx.errors import InputError
from tlx.tuning.facts import LOOKED_AT, facts, picture_size
from tlx.weights.load import Fitting, open_weights


def examples(count=40, side=20, classes=("a", "cat")):
    pictures = np.zeros((count, side, side), np.uint8)
    return ArrayExamples(pictures, np.arange(count, dtype=np.int32) % len(classes), classes, "t")


def splits(**fields):
    return Splits(examples(**fields))


def from_scratch(name, **fields):
    return pretrained.source(name, num_classes=2, **fields)


@pytest.mark.parametrize(
    ("name", "attention", "batchnorm", "first", "takes_small"),
    [
        ("resnet18", False, True, "stem", True),
        ("squeezenet1_0", False, False, "stem", True),
        ("vgg11", False, False, "block1", False),  # its linear layers want a map of 7x7
        ("convnext_tiny", False, False, "stem", True),
        ("vit_tiny_patch16_224", True, False, "stem", False),
        ("swin_tiny_patch4_window7_224", True, False, "stem", False),
    ],
)
def test_the_structure_of_a_model(name, attention, batchnorm, first, takes_small):
    found = facts(splits(), from_scratch(name))
    assert (found.attention, found.batchnorm) == (attention, batchnorm)
    assert found.stages[0] == first
    assert found.takes_small == takes_small
    assert found.input_size == 224 and not found.pretrained and found.new_head
    assert not facts(splits(side=200), from_scratch(name)).takes_small


def test_a_network_that_nothing_is_left_in_takes_no_small_pictures():
    deep = from_scratch("densenet121")
    assert facts(splits(), deep).takes_small
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tlx.tuning.facts.SMALL_INPUT", 24)
        assert not facts(splits(), deep).takes_small


def test_the_data(tmp_path):
    found = facts(splits(), from_scratch("resnet20_cifar"), multiple=3)
    assert (found.examples, found.labels, found.per_class) == (40, 40, 20)
    assert found.class_names == ("a", "cat") and not found.oriented and found.multiple == 3
    assert found.picture == 20 and found.input_size == 32
    several = dataclasses.replace(
        examples(), labels=np.array([[1, 1], [0, 1], [0, 0]] + [[0, 0]] * 37, np.uint8)
    )
    assert facts(Splits(several), from_scratch("resnet20_cifar")).labels == 3


def test_classes_that_an_npz_has_no_names_for_are_numbers(tmp_path):
    path = levels.write_data(tmp_path / "named.npz")
    arrays = dict(np.load(path))
    del arrays["class_names"]
    np.savez(tmp_path / "numbered.npz", **arrays)
    for name, numbered in (("named", False), ("numbered", True)):
        config = DataConfig(source="npz", root=str(tmp_path / f"{name}.npz"), val_fraction=0.2)
        found = facts(load_splits(config, 0), from_scratch("resnet20_cifar"))
        assert (found.numbered, found.oriented) == (numbered, False)
    digits = load_splits(DataConfig(source="digits", labels_per_class=2), 0)
    assert facts(digits, from_scratch("resnet20_cifar")).oriented


class Pictures:
    """Pictures of many sizes, some of which are looked at."""

    def __init__(self, count):
        self.count, self.seen = count, []

    def __len__(self):
        return self.count

    def image(self, index):
        self.seen.append(index)
        if index == 999:
            raise InputError("t[999]: broken picture")
        return Image.new("RGB", (10 + index, 40 + 4 * index))  # twice as high as wide


def test_the_median_side_is_of_a_few_pictures_from_all_over():
    pictures = Pictures(101)
    assert picture_size(pictures) == 120  # of the one in the middle, 60 x 240
    assert len(pictures.seen) == LOOKED_AT and pictures.seen[0] == 0 and pictures.seen[-1] == 100
    few = Pictures(3)
    assert picture_size(few) == 22 and few.seen == [0, 1, 2]
    with pytest.raises(InputError, match=r"t\[999\]: broken"):
        picture_size(Pictures(1000))


def test_what_the_weights_have(tmp_path):
    tlx.save_weights(
        tlx.create_model("resnet20_cifar", num_classes=2), tmp_path / "net.safetensors"
    )
    file = open_weights("resnet20_cifar", str(tmp_path / "net.safetensors"))

    def of(**fields):
        return facts(splits(), pretrained.source("resnet20_cifar", file=file, **fields))

    new = of(num_classes=2, head="new")
    assert new.pretrained and new.new_head and new.fresh_stages == ()
    assert not of(num_classes=2, head="keep").new_head
    trimmed = dataclasses.replace(
        file,
        conversion=dataclasses.replace(
            file.conversion,
            arrays={
                k: v for k, v in file.conversion.arrays.items() if not k.startswith("layer3.1.")
            },
        ),
    )
    lacking = pretrained.source(
        "resnet20_cifar", file=trimmed, num_classes=2, head="new", missing_ok=("layer3",)
    )
    assert facts(splits(), lacking).fresh_stages == ("layer3",)


def test_a_stem_that_is_made_smaller_is_not_the_weights_own(tmp_path):
    tlx.save_weights(tlx.create_model("resnet18", num_classes=2), tmp_path / "net.safetensors")
    file = open_weights("resnet18", str(tmp_path / "net.safetensors"))
    for init in ("crop", "new"):
        source = pretrained.source(
            "resnet18",
            file=file,
            num_classes=2,
            meta=pretrained.shaped(file.meta, stem="small"),
            fitting=Fitting(init),
        )
        assert facts(splits(), source).fresh_stages == ("stem",)
