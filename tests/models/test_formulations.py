"""What is written for the CPU gives what XLA's own operations give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.random import threefry_2x32

from tlx.models import formulations
from tlx.models.formulations import channel_sum, convolve, scale_channels, window_max


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def gradients(function, *arguments):
    """Returns the values, and the gradients of their sum weighted at random."""
    values, back = jax.vjp(function, *arguments)
    return values, back(normal(*values.shape, seed=9).astype(values.dtype))


def assert_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def lax_convolution(x, kernel, stride, padding, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        (1, 3, 1, [(1, 1), (1, 1)]),
        (2, 3, 1, [(1, 1), (1, 1)]),
        (4, 3, 2, [(1, 1), (1, 1)]),
        (3, 3, 2, "SAME"),
        (2, 3, 2, "SAME"),
        (5, 5, 1, [(0, 0), (0, 0)]),
        (7, 7, 4, [(2, 1), (0, 2)]),
        (1, 5, 1, [(2, 2), (2, 2)]),
        (2, 3, 3, [(2, 2), (2, 2)]),
    ],
)
def test_a_convolution_to_few_pixels_is_that_of_lax(side, kernel, stride, padding):
    x, weights = normal(3, side, side, 5), normal(kernel, kernel, 5, 4, seed=1)
    found = gradients(
        lambda x, k: convolve(x, k, stride=stride, padding=padding, groups=1), x, weights
    )
    assert_close(found, gradients(lambda x, k: lax_convolution(x, k, stride, padding), x, weights))


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((8, 8), 3, 1, [(1, 1), (1, 1)]),
        ((9, 6), 3, 2, [(1, 1), (1, 1)]),
        ((8, 7), 5, 2, "SAME"),
        ((7, 7), 7, 1, [(3, 3), (3, 3)]),
        ((6, 5), 2, 2, [(0, 0), (0, 1)]),
        ((9, 9), 3, 3, [(0, 2), (5, 0)]),
        ((1, 1), 3, 1, [(1, 1), (1, 1)]),
        ((40, 30), 3, 1, [(1, 1), (1, 1)]),
    ],
)
def test_a_convolution_of_each_channel_is_that_of_lax(batch, size, kernel, stride, padding):
    x, weights = normal(batch, *size, 6), normal(kernel, kernel, 1, 6, seed=1)
    found = gradients(
        lambda x, k: convolve(x, k, stride=stride, padding=padding, groups=6), x, weights
    )
    expected = gradients(lambda x, k: lax_convolution(x, k, stride, padding, 6), x, weights)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("channels", "width", "groups"), [(8, 8, 2), (64, 32, 16), (6, 12, 6), (48, 16, 2), (9, 6, 3)]
)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_a_convolution_of_groups_is_that_of_lax(channels, width, groups, kernel, stride):
    x, weights = (
        normal(2, 7, 6, channels),
        normal(kernel, kernel, channels // groups, width, seed=1),
    )
    pads = [(kernel // 2,) * 2] * 2
    found = gradients(
        lambda x, k: convolve(x, k, stride=stride, padding=pads, groups=groups), x, weights
    )
    expected = gradients(lambda x, k: lax_convolution(x, k, stride, pads, groups), x, weights)
    assert_close(found, expected)


def test_a_convolution_of_each_channel_keeps_the_type():
    pads = [(3, 3)] * 2
    x, weights = normal(2, 9, 9, 4).astype(jnp.bfloat16), normal(7, 7, 1, 4).astype(jnp.bfloat16)
    values, found = gradients(
        lambda x, k: convolve(x, k, stride=1, padding=pads, groups=4).astype(jnp.float32),
        x,
        weights,
    )
    exact, expected = gradients(
        lambda x, k: lax_convolution(x, k, 1, pads, 4),
        x.astype(jnp.float32),
        weights.astype(jnp.float32),
    )
    assert [gradient.dtype for gradient in found] == [jnp.bfloat16] * 2
    for one, other in ((values, exact), *zip(found, expected, strict=True)):
        error = np.abs(np.asarray(one, np.float32) - other).max()
        assert error <= 2**-8 * np.abs(other).max()  # half a unit in bfloat16's last place


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators use lax.conv")
def test_a_convolution_of_each_channel_costs_two_operations_a_place():
    x, weights = normal(8, 16, 16, 32), normal(3, 3, 1, 32)

    def depthwise(x, k):
        return convolve(x, k, stride=1, padding=[(1, 1)] * 2, groups=32)

    assert flops(depthwise, x, weights) <= 1.1 * (2 * 9 * 8 * 16 * 16 * 32)
    assert "convolution(" not in jax.jit(depthwise).lower(x, weights).compile().as_text()


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators use lax.conv")
def test_places_of_a_kernel_that_meet_only_padding_cost_nothing():
    x, weights = normal(8, 1, 1, 64), normal(3, 3, 64, 64)

    def few(x, k):
        return convolve(x, k, stride=1, padding=[(1, 1), (1, 1)], groups=1)

    assert flops(few, x, weights) <= 1.1 * (2 * 8 * 64 * 64)
    assert "convolution(" not in jax.jit(few).lower(x, weights).compile().as_text()


def lax_maximum(x, window, stride, padding):
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, ((0, 0), *padding, (0, 0)))


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        ((9, 9), 3, 2, [(0, 0), (0, 0)]),
        ((8, 7), 3, 2, [(1, 1), (1, 1)]),
        ((8, 8), 3, 2, [(0, 1), (0, 1)]),
        ((7, 10), 2, 2, [(0, 0), (0, 0)]),
        ((6, 6), 3, 1, [(1, 1), (1, 1)]),
        ((7, 7), 2, 3, [(0, 0), (0, 0)]),
        ((20, 20), 17, 1, [(0, 0), (0, 0)]),
    ],
)
def test_the_maximum_of_windows_and_its_gradient_are_those_of_lax(size, window, stride, padding):
    x = normal(2, *size, 3)
    found = gradients(lambda x: window_max(x, window, stride=stride, padding=padding), x)
    expected = gradients(lambda x: lax_maximum(x, window, stride, padding), x)
    np.testing.assert_array_equal(found[0], expected[0])
    assert_close(found[1], expected[1])


def test_the_maximum_passes_nan_on_and_keeps_bfloat16():
    x = np.asarray(normal(1, 5, 5, 1)).copy()
    x[0, 0, 0], x[0, 4, 4] = np.nan, np.nan
    found = window_max(jnp.asarray(x), 3, stride=2, padding=[(0, 0), (0, 0)])
    np.testing.assert_array_equal(np.isnan(found[0, :, :, 0]), [[True, False], [False, True]])
    half = normal(1, 6, 6, 2).astype(jnp.bfloat16)
    value, (gradient,) = gradients(
        lambda x: window_max(x, 2, stride=2, padding=[(0, 0)] * 2).astype(jnp.float32), half
    )
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, lax_maximum(half, 2, 2, [(0, 0)] * 2))


@pytest.mark.parity
@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_of_equal_maxima_the_gradient_goes_to_pytorchs(window, stride, padding):
    import torch

    x = np.random.default_rng(0).integers(0, 3, (2, 8, 9, 3)).astype(np.float32)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, window, stride, padding)
    values, back = jax.vjp(
        lambda x: window_max(x, window, stride=stride, padding=[(padding, padding)] * 2), x
    )
    np.testing.assert_array_equal(values, pooled.detach().numpy().transpose(0, 2, 3, 1))
    weights = np.random.default_rng(1).integers(1, 9, values.shape).astype(np.float32)
    pooled.backward(torch.from_numpy(weights.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_array_equal(
        back(jnp.asarray(weights))[0], theirs.grad.numpy().transpose(0, 2, 3, 1)
    )


@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (3, 13, 13, 5), (67, 2), (7, 4), (1, 1, 1, 2)])
def test_the_sum_over_all_but_channels_is_exact_to_rounding(shape):
    x = normal(*shape) + 1
    value, (gradient,) = gradients(channel_sum, x)
    exact = np.asarray(x, np.float64).reshape(-1, shape[-1]).sum(0)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.broadcast_to(normal(shape[-1], seed=9), shape))


def test_scaling_channels_has_the_gradients_of_what_it_is():
    arguments = normal(4, 15, 15, 3), normal(3, seed=1), normal(3, seed=2), normal(3, seed=3)
    found = gradients(scale_channels, *arguments)
    assert_close(found, gradients(lambda x, a, b, c: (x - c) * a + b, *arguments))
    halves = arguments[0].astype(jnp.bfloat16), *arguments[1:3]
    value, (gradient, *_) = gradients(scale_channels, *halves)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_adding_and_cutting_off_has_the_gradients_of_what_it_is(batch):
    x, y = (jnp.round(2 * normal(batch, 3, 3, 2, seed=seed)) for seed in (0, 1))  # with ties at 0
    found = gradients(formulations.add_relu, x, y)
    expected = gradients(lambda x, y: jax.nn.relu(x + y), x, y)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_fork_adds_the_gradients_of_its_branches(batch):
    x = normal(batch, 7, 3)
    found = gradients(lambda x: (lambda y, z: jnp.tanh(y) * z)(*formulations.fork(x)), x)
    assert_close(found, gradients(lambda x: jnp.tanh(x) * x, x))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_gelu_has_the_gradient_of_what_it_is(batch):
    x = 2 * normal(batch, 7, 3)
    expected = gradients(lambda x: jax.nn.gelu(x, approximate=False), x)
    assert_close(gradients(formulations.gelu, x), expected)


def test_gelu_of_half_precision_is_rounded_once():
    x = (2 * normal(4, 7, 3)).astype(jnp.bfloat16)
    value, (gradient,) = gradients(formulations.gelu, x)
    wide, (wide_gradient,) = gradients(formulations.gelu, x.astype(jnp.float32))
    np.testing.assert_array_equal(value, wide.astype(jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide_gradient, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_a_projection_has_the_gradients_of_what_it_is(shape):
    arguments = normal(*shape), normal(5, 7, seed=1)
    found = gradients(formulations.project, *arguments)
    assert_close(found, gradients(lambda x, kernel: x @ kernel, *arguments))


def test_the_kernels_gradient_needs_no_transposition():
    x, kernel = normal(4, 8, 5), normal(5, 7, seed=1)
    back = jax.make_jaxpr(lambda x, g: jax.vjp(formulations.project, x, kernel)[1](g)[1])
    found = back(x, normal(4, 8, 7)).jaxpr.pretty_print()
    assert ("transpose" in found.split("dot_general")[-1]) == (jax.default_backend() != "cpu")


@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 3, 5), (4, 0), (64, 33, 50)])
def test_numbers_of_16_bits_are_threefrys(shape):
    key = jax.random.key(5)
    found = np.asarray(formulations.random_bits16(key, shape))
    assert (found.shape, found.dtype) == (shape, np.int32)
    assert ((found >= 0) & (found < 2**16)).all()
    rows, blocks = int(np.prod(shape[:-1])), -(-shape[-1] // 4)
    count = np.arange(rows * blocks, dtype=np.uint32)
    both = threefry_2x32(jax.random.key_data(key), np.concatenate([0 * count, count]))
    words = np.asarray(both).reshape(2, rows, blocks)
    parts = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    expected = np.concatenate(parts, -1)[:, : shape[-1]]
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    if found.size > 1e5:  # uniform, and neighbours know nothing of one another
        assert abs(found.mean() - (2**16 - 1) / 2) < 5 * 2**16 / (12 * found.size) ** 0.5
        for axis in range(3):
            ahead, behind = np.roll(found, 1, axis).ravel(), found.ravel()
            assert abs(np.corrcoef(ahead, behind)[0, 1]) < 5 / found.size**0.5
    other = formulations.random_bits16(jax.random.key(5, impl="rbg"), shape)
    assert (other.shape, other.dtype) == (shape, np.int32)


def test_the_norm_of_all_values_is_exact_to_rounding():
    tree = {"a": normal(300, 400), "b": [normal(7), normal(3, 3, 5, 20), normal()]}
    exact = sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)) ** 0.5
    np.testing.assert_allclose(formulations.global_norm(tree), exact, rtol=1e-6)
    assert formulations.global_norm({}) == 0


def test_a_shift_of_channels_has_the_gradients_of_what_it_is():
    arguments = normal(4, 15, 15, 3), normal(3, seed=1)
    found = gradients(formulations.add_channels, *arguments)
    assert_close(found, gradients(lambda x, b: x + b, *arguments))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators keep to XLA's fusions")
@pytest.mark.skipif(jax.device_count() > 1, reason="a batch that is shared out is not cut up")
def test_what_is_stored_is_computed_once():
    def chain(x, store):
        total = jnp.zeros(())
        for _ in range(4):
            x = formulations.stored(jnp.tanh, x) if store else jnp.tanh(x)
            total += jnp.sum(x.transpose(3, 1, 2, 0)[..., ::2])
        return total

    x = normal(8, 16, 16, 4)

    def transcendentals(store):
        compiled = jax.jit(lambda x: chain(x, store)).lower(x).compile()
        return compiled.cost_analysis()["transcendentals"]

    assert transcendentals(True) == 4 * x.size
    assert chain(x, True) == pytest.approx(float(chain(x, False)), rel=1e-5)


def test_windows_without_room_give_an_empty_map_and_large_kernels_are_laxs():
    assert window_max(normal(2, 2, 2, 1), 3, stride=2, padding=[(0, 0)] * 2).shape == (2, 0, 0, 1)
    x, weights = normal(2, 32, 32, 3), normal(16, 16, 3, 8)
    found = jax.make_jaxpr(lambda x, k: convolve(x, k, stride=16, padding=[(0, 0)] * 2, groups=1))
    assert "conv_general_dilated" in str(found(x, weights))
    assert channel_sum(jnp.zeros((4, 0))).shape == (0,)


def test_accelerators_get_the_operations_of_lax(monkeypatch):
    monkeypatch.setattr(formulations, "_on_cpu", lambda: False)
    x, weights = normal(2, 2, 2, 3), normal(3, 3, 3, 4)
    text = str(
        jax.make_jaxpr(
            lambda x, k: window_max(
                convolve(x, k, stride=1, padding=[(1, 1), (1, 1)], groups=1),
                2,
                stride=2,
                padding=[(0, 0), (0, 0)],
            )
        )(x, weights)
    )
    assert "conv_general_dilated" in text
    assert "reduce_window" in text
