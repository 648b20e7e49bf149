import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.errors import InputError
from tlx.models.attention import SelfAttention
from tlx.models.leaves import values, with_values

BATCH, TOKENS, FEATURES, HEADS = 2, 5, 12, 3


def filled(seed=0, **options):
    layer = SelfAttention(FEATURES, HEADS, **options)
    rng = np.random.default_rng(seed)
    arrays = {p: rng.standard_normal(v.shape).astype(np.float32) for p, v in values(layer).items()}
    return with_values(layer, arrays), arrays


def tokens(seed=1):
    return np.random.default_rng(seed).standard_normal((BATCH, TOKENS, FEATURES)).astype(np.float32)


def test_paths_are_those_of_four_linear_layers():
    _, arrays = filled()
    parts = ("query", "key", "value", "output")
    assert set(arrays) == {f"{part}.{name}" for part in parts for name in ("kernel", "bias")}
    _, without = filled(bias=False)
    assert {p for p in without if p.endswith("bias")} == {"output.bias"}


def test_masked_tokens_are_as_if_they_were_not_there():
    layer, _ = filled()
    x = tokens()
    mask = jnp.asarray([[True] * 3 + [False] * 2, [True] * TOKENS])
    y = layer(x, mask)
    np.testing.assert_allclose(y[0, :3], layer(x[:1, :3])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[1], layer(x[1:])[0], rtol=1e-5, atol=1e-5)
    assert np.abs(y[0, :3] - layer(x)[0, :3]).max() > 0.01


def test_a_mask_by_who_looks_at_whom():
    layer, _ = filled()
    x = tokens()
    causal = jnp.tril(jnp.ones((BATCH, 1, TOKENS, TOKENS), bool))
    y = layer(x, causal)
    for length in range(1, TOKENS + 1):
        seen = layer(x[:, :length])[:, -1]
        np.testing.assert_allclose(y[:, length - 1], seen, rtol=1e-5, atol=1e-5)


def test_a_token_that_may_look_at_none_is_finite():
    layer, _ = filled()
    y = layer(tokens(), jnp.zeros((BATCH, TOKENS), bool))
    assert np.isfinite(y).all()


def test_softmax_is_taken_in_float32():
    layer, _ = filled()
    exact = layer(tokens())
    rough = layer(jnp.asarray(tokens(), jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    assert np.abs(rough.astype(np.float32) - exact).max() < 0.05 * np.abs(exact).max()
    text = str(jax.make_jaxpr(lambda x: layer(x))(jnp.asarray(tokens(), jnp.bfloat16)))
    assert "f32[2,3,5,5] = exp" in text


def test_dropped_attention_is_seeded_and_absent_without_a_key():
    layer, _ = filled(dropout=0.5)
    plain, _ = filled()
    x = tokens()
    one, other = jax.random.key(0), jax.random.key(1)
    np.testing.assert_array_equal(layer(x), plain(x))
    np.testing.assert_array_equal(layer(x, None, one), layer(x, None, one))
    assert not np.array_equal(layer(x, None, one), layer(x, None, other))
    np.testing.assert_array_equal(plain(x, None, one), plain(x))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="12 features cannot be shared by 5"):
        SelfAttention(12, 5)


@pytest.mark.parity
def test_output_equals_pytorchs_with_and_without_padding():
    import torch

    layer, arrays = filled()
    theirs = torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True).eval()
    parts = ("query", "key", "value")
    state = {
        "in_proj_weight": np.concatenate([arrays[f"{part}.kernel"].T for part in parts]),
        "in_proj_bias": np.concatenate([arrays[f"{part}.bias"] for part in parts]),
        "out_proj.weight": arrays["output.kernel"].T.copy(),
        "out_proj.bias": arrays["output.bias"],
    }
    theirs.load_state_dict({key: torch.from_numpy(v) for key, v in state.items()})
    x = tokens()
    mask = np.array([[True] * TOKENS, [True, True, False, True, False]])
    for allowed in (None, mask):
        padding = None if allowed is None else torch.from_numpy(~allowed)
        tx = torch.from_numpy(x)
        with torch.no_grad():
            expected = theirs(tx, tx, tx, key_padding_mask=padding, need_weights=False)[0].numpy()
        error = np.abs(layer(x, allowed) - expected).max()
        assert error <= 1e-5 * np.abs(expected).max()
