"""The plan as a table, printed before step 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tlx.columns import aligned
from tlx.config import OptimizerConfig
from tlx.models.leaves import Leaf, module_of
from tlx.tuning.optimizer import group_state_bytes
from tlx.tuning.plan import FROZEN, TuningPlan

COLUMNS = (
    "group",
    "modules",
    "optimizer",
    "lr",
    "decay",
    "parameters",
    "arrays",
    "state",
    "BatchNorm",
)


def plan_table(plan: TuningPlan, found: dict[str, Leaf], optimizer: OptimizerConfig) -> str:
    """Returns one line per group, frozen first, and a line of totals."""
    rows: list[Sequence[str]] = [COLUMNS]
    for name in (FROZEN, *plan.groups):
        paths = plan.paths(name)
        if not paths:
            continue
        modules = " ".join(dict.fromkeys(module_of(path) for path in paths))
        group = plan.groups.get(name)
        how = ("-", "-", "-")
        if group:
            decay = optimizer.weight_decay if group.weight_decay is None else group.weight_decay
            how = (group.optimizer or optimizer.name, f"{group.lr * optimizer.lr:g}", f"{decay:g}")
        state = readable_bytes(group_state_bytes(plan, optimizer, found, name)) if group else "0 B"
        size = f"{count_parameters(found, paths):,}"
        rows.append((name, modules, *how, size, str(len(paths)), state, _norms(plan, found, paths)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    trained = count_parameters(found, plan.trainable)
    total = count_parameters(found, tuple(plan.labels))
    share = f"trained: {trained:,} of {total:,} parameters ({100 * trained / total:.1f} %)"
    return "\n".join([*aligned(rows), share])


def count_parameters(found: dict[str, Leaf], paths: Sequence[str]) -> int:
    """Returns the number of scalars in the given leaves."""
    return sum(math.prod(found[path].shape) for path in paths)


def _norms(plan: TuningPlan, found: dict[str, Leaf], paths: Sequence[str]) -> str:
    modules = {path.rsplit(".", 1)[0] for path in paths}
    norms = {module for module in modules if f"{module}.mean" in found}
    training = len(norms & plan.training_norms)
    parts = [(training, "batch"), (len(norms) - training, "running")]
    return ", ".join(f"{count} {mode}" for count, mode in parts if count) or "-"


def readable_bytes(count: float) -> str:
    """Returns "8 B" or "45.1 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
