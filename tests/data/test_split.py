import numpy as np
import pytest

from tlx.config import build
from tlx.data.npz import ArrayExamples
from tlx.data.source import load_splits
from tlx.data.split import Subset, few_per_class, occurring, stratified
from tlx.errors import InputError

LABELS = np.repeat(np.arange(4), [100, 50, 7, 1]).astype(np.int32)


def test_stratified_is_disjoint_complete_and_sorted() -> None:
    kept, held = stratified(LABELS, 0.2, seed=3, purpose="test")
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(LABELS)))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.2, 0.5, 0.9])
def test_stratified_proportions(fraction: float) -> None:
    kept, held = stratified(LABELS, fraction, seed=0, purpose="test")
    counts = np.bincount(LABELS)
    taken = np.bincount(LABELS[held], minlength=4)
    assert (np.abs(taken - counts * fraction) <= 1).all()
    assert (np.bincount(LABELS[kept], minlength=4) >= 1).all()
    if fraction <= 0.5:  # above, keeping the last example of a class costs some
        assert len(held) == int(np.floor(len(LABELS) * fraction + 0.5))


def test_small_classes_share_a_small_fraction() -> None:
    _, held = stratified(np.repeat(np.arange(10), 4), 0.1, seed=0, purpose="val")
    assert len(held) == 4 and len(set((held // 4).tolist())) == 4


def test_draws_depend_on_seed_and_purpose_only() -> None:
    def draw(seed: int, purpose: str) -> list[int]:
        return stratified(LABELS, 0.2, seed=seed, purpose=purpose)[1].tolist()

    assert draw(1, "test") == draw(1, "test")
    assert draw(1, "test") != draw(2, "test")
    assert draw(1, "test") != draw(1, "val")


def test_draw_is_this_one_for_ever() -> None:
    """A changed draw would silently move examples between the splits of a resumed run."""
    _, held = stratified(np.repeat(np.arange(2), 10), 0.3, seed=11, purpose="test")
    assert held.tolist() == [1, 2, 7, 12, 17, 18]


def test_few_per_class_is_nested() -> None:
    names = ("a", "b", "c")
    labels = LABELS[LABELS < 3]
    small, rest = few_per_class(labels, 2, names, seed=5)
    large, _ = few_per_class(labels, 7, names, seed=5)
    assert np.bincount(labels[small]).tolist() == [2, 2, 2]
    assert set(small) < set(large)
    assert len(small) + len(rest) == len(labels) and not set(small) & set(rest)
    with pytest.raises(InputError, match="class 'c' has only 7"):
        few_per_class(labels, 8, names, seed=5)


def test_subset_is_a_view() -> None:
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    whole = ArrayExamples(images, np.array([0, 1, 0, 1, 0, 1], np.int32), ("a", "b"), "x")
    part = Subset(whole, np.array([4, 1]))
    nested = Subset(part, np.array([1]))
    assert len(part) == 2 and part.labels.tolist() == [0, 1]
    assert nested.name(0) == "x[1]" and nested.image(0).getpixel((0, 0)) == (1, 1, 1)
    assert len({whole.fingerprint, part.fingerprint, nested.fingerprint}) == 3
    assert part.fingerprint == Subset(whole, np.array([4, 1])).fingerprint


def test_labels_per_class_is_the_whole_budget() -> None:
    config = build({"data.source": "digits", "data.labels_per_class": 10, "data.val_fraction": 0.2})
    splits = load_splits(config.data, 0)
    assert splits.val is not None and splits.test is not None
    assert np.bincount(splits.train.labels).tolist() == [8] * 10
    assert np.bincount(splits.val.labels).tolist() == [2] * 10
    assert len(splits.test) == 1797 - 100
    names = [{part.name(i) for i in range(len(part))} for part in splits.given().values()]
    assert len(set.union(*names)) == 1797


def test_validation_that_would_be_empty_is_refused() -> None:
    config = build({"data.source": "digits", "data.labels_per_class": 1, "data.val_fraction": 0.2})
    with pytest.raises(InputError, match="leaves nothing for val"):
        load_splits(config.data, 0)


def test_unknown_source_shows_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'folder'"):
        load_splits(build({"data.source": "foldr"}).data, 0)


def test_split_expressions_are_for_tfds_only() -> None:
    with pytest.raises(InputError, match=r"config\.data\.val_split"):
        load_splits(build({"data.source": "digits", "data.val_split": "dev"}).data, 0)


def several(count: int = 400, seed: int = 1) -> np.ndarray:
    """Labels [count, 6] from common to rare, the last two often together, some examples without."""
    rng = np.random.default_rng(seed)
    hot = rng.random((count, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
    hot[:, 5] |= hot[:, 4] & (rng.random(count) < 0.5)
    hot[:3, 5] = True
    return hot.astype(np.uint8)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.8])
def test_several_labels_keep_their_shares(fraction: float) -> None:
    hot = several()
    kept, held = stratified(hot, fraction, seed=2, purpose="test")
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(hot)))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    assert abs(len(held) - fraction * len(hot)) <= 1
    assert (np.abs(hot[held].sum(0) - fraction * hot.sum(0)) <= 1.5).all()


def test_several_labels_are_shared_better_than_by_chance() -> None:
    hot = several()
    _, held = stratified(hot, 0.2, seed=0, purpose="test")
    chance = np.random.default_rng(0).permutation(len(hot))[: len(held)]

    def worst(rows: np.ndarray) -> float:
        return float(np.abs(rows.sum(0) / hot.sum(0) - 0.2).max())

    assert worst(hot[held]) < 0.3 * worst(hot[chance])


def test_rare_labels_fill_a_small_fraction_and_keep_an_example() -> None:
    hot = np.eye(10, dtype=np.uint8).repeat(
        4, axis=0
    )  # 0.4 of each label's four is no whole example
    _, held = stratified(hot, 0.1, seed=0, purpose="val")
    assert len(held) == 4 and hot[held].sum(0).max() == 1
    alone = np.eye(3, dtype=np.uint8)
    assert len(stratified(alone, 0.9, seed=0, purpose="val")[1]) == 0
    both = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [1, 0]], np.uint8)
    for seed in range(5):
        kept, held = stratified(both, 0.8, seed=seed, purpose="val")
        assert 1 in kept and both[kept].any(0).all() and {2, 3} <= set(held.tolist())


def test_the_draw_for_several_labels_is_this_one_for_ever() -> None:
    hot = (np.arange(24)[:, None] * [1, 3, 5] % 7 < [3, 2, 1]).astype(np.uint8)
    _, held = stratified(hot, 0.3, seed=11, purpose="test")
    assert held.tolist() == [5, 15, 16, 17, 18, 21, 23]
    others = [stratified(hot, 0.3, seed=s, purpose=p)[1] for s, p in ((12, "test"), (11, "val"))]
    assert all(other.tolist() != held.tolist() for other in others)


def test_few_per_class_of_several_labels() -> None:
    hot, names = several(), tuple("abcdef")
    small, rest = few_per_class(hot, 3, names, seed=5)
    large, _ = few_per_class(hot, 8, names, seed=5)
    assert (hot[small].sum(0) >= 3).all() and (hot[large].sum(0) >= 8).all()
    assert len(small) <= 18 and hot[small].any(1).all()
    assert set(small) < set(large) and len(set(small)) == len(small)
    assert len(small) + len(rest) == len(hot) and not set(small) & set(rest)
    with pytest.raises(InputError, match="class 'e' has only 14 training examples"):
        few_per_class(hot, 15, names, seed=5)


def test_occurring() -> None:
    assert occurring(np.array([3, 1, 3])) == {1, 3}
    assert occurring(np.array([[0, 1, 0], [0, 1, 1]], np.uint8)) == {1, 2}
    assert occurring(np.zeros((2, 3), np.uint8)) == set()
