"""metrics.jsonl across kills, TensorBoard files as TensorBoard reads them, progress lines."""

import errno
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tlx.errors import InputError
from tlx.training.logging import MetricsWriter, Progress, duration_text, read_records


def write_run(workdir, steps, *, resume_step=None):
    with MetricsWriter(workdir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1 / step, "train/lr": 0.1})


def scalars(workdir, name):
    events = EventAccumulator(str(workdir / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_resumed_run_has_the_file_of_an_uninterrupted_one(tmp_path):
    write_run(tmp_path / "whole", range(1, 10))
    write_run(tmp_path / "killed", range(1, 7))
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/lo')  # the kill came in the middle of a write
    write_run(tmp_path / "killed", range(5, 10), resume_step=4)
    whole, killed = (
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")
    )
    assert whole == killed
    assert [record["step"] for record in read_records(tmp_path / "killed")] == list(range(1, 10))


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    write_run(tmp_path, range(1, 7))
    write_run(tmp_path, range(5, 10), resume_step=4)
    expected = [(step, np.float32(1 / step)) for step in range(1, 10)]
    assert scalars(tmp_path, "train/loss") == expected


def test_a_new_run_starts_empty(tmp_path):
    write_run(tmp_path, range(1, 7))
    write_run(tmp_path, [1, 2])
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2]


def test_every_line_is_json_even_when_training_diverged(tmp_path):
    values = {"a": float("nan"), "b": np.float32("inf"), "c": np.float32(0.5), "d": 3, "e": 1e300}
    with MetricsWriter(tmp_path) as writer:
        writer.write(np.int64(2), values)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    expected = {"step": 2, "a": None, "b": None, "c": 0.5, "d": 3, "e": 1e300}
    assert json.loads(line, parse_constant=refuse) == expected
    assert read_records(tmp_path) == [expected]
    assert math.isnan(scalars(tmp_path, "a")[0][1])
    assert scalars(tmp_path, "e")[0][1] == pytest.approx(3.4028234e38)


def test_large_steps_and_long_names_reach_tensorboard(tmp_path):
    name = "per_class/" + "ü" * 300
    with MetricsWriter(tmp_path) as writer:
        writer.write(2**40 + 300, {name: 2.5})
    assert scalars(tmp_path, name) == [(2**40 + 300, 2.5)]


def test_records_are_on_disk_before_the_next_step(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"x": 1.0})
        assert read_records(tmp_path) == [{"step": 1, "x": 1.0}]
        assert scalars(tmp_path, "x") == [(1, 1.0)]


def test_no_file_is_no_records(tmp_path):
    assert read_records(tmp_path) == []


@pytest.mark.parametrize("tail", [b'{"step": 2', b"\0\0\0", b'{"step": 2, "x": "\xc3', b"7"])
def test_a_line_cut_short_is_tolerated_only_at_the_end(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    assert read_records(tmp_path) == [{"step": 1}]
    path.write_bytes(b'{"step": 1}\n' + tail + b'\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 of 3 is damaged"):
        read_records(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, MetricsWriter(tmp_path) as writer:
        writer._file.close()
        writer._file = open("/dev/full", "wb")  # noqa: SIM115 (closed by the writer)
        writer.write(1, {"x": 1.0})
    assert caught.value.errno == errno.ENOSPC


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_off_a_terminal():
    stream, clock = io.StringIO(), Clock()
    with Progress(780, stream=stream, clock=clock) as progress:
        clock.now = 100.0  # mostly compilation
        progress.update(50, 0.41234, 0.0123456, 1043.4)
        progress.message("saved")
        clock.now = 110.0
        progress.update(100, 1.5, 1e-05, 10.0)
        progress.update(780, float("nan"), 0.0, 10.0)
    assert stream.getvalue().splitlines() == [
        "step 50/780  loss 0.412  lr 0.0123  1043 examples/s  eta 24:20",
        "saved",
        "step 100/780  loss 1.50  lr 1e-05  10 examples/s  eta 2:16",
        "step 780/780  loss nan  lr 0  10 examples/s  eta 0:00",
    ]


def test_the_eta_of_a_resumed_run_counts_its_own_steps():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, start=900, unit="sentences", stream=stream, clock=clock)
    clock.now = 10.0
    progress.update(950, 1.0, 0.1, 5.0)
    assert stream.getvalue() == "step 950/1000  loss 1.00  lr 0.1  5 sentences/s  eta 0:10\n"


def test_a_bar_on_a_terminal_with_messages_above():
    stream = Terminal()
    with Progress(10, start=2, stream=stream, clock=Clock()) as progress:
        progress.update(5, 0.5, 0.1, 20.0)
        progress.message("saved step 5")
        progress.update(10, 0.25, 0.1, 20.0)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert "saved step 5\n" in text
    last = text.rstrip("\n").split("\r")[-1]
    assert last.startswith("100%")
    assert "step 10/10  loss 0.250  lr 0.1  20 examples/s" in last


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (41, "0:41"), (725, "12:05"), (10809, "3:00:09")]
)
def test_duration_text(seconds, text):
    assert duration_text(seconds) == text
