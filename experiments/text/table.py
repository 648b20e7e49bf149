"""Writes accuracy.md beside this file, from what ours.py and theirs.py put into ours.json and theirs.json there.

  python experiments/text/table.py

A line for each task and method: the mean of the seeds on the test file and their standard deviation (of a sample, n - 1).
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from recipe import METHODS, RECIPES

from tlx.files import write_text_atomic

HERE = Path(__file__).parent
NAMES = ("task", "method", "split", "lr", "epochs")
METRICS = {"sst2": ("accuracy", "accuracy"), "wnut17": ("f1", "entity F1")}


def percent(values: list[float]) -> str:
    """Returns mean and deviation of shares, in percent, with each of them behind; a line where there are none."""
    if not values:
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f}{spread} ({each})"


def table(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Returns the lines, of the records on the test files by the recipe."""
    lines = [
        "| task | metric | method | trained | learning rate | epochs | tlx, % (seeds) | PyTorch, % (seeds) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    used = []
    for task, recipe in RECIPES.items():
        metric, title = METRICS[task]
        for method in METHODS:
            wanted = (task, method, "test", recipe.lr[method], recipe.epochs[method])
            found = [
                sorted(
                    (r for r in records if tuple(r[name] for name in NAMES) == wanted),
                    key=lambda record: record["seed"],
                )
                for records in (ours, theirs)
            ]
            if not found[0]:
                continue
            used += [record for records in found for record in records]
            first = found[0][0]
            cells = [percent([record[metric] for record in records]) for records in found]
            lines.append(
                f"| {task} | {title} | {method} | {first['trained']:,} | {first['lr']:g} | {first['epochs']} | "
                + " | ".join(cells)
                + " |"
            )
    versions = {
        f"{name} {number}" for record in used for name, number in record["versions"].items()
    }
    return "\n".join([*lines, "", f"{', '.join(sorted(versions))}. float32, on the CPU."]) + "\n"


def main() -> None:
    ours, theirs = (json.loads((HERE / f"{name}.json").read_text()) for name in ("ours", "theirs"))
    write_text_atomic(HERE / "accuracy.md", table(ours, theirs))


if __name__ == "__main__":
    main()
