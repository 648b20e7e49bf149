import jax.numpy as jnp
import numpy as np
import pytest

from tlx.tasks import classification

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
    found = classification.loss(jnp.asarray(LOGITS), batch(TARGETS), label_smoothing=smoothing)
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
