"""How soon a run takes its first step, the first time and again: what was compiled is kept.

  python experiments/bench/start.py [--rounds=3]

In each round the same command runs twice, with an empty folder for downloads and compiled code, then with what the first run left there.
Writes start.md: seconds from the config to the end of the first step (`seconds_to_first_step`), and of the whole process.
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

import jax

from tlx.files import write_text_atomic

HERE = Path(__file__).parent
MODELS = (("resnet20_cifar", 32), ("resnet18", 64), ("vit_tiny_patch16_224", 224))
NAMES = ("first", "again")


def run(folder: Path, name: str, model: str, size: int) -> tuple[float, float]:
    """Returns the seconds to the first step, and those of the process."""
    workdir = folder / name
    command = [sys.executable, "-m", "tlx.main", "--config=configs/digits.py"]
    fields = {
        "model.name": model,
        "model.weights": "none",
        "data.image_size": size,
        "data.resize": size,
        "data.augment": "flip",
        "data.labels_per_class": 1,
        "data.test_fraction": 0,
        "train.steps": 1,
        "train.batch_size": 8,
    }
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    begun = time.perf_counter()
    subprocess.run(
        [*command, f"--workdir={workdir}"],
        check=True,
        cwd=HERE.parents[1],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TLX_CACHE": str(folder / "cache")},
    )
    seconds = time.perf_counter() - begun
    summary = json.loads((workdir / "summary.json").read_text())
    return float(summary["seconds_to_first_step"]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lines = [
        "| network | pixels | to the first step, s: first | again | ratio (spread) | process, s: first | again | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, size in MODELS:
        rounds = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append([run(Path(folder), name, model, size) for name in NAMES])
        cells = []
        for which in (0, 1):
            first, again = (statistics.median(r[place][which] for r in rounds) for place in (0, 1))
            ratios = sorted(r[1][which] / r[0][which] for r in rounds)
            spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if which == 0 else ""
            cells.append(f"{first:.1f} | {again:.1f} | {statistics.median(ratios):.2f}{spread}")
        lines.append(f"| {model} | {size} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    device = jax.devices()[0]
    lines.append(f"\njax {jax.__version__}, {os.cpu_count()} x {device.device_kind}.")
    write_text_atomic(HERE / "start.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
