"""Encoders of texts in small, with random values: ours alone, or transformers' with the same."""

import json
from typing import Any

import jax
import numpy as np

from tests.models.reference import random_arrays
from tlx import models
from tlx.models.base import Model
from tlx.models.leaves import leaves, values, with_values
from tlx.models.text import POOLER, TextEncoder
from tlx.weights.keymap import Conversion, KeyTable
from tlx.weights.meta import TextPreprocess, WeightsMeta

VOCABULARY, TOKENS, CLASSES = 99, 17, 5
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def text_meta(name: str, config: dict[str, Any], per_token: bool = False) -> WeightsMeta:
    _, longest, pad_id, segments = models.family(name).text_facts(name, config)
    preprocess = TextPreprocess(longest, pad_id=pad_id, segments=segments)
    return WeightsMeta(name, preprocess=preprocess, config=json.dumps(config), per_token=per_token)


def random_model(
    name: str, config: dict[str, Any], *, per_token: bool = False, num_classes: int = CLASSES
) -> TextEncoder:
    meta = text_meta(name, SIZES | config, per_token)
    model = models.abstract_model(name, num_classes=num_classes, meta=meta)
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.standard_normal(leaf.shape).astype(np.float32) * (leaf.shape[0] ** -0.5)
        for path, leaf in leaves(model).items()
    }
    return with_values(model, arrays)


def batch(tokens: int = TOKENS, padding: int = 0) -> dict[str, np.ndarray]:
    """Three texts: one of all tokens, one of half of them, one of three fewer; and padding behind them."""
    rng = np.random.default_rng(tokens)
    ids = rng.integers(5, VOCABULARY, (3, tokens))
    lengths = np.array([tokens, tokens // 2, tokens - 3])
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {
        "input_ids": np.pad(ids * mask, ((0, 0), (0, padding))),
        "attention_mask": np.pad(mask, ((0, 0), (0, padding))),
    }


def hidden_states(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What each stage gives that gives hidden states."""
    seen: dict[str, Any] = {}
    model.watch = seen.__setitem__
    model(inputs)
    model.watch = None
    return {k: np.asarray(c["hidden"]) for k, c in seen.items() if isinstance(c, dict)}


def transformers_model(kind: str, config: Any) -> Any:
    """transformers' network of a class, whose values depend on their names alone."""
    import torch
    import transformers

    config._attn_implementation = "eager"
    module = getattr(transformers, kind)(config)
    arrays = random_arrays({k: tuple(v.shape) for k, v in module.state_dict().items()})
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    return module.eval()


def imported(
    name: str, module: Any, *, per_token: bool = False
) -> tuple[TextEncoder, KeyTable, Conversion, dict[str, np.ndarray]]:
    """Our network with the values of transformers', the table that they came by, what it made of them, and the values."""
    arrays = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    family = models.family(name)
    table = max(family.key_tables(name), key=lambda table: table.coverage(arrays))
    conversion = table.to_target(arrays)
    config = json.loads(module.config.to_json_string())
    if name in family.POOLERS and family.POOLERS[name] not in conversion.arrays:
        config[POOLER] = False
    classes = module.config.num_labels if hasattr(module, "classifier") else 0
    meta = text_meta(name, config, per_token)
    model = models.abstract_model(name, num_classes=classes, meta=meta)
    assert set(leaves(model)) == set(conversion.arrays)
    assert not conversion.unknown
    return with_values(model, conversion.arrays), table, conversion, arrays


def assert_parity(
    name: str,
    module: Any,
    *,
    per_token: bool = False,
    skip: tuple[str, ...] = (),
    tokens: int = TOKENS,
    dropped: str = "",
) -> None:
    """Compares hidden states and logits with and without padding, and what is written back.

    Args:
      name: of the architecture.
      module: transformers' network.
      per_token: whether its logits are those of each token.
      skip: stages whose hidden states transformers does not show.
      tokens: in the longest text.
      dropped: what names of values that are not taken over start with; "": there are none.
    """
    import torch

    model, table, conversion, arrays = imported(name, module, per_token=per_token)
    padded = batch(tokens)
    whole = {key: array[:1] for key, array in padded.items()}
    for inputs in (padded, whole):
        with torch.no_grad():
            tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
            theirs = module(**tensors, output_hidden_states=True)
        ours = [x for stage, x in hidden_states(model, inputs).items() if stage not in skip]
        assert len(ours) == len(theirs.hidden_states)
        counts = inputs["attention_mask"][..., None] > 0
        for one, other in zip(ours, theirs.hidden_states, strict=True):
            assert_close(one * counts, other.numpy() * counts)
        if model.num_classes:
            mask = counts if per_token else True
            assert_close(np.asarray(model(inputs)) * mask, theirs.logits.numpy() * mask)
    assert all(key.startswith(dropped) for key in conversion.dropped)
    assert bool(conversion.dropped) == bool(dropped)
    back = table.to_source({p: np.asarray(v) for p, v in values(model).items()}, conversion.carried)
    assert back.keys() == arrays.keys() - set(conversion.dropped)
    for key, array in back.items():
        assert array.tobytes() == arrays[key].tobytes(), key


def assert_close(ours: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.01 * np.abs(expected).max()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_padding_is_not_seen(model: TextEncoder) -> None:
    """Texts give the same alone, padded to the longest of their batch, and padded further."""
    padded, further = batch(), batch(padding=23)
    logits = np.asarray(model(padded))
    scale = np.abs(logits).max()
    more = np.asarray(model(further))
    for text, length in enumerate(padded["attention_mask"].sum(1)):
        alone = {key: array[text : text + 1, :length] for key, array in padded.items()}
        expected = np.asarray(model(alone))[0]
        rows = slice(length) if model.meta.per_token else slice(None)
        for found in (logits[text][rows], more[text][rows]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


def assert_pieces_are_the_whole(model: TextEncoder) -> None:
    """A network that starts behind a prefix gives what the whole one does, and reads hidden states and mask only."""
    inputs = batch()
    expected = np.asarray(model(inputs))
    carry: Any = model.as_input(inputs)
    for place in range(len(model.stages)):
        carry = model.run(carry, place, place + 1)
    np.testing.assert_array_equal(model.pool(carry), model.features(inputs))
    for stop in range(1, len(model.stages) + 2):
        model.start = 0
        kept = model.prefix(inputs, stop)
        assert not isinstance(kept, dict) or set(kept) == {"hidden", "mask"}
        model.start = stop
        np.testing.assert_allclose(model(kept), expected, rtol=1e-6, atol=1e-6)
    model.start = 0


def assert_bfloat16_is_near(model: TextEncoder) -> None:
    """Logits computed in bfloat16 are others than those in float32, and near them; they are float32 all the same."""
    expected = np.asarray(model(batch()))
    model.dtype = "bfloat16"
    found = model(batch())
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def assert_dropout_is_the_keys(model: TextEncoder) -> None:
    """With one key the same is dropped, with another one something else."""
    one, other = jax.random.key(0), jax.random.key(1)
    np.testing.assert_array_equal(model(batch(), one), model(batch(), one))
    assert np.abs(model(batch(), one) - model(batch(), other)).max() > 1e-3
