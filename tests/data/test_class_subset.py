"""Which of a network's classes the data's classes are."""

import dataclasses

import numpy as np
import pytest

from tlx.data.class_subset import in_network_order, resolve_subset, subset_hint
from tlx.data.npz import ArrayExamples
from tlx.data.source import Splits
from tlx.errors import InputError
from tlx.weights.labels import imagenet1k
from tlx.weights.meta import WeightsMeta

IMAGENET = WeightsMeta("resnet18", num_classes=1000, class_names=imagenet1k().names)
UNNAMED = WeightsMeta("resnet18", num_classes=1000)
DIGITS = WeightsMeta("resnet18", num_classes=3, class_names=("2", "1", "x"))
INSECTS = ("ants", "bees")


@pytest.mark.parametrize(
    "spec",
    [
        ("310", "309"),
        ("ant", "bee"),
        ("n02219486", "n02206856"),
        ("Ant", "n02206856"),
        ("ants=310", "bees=309"),
        ("bees=bee", "ants=310"),
        (" ants = ant ", "bees=n02206856"),
    ],
)
def test_indices_names_wordnet_ids_and_pairs_name_the_same_classes(spec):
    assert resolve_subset(spec, INSECTS, IMAGENET) == (310, 309)


def test_no_subset_and_the_same_names():
    assert resolve_subset((), INSECTS, IMAGENET) == ()
    assert resolve_subset(("auto",), ("ant", "tiger_shark"), IMAGENET) == (310, 3)
    assert resolve_subset(("auto",), ("n02219486", "BEE"), IMAGENET) == (310, 309)
    assert resolve_subset(("5", "999"), INSECTS, UNNAMED) == (5, 999)


@pytest.mark.parametrize(
    ("spec", "names", "meta", "message"),
    [
        (("310",), INSECTS, IMAGENET, r"has 1 entries, but the data has 2 classes \(ants, bees\)"),
        (("310", "310"), INSECTS, IMAGENET, r"ants, bees are all class 310 \(ant, n02219486\)"),
        (("310", "1000"), INSECTS, IMAGENET, r"1000 is outside 0\.\.999"),
        (("310", "-1"), INSECTS, IMAGENET, r"-1 is outside 0\.\.999"),
        (("ant", "beee"), INSECTS, IMAGENET, "no class 'beee'; did you mean 'bee'"),
        (("ant", "n02206857"), INSECTS, IMAGENET, "no class 'n02206857'; did you mean 'n0"),
        (("ant", "bee"), INSECTS, UNNAMED, "do not name their classes; give indices"),
        (("auto",), INSECTS, IMAGENET, "no class 'ants'; did you mean .*DATACLASS=CLASS"),
        (("ants=310",), INSECTS, IMAGENET, "does not say which .* these of the data are: bees"),
        (("ants=310", "wasps=3"), INSECTS, IMAGENET, "the data has no class 'wasps'"),
        (("ants=310", "ants=309"), INSECTS, IMAGENET, "names the data's class 'ants' twice"),
        (("ants=310", "309"), INSECTS, IMAGENET, "'309' is not DATACLASS=CLASS"),
        (("1", "x"), INSECTS, DIGITS, ""),
        (("2", "x"), INSECTS, DIGITS, "'2' is the name of class 0 and the index of another"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused(spec, names, meta, message):
    if not message:  # the index and the name agree
        assert resolve_subset(spec, names, meta) == (1, 2)
        return
    with pytest.raises(InputError, match=message):
        resolve_subset(spec, names, meta)


def test_a_name_that_two_classes_have_needs_an_index():
    meta = WeightsMeta("resnet18", num_classes=3, class_names=("crane", "Crane", "tench"))
    assert resolve_subset(("crane", "tench"), INSECTS, meta) == (0, 2)
    with pytest.raises(InputError, match=r"'CRANE' is the name of 2 classes .* give the index"):
        resolve_subset(("CRANE", "tench"), INSECTS, meta)


def test_hint_only_where_it_would_work():
    assert "are 2 of the 1000 classes" in subset_hint(("ant", "bee"), IMAGENET)
    assert "are all classes" in subset_hint(imagenet1k().synsets, IMAGENET)
    assert subset_hint(INSECTS, IMAGENET) == ""


def examples(names):
    labels = np.arange(len(names), dtype=np.int32)
    return ArrayExamples(np.zeros((len(names), 2, 2), np.uint8), labels, tuple(names), "test")


def test_wordnet_folders_get_the_networks_names_in_its_order():
    synsets = imagenet1k().synsets
    shuffled = [synsets[i] for i in np.random.default_rng(0).permutation(1000)]
    found = in_network_order(Splits(None, test=examples(shuffled)), IMAGENET)
    assert found.class_names == IMAGENET.class_names
    assert [synsets[label] for label in found.test.labels] == shuffled
    assert found.test.fingerprint != examples(shuffled).fingerprint
    assert found.test.name(3) == examples(shuffled).name(3)


def test_several_labels_are_put_in_the_networks_order():
    synsets = imagenet1k().synsets
    shuffled = [synsets[i] for i in np.random.default_rng(0).permutation(1000)]
    hot = np.eye(1000, dtype=np.uint8)
    hot[7] = hot[[1, 2, 3]].sum(axis=0)
    several = dataclasses.replace(examples(shuffled), labels=hot)
    found = in_network_order(Splits(None, test=several), IMAGENET).test.labels
    assert found.sum() == hot.sum()
    for row, ids in ((0, shuffled[:1]), (7, shuffled[1:4]), (999, shuffled[999:])):
        assert {synsets[label] for label in found[row].nonzero()[0]} == set(ids)


def test_other_classes_stay_as_they_are():
    some = Splits(None, test=examples(imagenet1k().synsets[:-1]))
    assert in_network_order(some, IMAGENET) is some
    own = Splits(None, test=examples(IMAGENET.class_names))
    assert in_network_order(own, IMAGENET) is own
    ids = Splits(None, test=examples(imagenet1k().synsets))
    assert in_network_order(ids, UNNAMED) is ids
