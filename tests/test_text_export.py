"""--mode=export of text models: a folder that is opened as one from anywhere else."""

import json

import numpy as np
import pytest

import tlx
from tests import text_tasks
from tlx.run import export
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.peft_read import load_adapters

TEXTS = ["the film was superb", "very dull", "a superb and very fine film"]
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return text_tasks.folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return text_tasks.reviews(tmp_path_factory.mktemp("reviews"))


def logits(network, max_length):
    """Of texts that the run's preprocessing does not cut."""
    batch = tlx.preprocess(network)(TEXTS)
    assert batch["input_ids"].shape[1] <= max_length
    return np.asarray(network(batch))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_export_is_a_folder_of_the_trained_network(tmp_path, model, reviews, method):
    fields = text_tasks.fields(model, reviews) | {"train.steps": 3, "tune.method": method}
    tlx.finetune(fields, tmp_path / "run")
    trained = tlx.load(tmp_path / "run")
    written = export(tmp_path / "run")
    folder = tmp_path / "run" / "export"
    assert written == [folder, folder / "adapter"][: len(written)]
    assert len(written) == (1 if method == "full" else 2)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == FILES
    assert export(tmp_path / "run") == written  # over what is there
    again = tlx.create_model("bert", weights=folder)
    assert again.meta.class_names == trained.meta.class_names == ("negative", "positive")
    assert again.meta.task == "classification" and not again.meta.per_token
    expected = logits(trained, trained.meta.text.max_length)
    np.testing.assert_allclose(logits(again, 16), expected, rtol=1e-5, atol=1e-6)
    if method == "lora":
        plain = tlx.create_model("bert", weights=model, num_classes=2)
        assert np.abs(logits(plain, 16) - expected).max() > 1e-3
        adapted = load_adapters(plain, folder / "adapter")
        np.testing.assert_allclose(logits(adapted, 16), expected, rtol=1e-5, atol=1e-6)
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["classifier"]


def test_what_transformers_cannot_open_is_said(tmp_path, model, reviews, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    arrays = {k: np.array(a) for k, a in read_weights(bare / FILES[1]).items() if "pooler" not in k}
    write_safetensors(arrays, bare / FILES[1], {})
    fields = text_tasks.fields(bare, reviews) | {"train.steps": 2, "tune.method": "head"}
    tlx.finetune(fields, tmp_path / "run")
    capsys.readouterr()
    export(tmp_path / "run")
    assert "note: the weights that it was trained from have no pooler" in capsys.readouterr().out
    again = tlx.create_model("bert", weights=tmp_path / "run" / "export")
    expected = logits(tlx.load(tmp_path / "run"), 16)
    np.testing.assert_allclose(logits(again, 16), expected, rtol=1e-5, atol=1e-6)
