"""Steps of tlx and of transformers + PyTorch on the same sequences, in turns: sequences a second of training and inference.

  python experiments/text/speed.py --model=DIR --shared=DIR [--rows=sst2] [--rounds=7]

Each row is a job that ours.py and theirs.py have ready (--time-only); `experiments/bench/bench.py` says how they take turns. Both start
each time with the first batches of the recipe, in the order of seed 0, padded alike. Writes speed.json and speed.md beside this
file; rows that are not run again stay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from recipe import RECIPES

from tlx.files import write_json_atomic, write_text_atomic

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from bench import in_turns, machine

HERE = Path(__file__).parent
VERSIONS = ("jax", "jaxlib", "flax", "torch", "transformers", "tokenizers", "peft")
JOBS = tuple(
    {"task": task, "method": method, "time-only": what, "pad": "buckets"}
    for task, method, what in (
        ("sst2", "full", "train"),
        ("sst2", "lora", "train"),
        ("sst2", "head", "train"),
        ("sst2", "full", "infer"),
        ("wnut17", "full", "train"),
        ("wnut17", "full", "infer"),
    )
)


def measure(job: dict[str, str], folders: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Returns the job's row."""
    options = [f"--{name}={value}" for name, value in (job | folders).items()]
    scripts = {"tlx": "ours.py", "pytorch": "theirs.py"}
    commands = {name: [str(HERE / script), *options] for name, script in scripts.items()}
    row = {"job": job, **in_turns(commands, rounds), "machine": machine()}
    return row | {"versions": {name: metadata.version(name) for name in VERSIONS}}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a line for each row."""
    lines = [
        "| task | batch | trained | tlx, sequences/s | PyTorch, sequences/s | ratio (spread) | memory, ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        job, times = row["job"], row["seconds"]
        batch = RECIPES[job["task"]].batch
        ratios = sorted(b / a for a, b in zip(times["tlx"], times["pytorch"], strict=True))
        ours, theirs = (batch / statistics.median(times[k]) for k in ("tlx", "pytorch"))
        trained = job["method"] if job["time-only"] == "train" else "inference"
        lines.append(
            f"| {job['task']} | {batch} | {trained} | {ours:.1f} | {theirs:.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {row['tlx']['peak'] / row['pytorch']['peak']:.2f} |"
        )
    machines = sorted({row["machine"] for row in rows})
    versions = [f"{name} {number}" for name, number in rows[-1]["versions"].items()]
    lines += ["", f"{'; '.join(machines)}. {', '.join(versions)}. float32, padded to buckets."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=os.environ.get("TLX_SHARED"))
    parser.add_argument("--rows", default="", help="tasks, with commas; all of them if empty")
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    if settings.shared is None:
        parser.error("--shared (or TLX_SHARED) must name the folder with data/")
    names = [name for name in settings.rows.split(",") if name]
    folders = {"model": settings.model, "shared": settings.shared}
    file = HERE / "speed.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for job in JOBS:
        if names and job["task"] not in names:
            continue
        row = measure(job, folders, settings.rounds)
        rows = [other for other in rows if other["job"] != job] + [row]
        rows.sort(key=lambda row: JOBS.index(row["job"]))
        write_json_atomic(file, rows)
        write_text_atomic(HERE / "speed.md", table(rows))
        print(table([row]).splitlines()[2], flush=True)


if __name__ == "__main__":
    main()
