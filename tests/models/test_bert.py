import json

import numpy as np
import pytest

from tests.models.text_reference import (
    SIZES,
    assert_padding_is_not_seen,
    assert_parity,
    assert_pieces_are_the_whole,
    batch,
    random_model,
    transformers_model,
)
from tlx.errors import InputError
from tlx.models import abstract_model, default_meta, family
from tlx.models.bert import MODEL_TYPES, sizes
from tlx.models.leaves import leaves, values, with_values

DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "activation": "gelu"}
OWN = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm_roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "distilbert": DISTIL,
}
CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm_roberta": "XLMRoberta",
    "electra": "Electra",
    "distilbert": "DistilBert",
}


def made(name, kind, **more):
    """transformers' network of a family."""
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    own = {key: value for key, value in SIZES.items() if key != "pad_token_id"}
    if name == "distilbert":
        own = {key: own[key] for key in ("vocab_size", "max_position_embeddings")}
    config = getattr(transformers, f"{CLASSES[name]}Config")(**(own | OWN[name] | more))
    return transformers_model(f"{CLASSES[name]}{kind}", config)


# ----- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "depth"),
    [
        ("bert", 109_482_240, 12),  # of bert-base-uncased without a head
        (
            "roberta",
            124_054_272,
            12,
        ),  # 512 positions and 2 segments, where roberta-base has 514 and 1
        ("distilbert", 66_362_880, 6),
        ("electra", 13_483_008, 12),
    ],
)
def test_without_weights_they_have_the_sizes_of_their_classes_in_transformers(name, count, depth):
    model = abstract_model(name, num_classes=0)
    layers = tuple(f"layer.{index}" for index in range(depth))
    assert model.stages == ("embeddings", *layers, *(["pooler"] if name == "bert" else []))
    assert sum(np.prod(leaf.shape) for leaf in leaves(model).values()) == count


def test_a_roberta_takes_as_many_tokens_as_positions_behind_the_paddings():
    assert sizes("roberta", json.dumps({"max_position_embeddings": 514})).max_length == 512
    assert default_meta("bert").text.max_length == 512


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_padding_is_not_seen(name, per_token):
    assert_padding_is_not_seen(random_model(name, OWN[name], per_token=per_token))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_pieces_are_the_whole(name, per_token):
    assert_pieces_are_the_whole(random_model(name, OWN[name], per_token=per_token))


def test_the_segment_of_a_token_counts_and_is_the_first_where_it_is_not_said():
    model = random_model("bert", {})
    inputs = batch()
    zeros = np.zeros_like(inputs["input_ids"])
    plain = model(inputs)
    np.testing.assert_array_equal(plain, model(inputs | {"token_type_ids": zeros}))
    assert np.abs(plain - model(inputs | {"token_type_ids": zeros + 1})).max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_without_a_mask_what_is_no_padding_counts(name):
    model = random_model(name, OWN[name])
    inputs = batch()
    pad = model.meta.text.pad_id
    inputs["input_ids"] = np.where(inputs["attention_mask"] > 0, inputs["input_ids"], pad)
    alone = {"input_ids": inputs["input_ids"]}
    np.testing.assert_array_equal(model(inputs), model(alone))


def test_features_are_what_the_classifier_reads():
    model = random_model("bert", {})
    inputs = batch()
    features = np.asarray(model.features(inputs))
    head = values(model)
    np.testing.assert_allclose(
        model(inputs), features @ head["head.kernel"] + head["head.bias"], rtol=1e-5, atol=1e-6
    )
    bare = random_model("bert", {}, num_classes=0)
    bare = with_values(bare, {path: head[path] for path in values(bare)})
    np.testing.assert_array_equal(bare(inputs), features)
    assert np.abs(features).max() <= 1  # behind tanh


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size is '32', expected a whole number"),
        ({"hidden_size": 33}, "33 features cannot be shared by 4 attention heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is '0'"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', expected one of gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_dropout_prob": 2}, "hidden_dropout_prob is '2', expected a number from 0 to 1"),
    ],
)
def test_a_config_of_another_network_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        random_model("bert", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x["input_ids"], "takes a dict of"),
        (lambda x: {"input_ids": x["input_ids"][0]}, r"expected \[B, T\]"),
        (lambda x: x | {"attention_mask": x["attention_mask"][:, 1:]}, "attention_mask has shape"),
        (lambda x: batch(65), "texts of 65 tokens, but the network has positions for 64"),
    ],
)
def test_inputs_of_another_form_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        random_model("bert", {})(change(batch()))


# ----- transformers ----------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_classifiers_equal_transformers(name, kind):
    module = made(name, kind, num_labels=3)
    assert_parity(name, module, per_token=kind == "ForTokenClassification")


@pytest.mark.parity
@pytest.mark.parametrize("name", MODEL_TYPES)
def test_encoders_alone_equal_transformers(name):
    assert_parity(name, made(name, "Model"))


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_other_activations_equal_transformers(activation):
    assert_parity("bert", made("bert", "ForSequenceClassification", hidden_act=activation))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "kind", "dropped"),
    [
        ("bert", "ForPreTraining", "cls."),
        ("roberta", "ForMaskedLM", "lm_head."),
        ("electra", "ForPreTraining", "discriminator_predictions."),
        ("distilbert", "ForMaskedLM", "vocab_"),
    ],
)
def test_heads_of_pretraining_are_left_out_by_name(name, kind, dropped):
    assert_parity(name, made(name, kind), dropped=dropped)


@pytest.mark.parity
def test_the_first_releases_names_are_read_and_written_as_they_are():
    module = made("bert", "ForSequenceClassification")
    arrays = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value.numpy()
        for name, value in module.state_dict().items()
    }
    table = max(family("bert").key_tables("bert"), key=lambda t: t.coverage(arrays))
    assert table.name == "transformers_legacy"
    made_of = table.to_target(arrays)
    assert not made_of.unknown and not made_of.dropped
    back = table.to_source(made_of.arrays, made_of.carried)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
