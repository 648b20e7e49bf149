import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.config import TrainConfig
from tlx.errors import InputError
from tlx.evaluation.entities import entities
from tlx.evaluation.report import Shown
from tlx.tasks import PLAIN, LossOptions, tagging

NAMES = ("O", "B-location", "I-location", "B-person", "I-person")
RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((6, 9, 5)) * 2).astype(np.float32)
TARGETS = RNG.integers(-1, 5, (6, 9)).astype(np.int32)
OPTIONS = [
    LossOptions(),
    LossOptions(label_smoothing=0.1),
    LossOptions(class_weights=(0.2, 1.0, 2.0, 0.0, 3.0)),
    LossOptions(label_smoothing=0.2, class_weights=(0.2, 1.0, 2.0, 0.5, 3.0)),
    LossOptions(name="focal", gamma=2.0),
]


def batch(targets=TARGETS, weight=None):
    ones = np.ones(len(targets), np.float32)
    return {"targets": jnp.asarray(targets), "weight": ones if weight is None else weight}


def indices(*sentences, width=9):
    rows = np.full((len(sentences), width), -1, np.int32)
    for row, tags in zip(rows, sentences, strict=True):
        names = tags.split()
        row[: len(names)] = [-1 if name == "-" else NAMES.index(name) for name in names]
    return rows


def evaluated(targets, predictions, losses=None):
    """An evaluation; predictions where there is no target say something all the same."""
    found = {
        "prediction": np.where(targets < 0, 3, predictions).astype(np.int32),
        "loss": np.zeros(targets.shape, np.float32) if losses is None else losses,
        "probability": np.ones(targets.shape, np.float32),
    }
    return tagging.Evaluation(targets, found, NAMES)


@pytest.mark.parity
@pytest.mark.parametrize("options", OPTIONS[:4])
def test_loss_is_pytorchs(options):
    import torch

    weights = torch.tensor(options.class_weights) if options.class_weights else None
    criterion = torch.nn.CrossEntropyLoss(
        weight=weights, ignore_index=-1, label_smoothing=options.label_smoothing
    )
    logits = torch.from_numpy(LOGITS).requires_grad_()
    expected = criterion(logits.flatten(0, 1), torch.from_numpy(TARGETS).long().flatten())
    expected.backward()
    found, gradient = jax.value_and_grad(lambda z: tagging.loss(z, batch(), options))(
        jnp.asarray(LOGITS)
    )
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-5, atol=1e-8)


def test_focal_loss_is_its_formula():
    shifted = np.exp(LOGITS.astype(np.float64))
    p = shifted / shifted.sum(-1, keepdims=True)
    own = np.take_along_axis(p, np.maximum(TARGETS, 0)[..., None], -1)[..., 0]
    expected = (-((1 - own) ** 2) * np.log(own))[TARGETS >= 0].mean()
    assert float(tagging.loss(jnp.asarray(LOGITS), batch(), OPTIONS[4])) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_parts_weighed_by_their_words_are_the_whole(options):
    logits = jnp.asarray(LOGITS)

    def loss(z, rows):
        return tagging.loss(z[rows], batch(TARGETS[rows]), options)

    weights = [float(tagging.total_weight(batch(TARGETS[r]), options)) for r in PARTS]
    total = float(tagging.total_weight(batch(), options))
    assert sum(weights) == pytest.approx(total) and len(set(weights)) > 1
    whole, gradient = jax.value_and_grad(lambda z: loss(z, slice(None)))(logits)
    parts = [jax.value_and_grad(lambda z, r=rows: loss(z, r))(logits) for rows in PARTS]
    shares = [weight / total for weight in weights]
    mean = sum(s * float(value) for s, (value, _) in zip(shares, parts, strict=True))
    assert mean == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_allclose(
        sum(s * g for s, (_, g) in zip(shares, parts, strict=True)), gradient, rtol=1e-5, atol=1e-8
    )


PARTS = (slice(0, 2), slice(2, 3), slice(3, 6))


@pytest.mark.parametrize("options", OPTIONS)
def test_what_does_not_count_changes_nothing_and_has_no_gradient(options):
    targets = np.pad(TARGETS, ((0, 2), (0, 4)), constant_values=-1)
    targets[6:] = 0  # rows of weight 0 are filled with zeros
    logits = np.pad(LOGITS, ((0, 2), (0, 4), (0, 0)), constant_values=7)
    logits[:6][targets[:6] < 0] = np.nan
    weight = np.array([1.0] * 6 + [0.0] * 2, np.float32)
    found, gradient = jax.value_and_grad(
        lambda z: tagging.loss(z, batch(targets, weight), options)
    )(jnp.asarray(logits))
    assert float(found) == pytest.approx(
        float(tagging.loss(jnp.asarray(LOGITS), batch(), options)), rel=1e-6
    )
    gradient = np.asarray(gradient)
    assert not gradient[6:].any() and not gradient[targets < 0].any()
    assert np.isfinite(gradient).all() and gradient[:6][targets[:6] >= 0].any()


def test_a_batch_without_words_has_no_loss():
    nothing = batch(np.full((2, 3), -1, np.int32))
    assert float(tagging.loss(jnp.zeros((2, 3, 5)), nothing, PLAIN)) == 0
    assert float(tagging.total_weight(nothing, PLAIN)) == 0
    assert float(tagging.batch_metrics(jnp.zeros((2, 3, 5)), nothing)["accuracy"]) == 0


def test_accuracy_of_a_batch_is_that_of_words_in_real_examples():
    targets = np.array([[0, 1, -1], [2, 2, 2]], np.int32)
    logits = jax.nn.one_hot(np.array([[0, 0, 0], [2, 2, 2]]), 5)
    weight = np.array([1.0, 0.0], np.float32)
    assert float(tagging.batch_metrics(logits, batch(targets))["accuracy"]) == pytest.approx(0.8)
    assert float(tagging.batch_metrics(logits, batch(targets, weight))["accuracy"]) == 0.5


def test_outcomes_of_tokens():
    found = jax.device_get(tagging.outcomes(jnp.asarray(LOGITS), batch()))
    shifted = np.exp(LOGITS.astype(np.float64))
    p = shifted / shifted.sum(-1, keepdims=True)
    own = np.take_along_axis(p, np.maximum(TARGETS, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(found["loss"], np.where(TARGETS < 0, 0, -np.log(own)), rtol=1e-5)
    np.testing.assert_array_equal(found["prediction"], LOGITS.argmax(-1))
    assert found["prediction"].dtype == np.int32
    np.testing.assert_allclose(found["probability"], p.max(-1), rtol=1e-5)


def test_logits_that_are_no_numbers_are_not_right():
    targets = indices("O O B-person")
    logits = jnp.full((1, 9, 5), jnp.nan)
    found = jax.device_get(tagging.outcomes(logits, batch(targets)))
    result = tagging.evaluation(targets, found, NAMES)
    assert result.summary()["accuracy"] == result.summary()["f1"] == 0
    assert np.isnan(result.summary()["loss"]) and result.worst(5).tolist() == [0]


def test_options_come_from_the_config_and_the_words():
    labels = np.array([[0, 0, 0, 0, 1, -1], [2, 3, 4, -1, -1, -1]])
    found = tagging.loss_options(TrainConfig(class_weights=("auto",)), labels, NAMES)
    assert found.class_weights == pytest.approx((8 / 20, 8 / 5, 8 / 5, 8 / 5, 8 / 5))
    focal = tagging.loss_options(TrainConfig(loss="focal:2", label_smoothing=0.1), labels, NAMES)
    assert focal == LossOptions(0.1, (), "focal", 2.0)
    with pytest.raises(InputError, match="not by bce"):
        tagging.loss_options(TrainConfig(loss="bce"), labels, NAMES)
    with pytest.raises(InputError, match="no training example of B-location, I-person"):
        tagging.loss_options(TrainConfig(class_weights=("auto",)), labels[:, :2], NAMES)
    with pytest.raises(AssertionError, match="not the tags"):
        tagging.loss_options(TrainConfig(), np.ones((2, 5), np.uint8), NAMES)


def test_metrics_of_entities():
    true = indices(
        "B-person I-person - O B-location", "O O", "B-location I-location - - I-location"
    )
    predicted = indices(
        "B-person I-person - O B-person", "O O", "B-location I-location - - I-location"
    )
    found = evaluated(true, predicted)
    summary = found.summary()
    assert (summary["f1"], summary["precision"], summary["recall"]) == pytest.approx([2 / 3] * 3)
    assert summary["macro_f1"] == pytest.approx(2 / 3)
    assert summary["accuracy"] == pytest.approx(8 / 9)
    assert (summary["entities"], summary["words"], summary["examples"]) == (3, 9, 3)
    assert found.per_class() == {
        "precision": {"location": 1.0, "person": 0.5},
        "recall": {"location": 0.5, "person": 1.0},
        "f1": {"location": pytest.approx(2 / 3), "person": pytest.approx(2 / 3)},
    }
    assert "F1 0.6667" in found.headline() and "3 entities in 3 sentences" in found.headline()
    assert set(tagging.metrics(5)) <= set(summary) and tagging.metrics(5)[0] == "f1"


def test_entities_are_those_of_each_sentences_words():
    draw = np.random.default_rng(1)
    targets = draw.integers(-1, 5, (50, 12)).astype(np.int32)
    others = draw.integers(0, 5, (50, 12))
    found = evaluated(targets, np.where(draw.random((50, 12)) < 0.9, targets, others))
    expected = [entities([NAMES[i] for i in row if i >= 0], "IOB2") for row in targets]
    assert found.summary()["entities"] == sum(map(len, expected)) > 50
    again = [
        entities([NAMES[p] for p, t in zip(*rows, strict=True) if t >= 0], "IOB2")
        for rows in zip(found.outcomes["prediction"], targets, strict=True)
    ]
    wrong = [one != other for one, other in zip(expected, again, strict=True)]
    assert found.wrong.tolist() == wrong and 0 < sum(wrong) < 50
    right = sum(len({*one} & {*other}) for one, other in zip(expected, again, strict=True))
    assert found.scores.right.sum() == right > 0
    padded = np.pad(targets, ((0, 0), (0, 5)), constant_values=-1)
    wider = {k: np.pad(v, ((0, 0), (0, 5))) for k, v in found.outcomes.items()}
    assert tagging.Evaluation(padded, wider, NAMES).summary() == found.summary()


def test_a_split_without_entities():
    found = evaluated(indices("O O"), indices("O O"))
    assert found.summary()["f1"] == found.summary()["macro_f1"] == 0
    assert found.summary()["accuracy"] == 1 and found.per_class()["f1"] == {}
    assert "1 of 1 sentences" in found.section([]).parts[0]


def test_worst_are_the_sentences_with_a_wrong_entity_by_mean_loss():
    true = indices("B-person O", "B-person", "O O O", "I-person B-location")
    predicted = indices("O O", "B-location", "O O O", "O B-location")
    losses = np.array([[3.0, 1.0], [2.5, 9.0], [9.0, 9.0], [9.0, 9.0]], np.float32)
    losses = np.pad(losses, ((0, 0), (0, 7)), constant_values=9)
    found = evaluated(true, predicted, losses)
    assert found.wrong.tolist() == [True, True, False, False]
    assert found.worst(9).tolist() == [1, 0] and found.worst(1).tolist() == [1]


def test_the_report_marks_entities_in_sentences():
    words = ("Empire", "State", "|Building|", "in", "*NY*", "!")
    true = indices("B-location I-location I-location O B-location")
    predicted = indices("O B-person I-person O B-location")
    section = evaluated(true, predicted).section([Shown(0, None, "test.conll line 7", words)])
    assert section.pictures == {} and "f1" in section.curves
    assert "0 of 1 sentences" in section.parts[0]
    assert "| location | 1.000 | 0.500 | 0.667 | 2 | 1 |" in section.parts[2]
    assert "| person | 0.000 | 0.000 | 0.000 | 0 | 1 |" in section.parts[2]
    assert "| all entities | 0.500 | 0.500 | 0.500 |" in section.parts[3]
    row = section.parts[-1].splitlines()[2]
    assert r"\[Empire State \|Building\|\](location) in \[\*NY\*\](location) … |" in row
    assert r"| Empire \[State \|Building\|\](person) in \[\*NY\*\](location) … |" in row
    assert row.startswith("| test.conll line 7 | ")


def test_of_long_sentences_the_surroundings_of_mistakes_are_shown():
    words = tuple(f"w{i}" for i in range(100))
    true = np.zeros((1, 90), np.int32)
    true[0, 50:53] = [1, 2, 2]
    predicted = true.copy()
    predicted[0, 52] = 0
    predicted[0, 20] = true[0, 20] = 3
    section = evaluated(true, predicted).section([Shown(0, None, "x", words)])
    row = section.parts[-1].splitlines()[2]
    assert "| … w42 w43" in row and "w60 … |" in row and "w20" not in row and "w41" not in row
    assert r"\[w50 w51 w52\](location) w53" in row and r"\[w50 w51\](location) w52 w53" in row
