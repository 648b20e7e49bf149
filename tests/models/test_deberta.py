import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.text_reference import (
    CLASSES,
    SIZES,
    TOKENS,
    assert_bfloat16_is_near,
    assert_dropout_is_the_keys,
    assert_padding_is_not_seen,
    assert_parity,
    assert_pieces_are_the_whole,
    batch,
    random_model,
    text_meta,
    transformers_model,
)
from tlx.errors import InputError
from tlx.models import abstract_model, default_meta, family
from tlx.models.deberta import sizes
from tlx.models.disentangled import Distances, diagonals
from tlx.models.leaves import is_within, leaves, values, with_values

pytestmark = pytest.mark.wide

NAME = "deberta_v3"
V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
OLDER = {  # as DeBERTa V2 may be
    "position_buckets": -1,
    "max_relative_positions": 6,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "position_biased_input": True,
    "embedding_size": 16,
    "type_vocab_size": 2,
}


def facts(**changed):
    return sizes(NAME, json.dumps(SIZES | V3 | changed))


# ----- the network -----------------------------------------------------------------------------------------


def test_without_weights_it_is_the_published_base_network():
    model = abstract_model(NAME, num_classes=0)
    assert model.stages == ("embeddings", *(f"layer.{i}" for i in range(12)))
    assert sum(np.prod(leaf.shape) for leaf in leaves(model).values()) == 183_831_552
    assert default_meta(NAME).text.max_length == 512


def test_near_distances_have_rows_of_their_own_and_far_ones_share_them():
    rows = Distances(longest=512, buckets=256).rows(600)
    distances = np.arange(-599, 600)
    near = np.abs(distances) <= 128
    np.testing.assert_array_equal(rows[near], distances[near] + 256)
    assert rows[distances == 511] == 511
    assert rows[distances == 599] == 511
    np.testing.assert_array_equal(rows[distances < 0][::-1][:500], 512 - rows[distances > 0][:500])
    assert (np.diff(rows) >= 0).all()
    # (200 / 128) is (511 / 128) to the power 0.3224: the bucket 128 + ceil(0.3224 * 127).
    assert rows[distances == 200] == 256 + 128 + 41


def test_distances_without_buckets_are_cut_off():
    np.testing.assert_array_equal(Distances(longest=2).rows(4), [0, 0, 1, 2, 3, 3, 3])


def test_diagonals():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 7))
    y = diagonals(jnp.asarray(x))
    assert y.shape == (2, 3, 4, 4)
    for i in range(4):
        for j in range(4):
            np.testing.assert_allclose(y[..., i, j], x[..., i, j - i + 3], rtol=1e-6)


@pytest.mark.parametrize("term", ["c2p", "p2c"])
def test_scores_are_of_contents_and_distances(term):
    model = random_model(NAME, V3 | {"pos_att_type": term})
    attention = getattr(model, "layer.1").attention
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, TOKENS, 32)).astype(np.float32)
    relative = rng.standard_normal((16, 32)).astype(np.float32)

    def heads(layer, x):
        y = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        return y.reshape(-1, 4, 8)

    query, key, value = (heads(getattr(attention, p), x[0]) for p in ("query", "key", "value"))
    rows = Distances(64, 8).rows(TOKENS)
    mixed = np.zeros((TOKENS, 4, 8))
    for i in range(TOKENS):
        place = np.array([relative[rows[i - j + TOKENS - 1]] for j in range(TOKENS)])
        scores = np.einsum("hd,jhd->hj", query[i], key)
        if term == "c2p":
            scores += np.einsum("hd,jhd->hj", query[i], heads(attention.key, place))
        else:
            scores += np.einsum("jhd,jhd->hj", key, heads(attention.query, place))
        weights = np.exp(scores / np.sqrt(2 * 8))
        mixed[i] = np.einsum("hj,jhd->hd", weights / weights.sum(-1, keepdims=True), value)
    output = attention.output
    expected = mixed.reshape(TOKENS, 32) @ np.asarray(output.kernel[...]) + output.bias[...]
    found = attention(x, None, None, jnp.asarray(relative))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("config", [V3, V3 | OLDER], ids=["v3", "older"])
def test_padding_is_not_seen(config, per_token):
    assert_padding_is_not_seen(random_model(NAME, config, per_token=per_token))


@pytest.mark.parametrize("per_token", [False, True])
def test_pieces_are_the_whole(per_token):
    assert_pieces_are_the_whole(random_model(NAME, V3, per_token=per_token))


def test_the_relative_embedding_belongs_to_the_first_stage_and_is_read_by_all_layers():
    model = random_model(NAME, V3)
    assert "embeddings.relative_embedding" in leaves(model)
    arrays, inputs = values(model), batch()

    def loss(relative):
        changed = arrays | {"embeddings.relative_embedding": relative}
        return jnp.square(with_values(model, changed)(inputs)).sum()

    relative = arrays["embeddings.relative_embedding"]
    # Distances from -16 to 16 reach the buckets -6 to 6 of 8: rows 0, 1, 14 and 15 are of none.
    moved = np.abs(jax.grad(loss)(relative)).max(1) > 0
    assert moved[2:15].all()
    assert not moved[[0, 1, 15]].any()
    norm, carry = model.embeddings.relative_norm, model.run(model.as_input(inputs), stop=2)
    np.testing.assert_allclose(carry["relative"], norm(relative), rtol=1e-6)


def test_texts_have_a_layer_before_the_classifier_and_tokens_do_not():
    model = random_model(NAME, V3)
    assert model.classifiers == ("head.out",)
    features = model.features(batch())
    np.testing.assert_array_equal(features, model.run(model.as_input(batch()))["hidden"][:, 0])
    head = model.head
    inner = jax.nn.gelu(head.dense(features), approximate=False)
    np.testing.assert_allclose(model(batch()), head.out(inner), rtol=1e-5, atol=1e-5)
    model = random_model(NAME, V3, per_token=True)
    assert model.classifiers == ("head",)
    assert model(batch()).shape == (3, TOKENS, CLASSES)


def test_any_number_of_tokens_where_no_position_is_absolute():
    assert random_model(NAME, V3)(batch(80)).shape == (3, CLASSES)
    with pytest.raises(InputError, match="80 tokens, but the network has positions for 64"):
        random_model(NAME, V3 | OLDER)(batch(80))


def test_compute_in_bfloat16_is_near_that_in_float32():
    assert_bfloat16_is_near(random_model(NAME, V3))


def test_rates_of_dropout_are_the_files_or_those_given():
    config = {"hidden_dropout_prob": 0.2, "cls_dropout": 0.3, "pooler_dropout": 0.4}
    meta = text_meta(NAME, SIZES | V3 | config)
    model = abstract_model(NAME, num_classes=2, meta=meta)
    layer = getattr(model, "layer.0")
    assert (model.embeddings.rate, layer.rate, layer.attention.relative_dropout) == (0.2,) * 3
    assert layer.attention.dropout == 0.1
    assert (model.head.projection.first_dropout, model.head.projection.dropout) == (0.4, 0.3)
    model = abstract_model(NAME, num_classes=2, meta=meta, dropout=0.0)
    assert model.head.projection.first_dropout == model.head.projection.dropout == 0
    assert_dropout_is_the_keys(random_model(NAME, V3))


# ----- config.json -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("conv_kernel_size", 3, "conv_kernel_size is '3', expected 0"),
        ("position_buckets", 200, "position_buckets is 200, expected at least 2, and less than 126"),
        ("position_buckets", 1, "position_buckets is 1, expected at least 2"),
        ("position_buckets", "many", "position_buckets is 'many', expected a whole number"),
        ("pos_att_type", "c2p|p2p", r"pos_att_type is 'c2p\|p2p', expected a list of any of c2p, p2c"),
        ("pos_att_type", {"c2p": 1}, "pos_att_type is .* expected a list of any of"),
        ("norm_rel_ebd", "rms", "norm_rel_ebd is 'rms', expected a list of any of none, layer_norm"),
        ("pooler_hidden_size", 16, "pooler_hidden_size is '16', expected 32"),
        ("attention_head_size", 16, "attention_head_size is '16', expected 8"),
        ("share_att_key", "yes", "share_att_key is 'yes', expected true or false"),
        ("pooler_hidden_act", "softsign", "pooler_hidden_act is 'softsign', expected one of gelu"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(field, value, message):
    with pytest.raises(InputError, match=f"config.json: {message}"):
        facts(**{field: value})


def test_what_config_json_does_not_say_is_as_in_transformers_configuration():
    own = sizes(NAME, '{"model_type": "deberta-v2"}')
    assert (own.width, own.depth, own.heads, own.inner) == (1536, 24, 24, 6144)
    assert own.distances is None
    assert own.absolute
    assert own.terms == ()
    assert facts(pos_att_type=["p2c", "c2p"]).terms == ("p2c", "c2p")
    assert facts(position_buckets=-1).distances == Distances(64, 0)


def test_leftovers_of_pretraining_have_names_to_be_left_out_by():
    model = random_model(NAME, V3)
    arrays = {
        "deberta.embeddings.position_embeddings.weight": np.zeros((64, 32), np.float32),
        "deberta.embeddings.position_embeddings._weight": np.zeros((64, 32), np.float32),
        "deberta.embeddings.word_embeddings._weight": np.zeros((99, 32), np.float32),
        "mask_predictions.dense.weight": np.zeros((32, 32), np.float32),
        "lm_predictions.lm_head.bias": np.zeros(99, np.float32),
    }
    table = max(family(NAME).key_tables(NAME), key=lambda table: table.coverage(arrays))
    made = table.to_target(arrays)
    assert len(made.dropped) == 4
    assert not made.unknown
    (path,) = made.arrays
    assert is_within(path, model.unused)
    assert path in leaves(random_model(NAME, V3 | OLDER | {"embedding_size": 32}))


# ----- transformers ----------------------------------------------------------------------------------------


def theirs(kind, **options):
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    config = transformers.DebertaV2Config(**SIZES, **(V3 | options), num_labels=CLASSES)
    return transformers_model(f"DebertaV2{kind}", config)


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {},
        OLDER,
        {"pos_att_type": ["c2p"], "pooler_hidden_act": "tanh"},
        {"pos_att_type": ["p2c"], "share_att_key": False},
        {"relative_attention": False, "position_biased_input": True},
    ],
    ids=["v3", "older", "c2p", "p2c", "absolute"],
)
def test_classifiers_of_texts_are_transformers(options):
    assert_parity(NAME, theirs("ForSequenceClassification", **options), tokens=40)


@pytest.mark.parity
def test_classifiers_of_tokens_are_transformers():
    assert_parity(NAME, theirs("ForTokenClassification"), per_token=True)


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
def test_encoders_and_networks_of_pretraining_are_transformers(legacy):
    assert_parity(NAME, theirs("Model"))
    module = theirs("ForMaskedLM", legacy=legacy)
    assert_parity(NAME, module, dropped="cls." if legacy else "lm_predictions.")


@pytest.mark.parity
@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (8, 64), (32, 128), (6, 20), (2, 9)])
def test_buckets_are_transformers(buckets, longest):
    import torch

    theirs("Model")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    found = Distances(longest, buckets).rows(longest + 50) - buckets
    distances = torch.arange(-longest - 49, longest + 50)
    expected = make_log_bucket_position(distances, buckets, longest).long().numpy()
    np.testing.assert_array_equal(found, np.clip(expected, -buckets, buckets - 1))
