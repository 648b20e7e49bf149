"""Text models that were written here, in transformers and peft; adapters of peft's, here."""

import json

import numpy as np
import pytest

from tests import text_models
from tests.torchvision_import import import_torchvision
from tlx import create_model, preprocess, save_weights
from tlx.models import leaves
from tlx.models.adapters import specs_of
from tlx.weights.files import read_weights
from tlx.weights.peft_config import WEIGHTS
from tlx.weights.peft_read import load_adapters
from tlx.weights.peft_write import save_adapters

pytestmark = pytest.mark.parity

PAIRS = [("the cats sat", "unwanted ."), ("cat", "the cafe")]


@pytest.fixture(scope="module")
def torch():
    import_torchvision()  # transformers looks at it
    import torch

    return torch


def opened(folder, kind):
    """transformers' network and tokenizer; every key must be there, and no other."""
    import transformers

    cls = getattr(transformers, f"AutoModel{kind}")
    net, found = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return net.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def logits(torch, net, batch):
    with torch.no_grad():
        return net(**{name: torch.from_numpy(ids) for name, ids in batch.items()}).logits.numpy()


def assert_close(found, expected, mask=None):
    found, expected = np.asarray(found), np.asarray(expected)
    if mask is not None:  # what padding gives is nobody's
        found, expected = found[mask > 0], expected[mask > 0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("task", ["classification", "tagging"])
@pytest.mark.parametrize("name", text_models.NAMES)
def test_transformers_opens_the_folder(torch, name, task, tmp_path):
    model = text_models.network(name, task=task)
    save_weights(model, tmp_path / "model.safetensors")
    kind = "Token" if task == "tagging" else "Sequence"
    net, tokenizer = opened(tmp_path, f"For{kind}Classification")
    assert net.config.id2label == {0: "neg", 1: "neu", 2: "pos"}
    assert net.config.problem_type == (None if task == "tagging" else "single_label_classification")
    assert type(net).__name__ == net.config.architectures[0]
    texts = text_models.texts_for(name)
    batch = preprocess(model)(texts)
    theirs = tokenizer(texts, padding=True, return_tensors="np")
    assert theirs.keys() == batch.keys()
    for key, ids in batch.items():
        np.testing.assert_array_equal(theirs[key], ids, err_msg=key)
    per_token = batch["attention_mask"] if task == "tagging" else None
    assert_close(model(batch), logits(torch, net, batch), per_token)


@pytest.mark.parametrize("name", text_models.NAMES)
def test_transformers_opens_an_encoder_alone(torch, name, tmp_path):
    model = text_models.headless(name)
    save_weights(model, tmp_path / "model.safetensors")
    net, _ = opened_encoder(tmp_path)
    batch = preprocess(model)(text_models.texts_for(name))
    with torch.no_grad():
        found = net(**{key: torch.from_numpy(ids) for key, ids in batch.items()})
    if name == "bert":
        assert_close(model(batch), found.pooler_output.numpy())
    else:
        assert_close(model(batch), found.last_hidden_state[:, 0].numpy())


def opened_encoder(folder):
    import transformers

    # RoBERTa's class makes a pooler where it is not told to do without; no classifier reads it.
    net, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not found["unexpected_keys"]
    assert all("pooler" in key for key in found["missing_keys"])
    return net.eval(), found


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_pairs_are_the_same_tokens(torch, name, tmp_path):
    model = text_models.network(name)
    save_weights(model, tmp_path / "model.safetensors")
    _, tokenizer = opened(tmp_path, "ForSequenceClassification")
    first, second = ([pair[i] for pair in PAIRS] for i in (0, 1))
    if text_models.uses_bytes(name):
        first, second = ["ab a", "b"], ["a", "ab ab"]
    batch = preprocess(model)(first, second)
    theirs = tokenizer(first, second, padding=True, return_tensors="np")
    assert theirs.keys() == batch.keys()
    for key, ids in batch.items():
        np.testing.assert_array_equal(theirs[key], ids, err_msg=key)


@pytest.mark.parametrize(("task", "problem"), [("multilabel", "multi_label_classification"), ("regression", "regression")])  # fmt: skip
def test_the_task_is_named(torch, task, problem, tmp_path):
    names = ("value",) if task == "regression" else ("a", "b")
    save_weights(text_models.network("bert", names, task=task), tmp_path / "model.safetensors")
    net, _ = opened(tmp_path, "ForSequenceClassification")
    assert net.config.problem_type == problem and net.config.num_labels == len(names)


@pytest.mark.parametrize("name", text_models.NAMES)
def test_a_head_on_transformers_own_encoder(torch, name, tmp_path):
    """Its file has no names for a head, and may hold what the network does not use: the folder is complete all the same."""
    model = text_models.headless(name)
    save_weights(model, tmp_path / "model.safetensors")
    net, _ = opened_encoder(tmp_path)
    net.save_pretrained(tmp_path)
    model = create_model(name, weights=tmp_path, num_classes=3)
    assert model.origin.table == "transformers_backbone"
    out = tmp_path / "out"
    out.mkdir()
    save_weights(model, out / "model.safetensors")
    if name == "modernbert":  # its encoder alone has no pooler, which the classifiers there read
        assert "architectures" not in json.loads((out / "config.json").read_text())
        return
    theirs, _ = opened(out, "ForSequenceClassification")
    batch = preprocess(model)(text_models.texts_for(name))
    assert_close(model(batch), logits(torch, theirs, batch))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", text_models.NAMES)
def test_a_file_of_transformers_in_half_precision_survives_the_round_trip(
    torch, name, dtype, tmp_path
):
    save_weights(text_models.network(name), tmp_path / "model.safetensors")
    net, _ = opened(tmp_path, "ForSequenceClassification")
    net.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    save_weights(create_model(name, weights=tmp_path), out / "model.safetensors")
    one, two = (read_weights(folder / "model.safetensors") for folder in (tmp_path, out))
    assert one.keys() == two.keys()
    for key, array in one.items():
        assert array.dtype == two[key].dtype == np.dtype(dtype)
        assert array.tobytes() == two[key].tobytes(), key
    assert str(opened(out, "ForSequenceClassification")[0].dtype) == f"torch.{dtype}"


# Of a layer's modules there: query, key, value and the last; ModernBERT's first three are one.
MODULES = {
    "bert": ("query", "key", "value", "output.dense"),
    "roberta": ("query", "key", "value", "output.dense"),
    "electra": ("query", "key", "value", "output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "ffn.lin2"),
    "deberta_v3": ("query_proj", "key_proj", "value_proj", "output.dense"),
    "modernbert": ("Wqkv", "Wqkv", "Wqkv", "mlp.Wo"),
}


@pytest.mark.parametrize("task", ["classification", "tagging"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", MODULES)
def test_peft_opens_the_adapters(torch, name, method, task, tmp_path):
    import peft

    adapters = {"method": method} if method == "ia3" else {"method": method, "rank": 2}
    plain, model = text_models.network(name, task=task, adapters=adapters)
    save_weights(plain, tmp_path / "model.safetensors")
    save_adapters(model, tmp_path / "adapter")
    kind = "Token" if task == "tagging" else "Sequence"
    net, _ = opened(tmp_path, f"For{kind}Classification")
    theirs = peft.PeftModel.from_pretrained(net, tmp_path / "adapter").eval()
    assert type(theirs).__name__ == f"PeftModelFor{kind}Classification"
    batch = preprocess(model)(text_models.texts_for(name))
    expected = np.asarray(model(batch))
    assert np.abs(np.asarray(plain(batch)) - expected).max() > 1e-3 * np.abs(expected).max()
    per_token = batch["attention_mask"] if task == "tagging" else None
    assert_close(logits(torch, theirs, batch), expected, per_token)
    again = load_adapters(create_model(name, weights=tmp_path), tmp_path / "adapter")
    if name != "modernbert":  # whose query, key and value are one module there, with one adapter
        assert specs_of(again) == specs_of(model)
    assert_close(again(batch), expected, per_token)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", MODULES)
def test_what_peft_trained_is_read(torch, name, method, tmp_path):
    import peft

    save_weights(text_models.network(name), tmp_path / "model.safetensors")
    net, _ = opened(tmp_path, "ForSequenceClassification")
    query, key, value, ends = MODULES[name]
    if method == "ia3":
        config = peft.IA3Config(
            task_type="SEQ_CLS", target_modules=[key, value, ends], feedforward_modules=[ends]
        )
    else:
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=2, lora_alpha=6, use_dora=method == "dora",
            target_modules=[query, value],
        )  # fmt: skip
    theirs = peft.get_peft_model(net, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "adapter")
    plain = create_model(name, weights=tmp_path)
    model = load_adapters(plain, tmp_path / "adapter")
    batch = preprocess(model)(text_models.texts_for(name))
    expected = logits(torch, theirs, batch)
    assert np.abs(np.asarray(plain(batch)) - expected).max() > 0.01 * np.abs(expected).max()
    assert_close(model(batch), expected)
    save_adapters(model, tmp_path / "again")
    one, two = (read_weights(tmp_path / part / WEIGHTS) for part in ("adapter", "again"))
    assert one.keys() <= two.keys()  # peft leaves out a head's layer that it does not train
    assert len(leaves.leaves(model)) > len(leaves.leaves(plain))
