import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.torchvision_import import import_torchvision
from tlx.config import build
from tlx.errors import InputError
from tlx.tasks import LossOptions, classification

LOGITS = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32) * 3
TARGETS = np.array([0, 7, 3, 3, 1, 2])


def batch(targets, weight=None):
    ones = np.ones(len(targets), np.float32)
    return {"targets": targets, "weight": ones if weight is None else weight}


def test_loss_is_the_mean_over_real_examples():
    weight = np.array([1, 1, 0, 1, 0, 1], np.float32)
    log_probs = LOGITS.astype(np.float64) - np.log(
        np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True)
    )
    expected = -log_probs[np.arange(6), TARGETS][weight > 0].mean()
    assert float(classification.loss(jnp.asarray(LOGITS), batch(TARGETS, weight))) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_pytorchs(smoothing):
    import torch

    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(TARGETS), label_smoothing=smoothing
    )
    found = classification.loss(
        jnp.asarray(LOGITS), batch(TARGETS), LossOptions(label_smoothing=smoothing)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_outcomes():
    found = classification.outcomes(jnp.asarray(LOGITS), batch(TARGETS))
    np.testing.assert_array_equal(found["prediction"], LOGITS.argmax(1))
    order = np.argsort(-LOGITS, axis=1)[:, :5]
    np.testing.assert_array_equal(
        found["top5"], [t in row for t, row in zip(TARGETS, order, strict=True)]
    )
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.testing.assert_allclose(found["probability"], probabilities.max(1), rtol=1e-5)
    np.testing.assert_allclose(
        found["loss"], -np.log(probabilities[np.arange(6), TARGETS]), rtol=1e-4
    )


def test_ties_count_against_the_network():
    found = classification.outcomes(jnp.zeros((3, 10)), batch(np.array([0, 4, 9])))
    assert found["top5"].tolist() == [0.0, 0.0, 0.0]


def test_what_is_not_a_number_is_not_right():
    found = classification.outcomes(jnp.full((2, 10), jnp.nan), batch(np.array([0, 9])))
    assert found["top5"].tolist() == [0.0, 0.0]


WEIGHTS = (0.5, 2.0, 1.0, 0.25, 0.0, 3.0, 1.0, 4.0)


def soft(count=6, classes=8, seed=1):
    rows = np.random.default_rng(seed).dirichlet(np.ones(classes), count)
    return rows.astype(np.float32)


def loss(targets, weight=None, **options):
    options = LossOptions(**options)
    return float(classification.loss(jnp.asarray(LOGITS), batch(targets, weight), options))


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_mean_is_pytorchs(smoothing):
    import torch

    criterion = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=smoothing)
    expected = criterion(torch.from_numpy(LOGITS), torch.from_numpy(TARGETS))
    found = loss(TARGETS, class_weights=WEIGHTS, label_smoothing=smoothing)
    assert found == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distributions_as_targets_are_pytorchs(smoothing):
    import torch

    targets = soft()
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(targets), label_smoothing=smoothing
    )
    assert loss(targets, label_smoothing=smoothing) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("hard", [True, False])
def test_binary_cross_entropy_is_timms(hard, smoothing):
    import torch

    import_torchvision()  # which timm imports
    from timm.loss import BinaryCrossEntropy

    targets = TARGETS if hard else soft()
    # timm smooths hard targets in the loss, and mixed ones where they are mixed.
    theirs = targets if hard else targets * (1 - smoothing) + smoothing / 8
    criterion = BinaryCrossEntropy(smoothing=smoothing)
    expected = criterion(torch.from_numpy(LOGITS), torch.from_numpy(theirs))
    found = loss(targets, name="bce", label_smoothing=smoothing)
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_class_weights_by_hand():
    # Two classes, p = (0.75, 0.25): the first example is of class 0, the second of class 1.
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    found = classification.loss(
        logits, batch(np.array([0, 1])), LossOptions(class_weights=(1.0, 3.0))
    )
    expected = (np.log(4 / 3) + 3 * np.log(4)) / 4
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_an_index_and_its_one_hot_row_have_the_same_loss(name, weights):
    options = {"name": name, "gamma": 2.0, "class_weights": weights if name != "bce" else ()}
    one_hot = np.eye(8, dtype=np.float32)[TARGETS]
    assert loss(TARGETS, **options) == loss(one_hot, **options)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce"])
def test_padding_counts_in_no_loss(name):
    options = {"name": name, "gamma": 1.5, "class_weights": WEIGHTS if name != "bce" else ()}
    weight = np.array([1, 1, 1, 0, 0, 1], np.float32)
    real = weight > 0
    short = classification.loss(
        jnp.asarray(LOGITS[real]), batch(TARGETS[real]), LossOptions(**options)
    )
    assert loss(TARGETS, weight, **options) == pytest.approx(float(short), rel=1e-6)


def test_examples_of_classes_without_weight_are_no_division_by_zero():
    assert loss(np.full(6, 4), class_weights=WEIGHTS) == 0.0


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_focal_loss_is_its_formula(gamma, weights):
    exact = LOGITS.astype(np.float64)
    p = (np.exp(exact) / np.exp(exact).sum(1, keepdims=True))[np.arange(6), TARGETS]
    w = np.array(weights or np.ones(8))[TARGETS]
    expected = -(w * (1 - p) ** gamma * np.log(p)).sum() / w.sum()
    found = loss(TARGETS, name="focal", gamma=gamma, class_weights=weights)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_of_gamma_0_is_the_cross_entropy_to_the_bit(smoothing):
    def with_gradient(name):
        options = LossOptions(smoothing, WEIGHTS, name, 0.0)
        function = jax.value_and_grad(classification.loss)
        return function(jnp.asarray(LOGITS), batch(TARGETS), options)

    for one, two in zip(with_gradient("focal"), with_gradient("cross_entropy"), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_has_a_gradient_where_the_network_is_certain(gamma):
    options = LossOptions(name="focal", gamma=gamma)
    certain = jnp.array([[200.0, 0.0]])
    for target in (0, 1):
        gradient = jax.grad(classification.loss)(certain, batch(np.array([target])), options)
        assert np.isfinite(gradient).all()


def test_accuracy_of_mixed_targets_is_against_the_larger_share():
    logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    targets = np.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3]], np.float32)
    assert classification.batch_metrics(logits, batch(targets))["accuracy"] == 0.5
    assert classification.batch_metrics(logits, batch(np.array([0, 2])))["accuracy"] == 1.0


NAMES = ("ant", "bee", "cat")
LABELS = np.array([0, 0, 0, 1, 1, 2], np.int32)


def options_of(labels=LABELS, **fields):
    config = build({f"train.{name}": value for name, value in fields.items()}).train
    return classification.loss_options(config, labels, NAMES)


def test_loss_options_from_the_config():
    assert options_of() == options_of(class_weights="none") == LossOptions()
    assert options_of(label_smoothing=0.1, loss="focal:2") == LossOptions(0.1, (), "focal", 2.0)
    assert options_of(class_weights="1,0.5,2").class_weights == (1.0, 0.5, 2.0)
    assert options_of(class_weights=(1, 0.5, 2)).class_weights == (1.0, 0.5, 2.0)
    assert options_of(loss="bce") == LossOptions(name="bce")


def test_auto_is_inverse_to_the_classes_examples():
    assert options_of(class_weights="auto").class_weights == (6 / 9, 6 / 6, 6 / 3)


def test_auto_is_scikit_learns_balanced():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.random.default_rng(0).integers(0, 3, 100) ** 2 % 3
    labels = np.concatenate([labels, [0, 1, 2]])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = options_of(labels, class_weights="auto").class_weights
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"class_weights": "1,2"},
            "has 2 values, expected auto, none or 3 numbers, one for each of",
        ),
        ({"class_weights": "1,-2,x"}, "wrong: bee (-2), cat (x)"),
        ({"class_weights": "1,nan,inf"}, "wrong: bee (nan), cat (inf)"),
        ({"class_weights": "0,0,0"}, "not all of them 0; wrong: ant, bee, cat"),
        ({"class_weights": "auto", "labels": np.array([0, 0, 2])}, "no training example of bee"),
        ({"class_weights": "auto", "loss": "bce"}, "the loss bce has none"),
        ({"loss": "cross_entrpy"}, "did you mean 'cross_entropy'"),
        ({"loss": "focal"}, "expected focal:GAMMA"),
        ({"loss": "focal:"}, "expected focal:GAMMA"),
        ({"loss": "focal:-1"}, "0 <= GAMMA"),
        ({"loss": "bce:2"}, "expected bce without a value"),
    ],
)
def test_wrong_losses_and_weights_are_named(fields, says):
    with pytest.raises(InputError) as caught:
        options_of(**fields)
    assert says in str(caught.value) and "\n" not in str(caught.value)
