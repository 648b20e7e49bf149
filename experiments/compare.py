"""Writes FOLDER/table.md from FOLDER/tlx.json and FOLDER/pytorch_reference.json: mean and standard deviation over seeds.

python experiments/compare.py experiments/cifar_resnet20
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from tlx.files import write_text_atomic


def accuracies(path: Path, key: str, field: str) -> dict[str, list[float]]:
    """Returns the accuracies in per cent by recipe, in the order of the seeds."""
    rows = sorted(json.loads(path.read_text()), key=lambda row: row["seed"])
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(100 * row[field])
    return found


def cell(values: list[float] | None) -> str:
    """Returns "91.5 ± 1.7 (3 seeds)"."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} seeds)"


def main(folder: Path) -> None:
    ours = accuracies(folder / "tlx.json", "name", "test/accuracy")
    theirs = accuracies(folder / "pytorch_reference.json", "recipe", "accuracy")
    lines = ["| recipe | tlx | PyTorch |", "|---|---|---|"]
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        lines.append(f"| {name} | {cell(ours.get(name))} | {cell(theirs.get(name))} |")
    common = [name for name in ours if len(ours[name]) > 3 and len(theirs.get(name, [])) > 3]
    for name in common:
        lines.append(f"| {name}, seeds 0-2 | {cell(ours[name][:3])} | {cell(theirs[name][:3])} |")
    write_text_atomic(folder / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
