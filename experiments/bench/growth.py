"""What an epoch costs as the data, the classes, the trained share and the pictures grow; on this machine alone.

  python experiments/bench/growth.py [--rounds=3]

Runs of a ResNet-18 on random pictures, the variants of a table in turns; the median of the rounds. An epoch is its examples by the rate of
the run's steps, the first one excepted. Operations are XLA's count of a step. Writes growth.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tlx
from tlx import config as config_lib
from tlx.data.pipeline import training_batches
from tlx.files import write_text_atomic
from tlx.memory import keep_freed_memory
from tlx.setup import prepare, prepare_tuning
from tlx.steps import step_function
from tlx.training.compilation import operations
from tlx.training.mesh import replicated
from tlx.training.state import create_state

HERE = Path(__file__).parent
STEPS = 12

Variant = dict[str, Any]

BASE: Variant = {"images": 640, "classes": 10, "pixels": 64, "batch": 64, "frozen": 0}
TABLES: dict[str, list[Variant]] = {
    "images": [{"images": count} for count in (640, 1280, 2560)],
    "classes": [{"classes": count} for count in (2, 100, 1000)],
    "frozen": [{"frozen": stages} for stages in (0, 1, 2, 3, 4, 5)],
    "pixels": [{"pixels": side, "images": 64, "batch": 16} for side in (224, 320)],
}


def fields(variant: Variant, folder: Path) -> dict[str, Any]:
    """Writes the variant's data and returns its config."""
    side, count, classes = variant["pixels"], variant["images"], variant["classes"]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, side, side, 3), np.uint8)
    labels = np.arange(count) % classes
    names = np.array([f"class {number}" for number in range(classes)])
    named = {"train_images": images, "train_labels": labels, "class_names": names}
    np.savez(folder / "data.npz", **named, test_images=images[:16], test_labels=labels[:16])
    frozen = variant["frozen"]
    method = {5: {"tune.method": "head"}, 0: {}}.get(
        frozen, {"tune.method": "partial", "tune.freeze_stages": frozen}
    )
    return {
        "model.name": "resnet18",
        "data.source": "npz",
        "data.root": str(folder / "data.npz"),
        "data.image_size": side,
        "data.resize": side,
        "train.batch_size": variant["batch"],
        "train.steps": STEPS,
        "train.log_every": STEPS,
        "optimizer.lr": 1e-3,
        "checkpoint.every": "0",
        "cache.use": "off",
        **method,
    }


def measure(variant: Variant) -> float:
    """Returns the seconds of an epoch."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        summary = tlx.finetune(fields(variant, folder), folder / "run")
    return float(variant["images"] / summary["examples_per_second"])


def counts(variant: Variant) -> tuple[int, float, int]:
    """Returns trained parameters, operations for each picture, and bytes that each sends to the device."""
    with tempfile.TemporaryDirectory() as name:
        setup, _ = prepare(config_lib.build(fields(variant, Path(name))))
        tuning = prepare_tuning(setup)
        split = setup.open("train")["train"]
    (phase,) = tuning.phases
    whole = replicated(setup.mesh)
    values = setup.weights.place(0, whole)
    state, frozen = create_state(values, phase.plan, phase.optimizer, whole)
    size = variant["batch"]
    batch = next(training_batches(split, seed=0, batch_size=size, start=0))
    function = step_function(setup, tuning, phase).function
    flops = operations(function, state, frozen, batch, np.int32(0))
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    return trained, flops / size, sum(rows.nbytes for rows in batch.values()) // size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    lines = []
    for name, variants in TABLES.items():
        whole = [BASE | variant for variant in variants]
        times: list[list[float]] = [[] for _ in whole]
        for _ in range(arguments.rounds):
            for place, variant in enumerate(whole):
                times[place].append(measure(variant))
        lines += [
            "",
            f"| {name} | trained | epoch, s (spread) | beside the first | operations a picture, 10^9 | beside the first "
            "| bytes to the device a picture |",
            "|---|---|---|---|---|---|---|",
        ]
        facts = [counts(variant) for variant in whole]
        for variant, own, (trained, flops, nbytes) in zip(whole, times, facts, strict=True):
            ratio = statistics.median(a / b for a, b in zip(own, times[0], strict=True))
            lines.append(
                f"| {variant[name]} | {trained:,} | {statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f}) "
                f"| {ratio:.2f} | {flops / 1e9:.3f} | {flops / facts[0][1]:.2f} | {nbytes:,} |"
            )
            print(lines[-1], flush=True)
    device = jax.devices()[0]
    lines.append(f"\njax {jax.__version__}, {os.cpu_count()} x {device.device_kind}, ResNet-18.")
    write_text_atomic(HERE / "growth.md", "\n".join(lines).strip() + "\n")


if __name__ == "__main__":
    main()
