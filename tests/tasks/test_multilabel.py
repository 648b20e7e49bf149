import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from tlx.config import TrainConfig
from tlx.errors import InputError
from tlx.evaluation.report import Shown
from tlx.tasks import LossOptions, multilabel

RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((40, 7)) * 3).astype(np.float32)
TARGETS = (RNG.random((40, 7)) < [0.5, 0.3, 0.3, 0.2, 0.1, 0.05, 0]).astype(np.float32)
TARGETS[:2, 5] = 1
PROBABILITIES = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))


def batch(targets=TARGETS, weight=None):
    ones = np.ones(len(targets), np.float32)
    return {"targets": targets, "weight": ones if weight is None else weight}


def evaluated(logits=LOGITS, targets=TARGETS):
    found = jax.device_get(multilabel.outcomes(jnp.asarray(logits), batch(targets)))
    return multilabel.Evaluation(targets, found, "abcdefg"[: targets.shape[1]])


@pytest.mark.parity
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_pytorchs(weighted):
    import torch

    factors = np.linspace(0.5, 8, 7, dtype=np.float32) if weighted else None
    criterion = torch.nn.BCEWithLogitsLoss(
        pos_weight=torch.from_numpy(factors) if weighted else None
    )
    logits = torch.from_numpy(LOGITS * 10).requires_grad_()
    expected = criterion(logits, torch.from_numpy(TARGETS))
    expected.backward()
    found, gradient = jax.value_and_grad(
        lambda z: multilabel.loss(
            z, batch(), LossOptions(class_weights=tuple(factors.tolist()) if weighted else ())
        )
    )(jnp.asarray(LOGITS * 10))
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_is_pytorchs_of_yes_and_no(smoothing):
    import torch

    pairs = torch.stack([torch.zeros(LOGITS.size), torch.from_numpy(LOGITS).flatten()], dim=1)
    expected = torch.nn.functional.cross_entropy(
        pairs, torch.from_numpy(TARGETS).flatten().long(), label_smoothing=smoothing
    )
    found = multilabel.loss(jnp.asarray(LOGITS), batch(), LossOptions(label_smoothing=smoothing))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_loss_is_the_mean_over_classes_and_real_examples():
    weight = (np.arange(40) % 3 > 0).astype(np.float32)
    each = -np.where(TARGETS > 0, np.log(PROBABILITIES), np.log(1 - PROBABILITIES))
    found = multilabel.loss(jnp.asarray(LOGITS), batch(weight=weight))
    assert float(found) == pytest.approx(each[weight > 0].mean(), rel=1e-6)
    np.testing.assert_allclose(evaluated().outcomes["loss"], each.mean(axis=1), rtol=1e-5)


def test_options_come_from_the_config_and_the_training_split():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    found = multilabel.loss_options(TrainConfig(class_weights=("auto",)), labels, "abc")
    assert found.class_weights == pytest.approx((1 / 3, 3.0, 4.0))
    always = multilabel.loss_options(TrainConfig(class_weights=("auto",)), labels[:3, :1], "a")
    assert always.class_weights == pytest.approx((1 / 3,))
    found = multilabel.loss_options(TrainConfig(class_weights=("1", "2", "3")), labels, "abc")
    assert found.class_weights == (1.0, 2.0, 3.0)
    with pytest.raises(InputError, match="has 2 values"):
        multilabel.loss_options(TrainConfig(class_weights=("1", "2")), labels, "abc")
    with pytest.raises(InputError, match="binary cross-entropy alone"):
        multilabel.loss_options(TrainConfig(loss="focal:2"), labels, "abc")


def test_loss_in_half_precision_is_computed_in_single():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    found, same = (multilabel.loss(z, batch()) for z in (logits, logits.astype(jnp.float32)))
    assert found.dtype == jnp.float32 and found == same
    assert multilabel.outcomes(logits, batch())["logits"].dtype == jnp.float32


@pytest.mark.parametrize("digits", [8, 1, 0])  # rounded scores have ties
def test_average_precision_is_scikit_learns(digits):
    scores = LOGITS.round(digits)
    found = multilabel.average_precision(TARGETS, scores)
    for label in range(6):
        expected = sklearn.metrics.average_precision_score(TARGETS[:, label], scores[:, label])
        assert found[label] == pytest.approx(expected, rel=1e-13)
    assert np.isnan(found[6])


def test_metrics_are_scikit_learns():
    found, given = evaluated(), PROBABILITIES > 0.5
    summary = found.summary()

    def f1(average):
        return sklearn.metrics.f1_score(TARGETS, given, average=average, zero_division=np.nan)

    ap = sklearn.metrics.average_precision_score(TARGETS[:, :6], LOGITS[:, :6], average="macro")
    assert summary["mAP"] == pytest.approx(ap, rel=1e-13)
    assert summary["f1_micro"] == pytest.approx(f1("micro"), rel=1e-13)
    assert summary["f1_macro"] == pytest.approx(f1("macro"), rel=1e-13)
    exact = sklearn.metrics.accuracy_score(TARGETS, given)
    assert 0 < exact < 1 and summary["subset_accuracy"] == exact
    assert summary["loss"] == pytest.approx(found.outcomes["loss"].astype(np.float64).mean())
    assert summary["examples"] == 40 and summary["classes_without_positives"] == 1
    assert set(multilabel.metrics(7)) <= set(summary) and multilabel.metrics(7)[0] == "mAP"
    assert f"mAP {ap:.4f}" in found.headline()
    precision, recall, each, support = sklearn.metrics.precision_recall_fscore_support(
        TARGETS, given, zero_division=np.nan
    )
    np.testing.assert_allclose(found.scores.precision, precision)
    np.testing.assert_allclose(found.scores.recall, recall)
    np.testing.assert_allclose(found.scores.f1, each)
    f1, ap = found.per_class()["f1"], found.per_class()["ap"]
    assert f1 == pytest.approx({name: each["abcdefg".index(name)] for name in f1})
    assert [*ap] == [*"abcdef"]  # none of the last
    np.testing.assert_array_equal(found.scores.support, support)


def test_classes_that_nobody_has_and_none_was_given_are_left_out_of_macro_f1():
    targets = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    logits = np.array([[1, 1, -1], [1, -1, -1]], np.float32)
    summary = evaluated(logits, targets).summary()
    assert summary["f1_macro"] == 0.5 and summary["mAP"] == 1.0
    assert summary["f1_micro"] == 0.8 and summary["classes_without_positives"] == 2


def test_where_nothing_is_there_metrics_are_not_defined():
    summary = evaluated(np.full((2, 3), -1, np.float32), np.zeros((2, 3), np.float32)).summary()
    assert np.isnan([summary[name] for name in ("mAP", "f1_micro", "f1_macro")]).all()
    assert summary["subset_accuracy"] == 1.0 and summary["loss"] == pytest.approx(
        np.log1p(np.e**-1)
    )


def test_a_probability_of_one_half_gives_no_label():
    assert not evaluated(np.zeros((2, 7), np.float32), TARGETS[:2]).given.any()


def test_what_is_not_a_number_is_not_right():
    found = evaluated(np.full((40, 7), np.nan, np.float32))
    summary = found.summary()
    assert summary["subset_accuracy"] == summary["f1_micro"] == summary["f1_macro"] == 0
    worst = evaluated(np.where(TARGETS > 0, -1, 1).astype(np.float32)).summary()
    assert summary["mAP"] == worst["mAP"] < 0.5
    assert len(found.worst(99)) == 40
    section = found.section([Shown(3, np.zeros((2, 2, 3), np.uint8), "x")])
    assert "| nan | nan |" in section.parts[-1]


def test_a_score_that_is_not_a_number_is_the_worst_of_its_class():
    targets = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    scores = np.array([[2, 2], [np.nan, np.nan], [0, 0], [-1, -1]], np.float32)
    np.testing.assert_allclose(multilabel.average_precision(targets, scores), [0.75, 0.5])


def test_batch_metrics():
    given = PROBABILITIES > 0.5
    found = multilabel.batch_metrics(jnp.asarray(LOGITS), batch())
    expected = sklearn.metrics.f1_score(TARGETS, given, average="micro")
    assert float(found["f1_micro"]) == pytest.approx(expected, rel=1e-6)
    exact = sklearn.metrics.accuracy_score(TARGETS, given)
    assert float(found["subset_accuracy"]) == pytest.approx(exact, rel=1e-6)
    nothing = multilabel.batch_metrics(-jnp.ones((3, 2)), batch(np.zeros((3, 2), np.float32)))
    assert float(nothing["f1_micro"]) == 0 and float(nothing["subset_accuracy"]) == 1


def test_worst_are_those_without_exactly_their_labels_by_loss():
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
    logits = np.array([[9, -9], [2, 1], [-8, 8], [-1, 3]], np.float32)
    found = evaluated(logits, targets)
    assert found.worst(9).tolist() == [2, 3, 1] and found.worst(1).tolist() == [2]
    picture = np.zeros((2, 2, 3), np.uint8)
    mistakes = [found._mistake(Shown(int(i), picture, str(i))) for i in found.worst(9)]
    assert [m.furthest for m in mistakes] == [0, 1, 0]
    assert [m.targets for m in mistakes] == [[0, 1], [], [1]]
    assert [m.predicted for m in mistakes] == [[1], [1], [0, 1]]
    np.testing.assert_allclose(
        [m.probability for m in mistakes], 1 / (1 + np.exp([8.0, -3, -2])), rtol=1e-6
    )


def test_mistakes_of_texts_are_a_table_without_a_picture():
    found = evaluated()
    worst = [Shown(int(i), None, f"line {i}", "some | text") for i in found.worst(3)]
    section = found.section(worst)
    assert section.pictures == {"mistakes": None}
    header, _, *rows = section.parts[-1].splitlines()
    assert header.startswith("| example | text | true | predicted | furthest off |")
    assert len(rows) == 3 and all(r"| some \| text |" in row for row in rows)
    assert "beside the true labels" in section.parts[-2]
