import dataclasses
import pickle
from typing import Any

import numpy as np

from tlx.data.class_subset import Renamed
from tlx.data.split import Subset, drawn, shuffled
from tlx.data.texts import Texts

SINGLE = Texts(("a", "b", "c"), None, np.array([0, 1, 0], np.int32), ("no", "yes"), "x/train")
PAIRS = Texts(
    ("a", "b", "c"),
    ("x", "y", "z"),
    np.array([0.5, -1, 2], np.float32),
    (),
    "train.tsv",
    np.array([2, 3, 7]),
)


def test_one_text_or_two() -> None:
    assert len(SINGLE) == 3 and SINGLE.text(1) == ("b",) and PAIRS.text(2) == ("c", "z")
    assert SINGLE.name(1) == "x/train[1]" and PAIRS.name(2) == "train.tsv line 7"
    copy = pickle.loads(pickle.dumps(PAIRS))
    assert copy.text(1) == ("b", "y") and copy.fingerprint == PAIRS.fingerprint


def test_fingerprint_is_of_texts_labels_and_classes() -> None:
    changes: list[tuple[Texts, dict[str, Any]]] = [
        (SINGLE, {}),
        (SINGLE, {"first": ("ab", "", "c")}),
        (SINGLE, {"first": ("a", "c", "b")}),
        (SINGLE, {"second": ("a", "b", "c")}),
        (SINGLE, {"class_names": ("no", "yep")}),
        (SINGLE, {"labels": np.array([0, 1, 1], np.int32)}),
        (PAIRS, {}),
        (PAIRS, {"second": None}),
        (PAIRS, {"labels": np.array([0.5, -1, 2.25], np.float32)}),
    ]
    prints = {dataclasses.replace(texts, **change).fingerprint for texts, change in changes}
    assert len(prints) == len(changes)
    moved = dataclasses.replace(PAIRS, title="elsewhere.tsv", lines=None)
    assert moved.fingerprint == PAIRS.fingerprint


def test_views_forward_what_an_example_is() -> None:
    part = Subset(Subset(PAIRS, np.array([2, 0, 1])), np.array([0, 2]))
    assert [part.text(i) for i in range(len(part))] == [("c", "z"), ("b", "y")]
    assert part.name(1) == "train.tsv line 3" and part.labels.tolist() == [2, -1]
    other = Renamed(SINGLE, np.array([1, 0], np.int32), ("YES", "NO"))
    assert other.text(1) == ("b",) and other.labels.tolist() == [1, 0, 1]


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Tagged sentences, as far as a view needs them."""

    words: tuple[tuple[str, ...], ...]
    tags: tuple[np.ndarray, ...]
    class_names: tuple[str, ...] = ("O", "B")
    fingerprint: str = "0"

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self.words), np.int32)

    def __len__(self) -> int:
        return len(self.words)

    def name(self, index: int) -> str:
        return f"s[{index}]"


def test_views_forward_words_and_tags() -> None:
    tags = tuple(np.array(own, np.int32) for own in ([0], [0, 1], [1, 1, 0]))
    whole = Sentences((("a",), ("b", "c"), ("d", "e", "f")), tags)
    part = Subset(whole, np.array([2, 0]))
    assert part.words == (("d", "e", "f"), ("a",))
    assert [own.tolist() for own in part.tags] == [[1, 1, 0], [0]]
    renamed = Renamed(part, np.array([1, 0], np.int32), ("B", "O"))
    assert renamed.words == part.words
    assert [own.tolist() for own in renamed.tags] == [[0, 0, 1], [1]]


def test_a_draw_without_classes() -> None:
    kept, held = drawn(40, 0.25, seed=3, purpose="val")
    assert len(held) == 10 and sorted([*kept, *held]) == list(range(40))
    assert set(held) == set(shuffled(40, 3, "val")[:10])
    assert not np.array_equal(held, drawn(40, 0.25, seed=4, purpose="val")[1])
    assert len(drawn(1, 0.9, seed=0, purpose="test")[1]) == 0
