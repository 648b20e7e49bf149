"""The command line as a process: what a user sees, the exit codes, interruption and resumption."""

import errno
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
from tlx.models.leaves import values

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")

# A few seconds of work: ResNet-20 on 8x8 digits, from scratch.
SMALL = (
    f"--config={DIGITS}",
    "--config.model.weights=none",
    "--config.data.image_size=8",
    "--config.data.resize=8",
    "--config.train.batch_size=8",
    "--config.train.log_every=2",
)


def command(*arguments):
    return [sys.executable, "-m", "tlx.main", *map(str, arguments)]


def run(*arguments, cwd=None, env=None):
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=400,
    )


@pytest.fixture
def refused(capsys, monkeypatch):
    """Calls main, expects exit code 2 and one readable line, and returns that line."""

    def refused(*arguments, cwd=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        assert main.main([*map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return refused


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_writes_everything_and_the_same_command_says_it_is_complete(tmp_path, refused):
    workdir = tmp_path / "run"
    arguments = (
        *SMALL,
        f"--workdir={workdir}",
        "--config.train.steps=4",
        "--config.data.val_fraction=0.2",
    )
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "trained: 269,722 of 269,722 parameters" in done.stdout
    assert (
        "step 4/4" in done.stdout
        and "val accuracy" in done.stdout
        and "test: accuracy" in done.stdout
    )
    summary = json.loads((workdir / "summary.json").read_text())
    assert (
        summary["steps"] == 4 and summary["params/trainable"] == summary["params/total"] == 269_722
    )
    assert summary["test/examples"] == 1697 and 0 <= summary["test/accuracy"] <= 1
    assert summary["compilations/train_step"] == summary["compilations/eval_step"] == 1
    assert {r["step"] for r in records(workdir)} >= {2, 4}
    report = (workdir / "report.md").read_text()
    for picture in ("curves", "confusion", "mistakes"):
        assert f"report/{picture}.png" in report
        assert Image.open(workdir / "report" / f"{picture}.png").size > (200, 100)
    assert list((workdir / "tensorboard").iterdir())
    before = (workdir / "summary.json").read_bytes()
    again = run(*arguments)
    assert again.returncode == 0 and "this run is complete (4 steps on digits)" in again.stdout
    assert (workdir / "summary.json").read_bytes() == before

    evaluated = run("--mode=evaluate", f"--workdir={workdir}")
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads((workdir / "evaluation.json").read_text())
    assert (
        found["test/correct"] == summary["test/correct"]
        and found["test/loss"] == summary["test/loss"]
    )

    other = refused(*arguments, "--config.optimizer.lr=0.5")
    assert "holds another run (optimizer.lr: 0.001 -> 0.5)" in other


LONGER = (
    *SMALL,
    "--config.train.steps=24",
    "--config.checkpoint.every=4",
    "--config.data.augment=pad_crop:1,flip",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The workdir of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run(*LONGER, f"--workdir={workdir}").returncode == 0
    return workdir


def stopped(workdir, line_start, stop):
    """Starts the same run, calls `stop(process)` at the first line that starts so; returns code and the rest."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*LONGER, f"--workdir={workdir}"), **pipes)
    for line in process.stdout:
        if line.startswith(line_start):
            stop(process)
            break
    rest, errors = process.communicate(timeout=300)
    return process.returncode, rest, errors


def goes_on_to_the_same_bits(workdir, uninterrupted):
    again = run(*LONGER, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stdout
    one, two = values(tlx.load(uninterrupted)), values(tlx.load(workdir))
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)
    steps = [r["step"] for r in records(workdir)]
    assert steps == sorted(set(steps)) and set(steps) >= {r["step"] for r in records(uninterrupted)}


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_an_interrupted_run_saves_resumes_and_ends_with_the_same_bits(
    tmp_path, uninterrupted, number
):
    code, rest, errors = stopped(tmp_path, "step ", lambda process: process.send_signal(number))
    assert code == 75, errors
    assert "interrupted at step" in rest and "The same command goes on from there" in rest
    assert "--config.train.steps=24" in rest
    assert not (tmp_path / "summary.json").exists()
    goes_on_to_the_same_bits(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, uninterrupted):
    stopped(tmp_path, "step 10/", lambda process: process.kill())
    goes_on_to_the_same_bits(tmp_path, uninterrupted)


def picture_folder(root, classes=("ant", "bee"), count=6):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 128, (20, 24, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


FOLDER = (
    f"--config={ROOT / 'configs' / 'folder.py'}",
    "--config.model.name=resnet20_cifar",
    "--config.model.weights=glyphs",
    "--config.tune.freeze_stages=3",
    "--config.data.val_fraction=0",
    "--config.train.steps=2",
    "--config.train.batch_size=4",
)


def test_own_pictures_and_a_partly_frozen_network(tmp_path):
    root = picture_folder(tmp_path / "my pictures")
    done = run(*FOLDER, f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "frozen    stem layer1 layer2" in done.stdout
    assert "frozen values are bit-identical" in done.stdout
    model = tlx.load(tmp_path / "run")
    assert model.meta.class_names == ("ant", "bee")
    picture = Image.open(root / "ant" / "0.png")
    assert model(tlx.preprocess(model)(picture)[None]).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--config=FILE is missing"),
        (("--config=configs/absent.py",), "no config file configs/absent.py"),
        (("--confg=x",), "did you mean '--config'"),
        (("--config",), "--config needs a value"),
        (("train",), "unknown argument 'train'"),
        ((f"--config={DIGITS}", "--mode=evalute"), "did you mean 'evaluate'"),
        ((f"--config={DIGITS}", "--config.train.epoch=3"), "did you mean 'train.epochs'"),
        ((f"--config={DIGITS}", "--config.train.steps=ten"), "expected int"),
        (
            (f"--config={DIGITS}", "--config.model.name=resnet19"),
            "unknown model 'resnet19'; did you mean",
        ),
        (
            (f"--config={DIGITS}", "--config.data.source=folder", "--config.data.root=absent"),
            "absent",
        ),
        ((f"--config={DIGITS}", "--config.model.weights=absent.pth"), "no weights file absent.pth"),
        (
            (f"--config={DIGITS}", "--config.tune.method=partial", "--config.tune.freeze_stages=9"),
            "4 stages: stem",
        ),
        ((f"--config={DIGITS}", "--config.data.augment=flop"), "did you mean 'flip'"),
        ((f"--config={DIGITS}", "--config.optimizer.warmup=500"), "longer than the run"),
        (
            (f"--config={DIGITS}", "--config.model.weights=none", "--mode=evaluate"),
            "nothing to evaluate",
        ),
        (("--workdir=absent",), "absent holds no run"),
    ],
)
def test_wrong_input_gets_one_line_exit_code_2_and_nothing_written(
    tmp_path, refused, arguments, says
):
    workdir = ("--workdir=run",) if any(a.startswith("--config=") for a in arguments) else ()
    assert says in refused(*arguments, *workdir, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_pictures_and_bad_weights_are_named(tmp_path, refused):
    root = picture_folder(tmp_path / "data")
    (root / "ant" / "broken.png").write_bytes((root / "ant" / "0.png").read_bytes()[:60])
    arguments = (*FOLDER, f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}")
    assert "broken.png" in refused(*arguments)
    assert not (tmp_path / "run").exists()
    done = run(*arguments, "--config.data.on_bad_image=skip")
    assert done.returncode == 0, done.stderr
    assert "broken.png" in done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_images"] == 1

    (tmp_path / "empty" / "ant").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "ant" / "a.png")
    (tmp_path / "empty" / "bee").mkdir()
    assert "bee" in refused(*FOLDER, f"--config.data.root={tmp_path / 'empty'}")

    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0{garbage")
    assert "net.safetensors" in refused(*SMALL, f"--config.model.weights={weights}")


def test_no_network_no_weights_fails_at_once_and_says_where_to_put_them(
    tmp_path, refused, monkeypatch
):
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TLX_OFFLINE", "1")
    said = refused(
        f"--config={ROOT / 'configs' / 'seed.py'}", "--config.data.source=digits", cwd=tmp_path
    )
    assert (
        "resnet18-f37072fd.pth" in said
        and str(tmp_path / "cache") in said
        and "configs/digits.py" in said
    )


def test_wrong_input_as_a_process_shows_no_traceback(tmp_path):
    done = run(f"--config={DIGITS}", "--config.model.name=resnet19", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "did you mean" in done.stderr


def test_help_and_fields():
    assert "--config.FIELD=VALUE" in run("--help").stdout
    assert "--config.optimizer.lr=0.01" in run("--fields").stdout


def test_no_space_left_is_one_line(refused, monkeypatch, tmp_path):
    def full(*arguments, **fields):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("tlx.run.finetune", full)
    line = refused(*SMALL, f"--workdir={tmp_path / 'run'}")
    assert line == "error: no space left on the disk (metrics.jsonl)"
