import numpy as np
import pytest
import sklearn.metrics

from tlx.evaluation.class_counts import ClassCounts
from tlx.tasks import classification

RNG = np.random.default_rng(0)


def drawn(classes: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    targets = RNG.integers(0, classes, count).astype(np.int32)
    guesses = np.where(RNG.random(count) < 0.6, targets, RNG.integers(0, classes, count))
    return targets, guesses.astype(np.int32)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_is_scikit_learns(classes: int) -> None:
    targets, predictions = drawn(classes)
    found = ClassCounts.of(targets, predictions, classes)
    each = sklearn.metrics.f1_score(targets, predictions, average=None)
    np.testing.assert_allclose(found.f1(), each, rtol=1e-12)
    macro = sklearn.metrics.f1_score(targets, predictions, average="macro")
    assert found.macro_f1() == pytest.approx(macro, rel=1e-12)
    matthews = sklearn.metrics.matthews_corrcoef(targets, predictions)
    assert found.matthews() == pytest.approx(matthews, rel=1e-12)


def test_classes_that_are_not_there() -> None:
    targets, predictions = np.array([0, 0, 2]), np.array([0, 2, 2])
    found = ClassCounts.of(targets, predictions, 5)
    np.testing.assert_array_equal(found.f1(), [2 / 3, np.nan, 2 / 3, np.nan, np.nan])
    assert found.macro_f1() == pytest.approx(
        sklearn.metrics.f1_score(targets, predictions, average="macro"), rel=1e-12
    )


@pytest.mark.parametrize("predictions", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_constant_side_has_no_correlation(predictions: list[int]) -> None:
    targets = np.array([0, 1, 1, 0])
    assert ClassCounts.of(targets, np.array(predictions), 2).matthews() == 0.0
    assert ClassCounts.of(np.array(predictions), targets, 2).matthews() == 0.0


def test_many_examples_do_not_overflow() -> None:
    count = np.array([4_000_000_000, 4_000_000_000])
    assert ClassCounts(count, count, count).matthews() == 1.0


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_summary_has_what_metrics_names(classes: int) -> None:
    targets, predictions = drawn(classes)
    zeros = np.zeros(len(targets), np.float32)
    outcomes = {"prediction": predictions, "loss": zeros, "probability": zeros, "top5": zeros}
    summary = classification.Evaluation(targets, outcomes, "abcdef"[:classes]).summary()
    assert set(classification.metrics(classes)) <= set(summary)
    average = "binary" if classes == 2 else "macro"
    expected = sklearn.metrics.f1_score(targets, predictions, average=average)
    assert summary["f1"] == pytest.approx(expected, rel=1e-12)
