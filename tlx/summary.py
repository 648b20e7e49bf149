"""What a run leaves behind for people and scripts: the summary and the report."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tlx.data import pipeline
from tlx.data.image import displayable
from tlx.evaluation.report import Report, Shown, write_report
from tlx.setup import Setup
from tlx.tasks import Evaluation
from tlx.training import logging
from tlx.tuning.auto import as_text
from tlx.tuning.table import count_parameters
from tlx.workdir import Workdir

WORST_KEPT = 24  # mistakes shown in the report
PACKAGES = ("tlx", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run_facts(setup: Setup, mode: str) -> dict[str, Any]:
    """Returns what was run, on what, with which versions."""
    parameters = [path for path, leaf in setup.leaves.items() if leaf.is_parameter]
    device = jax.devices()[0]
    chosen = {choice.field: choice.value for choice in setup.choices}
    return {
        "mode": mode,
        "model": setup.model.meta.architecture,
        "data": f"{setup.config.data.source} {setup.config.data.root}".rstrip(),
        "params/total": count_parameters(setup.leaves, parameters),
        "skipped_images": len(setup.splits.skipped),
        "device": f"{device.platform} {device.device_kind}",
        "devices": jax.device_count(),
        "dtype": setup.dtype,
        **({"chosen": chosen} if chosen else {}),  # by tune.method=auto
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def results(name: str, found: Evaluation) -> dict[str, Any]:
    """Returns `test/accuracy` and the others, with `test/per_class_accuracy` where it is defined."""
    summary = {f"{name}/{key}": value for key, value in found.summary().items()}
    per_class = found.per_class().items()
    return summary | {f"{name}/per_class_{key}": values for key, values in per_class}


def make_report(
    setup: Setup,
    folder: Workdir,
    summary: Mapping[str, Any],
    found: Evaluation,
    split: pipeline.Split,
    name: str,
    *,
    table: str,
    command: str,
    table_title: str = "What was trained",
) -> None:
    """Writes report.md and its pictures into the workdir."""
    worst = found.worst(WORST_KEPT)
    shown = [
        Shown(int(index), displayable(image), split.examples.name(int(index)))
        for index, image in zip(
            worst, split.rows(worst, np.zeros_like(worst)) if len(worst) else (), strict=True
        )
    ]
    report = Report(
        title=f"{setup.model.meta.architecture} on {setup.config.data.source}",
        command=command,
        summary={k: v for k, v in summary.items() if "/per_class_" not in k and k != "chosen"},
        choices=[(choice.field, as_text(choice.value), choice.reason) for choice in setup.choices],
        plan_table=table,
        records=logging.read_records(folder.path),
        split=name,
        section=found.section(shown),
        table_title=table_title,
    )
    write_report(folder.path, report)
