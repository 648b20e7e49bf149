import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.models.layers import BatchNorm, Conv, Linear, dropout, max_pool


def filled(layer, rng):
    """Fills a layer's parameters from numpy; returns them by name."""
    arrays = {}
    for name, value in vars(layer).items():
        if hasattr(value, "get_metadata"):
            draw = rng.standard_normal(value.get_value().shape).astype(np.float32)
            arrays[name] = 1 + 0.3 * np.tanh(draw) if name in ("scale", "var") else draw
            value.set_value(jnp.asarray(arrays[name]))
    return arrays


def test_batchnorm_moves_by_a_tenth_towards_the_unbiased_batch_variance():
    layer = BatchNorm(3)
    filled(layer, np.random.default_rng(0))
    layer.use_running_average = False
    mean, var = np.asarray(layer.mean[...], np.float64), np.asarray(layer.var[...], np.float64)
    rng = np.random.default_rng(1)
    for _ in range(5):
        x = rng.standard_normal((2, 3, 4, 3)).astype(np.float32) * 2 + 1
        y = layer(jnp.asarray(x))
        rows = x.reshape(-1, 3).astype(np.float64)
        mean = 0.9 * mean + 0.1 * rows.mean(0)
        var = 0.9 * var + 0.1 * rows.var(0, ddof=1)
        expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
        expected = expected * layer.scale[...] + layer.bias[...]
        np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], var, rtol=1e-6)


def test_batchnorm_on_running_statistics_keeps_them():
    layer = BatchNorm(3)
    before = filled(layer, np.random.default_rng(0))
    layer(jnp.ones((2, 3)))
    np.testing.assert_array_equal(layer.mean[...], before["mean"])
    np.testing.assert_array_equal(layer.var[...], before["var"])


@pytest.mark.parity
def test_batchnorm_gradients_and_statistics_equal_pytorchs():
    import torch

    layer, theirs = BatchNorm(4), torch.nn.BatchNorm2d(4)
    arrays = filled(layer, np.random.default_rng(0))
    layer.use_running_average = False
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    theirs.load_state_dict({names[k]: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    x = np.random.default_rng(2).standard_normal((3, 5, 6, 4)).astype(np.float32)
    weights = np.random.default_rng(3).standard_normal(x.shape).astype(np.float32)
    tx = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    (theirs(tx) * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).sum().backward()

    def loss(x):
        network = BatchNorm(4)
        network.use_running_average = False
        for name, value in arrays.items():
            getattr(network, name).set_value(jnp.asarray(value))
        return jnp.sum(network(x) * weights)

    gradient = jax.grad(loss)(jnp.asarray(x))
    layer(jnp.asarray(x))
    expected = tx.grad.numpy().transpose(0, 2, 3, 1)
    assert np.abs(gradient - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(layer.mean[...], theirs.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.var[...], theirs.running_var.numpy(), rtol=1e-5, atol=1e-6)


def test_convolution_pads_evenly_and_not_as_same_does():
    layer = Conv(1, 1, 3, stride=2, padding=1)
    layer.kernel.set_value(jnp.arange(9.0).reshape(3, 3, 1, 1))
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    padded = np.pad(np.asarray(x)[0, :, :, 0], 1)
    kernel = np.arange(9.0).reshape(3, 3)
    expected = [[(padded[i : i + 3, j : j + 3] * kernel).sum() for j in (0, 2)] for i in (0, 2)]
    np.testing.assert_array_equal(layer(x)[0, :, :, 0], expected)


def test_max_pool_pads_with_minus_infinity():
    x = -jnp.ones((1, 3, 3, 1))
    np.testing.assert_array_equal(max_pool(x, 3, stride=2, padding=1), -np.ones((1, 2, 2, 1)))


def test_linear_is_a_matrix_product_and_a_bias():
    layer = Linear(3, 2)
    arrays = filled(layer, np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_allclose(
        layer(jnp.asarray(x)), x @ arrays["kernel"] + arrays["bias"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(64, 400), (64, 25, 33), (25601,)])
def test_dropout_drops_at_its_rate_and_scales_the_rest_up(shape):
    x = jnp.ones(shape)
    for rate in (0.1, 0.5, 0.9):
        found = np.asarray(dropout(x, rate, jax.random.key(3)))
        kept = found != 0
        np.testing.assert_allclose(found[kept], 1 / (1 - rate), rtol=1e-6)
        assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / x.size) ** 0.5
        # Of two values that share a random number, each is dropped whatever becomes of the other.
        pairs = kept.reshape(-1)[: x.size // 2 * 2].reshape(-1, 2)
        both, expected = pairs.all(1).mean(), (1 - rate) ** 2
        assert abs(both - expected) < 4 * (expected * (1 - expected) / len(pairs)) ** 0.5
    assert dropout(x, 0.0, jax.random.key(3)) is x
    assert dropout(x, 0.5, None) is x
    assert not np.asarray(dropout(x, 1.0, jax.random.key(3))).any()
