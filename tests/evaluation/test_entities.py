"""Entities as seqeval finds and counts them in its strict mode; goldens by make_entities_goldens.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from tlx.evaluation.entities import Tags, entities, find, score

GOLDENS = json.loads(Path(__file__).with_name("entities_goldens.json").read_text())


def scores(true, predicted, scheme=""):
    names = sorted({tag for sentence in true + predicted for tag in sentence})
    tags = Tags(names, scheme)

    def flat(sentences):
        return np.array([i for s in sentences for i in [*map(names.index, s), -1]], np.int64)

    return score(find(flat(true), tags), find(flat(predicted), tags), tags.types)


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES"])
def test_entities_are_seqevals(scheme):
    cases = [case for case in GOLDENS if case["scheme"] == scheme]
    assert len(cases) == 60
    for case in cases:
        for tags, expected in zip(case["true"], case["entities"], strict=True):
            assert [list(entity) for entity in entities(tags, scheme)] == expected, tags


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES"])
def test_scores_are_seqevals(scheme):
    cases = [case for case in GOLDENS if case["scheme"] == scheme and "micro" in case]
    assert len(cases) > 50
    for case in cases:
        found = scores(case["true"], case["predicted"], scheme)
        for average in ("micro", "macro", "weighted"):
            assert getattr(found, average)() == pytest.approx(case[average], rel=1e-12, abs=0)
        each = [found.precision, found.recall, found.f1, found.support]
        for ours, theirs in zip(each, case["each"], strict=True):
            np.testing.assert_allclose(ours[found.occurs], theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        ("O I-x I-x", "IOB2", []),
        ("B-x I-y I-y", "IOB2", [("x", 0, 1)]),
        ("B-x I-x B-x I-x", "IOB2", [("x", 0, 2), ("x", 2, 4)]),
        ("I-x B-x", "IOB2", [("x", 1, 2)]),
        ("B-x O", "IOBES", []),
        ("B-x I-x", "IOBES", []),
        ("B-x I-x E-x", "IOBES", [("x", 0, 3)]),
        ("B-x B-x E-x S-x", "IOBES", [("x", 1, 3), ("x", 3, 4)]),
        ("B-x I-y E-y", "IOBES", []),
        ("E-x S-x I-x", "IOBES", [("x", 1, 2)]),
        ("B-a-b I-a-b", "IOB2", [("a-b", 0, 2)]),
        ("", "IOB2", []),
    ],
)
def test_sequences_that_break_the_rules(tags, scheme, expected):
    assert entities(tags.split(), scheme) == expected


def test_an_entity_ends_with_its_sentence():
    found = scores([["B-x"], ["I-x", "O"]], [["B-x"], ["O", "O"]])
    assert found.micro() == (1.0, 1.0, 1.0)


def test_nothing_there_and_nothing_found_is_zero():
    found = scores([["O"]], [["O"]])
    assert found.types == () and found.micro() == found.macro() == found.weighted() == (0, 0, 0)


def test_only_false_ones_weigh_nothing():
    found = scores([["O"]], [["B-x"]])
    assert found.weighted() == found.macro() == (0, 0, 0)
    assert found.predicted.tolist() == [1] and found.support.tolist() == [0]
