import numpy as np
import pytest

from tlx.evaluation.collect import collect
from tlx.tasks.classification import Evaluation


def evaluation(targets, predictions, losses=None, classes=3):
    count = len(targets)
    outcomes = {
        "prediction": np.array(predictions),
        "loss": np.array(losses if losses is not None else [0.0] * count, np.float32),
        "probability": np.ones(count, np.float32),
        "top5": np.ones(count, np.float32),
    }
    return Evaluation(np.array(targets), outcomes, "abcdef"[:classes])


def test_summary_confusion_and_per_class():
    found = evaluation([0, 0, 1, 1, 1], [0, 1, 1, 1, 0], [1, 2, 3, 4, 6], classes=3)
    summary = found.summary()
    assert summary.pop("f1") == summary.pop("macro_f1") == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert summary.pop("matthews") == pytest.approx(1 / 6)
    assert summary == {"loss": 3.2, "accuracy": 0.6, "correct": 3, "examples": 5}
    assert found.confusion().tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    np.testing.assert_array_equal(found.per_class_accuracy(), [0.5, 2 / 3, np.nan])
    assert found.per_class() == {"accuracy": {"a": 0.5, "b": 2 / 3}}


def test_top5_is_shown_where_there_are_more_than_five_classes():
    assert "top5_accuracy" not in evaluation([0], [0], classes=5).summary()
    assert evaluation([0], [0], classes=6).summary()["top5_accuracy"] == 1.0


def test_worst_are_the_wrong_ones_by_loss():
    found = evaluation([0, 0, 1, 1], [0, 1, 0, 2], [9, 2, 5, 3])
    assert found.worst(2).tolist() == [2, 3]


def test_padding_is_dropped():
    batches = [
        {"targets": np.array([0, 1]), "weight": np.array([1.0, 1.0]), "inputs": np.array([0, 1])},
        {"targets": np.array([2, 0]), "weight": np.array([1.0, 0.0]), "inputs": np.array([1, 0])},
    ]

    def evaluate(batch):
        zeros = np.zeros(2, np.float32)
        return {
            "prediction": batch["inputs"],
            "loss": zeros + 1,
            "probability": zeros,
            "top5": zeros,
        }

    found = Evaluation(*collect(batches, evaluate), "abc")
    assert found.targets.tolist() == [0, 1, 2]
    summary = found.summary()
    assert (summary["accuracy"], summary["correct"], summary["examples"]) == (2 / 3, 2, 3)
