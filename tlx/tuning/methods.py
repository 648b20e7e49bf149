"""The tuning methods: each is rules that give every parameter its group, one list of them for each phase.

A group is trained together; "frozen" is not trained. Where stages have rates of their own (layer-wise decay, gradual
unfreezing) each is a group that has its name, else they are the group "backbone".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tlx.config import FIELDS_OF, TuneConfig, nearest
from tlx.errors import InputError
from tlx.models.leaves import is_within, module_of

FROZEN = "frozen"  # the group that is not trained
ADAPTERS = r".*\.adapter\..*"  # the values of adapters: see tlx/tuning/adapters.py

Rule = tuple[str, str]  # (a module's path or a regex, group)
Rules = tuple[Rule, ...]


class Anatomy(NamedTuple):
    """What a method knows of a model."""

    parameters: tuple[str, ...]  # paths, stem to head
    stages: tuple[str, ...]
    auxiliary: tuple[tuple[str, int, float], ...]  # as `Model.auxiliary`


def full(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """Everything is trained."""
    return (_stagewise(model, tune, model.stages),)


def head(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """The classifier only: a linear probe (Alain & Bengio 2016, arXiv:1610.01644)."""
    return (_stagewise(model, tune, ()),)


def partial(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """All but the first `freeze_stages` stages (Yosinski et al. 2014, arXiv:1411.1792)."""
    return (_stagewise(model, tune, _unfrozen(model, tune)),)


def surgical(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """One block of neighbouring stages (Lee et al. 2023, arXiv:2210.11466), and the head where it is named too."""
    names = [name for name in tune.train_stages if name != "head"]
    there = f"(stages: {', '.join(model.stages)}, head)"
    for name in names:
        if name not in model.stages:
            raise InputError(
                f"tune.train_stages: there is no stage {name!r}{nearest(name, model.stages)} {there}"
            )
    if not names:
        raise InputError(f"tune.method=surgical needs tune.train_stages, as 'layer1,head' {there}")
    places = sorted(map(model.stages.index, names))
    if places != list(range(places[0], places[0] + len(places))):
        raise InputError(
            f"tune.train_stages={','.join(names)} is no contiguous block, each once {there}"
        )
    rules = _stagewise(model, tune, [model.stages[place] for place in places])
    if "head" in tune.train_stages:
        return (rules,)
    return ((("head", FROZEN), *rules[1:]),)


def gradual(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """Gradual unfreezing (ULMFiT: Howard & Ruder 2018, arXiv:1801.06146): the head first, then a stage more from the
    top in each phase, down to those that `freeze_stages` keeps frozen throughout.
    """
    stages = _unfrozen(model, tune)
    if not stages:
        raise InputError(
            f"tune.method=gradual: tune.freeze_stages={tune.freeze_stages} leaves nothing to unfreeze"
        )
    return tuple(
        _stagewise(model, tune, stages[len(stages) - count :]) for count in range(len(stages) + 1)
    )


def lpft(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """Linear probing, then fine-tuning (Kumar et al. 2022, arXiv:2202.10054): the head first, then all stages that
    `freeze_stages` does not keep frozen.
    """
    return (_stagewise(model, tune, ()), _stagewise(model, tune, _unfrozen(model, tune)))


def bitfit(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """The biases, of normalisations too, and the head (BitFit: Ben Zaken et al. 2022, arXiv:2106.10199).

    A BatchNorm keeps its running statistics: its scale is frozen.
    """
    if not any(
        path.endswith(".bias") and not path.startswith("head.") for path in model.parameters
    ):
        raise InputError("tune.method=bitfit: the model has no biases but the head's")
    return (_parts(model, (r".*\.bias", "biases")),)


def norms(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """Scale and bias of every normalisation, and the head (Frankle et al. 2021, arXiv:2003.00152).

    A BatchNorm uses the statistics of the batch, and its running ones move.
    """
    modules = [path.removesuffix(".scale") for path in model.parameters if path.endswith(".scale")]
    if not modules:
        raise InputError("tune.method=norms: the model has no normalisation")
    pattern = "|".join(map(re.escape, modules))
    return (_parts(model, (rf"(?:{pattern})\.(?:scale|bias)", "norms")),)


def adapters(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """The adapters that tlx/tuning/adapters.py put into the network, and the head."""
    own = {module_of(path) for path in model.parameters if re.fullmatch(ADAPTERS, path)}
    first = next((i for i, stage in enumerate(model.stages) if stage in own), len(model.stages))
    return (_parts(model, (ADAPTERS, "adapters"), first),)


def from_rules(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """The config's own rules."""
    if not tune.rules:
        raise InputError(
            "tune.method=rules needs tune.rules, as 'stem=frozen,layer1=frozen,.*=rest'"
        )
    parsed = [tuple(part.strip() for part in text.rpartition("=")[::2]) for text in tune.rules]
    for text, (pattern, group) in zip(tune.rules, parsed, strict=True):
        if not pattern or not group:
            raise InputError(f"tune.rules: {text!r} is not PATTERN=GROUP")
        if group != FROZEN and difflib.get_close_matches(group, [FROZEN], cutoff=0.8):
            raise InputError(f"tune.rules: {text!r}: did you mean {pattern}={FROZEN}?")
    return (tuple((pattern, group) for pattern, group in parsed),)


METHODS: dict[str, Callable[[Anatomy, TuneConfig], tuple[Rules, ...]]] = {
    "full": full,
    "head": head,
    "partial": partial,
    "surgical": surgical,
    "gradual": gradual,
    "lpft": lpft,
    "bitfit": bitfit,
    "norms": norms,
    "lora": adapters,
    "dora": adapters,
    "ia3": adapters,
    "bottleneck": adapters,
    "rules": from_rules,
}


def rules_of(model: Anatomy, tune: TuneConfig) -> tuple[Rules, ...]:
    """Returns the method's rules, one list of them for each of its phases.

    An auxiliary classifier is trained where anything of a stage before it is.

    Raises:
      InputError: a stage that does not exist, or a field that belongs to another method.
    """
    for field, methods in FIELDS_OF.items():
        if tune.method not in methods and getattr(tune, field) != getattr(TuneConfig(), field):
            raise InputError(
                f"tune.{field} is given, but tune.method is {tune.method!r}: "
                f"set tune.method={' or '.join(methods)}"
            )
    return METHODS[tune.method](model, tune)


def norm_mode(tune: TuneConfig) -> str:
    """Returns `tune.batchnorm`; bitfit's own, unless another is asked for, is "frozen"."""
    return "frozen" if (tune.method, tune.batchnorm) == ("bitfit", "auto") else tune.batchnorm


def rates(model: Anatomy, tune: TuneConfig) -> dict[str, float]:
    """Returns the rate multipliers of stages under layer-wise decay: `layer_decay` to the power of the stage's distance
    from the head (Bao et al. 2022, arXiv:2106.08254, and ULMFiT's discriminative rates, by stages).

    A last stage that is a normalisation alone has the head's rate, as in the first of them.
    """
    if tune.layer_decay == 1.0:
        return {}
    distance, found = 0, {}
    for name in reversed(model.stages):
        own = {path for path in model.parameters if is_within(path, (name,))}
        distance += own != {f"{name}.scale", f"{name}.bias"}
        found[name] = tune.layer_decay**distance
    return found


def _stagewise(model: Anatomy, tune: TuneConfig, trained: Sequence[str]) -> Rules:
    by_stage = tune.method == "gradual" or tune.layer_decay != 1.0
    first = model.stages.index(trained[0]) if trained else len(model.stages)
    return (
        *_heads(model, first),
        *((name, name if by_stage else "backbone") for name in trained),
        (".*", FROZEN),
    )


def _parts(model: Anatomy, rule: Rule, first: int = 0) -> Rules:
    """Of the stages only what the rule matches is trained; `first` is the first that has any of it."""
    return (*_heads(model, first), rule, (".*", FROZEN))


def _heads(model: Anatomy, first_trained: int) -> Rules:
    auxiliary = (
        (name, "head" if first_trained < position else FROZEN)
        for name, position, _ in model.auxiliary
    )
    return (("head", "head"), *auxiliary)


def _unfrozen(model: Anatomy, tune: TuneConfig) -> tuple[str, ...]:
    stages, count = model.stages, tune.freeze_stages
    if not 0 <= count <= len(stages):
        raise InputError(
            f"tune.freeze_stages is {count}, the model has {len(stages)} stages: {', '.join(stages)}"
        )
    return stages[count:]
