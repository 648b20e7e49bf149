"""Text models through the same runs as pictures."""

import itertools
import json
import os
import signal

import jax
import numpy as np
import pytest

import tlx
from tests import text_tasks
from tlx import config as config_lib
from tlx.errors import InputError
from tlx.features.feeds import Feeds, decisions
from tlx.models.leaves import values
from tlx.run import export, load
from tlx.setup import prepare, prepare_tuning
from tlx.training.checkpoint import Checkpoints
from tlx.training.loop import Interrupted
from tlx.tuning.penalties import distance
from tlx.weights.files import read_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return text_tasks.folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return text_tasks.reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def entities(tmp_path_factory):
    return text_tasks.entities(tmp_path_factory.mktemp("entities"))


def flat(model):
    return {path: np.asarray(value) for path, value in values(model).items()}


def test_sentences_are_learned_and_the_workdir_alone_is_enough(tmp_path, model, reviews):
    fields = text_tasks.fields(model, reviews) | {"train.steps": 60, "data.length_buckets": "16"}
    summary = tlx.finetune(fields, tmp_path / "run")
    assert summary["test/accuracy"] >= 0.9
    assert summary["compilations/train_step"] <= 2 and summary["compilations/eval_step"] <= 2
    report = (tmp_path / "run" / "report.md").read_text()
    assert "negative" in report and "report/mistakes.png" not in report
    trained = tlx.load(tmp_path / "run")
    prepare = tlx.preprocess(trained)
    logits = trained(prepare(["the film was superb", "very dull"]))
    assert trained.meta.class_names == ("negative", "positive")
    assert np.argmax(logits, 1).tolist() == [1, 0]
    again = tlx.evaluate(fields, tmp_path / "run")
    assert again["test/loss"] == summary["test/loss"]


def test_entities_are_learned(tmp_path, model, entities):
    fields = text_tasks.fields(model, entities) | {
        "task": "tagging",
        "data.source": "conll",
        "train.steps": 120,
    }
    summary = tlx.finetune(fields, tmp_path / "run")
    assert summary["test/f1"] >= 0.9
    assert summary["test/entities"] == 40
    trained = tlx.load(tmp_path / "run")
    assert trained.meta.per_token and trained.stages == ("embeddings", "layer.0", "layer.1")
    logits = trained(tlx.preprocess(trained)("anna met bob in rome"))
    names = trained.meta.class_names
    found = [names[i] for i in np.argmax(logits[0], 1)[1:-1]]
    assert found[0] == "B-person" and found[-1] == "B-place"


@pytest.mark.parametrize("method", ["head", "partial", "lora", "bitfit", "gradual", "full"])
def test_what_is_frozen_keeps_its_bits(tmp_path, model, reviews, method):
    options = {"partial": {"tune.freeze_stages": 2}, "gradual": {"tune.unfreeze_every": "2"}}
    fields = text_tasks.fields(model, reviews) | {"tune.method": method}
    fields |= options.get(method, {}) | {"optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0}
    summary = tlx.finetune(fields, tmp_path / "run")
    before = flat(tlx.create_model("bert", weights=model, num_classes=0))
    after = flat(load(tmp_path / "run"))
    changed = {path for path, own in before.items() if not np.array_equal(own, after[path])}
    position = before["embeddings.position_embedding"]
    expected = {
        "head": set(),
        "lora": set(),
        "partial": {p for p in before if p.startswith(("layer.1.", "pooler."))},
        "bitfit": {p for p in before if p.endswith(".bias")},
    }.get(method, set(before))
    # A key's bias moves all logits of a query alike: its gradient is zero but for rounding.
    assert {p for p in changed ^ expected if not p.endswith("key.bias")} == set()
    assert position.shape == (40, 24)
    trained = sum(after[p].size for p in expected) + sum(
        own.size for path, own in after.items() if path not in before
    )
    assert summary["params/trainable"] == trained


@pytest.mark.parametrize(
    ("method", "start"), [("head", 5), ("partial", 2), ("surgical", 3), ("tagging", 4)]
)
def test_the_cache_of_the_prefix_changes_nothing(tmp_path, model, reviews, entities, method, start):
    fields = text_tasks.fields(model, reviews) | {
        "tune.method": method,
        "train.steps": 20,
        "train.log_every": 1,
        "optimizer.lr": 1e-3,
        "data.val_fraction": 0.25,
        "eval.every": "10",
        "cache.dir": str(tmp_path / "cache"),
    }
    fields |= {"partial": {"tune.freeze_stages": 2}}.get(method, {})
    fields |= {"surgical": {"tune.train_stages": "pooler,head"}}.get(method, {})
    if method == "tagging":
        fields |= {"task": "tagging", "data.source": "conll", "data.root": str(entities)}
        fields |= {"tune.method": "head"}
    losses = []
    for use in ("off", "on"):
        folder = tmp_path / f"{method}-{use}"
        summary = tlx.finetune(fields | {"cache.use": use}, folder)
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses.append([r[key] for r in records for key in ("train/loss", "val/loss") if key in r])
        assert summary["cache/stages"] == ("0" if use == "off" else str(start))
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-6)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_run_that_is_interrupted_ends_with_the_same_bits(tmp_path, model, reviews, monkeypatch):
    fields = text_tasks.fields(model, reviews) | {"checkpoint.every": "5"}
    whole = tlx.finetune(fields, tmp_path / "whole")
    save, count = Checkpoints.save, itertools.count(1)

    def saved(self, *arguments):
        save(self, *arguments)
        if next(count) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "save", saved)
    with pytest.raises(Interrupted):
        tlx.finetune(fields, tmp_path / "cut")
    resumed = tlx.finetune(fields, tmp_path / "cut")
    assert resumed["test/loss"] == whole["test/loss"]
    one, other = (flat(load(tmp_path / name)) for name in ("whole", "cut"))
    assert all(np.array_equal(own, other[path]) for path, own in one.items())


def test_results_do_not_depend_on_the_batch_or_on_padding(tmp_path, model, reviews):
    fields = text_tasks.fields(model, reviews)
    tlx.finetune(fields, tmp_path / "run")
    found = [
        tlx.evaluate(fields | {"eval.batch_size": size}, tmp_path / "run") for size in (1, 3, 20)
    ]
    losses = [one["test/loss"] for one in found]
    np.testing.assert_allclose(losses, losses[0], rtol=2e-6)
    trained = tlx.load(tmp_path / "run")
    inputs = tlx.preprocess(trained)("the film was so dull")
    wider = {name: np.pad(array, ((0, 0), (0, 9))) for name, array in inputs.items()}
    wider["input_ids"][:, -3:] = 7  # what is masked may be anything
    short, long = trained(inputs), trained(wider)
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_long_texts_are_cut_and_counted_or_read_in_windows(tmp_path, model, capsys):
    rng = np.random.default_rng(0)
    for name, count in (("train", 24), ("test", 8)):
        rows = ["text,label"]
        for number in range(count):
            # What a text is about stands at its end, beyond the length that is read at once.
            words = [*rng.choice(text_tasks.PLAIN, 20), "superb" if number % 2 else "awful"]
            rows.append(f"{' '.join(words)},{number % 2}")
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    fields = text_tasks.fields(model, tmp_path) | {"data.max_length": 16, "train.steps": 60}
    fields |= {"data.length_buckets": "16"}
    cut = tlx.finetune(fields, tmp_path / "cut")
    out = capsys.readouterr().out
    assert "24 of 24 texts are longer than 16 tokens, and cut off" in out
    assert cut["test/accuracy"] <= 0.75
    windows = {"data.long_texts": "split", "data.stride": 2}
    read = tlx.finetune(fields | windows, tmp_path / "split")
    assert (
        "24 of 24 texts are longer than 16 tokens, and read in windows" in capsys.readouterr().out
    )
    assert read["test/examples"] == 8 and read["test/accuracy"] > cut["test/accuracy"]


def test_pairs_labels_in_any_number_and_numbers(tmp_path, model):
    rng = np.random.default_rng(0)
    tables = {
        "pairs": ["sentence1,sentence2,label"],
        "tags": ["text,labels"],
        "numbers": ["text,score"],
    }
    for number in range(40):
        one, other = (text_tasks.sentence(rng, bool(rng.integers(2)), 4) for _ in range(2))
        same = any(w in one for w in text_tasks.GOOD) == any(w in other for w in text_tasks.GOOD)
        tables["pairs"].append(f"{one},{other},{'same' if same else 'other'}")
        marks = "|".join(name for name in ("plot", "acting") if name in f"{one} {other}".split())
        tables["tags"].append(f"{one} {other},{marks}")
        tables["numbers"].append(f"{one},{number % 2 + 0.5}")
    kinds = {"pairs": "classification", "tags": "multilabel", "numbers": "regression"}
    metrics = {"pairs": "accuracy", "tags": "mAP", "numbers": "mse"}
    for name, lines in tables.items():
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(lines) + "\n")
        fields = text_tasks.fields(model, path) | {"task": kinds[name], "data.test_fraction": 0.2}
        summary = tlx.finetune(fields, tmp_path / name)
        assert np.isfinite(summary[f"test/{metrics[name]}"])
        trained = tlx.load(tmp_path / name)
        second = ["a film"] if name == "pairs" else None
        inputs = tlx.preprocess(trained)(["very good"], second)
        assert trained(inputs).shape == (1, {"pairs": 2, "tags": 2, "numbers": 1}[name])
        if name == "pairs":
            assert inputs["token_type_ids"].max() == 1
        # What a network was trained on, it is asked of.
        given = {1: "very good", 2: ("very good", "a film")}
        right, wrong = (2, 1) if name == "pairs" else (1, 2)
        assert len(tlx.predict(tmp_path / name, [given[right]] * 3)) == 3
        expected = {
            1: "a pair of texts, but .* single ones",
            2: "one text, but .* trained on pairs",
        }
        with pytest.raises(InputError, match=rf"inputs\[0\]: {expected[right]}"):
            tlx.predict(tmp_path / name, [given[wrong]] * 3)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, model, entities):
    fields = text_tasks.fields(model, entities) | {
        "task": "tagging",
        "data.source": "conll",
        "train.steps": 1,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.1,
    }
    runs = []
    for parts in (1, 4):
        tlx.finetune(fields | {"train.accumulate": parts}, tmp_path / str(parts))
        runs.append(flat(load(tmp_path / str(parts))))
    for path, own in runs[0].items():
        largest = np.abs(own).max()
        assert np.abs(own - runs[1][path]).max() <= 1e-6 * max(largest, 1e-3), path


def test_a_head_of_the_files_own_classes_is_kept(tmp_path, model, reviews):
    fields = text_tasks.fields(model, reviews)
    tlx.finetune(fields | {"train.steps": 60}, tmp_path / "run")
    trained = tlx.load(tmp_path / "run")
    exported = tmp_path / "exported"
    exported.mkdir()
    tlx.save_weights(trained, exported / "model.safetensors")
    again = tlx.create_model("bert", weights=exported)
    assert again.meta.class_names == ("negative", "positive")
    x = tlx.preprocess(again)(["so lovely", "awful acting"])
    np.testing.assert_array_equal(again(x), trained(x))
    as_it_is = tlx.evaluate(fields | {"model.weights": str(exported)}, tmp_path / "as_it_is")
    assert (
        as_it_is["test/accuracy"]
        == tlx.evaluate(fields | {"train.steps": 60}, tmp_path / "run")["test/accuracy"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tune.method": "surgical", "tune.train_stages": "layer.7"}, "no stage 'layer.7'"),
        ({"tune.method": "partial", "tune.freeze_stages": 9}, "the model has 4 stages"),
        ({"tune.method": "lora", "tune.targets": "layer.0.attention.qeury"}, "did you mean"),
        ({"tune.method": "rules", "tune.rules": "layer.5=frozen,.*=rest"}, "matches no parameter"),
        ({"tune.method": "auto"}, "networks that read pictures"),
        ({"train.mixup": 0.2}, "mixes pictures"),
        ({"data.augment": "flip"}, "texts, not pictures"),
        ({"data.image_size": 64}, "texts, not pictures"),
        ({"model.in_channels": 1}, "takes texts"),
        ({"data.max_length": 41}, "40 tokens at most"),
        ({"data.stride": 4}, "data.long_texts=split"),
        ({"data.max_length": 2}, "leaves no room"),
        ({"model.drop_path": 0.1}, "drop no residual branches"),
        ({"train.steps_per_call": 4}, "differ in length"),
        ({"model.weights": "none"}, "needs model.weights"),
        ({"model.weights": "nowhere"}, "no weights 'nowhere'"),
        ({"data.source": "digits"}, "pictures"),
    ],
)
def test_wrong_configs_are_one_readable_line_before_anything_is_written(
    tmp_path, model, reviews, change, message
):
    with pytest.raises(InputError, match=message) as raised:
        tlx.finetune(text_tasks.fields(model, reviews) | change, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_texts_need_a_text_model(tmp_path, entities):
    fields = {"model.name": "resnet18", "data.source": "conll", "data.root": str(entities)}
    with pytest.raises(InputError, match="texts"):
        tlx.finetune(fields, tmp_path / "run")


def test_a_checkpoint_of_a_head_is_small_and_the_tokenizer_is_checked(tmp_path, model, reviews):
    fields = text_tasks.fields(model, reviews) | {"tune.method": "head"}
    tlx.finetune(fields, tmp_path / "run")
    stored = read_weights(tmp_path / "run" / "base" / "frozen.safetensors")
    assert "embeddings.word_embedding" in stored
    step = tmp_path / "run" / "checkpoints" / "12"
    assert sum(p.stat().st_size for p in step.rglob("*") if p.is_file()) < 100_000
    tokenizer = tmp_path / "run" / "base" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("superb", "suberp"))
    with pytest.raises(InputError, match="not the tokenizer that the run was trained with"):
        tlx.load(tmp_path / "run")


def test_bfloat16(tmp_path, model, reviews):
    fields = text_tasks.fields(model, reviews) | {"model.dtype": "bfloat16"}
    summary = tlx.finetune(fields, tmp_path / "run")
    assert np.isfinite(summary["test/loss"])
    net = tlx.create_model("bert", weights=model, num_classes=0, dtype="bfloat16")
    inputs = net.as_input(tlx.preprocess(net)(["the film was fine"]))
    assert net.run(inputs, stop=2)["hidden"].dtype == jax.numpy.bfloat16


def test_what_pulls_towards_the_source_does_not_see_padding():
    rng = np.random.default_rng(0)
    hidden, source = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], np.float32)
    expected = (np.square(hidden - source).sum(-1) * mask).sum() / mask.sum()
    for width in (0, 4):
        wide = ((0, 0), (0, width), (0, 0))
        carry, other = (
            {"hidden": np.pad(array, wide, constant_values=7), "mask": np.pad(mask, wide[:2])}
            for array in (hidden, source)
        )
        other["hidden"][:, 5:] = -3
        np.testing.assert_allclose(distance(carry, other), expected, rtol=1e-6)


def test_a_taggers_own_head_is_held_against_its_own_tags(tmp_path, model, entities, reviews):
    fields = text_tasks.fields(model, entities) | {"task": "tagging", "data.source": "conll"}
    trained = tlx.finetune(fields | {"train.steps": 120}, tmp_path / "run")
    exported = export(tmp_path / "run")[0]
    table = json.loads((exported / "config.json").read_text())["id2label"]
    assert list(table.values()) == ["O", "B-person", "I-person", "B-place"]
    as_it_is = fields | {"model.weights": str(exported)}
    again = tlx.evaluate(as_it_is, tmp_path / "again")
    assert again["test/f1"] == trained["test/f1"] and again["test/loss"] == trained["test/loss"]
    # Of one type the data has nothing: the network may still find it.
    only = tmp_path / "only"
    only.mkdir()
    for name in ("train", "test"):
        text = (entities / f"{name}.conll").read_text()
        lines = [line.replace("B-place", "O") for line in text.splitlines()]
        (only / f"{name}.conll").write_text("\n".join(lines) + "\n")
    fewer = tlx.evaluate(as_it_is | {"data.root": str(only)}, tmp_path / "fewer")
    assert fewer["test/recall"] == again["test/per_class_recall"]["person"]
    assert fewer["test/precision"] < again["test/precision"]
    with pytest.raises(InputError, match="trained for task=tagging"):
        tlx.evaluate(
            text_tasks.fields(exported, reviews) | {"model.head": "keep"}, tmp_path / "other"
        )


def test_held_batches_of_tokens_are_not_put_on_the_device(tmp_path, model, entities, monkeypatch):
    fields = text_tasks.fields(model, entities) | {
        "task": "tagging",
        "data.source": "conll",
        "tune.method": "head",
        "cache.use": "on",
        "cache.dir": str(tmp_path / "cache"),
        "data.device_gb": 1.0,
    }
    setup, _ = prepare(config_lib.build(fields))
    found = decisions(setup, prepare_tuning(setup))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert found[0].prefix.tokens > 0
    assert Feeds(setup, found, setup.open("train"), print).steps_per_call == 1
