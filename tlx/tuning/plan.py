"""TuningPlan: one label per parameter, and everything that follows from it.

Ordered rules `(pattern, group)` are matched against parameter paths, the first match wins, and every
parameter must match; a rule that matches nothing is an error too. From that one label tree follow the leaves
that are differentiated, the optimizer of each group, weight decay, clipping, BatchNorm's mode, what a checkpoint
holds, and where the frozen prefix ends. (Rules as in google-research/big_vision's `config.schedule`.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.config import TuneConfig, nearest
from tlx.errors import InputError
from tlx.models.leaves import Leaf, matcher, module_of
from tlx.tuning.methods import FROZEN, Anatomy, Rule, norm_mode, rates, rules_of


@dataclasses.dataclass(frozen=True)
class Group:
    """How one group of parameters is trained; "" and None mean as the config's `optimizer` says."""

    lr: float = 1.0  # times the learning rate
    weight_decay: float | None = None
    optimizer: str = ""
    options: str = (
        ""  # keyword arguments of the optimizer, beside the config's where it is the config's
    )


@dataclasses.dataclass(frozen=True)
class TuningPlan:
    """The labels and what follows from them; all paths are in the model's order, stem to head."""

    labels: dict[str, str]  # parameter -> group
    groups: dict[str, Group]  # of the labels in use, without "frozen"
    trainable: tuple[str, ...]  # parameters that are differentiated
    statistics: tuple[str, ...]  # running statistics that move
    frozen: tuple[str, ...]  # parameters and statistics that must not change
    training_norms: frozenset[str]  # BatchNorm modules that use batch statistics
    first_trained_stage: int  # stages before it are a constant of the data

    def paths(self, group: str) -> tuple[str, ...]:
        """Returns the parameters of one group."""
        return tuple(path for path, label in self.labels.items() if label == group)


def make_plans(
    found: Mapping[str, Leaf],
    stages: Sequence[str],
    tune: TuneConfig,
    auxiliary: Sequence[tuple[str, int, float]] = (),
) -> tuple[TuningPlan, ...]:
    """Returns the plan of each phase of the method, for a model's leaves; most methods have one phase.

    Args:
      found: the leaves, stem to head.
      stages: the model's.
      tune: the method and its options.
      auxiliary: the model's.

    Raises:
      InputError: a stage that does not exist, a rule that matches nothing, a parameter that no rule
        matches, an unknown group, or nothing left to train; names what was available.
    """
    parameters = tuple(path for path, leaf in found.items() if leaf.is_parameter)
    model = Anatomy(parameters, tuple(stages), tuple(auxiliary))
    phases = [
        assign(parameters, ordered, strict=tune.method == "rules")
        for ordered in rules_of(model, tune)
    ]
    used = [label for labels in phases for label in labels.values() if label != FROZEN]
    groups = _groups(tuple(dict.fromkeys(used)), tune.groups, rates(model, tune))
    return tuple(_plan(found, model, labels, groups, tune) for labels in phases)


def _plan(
    found: Mapping[str, Leaf],
    model: Anatomy,
    labels: dict[str, str],
    groups: Mapping[str, Group],
    tune: TuneConfig,
) -> TuningPlan:
    used = dict.fromkeys(label for label in labels.values() if label != FROZEN)
    if not used:
        raise InputError(
            f"tune.method={tune.method}: every parameter is frozen, nothing is left to train"
        )
    norms = [path.removesuffix(".mean") for path in found if path.endswith(".mean")]
    training_norms = {norm for norm in norms if _trains(norm, labels, norm_mode(tune))}
    moving = [
        path
        for path, leaf in found.items()
        if not leaf.is_parameter and path.rsplit(".", 1)[0] in training_norms
    ]
    trainable = [path for path in model.parameters if labels[path] != FROZEN]
    changing = {*trainable, *moving}
    touched = {module_of(path) for path in changing}
    first = next((i for i, stage in enumerate(model.stages) if stage in touched), len(model.stages))
    return TuningPlan(
        labels=labels,
        groups={name: groups[name] for name in used},
        trainable=tuple(trainable),
        statistics=tuple(moving),
        frozen=tuple(path for path in found if path not in changing),
        training_norms=frozenset(training_norms),
        first_trained_stage=first,
    )


def assign(parameters: Sequence[str], ordered: Sequence[Rule], *, strict: bool) -> dict[str, str]:
    """Returns parameter -> group by the first rule that matches.

    A pattern matches a path by `re.fullmatch`; a bare module path (`layer4`, `layer4.0`) means its subtree.
    """
    compiled = [(pattern, matcher(pattern, "tune.rules"), group) for pattern, group in ordered]
    labels, hits = {}, [0] * len(ordered)
    for path in parameters:
        for place, (_, matches, group) in enumerate(compiled):
            if matches(path):
                labels[path] = group
                hits[place] += 1
                break
        else:
            raise InputError(
                f"tune.rules: no rule matches {path}; end with '.*=frozen' or '.*=GROUP'"
            )
    modules = dict.fromkeys(module_of(path) for path in parameters)
    for (pattern, _), count in zip(ordered, hits, strict=True):
        if strict and not count:
            raise InputError(
                f"tune.rules: {pattern!r} matches no parameter that an earlier rule left"
                f"{nearest(pattern, modules)} (modules: {', '.join(modules)})"
            )
    return labels


def _trains(norm: str, labels: Mapping[str, str], mode: str) -> bool:
    if mode != "auto":
        return mode == "train"
    own = [labels[path] for path in (f"{norm}.scale", f"{norm}.bias") if path in labels]
    return any(label != FROZEN for label in own)


def _groups(
    used: Sequence[str], texts: Sequence[str], multipliers: Mapping[str, float]
) -> dict[str, Group]:
    fields: dict[str, dict[str, Any]] = {
        name: {"lr": multipliers[name]} if name in multipliers else {} for name in used
    }
    given: set[tuple[str, str]] = set()
    for text in texts:
        key, _, value = text.partition("=")
        name, _, field = key.strip().rpartition(".")
        if name not in fields:
            raise InputError(
                f"tune.groups: {text!r} names no group in use{nearest(name, used)} (groups: {', '.join(used)})"
            )
        if (name, field) in given:
            raise InputError(f"tune.groups: {name}.{field} is there twice")
        given.add((name, field))
        if field in ("optimizer", "options"):
            if not value.strip():
                raise InputError(f"tune.groups: {text!r} gives no {field}")
            fields[name][field] = value.strip()
        elif field in ("lr", "weight_decay"):
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not 0 <= number < math.inf:
                raise InputError(f"tune.groups: {text!r}: {field} must be a number >= 0")
            fields[name][field] = number
        else:
            raise InputError(
                f"tune.groups: {text!r}: expected GROUP.lr, GROUP.weight_decay, GROUP.optimizer or GROUP.options"
            )
    return {name: Group(**own) for name, own in fields.items()}


def digests(values: Mapping[str, Any], paths: Sequence[str]) -> dict[str, str]:
    """Returns path -> sha256 of dtype, shape and bytes."""
    found = {}
    for path in paths:
        array = np.ascontiguousarray(values[path])
        header = f"{array.dtype} {array.shape} ".encode()
        found[path] = hashlib.sha256(header + array.tobytes()).hexdigest()
    return found


def audit(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises RuntimeError where a frozen leaf's hash is not what it was when it was loaded."""
    changed = [path for path in before if before[path] != after.get(path)]
    if changed:
        raise RuntimeError(
            f"{len(changed)} frozen values changed in training: {', '.join(changed[:8])}"
        )
