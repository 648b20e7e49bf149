"""Every config and every command that a document shows is run, shrunk to a step where it is long."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tlx
from tests import text_tasks
from tlx import config as config_lib
from tlx import main, models

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
DOCUMENTS = [ROOT / "README.md", *CONFIGS, *sorted((ROOT / "experiments").rglob("*.md"))]


def commands():
    """Every `python -m tlx.main ...` of the documents, with the document's name."""
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"python -m tlx\.main (--[^`\n]*)", text):
            yield pytest.param(line.strip(), id=f"{path.name}:{line.strip()[:60]}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_builds_and_its_docstring_says_how_it_is_run(path):
    config_lib.build(config_lib.load(path))
    text = path.read_text()
    assert f"python -m tlx.main --config=configs/{path.name}" in text
    assert "PLACEHOLDER" not in text


def test_a_table_is_trained_on_as_a_folder():
    one, two = (
        config_lib.build(config_lib.load(ROOT / "configs" / f"{name}.py"))
        for name in ("folder", "table")
    )
    assert config_lib.differences(one, two) == ["data.source: 'folder' -> 'table'"]


@pytest.mark.parametrize("line", list(commands()))
def test_documented_commands_are_valid(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags, overrides = main.parse(shlex.split(line, comments=True))
    if "--help" not in flags and "--config" in flags:
        config_lib.build(config_lib.load(flags["--config"]), overrides)
    assert flags.get("--mode", "train") in main.MODES


def small_texts(config, folder):
    tagging = config.task == "tagging"
    data = (text_tasks.entities if tagging else text_tasks.reviews)(folder / "data")
    return {
        "model.name": "bert",
        "model.weights": str(text_tasks.folder(folder / "model")),
        "data.source": "conll" if tagging else "table",
        "data.root": str(data),
        "data.max_length": 40,
        "train.steps": 1,
        "train.batch_size": 4,
        "optimizer.warmup": "0",
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_runs_one_step_on_small_data(path, tmp_path):
    config = config_lib.build(config_lib.load(path))
    if models.is_text(config.model.name.partition(".")[0]):
        summary = tlx.finetune(
            config_lib.build(config, small_texts(config, tmp_path)), tmp_path / "run"
        )
        assert summary["steps"] == 1 and summary["test/examples"] == 20
        return
    small = {
        "model.name": config.model.name.partition(".")[0],
        "model.weights": "none",
        "data.source": "digits",
        "data.root": "",
        "data.labels_per_class": 10,
        "data.val_fraction": 0.2,
        "data.image_size": 32,
        "data.resize": 36,
        "train.steps": 1,
        "train.batch_size": 4,
        "eval.batch_size": 100,
        "optimizer.warmup": "0",
    }
    summary = tlx.finetune(config_lib.build(config, small), tmp_path / "run")
    assert summary["steps"] == 1 and summary["test/examples"] == 1697
    assert summary["compilations/train_step"] == summary["compilations/eval_step"] == 1


def test_the_readmes_first_command_transfers_to_digits(tmp_path):
    first = re.search(r"```\S*\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    install, _, line = first.strip().rpartition(" && ")
    assert "\n" not in first.strip() and install == "pip install -e ."
    assert line == "python -m tlx.main --config=configs/digits.py"
    command = [sys.executable, *shlex.split(line)[1:], f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "TLX_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/examples"] == 1697
    assert summary["test/accuracy"] > 0.95
