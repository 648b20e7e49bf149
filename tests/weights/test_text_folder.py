"""Folders of text models: written and read back, and what can be wrong with them."""

import dataclasses
import json

import numpy as np
import pytest

from tests import text_models, tokenizer_folders
from tlx import create_model, preprocess, save_weights
from tlx.errors import InputError, InputFileNotFoundError
from tlx.models import FAMILIES, default_meta, is_text
from tlx.models.leaves import values
from tlx.pretrained import source
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.load import open_weights
from tlx.weights.text_write import class_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FILES = [CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
CLASSES = ("neg", "neu", "pos")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_weights(text_models.network("bert"), path / WEIGHTS)
    return path


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


def set_fields(folder, **fields):
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | fields))


def arrays_of(folder):
    return {name: np.array(array) for name, array in read_weights(folder / WEIGHTS).items()}


def assert_same_values(one, two):
    one, two = values(one), values(two)
    assert one.keys() == two.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path], err_msg=path)


@pytest.mark.parametrize("task", ["classification", "multilabel", "tagging"])
@pytest.mark.parametrize("name", text_models.NAMES)
def test_what_is_written_is_read_back(name, task, tmp_path):
    model = text_models.network(name, task=task)
    save_weights(model, tmp_path / WEIGHTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    again = create_model(name, weights=tmp_path)
    assert_same_values(model, again)
    assert again.meta.class_names == CLASSES
    assert (again.meta.per_token, again.meta.task) == (task == "tagging", task)
    assert again.meta.preprocess == model.meta.preprocess
    assert again.meta.text.content == model.meta.text.content
    texts = text_models.texts_for(name)
    one, two = model(preprocess(model)(texts)), again(preprocess(again)(texts))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", text_models.NAMES)
def test_export_of_an_import_is_the_file(name, dtype, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    save_weights(text_models.network(name), one / WEIGHTS)
    arrays = {key: array.astype(np.dtype(dtype)) for key, array in arrays_of(one).items()}
    if name != "modernbert":  # the older ones have a buffer beside the values
        prefix = min(key.split(".")[0] for key in arrays if ".embeddings." in key)
        arrays[f"{prefix}.embeddings.position_ids"] = np.arange(40)[None]
    write_safetensors(arrays, one / WEIGHTS, {"format": "pt"})
    save_weights(create_model(name, weights=one), two / WEIGHTS)
    back = arrays_of(two)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype and back[key].tobytes() == array.tobytes(), key
    assert config_of(two) == config_of(one) | {"dtype": dtype}
    assert (two / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()


def test_a_head_on_an_encoders_file_is_written_under_names_that_it_has(tmp_path):
    encoder, out = tmp_path / "encoder", tmp_path / "out"
    encoder.mkdir(), out.mkdir()
    save_weights(text_models.headless("bert"), encoder / WEIGHTS)
    bare = {key.removeprefix("bert."): array for key, array in arrays_of(encoder).items()}
    bare = {key: array.astype(np.float16) for key, array in bare.items()}
    bare["embeddings.position_ids"] = np.arange(40)[None]
    write_safetensors(bare, encoder / WEIGHTS, {})
    file = open_weights("bert", str(encoder))
    assert file.table.name == "transformers_backbone"
    model = create_model("bert", weights=encoder, num_classes=3)
    save_weights(model, out / WEIGHTS)
    found = arrays_of(out)
    assert "bert.embeddings.word_embeddings.weight" in found and "classifier.weight" in found
    assert not any("position_ids" in key for key in found)
    # What was not changed has the file's type; the head is new.
    assert found["bert.encoder.layer.0.output.dense.weight"].dtype == np.float16
    assert found["classifier.weight"].dtype == np.float32
    assert config_of(out)["dtype"] == "float32"
    assert_same_values(model, create_model("bert", weights=out))
    # Without the head the file's own names will do.
    save_weights(create_model("bert", weights=encoder), encoder / WEIGHTS)
    assert arrays_of(encoder).keys() == bare.keys()


def test_names_that_a_project_does_not_have_are_refused(folder, tmp_path):
    model = create_model("bert", weights=folder)
    with pytest.raises(InputError, match=r"transformers_backbone network has no names for head"):
        save_weights(model, tmp_path / "x.safetensors", names="transformers_backbone")
    with pytest.raises(InputError, match="names is 'timm'"):
        save_weights(model, tmp_path / "x.safetensors", names="timm")
    assert not (tmp_path / "x.safetensors").exists()


def test_config_json_says_what_transformers_asks_for(folder):
    config = config_of(folder)
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["model_type"] == "bert" and config["hidden_size"] == 16
    assert config["id2label"] == {"0": "neg", "1": "neu", "2": "pos"}
    assert config["label2id"] == {"neg": 0, "neu": 1, "pos": 2}
    assert config["problem_type"] == "single_label_classification"
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 40
    assert tokenizer["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    roles = {role: token for role, token in tokenizer.items() if role.endswith("_token")}
    assert roles == {
        "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }  # fmt: skip


def test_classes_without_names_are_numbered(tmp_path):
    model = source("bert", num_classes=2, meta=text_models.meta("bert"))
    model = text_models.with_values(model.model, model.place(0))
    save_weights(model, tmp_path / WEIGHTS)
    assert config_of(tmp_path)["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    again = create_model("bert", weights=tmp_path)
    assert again.meta.class_names == () and again.num_classes == 2


def test_an_encoder_alone_has_no_labels(tmp_path):
    save_weights(text_models.headless("roberta"), tmp_path / WEIGHTS)
    config = config_of(tmp_path)
    assert config["architectures"] == ["RobertaModel"] and "id2label" not in config
    assert create_model("roberta", weights=tmp_path).head is None


def test_a_bert_without_a_pooler_is_no_class_of_transformers(tmp_path):
    whole, without = tmp_path / "whole", tmp_path / "without"
    whole.mkdir(), without.mkdir()
    save_weights(text_models.network("bert", task="tagging"), whole / WEIGHTS)
    model = create_model("bert", weights=whole)
    assert class_of(model.meta) == "BertForTokenClassification"
    texts = dataclasses.replace(model.meta, per_token=False)
    assert class_of(texts) == ""
    made = source("bert", str(whole), class_names=("a", "b"), meta=texts, head="new")
    model = text_models.with_values(made.model, made.place(0))
    save_weights(model, without / WEIGHTS)
    config = config_of(without)
    assert "architectures" not in config and not any(key.startswith("tlx") for key in config)
    assert_same_values(model, create_model("bert", weights=without))


def test_every_text_network_has_a_class():
    for name in filter(is_text, FAMILIES):
        assert class_of(default_meta(name)).endswith("Model")


def test_other_files_of_the_folder_stay(folder):
    (folder / "README.md").write_text("mine")
    model = create_model("bert", weights=folder, num_classes=2, seed=5)
    save_weights(model, folder / WEIGHTS)
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "README.md"])
    assert_same_values(model, create_model("bert", weights=folder))


def test_the_config_of_other_weights_is_not_written_over(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = create_model("bert", weights=folder, num_classes=2)
    with pytest.raises(InputError, match=r"of other weights \(model.safetensors\): save the weig"):
        save_weights(other, folder / "other.safetensors")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    same = create_model("bert", weights=folder)
    save_weights(same, folder / "same.safetensors")  # which that config is of, too
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert_same_values(same, create_model("bert", weights=folder / "same.safetensors"))


def test_another_kind_of_config_is_not_written_over(tmp_path):
    (tmp_path / CONFIG).write_text('{"train": {"steps": 3}}')
    with pytest.raises(InputError, match="is not the config of a network"):
        save_weights(text_models.network("bert"), tmp_path / WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]


# What is done to a folder, and what is said then.


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (CONFIG, "has no config.json, which says the sizes of the network; it has: model.saf"),
        (WEIGHTS, r"has no weights \(model.safetensors or pytorch_model.bin\); it has: config"),
        (
            "tokenizer.json",
            r"no tokenizer: .*vocab\.txt, of which .* is not there, nor is tokenizer\.json",
        ),
    ],
)
def test_files_that_are_missing_are_named(folder, missing, says):
    (folder / missing).unlink()
    with pytest.raises(InputFileNotFoundError, match=says):
        create_model("bert", weights=folder)


def test_an_empty_folder_and_none(tmp_path):
    with pytest.raises(InputFileNotFoundError, match=r"has no config\.json.*it is empty"):
        create_model("bert", weights=tmp_path)
    for path in (tmp_path / "no" / "folder", "nope", "x" * 5000, "a\0b", "~nobody-here/model"):
        with pytest.raises(InputFileNotFoundError, match=r"a folder with config\.json") as e:
            create_model("bert", weights=path)
        assert len(str(e.value)) < 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "config.json is damaged: Expecting property name"),
        (b"", "config.json is damaged"),
        (b"\xff\xfe{}", "config.json is damaged: 'utf-8' codec"),
        (b"[" * 100_000, "config.json is damaged"),
        (b"[]", "config.json is damaged: expected an object"),
    ],
)
def test_a_damaged_config_is_said(folder, content, says):
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(InputError, match=says):
        create_model("bert", weights=folder)


def test_a_byte_order_mark_is_no_damage(folder):
    (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())
    assert create_model("bert", weights=folder).meta.class_names == CLASSES


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("roberta", "is of a 'roberta', but the model is bert; set model.name=roberta"),
        ("xlm-roberta", "set model.name=xlm_roberta"),
        ("robertta", r"is of a 'robertta', but the model is bert; did you mean 'roberta'\?"),
        (["bert"], "but the model is bert"),
    ],
)
def test_another_model_type_is_refused_with_advice(folder, kind, says):
    set_fields(folder, model_type=kind)
    with pytest.raises(InputError, match=says):
        create_model("bert", weights=folder)


LABELS = {"0": "neg", "1": "neu", "2": "pos"}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"0": "a", "2": "b", "3": "c"}, "id2label does not number its classes 0, 1"),
        ({"a": "0", "b": "1", "c": "2"}, "id2label does not number its classes 0, 1"),
        (LABELS | {"00": "zero"}, "id2label does not number its classes 0, 1"),
        (LABELS | {"1": "neg"}, "id2label has a class twice"),
        (LABELS | {"3": "more"}, r"names 4 classes \(id2label\), but the head has 3"),
        ({"0": "a", "1": "b"}, r"names 2 classes \(id2label\), but the head has 3"),
        (list("abc"), "id2label is no object"),
        (LABELS | {"1": None}, "id2label calls class 1 'None', expected a text"),
        (LABELS | {"2": "a\x1b[2J"}, "id2label calls class 2 .* without control characters"),
        (LABELS | {"2": "\ud800"}, "id2label calls class 2"),
    ],
)
def test_labels_that_cannot_be_names_are_refused(folder, labels, says):
    set_fields(folder, id2label=labels)
    with pytest.raises(InputError, match=says) as caught:
        create_model("bert", weights=folder)
    assert str(caught.value).isprintable()


def test_labels_of_a_head_that_is_not_there_are_nobodys(folder):
    arrays = {key: a for key, a in arrays_of(folder).items() if not key.startswith("classifier")}
    write_safetensors(arrays, folder / WEIGHTS, {})
    meta = create_model("bert", weights=folder).meta
    assert (meta.num_classes, meta.class_names, meta.task) == (0, (), "")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"vocab_size": 2000}, "the tokenizer has 28 tokens, but the network an embedding of 2000"),
        ({"vocab_size": 20}, "the tokenizer has 28 tokens, but the network an embedding of 20"),
        ({"vocab_size": 30}, r"word_embeddings.weight .* has shape \(40, 16\).*expects \(30, 16"),
        ({"vocab_size": "40"}, "config.json: vocab_size is '40', expected a whole number"),
        ({"vocab_size": True}, "config.json: vocab_size is 'True', expected a whole number"),
        ({"pad_token_id": 3}, "the tokenizer pads with token 0, but config.json says 3"),
        ({"num_hidden_layers": 3}, "lacks 16 of the 57 values of bert: layer.2.attention"),
        ({"num_hidden_layers": 1}, "has 16 keys that bert has no place for"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is '1000000000'"),
        ({"num_attention_heads": 3}, "16 features cannot be shared by 3 attention heads"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is 'nan', expected a number"),
        ({"hidden_act": "gelu_neww"}, "hidden_act is 'gelu_neww', expected one of gelu, "),
        ({"is_decoder": True}, "is_decoder is 'True', expected False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, fields, says):
    set_fields(folder, **fields)
    with pytest.raises(InputError, match=says):
        create_model("bert", weights=folder)


def test_architectures_of_any_kind_are_read(folder):
    for kind, per_token in ((5, False), ({}, False), ("BertForTokenClassification", True)):
        set_fields(folder, architectures=kind)
        assert create_model("bert", weights=folder).meta.per_token == per_token


def test_the_tokenizer_of_another_model_is_refused(folder):
    (folder / "tokenizer.json").write_text(text_models.tokenizer("roberta").content)
    with pytest.raises(InputError, match="the tokenizer pads with token 1, but"):
        create_model("bert", weights=folder)
    (folder / "tokenizer.json").unlink()
    tokenizer_folders.folder(folder, [*tokenizer_folders.WORDS, *(f"w{i}" for i in range(30))])
    with pytest.raises(InputError, match="has 58 tokens, but the network an embedding of 40"):
        create_model("bert", weights=folder)


def test_a_tokenizer_without_a_token_for_padding_is_taken(folder):
    """The network's own id is used: nobody looks at what is there."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "[PAD]"]
    vocabulary = content["model"]["vocab"]
    vocabulary["nothing"] = vocabulary.pop("[PAD]")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    set_fields(folder, pad_token_id=3)
    model = create_model("bert", weights=folder)
    assert preprocess(model)(["cat sat", "cat"])["input_ids"][1, -1] == 3


@pytest.mark.parametrize("content", [b"{", b"", b"{}", b"[" * 100_000])
def test_a_damaged_tokenizer_is_said(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer.json is no"):
        create_model("bert", weights=folder)


def test_damaged_weights_are_said(folder):
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="Git LFS pointer"):
        create_model("bert", weights=folder)
    arrays = {k: a for k, a in arrays_of_plain().items() if k != "classifier.bias"}
    write_safetensors(arrays, folder / WEIGHTS, {})
    with pytest.raises(InputError, match=r"lacks 1 of the 41 values of bert: head\.bias"):
        create_model("bert", weights=folder)


def arrays_of_plain():
    from tlx.models import family

    model = text_models.network("bert")
    (table, *_) = family("bert").key_tables("bert")
    return table.to_source({path: np.asarray(value) for path, value in values(model).items()})
