"""Whole runs of tlx and of PyTorch: part of a network fitted to pictures, from the start of the process to its end.

  python experiments/bench/runs.py [--rows=resnet18] [--rounds=3]

A round has PyTorch's run, tlx's first (nothing compiled, nothing cached) and tlx's again with another learning rate, as a sweep has. PyTorch runs the
frozen part anew in every epoch, without a tape. Data, epochs, batch and optimizer are the same, the weights are drawn; nothing is
augmented. Writes runs.json and runs.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tlx
from tlx.files import write_json_atomic, write_text_atomic

HERE = Path(__file__).parent
# network, pixels, pictures, epochs, batch, what is trained
ROWS = (
    ("resnet18", 64, 5000, 10, 100, "head"),
    ("resnet18", 64, 5000, 10, 100, "last"),
    ("vit_base_patch16_224", 224, 500, 10, 20, "head"),
    ("vit_base_patch16_224", 224, 500, 10, 20, "last"),
)
HEADER = (
    "| network | pixels | pictures | epochs | trained | PyTorch, s | tlx, s | again, s | PyTorch / tlx | PyTorch / again |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def write_data(path: Path, pixels: int, count: int) -> None:
    """Writes pictures at random, of ten classes that a network can tell apart."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    small = random.integers(0, 256, (10, pixels, pixels, 3), np.uint8)[labels]
    noise = random.integers(0, 64, small.shape, np.uint8)
    images = (small // 4 * 3 + noise).astype(np.uint8)
    held = slice(0, count // 10)
    np.savez(
        path,
        train_images=images,
        train_labels=labels,
        test_images=images[held],
        test_labels=labels[held],
    )


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Returns how long the command takes."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


def measure(row: tuple[Any, ...], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each way, round by round."""
    model, pixels, count, epochs, batch, trained = row
    stages = tlx.create_model(model).stages
    times: dict[str, list[float]] = {"pytorch": [], "tlx": [], "again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data.npz", pixels, count)
        tlx.save_weights(tlx.create_model(model), folder / "weights.safetensors")
        fields = {
            "model.name": model,
            "model.weights": folder / "weights.safetensors",
            "model.head": "new",
            "data.source": "npz",
            "data.root": folder / "data.npz",
            "data.image_size": pixels,
            "data.resize": pixels,
            "train.epochs": epochs,
            "train.batch_size": batch,
            "checkpoint.every": "0",
            "tune.method": "head" if trained == "head" else "partial",
        }
        if trained == "last":
            fields["tune.freeze_stages"] = len(stages) - 1
        config = folder / "bench.py"
        text = "\n".join(f"    config['{k}'] = {str(v)!r}" for k, v in fields.items())
        config.write_text(f"def get_config():\n    config = {{}}\n{text}\n    return config\n")
        theirs = [sys.executable, str(HERE / "theirs_run.py"), str(folder / "data.npz")]
        theirs += [model, str(epochs), str(batch), trained]
        for number in range(rounds):
            times["pytorch"].append(seconds(theirs, dict(os.environ)))
            environment = os.environ | {"TLX_CACHE": str(folder / f"cache{number}")}
            for which, rate in (("tlx", "0.01"), ("again", "0.02")):
                ours = [sys.executable, "-m", "tlx.main", f"--config={config}"]
                ours += [
                    f"--workdir={folder / f'{which}{number}'}",
                    f"--config.optimizer.lr={rate}",
                ]
                times[which].append(seconds(ours, environment))
    return times


def line(row: tuple[Any, ...], times: dict[str, list[float]]) -> str:
    """Returns a row of the table."""
    model, pixels, count, epochs, _, trained = row
    cells = [statistics.median(times[k]) for k in ("pytorch", "tlx", "again")]
    pairs = [
        statistics.median(a / b for a, b in zip(times["pytorch"], times[k], strict=True))
        for k in ("tlx", "again")
    ]
    shown = " | ".join([*(f"{cell:.1f}" for cell in cells), *(f"{pair:.2f}" for pair in pairs)])
    return f"| {model} | {pixels} | {count} | {epochs} | {trained} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="networks, with commas; all of them if empty")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    names = [name for name in arguments.rows.split(",") if name]
    file = HERE / "runs.json"
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    for row in ROWS:
        if names and row[0] not in names:
            continue
        times = measure(row, arguments.rounds)
        found = [one for one in found if one["row"] != list(row)]
        found.append({"row": list(row), "seconds": times})
        print(line(row, times), flush=True)
        write_json_atomic(file, found)
        lines = [*HEADER, *(line(tuple(one["row"]), one["seconds"]) for one in found)]
        write_text_atomic(HERE / "runs.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
