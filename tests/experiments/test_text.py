"""The reference of the experiments on text: what it reads, pads, trains and counts."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "text"
MODULES = ("recipe", "theirs_data", "theirs", "worker", "torch_threads")
WORDS = "[PAD] [UNK] [CLS] [SEP] paris is big ##ger than".split()
CONLL = "Paris\tB-location\nis\tO\n\t\nbigger\tO\n\u200b\tO\nthan\tO\nParis\tB-location\n\n"


@pytest.fixture
def module(monkeypatch):
    """Imports one of the folder's modules, whose names are those of other experiments too."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def folders(tmp_path):
    """Returns the folder of a small BERT and one of data."""
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    model = tmp_path / "model"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(WORDS), intermediate_size=8, **sizes)
    transformers.BertModel(config).save_pretrained(model)
    vocab = {word: number for number, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(model)
    data = tmp_path / "data" / "wnut17"
    data.mkdir(parents=True)
    (data / "train.conll").write_text(CONLL, encoding="utf-8")
    return model, tmp_path


def test_batches_are_padded_to_the_longest_or_to_a_bucket(module):
    recipe = module("recipe").RECIPES["sst2"]
    assert [recipe.padded(n, "buckets") for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
    assert recipe.padded(17, "longest") == 17
    assert recipe.steps("full", 20_000) == 625
    assert module("recipe").RECIPES["wnut17"].steps("full", 3_394) == 1_061


@pytest.mark.parity
def test_labels_are_those_of_first_sub_tokens(module, folders):
    import transformers

    theirs, recipe = module("theirs_data"), module("recipe").RECIPES["wnut17"]
    model, shared = folders
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    split = theirs.load("wnut17", shared, "train", tokenizer, recipe)
    assert split.tags == [["B-location", "O"], ["O", "O", "O", "B-location"]]
    assert split.ids == [[2, 4, 5, 3], [2, 6, 7, 8, 4, 3]]
    assert split.starts == [[1, 2], [1, -1, 3, 4]]  # the invisible word has no token
    batch = theirs.collate(split, [0, 1], recipe, "longest", 0)
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]
    assert batch["labels"].tolist() == [[-100, 0, 1, -100, -100, -100], [-100, 1, -100, 1, 0, -100]]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("full", {"bert", "classifier"}),
        ("head", {"classifier"}),
        ("lora", {"lora_A", "lora_B", "classifier"}),
    ],
)
def test_methods_train_what_they_say(module, folders, method, trained):
    import torch

    theirs, recipe = module("theirs"), module("recipe").RECIPES["sst2"]
    model = theirs.build("sst2", method, folders[0], ["0", "1"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = theirs.training_step(model, method, recipe, 0.1, 2)
    ids = torch.tensor([[2, 4, 5, 3]])
    batch = {"input_ids": ids, "attention_mask": ids * 0 + 1, "labels": torch.tensor([1])}
    for _ in range(2):  # lora_A has a gradient once lora_B is not zero
        step(batch)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    kinds = {
        next((kind for kind in ("lora_A", "lora_B", "classifier") if kind in name), "bert")
        for name in changed
    }
    assert kinds == trained
    assert model.training


@pytest.mark.parity
def test_weight_decay_is_not_of_biases_and_layer_norm(module, folders):
    theirs, recipe = module("theirs"), module("recipe").RECIPES["sst2"]
    model = theirs.build("sst2", "full", folders[0], ["0", "1"])
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = theirs.make_optimizer(model, recipe, 0.1).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    found = {names[id(p)] for p in plain["params"]}
    assert found == {name for name in names.values() if "LayerNorm" in name or "bias" in name}
