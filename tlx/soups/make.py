"""Soups: the mean of the weights of several fine-tuned networks, as one network (Wortsman et al. 2022, arXiv:2203.05482).

finished runs of one network -> their checkpoints -> the mean of all, or of those that validation does not lose by -> a folder
as a run leaves it, which `tlx.load`, `--mode=evaluate` and `--mode=export` read.

The mean is of what the runs' plan trains; what is frozen is the same in all. BatchNorm statistics that moved are those of no mean:
they are estimated for each soup of more than one checkpoint (`tlx.training.statistics`), from the first batches of the first run.
Of methods with phases (gradual, lpft) those that no ingredient had moved yet stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tlx import config as config_lib
from tlx.columns import aligned
from tlx.config import Config
from tlx.data import pipeline
from tlx.errors import InputError
from tlx.files import new_folder, write_json_atomic
from tlx.models.adapters import merged
from tlx.models.leaves import Values, with_values
from tlx.models.leaves import values as values_of
from tlx.setup import Setup, prepare, prepare_tuning
from tlx.soups.config import soup_config, where
from tlx.soups.recipe import Ingredient, Mean, Soup, greedy, uniform
from tlx.soups.runs import Run, compare, describe_drawn, open_run
from tlx.steps import statistics_step
from tlx.summary import make_report, results, run_facts
from tlx.training.checkpoint import Checkpoints, Position, save_base
from tlx.training.mesh import replicated
from tlx.training.resume import adapter_facts, restore_values
from tlx.training.state import TrainState
from tlx.training.statistics import batches_of_estimate, estimate
from tlx.training.step import StatisticsStep
from tlx.tuning.plan import TuningPlan
from tlx.tuning.table import count_parameters
from tlx.workdir import Workdir


def soup(
    workdirs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    kind: str = "greedy",
    checkpoints: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Averages the weights of finished runs of one network into the folder `out`; returns the summary.

    `uniform` is the mean of all. `greedy` takes the checkpoints in the order of their validation metric and keeps each with
    which the mean's metric is not worse than without: it is never worse on validation than the best of them. The test split
    chooses nothing. The runs may differ in all but the network, the weights they began with, what is trained, and the
    pictures held out. LoRA and DoRA are merged first: the soup is a plain network.

    Args:
      workdirs: of the runs, or patterns.
      out: a new folder; called again, it says that the soup is complete.
      kind: greedy or uniform.
      checkpoints: of each run: auto (the best where there is one, else the last), best, last, or all that were kept.
      overrides: fields that do not say what a run is, as data.root where the data of all was moved; else each run's own are used.

    Raises:
      InputError, InputFileNotFoundError: no run, an unfinished one or another network, which is named with what differs;
        fewer than two checkpoints; `greedy` without a validation split; or `out` is there and is not this soup.
    """
    runs = [workdirs] if isinstance(workdirs, (str, Path)) else workdirs
    fields = {
        "soup.runs": tuple(map(str, runs)),
        "soup.kind": kind,
        "soup.checkpoints": checkpoints,
    }
    overrides = overrides or {}
    return make_soup(soup_config({**overrides, **fields}, Path(out)), out, overrides)


def make_soup(
    config: Config, out: str | Path, overrides: Mapping[str, Any], *, command: str = ""
) -> dict[str, Any]:
    """Makes the soup that a config of `tlx.soups.config.soup_config` describes; as `soup`."""
    folder = Workdir(Path(out))
    folder.check(config)
    if summary := folder.read_summary("soup"):
        print(f"{folder.path}: this soup is complete; see {folder.path}/report.md", flush=True)
        return summary
    if folder.path.is_dir() and any(folder.path.iterdir()):
        raise InputError(f"{folder.path} is there and is no soup: name a new folder")
    begun = time.perf_counter()
    runs = [open_run(path, where(overrides)) for path in config.soup.runs]
    for other in runs[1:]:
        compare(runs[0], other)
        for line in describe_drawn(runs[0], other):
            print(line, flush=True)
    first = runs[0]
    setup, lines = prepare(config, stored=first.stored)
    print(*lines, sep="\n", flush=True)
    networks = _Networks(config, setup, runs)
    found = [ingredient for run in runs for ingredient in networks.ingredients(run)]
    if len(found) < 2:
        raise InputError(
            f"{first.path} has one checkpoint, and a soup needs two: name more runs, or set soup.checkpoints=all"
        )
    if config.soup.kind == "greedy":
        made = greedy(found, networks.values, networks.evaluate, networks.sign)
    else:
        made = uniform(found, networks.values, networks.evaluate)
    table = _table(found, made, networks.metric)
    print(table, flush=True)
    facts = {
        "kind": config.soup.kind,
        "ingredients": [
            {
                "run": ingredient.run,
                "step": ingredient.step,
                f"val/{networks.metric}": ingredient.metric,
                "in_soup": ingredient in made.ingredients,
            }
            for ingredient in found
        ],
        f"val/{networks.metric}": made.metric,
        "steps": max(ingredient.step for ingredient in made.ingredients),
    }
    return _write(networks, folder, first, made, facts, begun, table, command)


class _Networks:
    """Reads, averages and evaluates networks: the data and the jitted steps that all soups of one call share."""

    def __init__(self, config: Config, setup: Setup, runs: Sequence[Run]):
        self.config, self.setup = config, setup
        self.runs = {run.path: run for run in runs}
        self.metric = config_lib.selecting_metric(config)
        self.sign = config_lib.sign_of(self.metric)
        self.sharding = replicated(setup.mesh)
        self.whole = setup.plans[-1]  # a plan of all that any phase trains
        if config.soup.kind == "greedy" and setup.splits.val is None:
            raise InputError(
                "soup.kind=greedy chooses by validation, and the runs had none: set soup.kind=uniform, or train them "
                "with data.val_fraction"
            )
        moving = ("train",) if self.whole.statistics else ()
        self.splits = setup.open(*moving, "val", setup.held_out)
        self.tuning = prepare_tuning(setup)
        self._steps: dict[tuple[str, ...], StatisticsStep] = {}  # by the statistics that move
        self.frozen: Values = {}

    def ingredients(self, run: Run) -> Iterator[Ingredient]:
        """Yields the checkpoints of a run, each with its validation metric."""
        which: list[int | str] = [self.config.soup.checkpoints]
        if self.config.soup.checkpoints == "all":
            with Checkpoints(run.folder.path, read_only=True) as checkpoints:
                which = [*checkpoints.steps()]
        for one in which:
            values, position = self._restore(run, one)
            self.frozen = self.frozen or {path: values[path] for path in self.whole.frozen}
            metric = self._metric(values)
            ingredient = Ingredient(run.path, position.step, metric, position.phase)
            print(
                f"{ingredient}"
                + (f": val {self.metric} {metric:.6g}" if metric is not None else "")
            )
            yield ingredient

    def values(self, ingredient: Ingredient) -> Values:
        """Returns the values of a checkpoint that training may have changed."""
        values, _ = self._restore(self.runs[ingredient.run], ingredient.step)
        return {path: values[path] for path in (*self.whole.trainable, *self.whole.statistics)}

    def plan(self, ingredients: Sequence[Ingredient]) -> TuningPlan:
        """Returns the plan of what was trained of any of them: that of the latest phase.

        A phase trains what those before it do. Those of two methods that end alike (`compare`) do too.
        """
        found = [self._own_plan(ingredient) for ingredient in ingredients]
        return max(found, key=lambda plan: (len(plan.trainable), len(plan.statistics)))

    def phase(self, plan: TuningPlan) -> int:
        """Returns the first phase of the soup's own method that trains all that the plan does."""
        kept = set(plan.frozen)
        return next(i for i, own in enumerate(self.setup.plans) if kept.issuperset(own.frozen))

    def _own_plan(self, ingredient: Ingredient) -> TuningPlan:
        run = self.runs[ingredient.run]
        return self.whole if run.merges else run.setup.plans[ingredient.phase]

    def evaluate(
        self, mean: Mean, ingredients: Sequence[Ingredient]
    ) -> tuple[Values, float | None]:
        """Returns the network of a mean, and its validation metric; None where there is no validation split.

        One checkpoint keeps its statistics.
        """
        network = {**self.frozen, **jax.device_put(mean.values(), self.sharding)}
        plan = self.plan(ingredients)
        if mean.count > 1 and plan.statistics:
            if plan.statistics not in self._steps:
                self._steps[plan.statistics] = statistics_step(self.setup, self.tuning, plan)
            step = self._steps[plan.statistics]
            split, size = self.splits["train"], self.config.train.batch_size
            batches = pipeline.training_batches(
                split,
                seed=self.config.seed,
                batch_size=size,
                start=0,
                stop=batches_of_estimate(len(split), size),
            )
            network |= estimate(step, network, batches, 0, self.setup.mesh)
        return network, self._metric(network)

    def _metric(self, network: Values) -> float | None:
        if "val" not in self.splits:
            return None
        return float(self.setup.evaluate(self.splits["val"], network).summary()[self.metric])

    def _restore(self, run: Run, which: str | int) -> tuple[Values, Position]:
        setup = run.setup
        values, position, messages = restore_values(
            run.folder.path, setup.leaves, setup.plans, setup.config, which, self.sharding
        )
        print(*messages, sep="\n", end="\n" if messages else "", flush=True)
        if position.fingerprint != setup.fingerprint:
            raise InputError(
                f"{run.path} was trained on other data than there is now (fingerprint {position.fingerprint!r}, now "
                f"{setup.fingerprint!r}): set data.root to where it is"
            )
        if run.merges:
            plain = values_of(merged(with_values(setup.model, values)))
            values = jax.device_put(plain, self.sharding)
        return values, position


def _table(found: Sequence[Ingredient], made: Soup, metric: str) -> str:
    def shown(number: float | None) -> str:
        return "-" if number is None else f"{number:.6g}"

    rows = [("run", "step", f"val {metric}", "")]
    for one in found:
        rows.append(
            (
                one.run,
                str(one.step),
                shown(one.metric),
                "" if one in made.ingredients else "left out",
            )
        )
    rows.append((f"soup of {len(made.ingredients)}", "", shown(made.metric), ""))
    return "\n".join(aligned(rows))


def _write(
    networks: _Networks,
    folder: Workdir,
    first: Run,
    made: Soup,
    facts: Mapping[str, Any],
    begun: float,
    table: str,
    command: str,
) -> dict[str, Any]:
    """Evaluates the soup on the held-out split and writes its folder, whole or not at all."""
    setup, config, name = networks.setup, networks.config, networks.setup.held_out
    phase = networks.phase(networks.plan(made.ingredients))
    plan = setup.plans[phase]
    base = {
        key: fact for key, fact in first.facts.items() if key not in ("frozen_sha256", "origin")
    }
    network, step = made.network, facts["steps"]
    summary = run_facts(setup, "soup") | base | dict(facts)
    summary["params/averaged"] = count_parameters(setup.leaves, plan.trainable)
    found = setup.evaluate(networks.splits[name], network) if name in networks.splits else None
    if found is not None:
        summary |= results(name, found)
        print(f"{name}: {found.headline()}")
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder.path) as path:
        new = Workdir(path)
        digest = save_base(
            path,
            {p: network[p] for p in plan.frozen},
            first.stored.meta,
            base | adapter_facts(setup.model),
            first.stored.origin,
        )
        position = Position(
            step=step,
            phase=phase,
            fingerprint=setup.fingerprint,
            base=digest,
            seconds=time.perf_counter() - begun,
        )
        if made.metric is not None and math.isfinite(made.metric):
            position = dataclasses.replace(
                position, best_step=step, best_value=networks.sign * made.metric
            )
        state = TrainState(
            {p: network[p] for p in plan.trainable},
            {p: network[p] for p in plan.statistics},
            None,
        )
        with Checkpoints(path) as checkpoints:
            checkpoints.save(state, position)
            checkpoints.wait()
        new.write_config(config)
        summary["seconds"] = position.seconds
        if found is not None:
            shown = {key: fact for key, fact in summary.items() if key != "ingredients"}
            make_report(
                setup,
                new,
                shown,
                found,
                networks.splits[name],
                name,
                table=table,
                command=command,
                table_title="What it is made of",
            )
        write_json_atomic(new.summary, summary)
    print(f"report: {folder.path}/report.md", flush=True)
    return summary
