"""Image tables through the real entry points: one label or several, resumption, what is left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tlx
from tlx import main
from tlx.errors import InputError
from tlx.models.leaves import values
from tlx.setup import Setup
from tlx.training.loop import Interrupted

ROOT = Path(__file__).parent.parent
COLORS = ("red", "green", "blue")


def write_tables(root, count=64):
    """Pictures whose colours are their labels: one.csv has the number of them, several.csv their names."""
    rng = np.random.default_rng(0)
    rows = {"one": ["path,label"], "several": ["path,labels"]}
    for index in range(count):
        shown = index % 8 >> np.arange(3) & 1
        pixels = rng.integers(0, 60, (8, 8, 3)) + 190 * shown
        name = f"pictures/{index}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name)
        rows["one"].append(f"{name},{shown.sum()}")
        names = "|".join(c for c, there in zip(COLORS, shown, strict=True) if there)
        rows["several"].append(f"{name},{names}")
    for table, lines in rows.items():
        (root / f"{table}.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def config(tmp_path):
    return {
        "model.name": "resnet20_cifar",
        "data.source": "table",
        "data.root": str(write_tables(tmp_path) / "several.csv"),
        "data.image_size": 8,
        "data.resize": 8,
        "data.test_fraction": 0.25,
        "data.val_fraction": 0.25,
        "task": "multilabel",
        "train.batch_size": 8,
        "train.steps": 40,
        "optimizer.lr": 0.02,
        "eval.every": "10",
        "checkpoint.every": "5",
    }


def test_several_labels_are_learned_and_reported(tmp_path, config):
    summary = tlx.finetune(config, tmp_path / "run")
    assert summary["test/mAP"] > 0.95 and summary["test/f1_macro"] > 0.7
    assert summary["test/examples"] == 16 and summary["test/classes_without_positives"] == 0
    assert set(summary["test/per_class_ap"]) == set(summary["test/per_class_f1"]) == set(COLORS)
    assert summary["compilations/train_step"] == summary["compilations/eval_step"] == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    curve = {r["step"]: r["val/mAP"] for r in map(json.loads, lines) if "val/mAP" in r}
    assert summary["checkpoint"] == "best" and summary["val/mAP"] == max(curve.values())
    assert any("train/f1_micro" in line and "train/subset_accuracy" in line for line in lines)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| class | examples | AP | precision | recall | F1 |" in report
    assert "per_class" not in report and "onfusion" not in report
    again = tlx.evaluate(config, tmp_path / "run")
    for metric in ("mAP", "f1_micro", "f1_macro", "subset_accuracy", "loss"):
        assert again[f"test/{metric}"] == summary[f"test/{metric}"]
    model = tlx.load(tmp_path / "run")
    assert model.meta.class_names == tuple(sorted(COLORS))
    bright = tlx.preprocess(model)(np.full((8, 8, 3), 255, np.uint8))
    assert model(bright[None]).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "table"), [("classification", "one"), ("multilabel", "several")])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, config, monkeypatch, task, table):
    fields = config | {"task": task, "data.root": str(tmp_path / f"{table}.csv"), "train.steps": 12}
    fields |= {"eval.every": "4", "train.label_smoothing": 0.1}
    whole = tlx.finetune(fields, tmp_path / "whole")
    evaluate, calls = Setup.evaluate, []

    def stopped_in_the_second(self, split, values, start=0):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, split, values, start)

    with monkeypatch.context() as patched:
        patched.setattr(Setup, "evaluate", stopped_in_the_second)
        with pytest.raises(Interrupted, match="at step 8 of 12"):
            tlx.finetune(fields, tmp_path / "halves")
    halves = tlx.finetune(fields, tmp_path / "halves")
    assert halves["test/loss"] == whole["test/loss"]
    one, two = (values(tlx.load(tmp_path / name)) for name in ("whole", "halves"))
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)


def test_other_labels_are_other_data(tmp_path, config):
    fields = config | {"train.steps": 4, "checkpoint.every": "2"}
    tlx.finetune(fields, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    table = tmp_path / "several.csv"
    table.write_text(table.read_text().replace("red|green|blue", "red|blue"))
    with pytest.raises(InputError, match="was trained on other data"):
        tlx.finetune(fields, tmp_path / "run")


@pytest.mark.parametrize(
    "extra", [pytest.param((), marks=pytest.mark.slow), ("--config.task=multilabel",)]
)
def test_the_config_for_tables_as_a_process(tmp_path, extra):
    root = write_tables(tmp_path, count=24) / ("several.csv" if extra else "one.csv")
    command = [
        *(sys.executable, "-m", "tlx.main", f"--config={ROOT / 'configs' / 'table.py'}"),
        *(f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}", *extra),
        *("--config.model.name=resnet20_cifar", "--config.model.weights=glyphs"),
        *("--config.tune.freeze_stages=3", "--config.train.steps=2", "--config.train.batch_size=4"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    metric = "mAP" if extra else "accuracy"
    assert f"val {metric} " in done.stdout and f"test: {metric} " in done.stdout
    if extra:
        assert "3 of 24 pictures have no label" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= summary[f"test/{metric}"] <= 1 and 0 <= summary[f"val/{metric}"] <= 1
    again = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0 and "this run is complete (2 steps on table" in again.stdout


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "classification"}, "several.csv line 2: 'pictures/0.png' has no label"),
        ({"data.source": "folder"}, "use data.source=table with data.root=FILE.csv"),
        (
            {"eval.metric": "accuracy"},
            "eval.metric is 'accuracy'; did you mean 'subset_accuracy'?; with 3 classes there are: "
            "mAP, f1_micro, f1_macro, subset_accuracy, loss",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_said_in_one_line(tmp_path, config, capsys, fields, says):
    overrides = [f"--config.{name}={value}" for name, value in (config | fields).items()]
    arguments = [f"--config={ROOT / 'configs' / 'table.py'}", *overrides]
    assert main.main([*arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert not (tmp_path / "run").exists()
