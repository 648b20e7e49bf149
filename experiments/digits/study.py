"""What do rendered characters teach a network about handwritten digits?

  python experiments/digits/study.py            (the table; results.json and table.md beside this file)
  python experiments/digits/study.py --select   (the learning rates; selection.json)

Four ways to fit the same ResNet-20 to 1, 5, 10 and 50 labelled digits of each class, three seeds each; a seed
draws the labelled digits, the order and the new head. All other digits are test. Learning rate and number of steps of each method were chosen
from one grid with --select on the labels that seed 100 draws, at 10 a class (selection.json), and are the same in every row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import tlx
from tlx import config as config_lib
from tlx.files import write_json_atomic, write_text_atomic

HERE = Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "digits.py"
LABELS = (1, 5, 10, 50)
SEEDS = (0, 1, 2)
SELECTION_SEED = 100

METHODS: dict[str, dict[str, Any]] = {
    "from scratch": {"model.weights": "none", "tune.method": "full"},
    "head": {"tune.method": "head"},
    "partial": {"tune.method": "partial", "tune.freeze_stages": 3},
    "full": {"tune.method": "full"},
}
CANDIDATES = [
    {"optimizer.lr": lr, "train.steps": steps}
    for steps in (120, 400)
    for lr in (1e-3, 3e-3, 1e-2, 3e-2)
]


def accuracy(method: str, labels: int, seed: int, recipe: dict[str, Any]) -> float:
    """Trains once and returns the accuracy on the digits that were not drawn."""
    fields = {
        "data.labels_per_class": labels,
        "seed": seed,
        "checkpoint.every": "0",
        "train.log_every": 200,
    }
    config = config_lib.build(config_lib.load(CONFIG), fields, METHODS[method], recipe)
    with tempfile.TemporaryDirectory() as workdir:
        return tlx.finetune(config, Path(workdir) / "run")["test/accuracy"]


def select() -> None:
    """Tries every candidate at 10 labels a class of the selection seed."""
    rows = _read("selection.json")
    for method in METHODS:
        for recipe in CANDIDATES:
            cell = {"method": method, **recipe}
            if not any(cell.items() <= row.items() for row in rows):
                rows.append({**cell, "accuracy": accuracy(method, 10, SELECTION_SEED, recipe)})
                write_json_atomic(HERE / "selection.json", rows)


def chosen(method: str) -> dict[str, Any]:
    """Returns the recipe that --select found best."""
    best = max((row for row in _read("selection.json") if row["method"] == method), key=_accuracy)
    return {name: best[name] for name in CANDIDATES[0]}


def study() -> None:
    """Runs every cell that is not in results.json yet and writes the table."""
    done = _read("results.json")
    for labels in LABELS:
        for method in METHODS:
            for seed in SEEDS:
                cell = {"method": method, "labels": labels, "seed": seed, **chosen(method)}
                if not any(cell.items() <= row.items() for row in done):
                    done.append(
                        {**cell, "accuracy": accuracy(method, labels, seed, chosen(method))}
                    )
                    write_json_atomic(HERE / "results.json", done)
    write_text_atomic(HERE / "table.md", table(done))


def _read(name: str) -> list[dict[str, Any]]:
    return json.loads((HERE / name).read_text()) if (HERE / name).exists() else []


def _accuracy(row: dict[str, Any]) -> float:
    return row["accuracy"]


def table(rows: list[dict[str, Any]]) -> str:
    """Returns mean and standard deviation in per cent, a line per method."""
    lines = [
        "| method | " + " | ".join(f"{n} a class" for n in LABELS) + " |",
        "|---|" + "---|" * len(LABELS),
    ]
    for method in METHODS:
        cells = []
        for labels in LABELS:
            found = [
                100 * r["accuracy"] for r in rows if r["method"] == method and r["labels"] == labels
            ]
            cells.append(f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--select", action="store_true")
    select() if parser.parse_args().select else study()
