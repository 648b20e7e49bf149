import json

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
from tlx.models import abstract_model, default_meta
from tlx.models.layers import normal
from tlx.models.leaves import leaves, values, with_values
from tlx.models.modernbert import sizes
from tlx.models.rotary import RotaryAttention
from tlx.models.text import POOLER

pytestmark = pytest.mark.wide

NAME = "modernbert"
SMALL = {"local_attention": 6}
BIASED = {
    "local_attention": 7,
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
    "classifier_pooling": "mean",
    "classifier_activation": "silu",
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
NO_POOLER = SMALL | {POOLER: False}


def facts(**changed):
    return sizes(NAME, json.dumps(SIZES | SMALL | changed))


def attention(window=0, theta=100.0):
    layer = RotaryAttention(
        16, 2, theta=theta, window=window, bias=False, dropout=0.0,
        init=normal(0.1), output_init=normal(0.1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.standard_normal(leaf.shape).astype(np.float32) / 4
        for path, leaf in values(layer).items()
    }
    return with_values(layer, arrays)


# ----- the network -----------------------------------------------------------------------------------------


def test_without_weights_it_is_the_published_base_network():
    model = abstract_model(NAME, num_classes=0)
    found = leaves(model)
    assert model.stages == ("embeddings", *(f"layer.{i}" for i in range(22)), "norm", "pooler")
    counts = {path: np.prod(leaf.shape) for path, leaf in found.items()}
    pooler = sum(count for path, count in counts.items() if path.startswith("pooler."))
    assert (sum(counts.values()) - pooler, pooler) == (149_014_272, 768 * 768 + 768)
    assert not any(path.endswith("bias") for path in found)
    assert "layer.0.norm1.scale" not in found
    assert "layer.1.norm1.scale" in found
    assert default_meta(NAME).text.max_length == 8192


def test_every_third_layer_looks_at_all_tokens():
    model = abstract_model(NAME, num_classes=0)
    layers = [getattr(model, f"layer.{i}").attention for i in range(22)]
    assert [layer.window for layer in layers] == [64 * (i % 3 > 0) for i in range(22)]
    assert [layer.theta for layer in layers] == [[160_000, 10_000][i % 3 > 0] for i in range(22)]


def test_a_local_layer_looks_no_further_than_its_window():
    layer = attention(window=3)
    x = np.random.default_rng(1).standard_normal((1, 12, 16)).astype(np.float32)
    changed = x.copy()
    changed[0, 5] += 1
    moved = np.abs(layer(x) - layer(changed)).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(moved), [2, 3, 4, 5, 6, 7, 8])
    short = x[:, :4]  # all within the window
    np.testing.assert_allclose(layer(short), attention()(short), rtol=1e-5, atol=1e-5)


def test_scores_depend_on_the_distance_of_tokens_alone():
    layer = attention()
    rng = np.random.default_rng(2)
    query, key = (np.tile(rng.standard_normal((1, 1, 2, 8)), (1, 9, 1, 1)) for _ in range(2))
    scores = np.asarray(layer.scores(jnp.asarray(query), jnp.asarray(key)))
    for distance in range(-8, 9):
        of = np.diagonal(scores, distance, 2, 3)
        np.testing.assert_allclose(of, np.broadcast_to(of[..., :1], of.shape), rtol=1e-4, atol=1e-5)
    assert np.ptp(scores) > 0.1
    plain = (query * key).sum(-1)[0, 0] * 8**-0.5
    np.testing.assert_allclose(np.diagonal(scores, 0, 2, 3)[0, :, 0], plain, rtol=1e-4)


def test_the_plane_of_two_features_is_turned_by_an_angle_of_its_own():
    layer = attention(theta=81.0)
    x = np.zeros((1, 2, 2, 8), np.float32)
    x[..., 1] = 1  # in the plane of features 1 and 5, whose frequency is 81 ** (-2 / 8)
    scores = layer.scores(jnp.asarray(x), jnp.asarray(x))
    np.testing.assert_allclose(scores[0, 0, 0, 1], np.cos(1 / 3) * 8**-0.5, rtol=1e-5)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("config", [SMALL, BIASED, NO_POOLER], ids=["small", "biased", "no pooler"])
def test_padding_is_not_seen(config, per_token):
    assert_padding_is_not_seen(random_model(NAME, config, per_token=per_token))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("config", [BIASED, NO_POOLER], ids=["biased", "no pooler"])
def test_pieces_are_the_whole(config, per_token):
    assert_pieces_are_the_whole(random_model(NAME, config, per_token=per_token))


def test_texts_and_tokens_go_through_the_same_layers_before_the_classifier():
    texts, tokens = (random_model(NAME, SMALL, per_token=each) for each in (False, True))
    assert texts.stages == tokens.stages
    np.testing.assert_allclose(texts(batch()), tokens(batch())[:, 0], rtol=1e-5, atol=1e-5)
    assert tokens(batch()).shape == (3, TOKENS, CLASSES)


def test_the_mean_is_over_tokens_that_count():
    model = random_model(NAME, NO_POOLER | {"classifier_pooling": "mean"}, num_classes=0)
    assert model.stages[-1] == "norm"
    inputs = batch()
    hidden = np.asarray(model.run(model.as_input(inputs))["hidden"])
    for text, length in enumerate(inputs["attention_mask"].sum(1)):
        expected = hidden[text, :length].mean(0)
        np.testing.assert_allclose(model(inputs)[text], expected, rtol=1e-5, atol=1e-5)
    inputs["attention_mask"] = np.zeros_like(inputs["attention_mask"])
    assert np.isfinite(model(inputs)).all()


def test_more_tokens_than_the_network_was_made_for_are_refused():
    with pytest.raises(InputError, match="80 tokens, but the network has positions for 64"):
        random_model(NAME, SMALL)(batch(80))


def test_compute_in_bfloat16_is_near_that_in_float32():
    assert_bfloat16_is_near(random_model(NAME, BIASED))


def test_rates_of_dropout_are_the_files_or_those_given():
    config = {"embedding_dropout": 0.1, "mlp_dropout": 0.2, "attention_dropout": 0.3}
    meta = text_meta(NAME, SIZES | config | {"classifier_dropout": 0.4})
    for given, expected in ((-1.0, (0.1, 0.2, 0.3, 0.3, 0.4)), (0.5, (0.5,) * 5)):
        model = abstract_model(NAME, num_classes=2, meta=meta, dropout=given)
        layer = getattr(model, "layer.0")
        rates = (model.embeddings.rate, layer.rate, layer.attention_rate, layer.attention.dropout)
        assert (*rates, model.dropout) == expected
    assert_dropout_is_the_keys(random_model(NAME, config))


# ----- config.json -----------------------------------------------------------------------------------------


def test_older_and_newer_fields_say_the_same():
    older = facts(global_rope_theta=500.0, local_rope_theta=50.0, global_attn_every_n_layers=2)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    thetas = {"full_attention": 500.0, "sliding_attention": 50.0}
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}
    assert older == facts(rope_parameters=rope, layer_types=kinds)
    assert older.local == (False, True, False)
    assert (older.global_theta, older.local_theta, older.window) == (500, 50, 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layer_types", ["full_attention"], "layer_types has 1 entries, expected one for each of 3"),
        ("layer_types", ["chunked"] * 3, "layer_types is .* expected a list of any of full_att"),
        ("rope_parameters", 3, "rope_parameters is '3', expected an object"),
        (
            "rope_parameters",
            {"full_attention": {"rope_type": "yarn"}},
            "rope_parameters.full_attention.rope_type is 'yarn', expected 'default'",
        ),
        (
            "rope_parameters",
            {"sliding_attention": {"rope_theta": "far"}},
            "rope_parameters.sliding_attention.rope_theta is 'far', expected a number",
        ),
        ("local_rope_theta", 0, "the rope_theta of sliding_attention is 0"),
        ("rope_scaling", {"factor": 2.0}, "rope_scaling is .* expected None"),
        ("classifier_pooling", "max", "classifier_pooling is 'max', expected one of cls, mean"),
        ("hidden_activation", "softsign", "hidden_activation is 'softsign', expected one of gelu"),
        ("head_dim", 16, "head_dim is '16', expected 8"),
        ("norm_bias", 1, "norm_bias is '1', expected true or false"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(field, value, message):
    with pytest.raises(InputError, match=f"config.json: {message}"):
        facts(**{field: value})


def test_heads_of_an_odd_number_of_features_are_refused():
    with pytest.raises(InputError, match="20 features of 4 attention heads are 5 each"):
        random_model(NAME, {"hidden_size": 20})


# ----- transformers ----------------------------------------------------------------------------------------


def theirs(kind, **options):
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    config = transformers.ModernBertConfig(**SIZES, **ids, **options, num_labels=CLASSES)
    return transformers_model(f"ModernBert{kind}", config)


SHOWN = {"skip": ("layer.2", "pooler")}  # transformers shows the last layer's behind the norm


@pytest.mark.parity
@pytest.mark.parametrize("options", [SMALL, BIASED], ids=["small", "biased"])
@pytest.mark.parametrize("per_token", [False, True])
def test_classifiers_are_transformers(options, per_token):
    kind = "ForTokenClassification" if per_token else "ForSequenceClassification"
    assert_parity(NAME, theirs(kind, **options), per_token=per_token, tokens=40, **SHOWN)


@pytest.mark.parity
def test_encoders_and_networks_of_pretraining_are_transformers():
    assert_parity(NAME, theirs("Model", **SMALL), **SHOWN)
    assert_parity(NAME, theirs("ForMaskedLM", **SMALL), dropped="decoder.", **SHOWN)


@pytest.mark.parity
def test_far_positions_are_transformers():
    module = theirs("ForSequenceClassification", **SMALL)
    module.config.max_position_embeddings = 600  # which its layers do not ask for
    assert_parity(NAME, module, tokens=500, **SHOWN)
