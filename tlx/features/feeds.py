"""What each phase of a run is fed with: pictures or texts, or the outputs of the stages that it leaves as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from tlx.config import Config
from tlx.data import pipeline
from tlx.data.text_batches import typical_length
from tlx.errors import InputError
from tlx.features.cached import Cache
from tlx.features.decide import Decision, Use, decide
from tlx.features.store import Store
from tlx.models.leaves import Values
from tlx.setup import Setup, Tuning
from tlx.tasks import Evaluation
from tlx.training.calls import Data
from tlx.training.mesh import replicated
from tlx.tuning.table import readable_bytes
from tlx.weights.cache import cache_dir
from tlx.weights.meta import TextPreprocess

STEPS_PER_CALL = 10


class Feeds:
    """Batches and validation for each phase."""

    def __init__(
        self,
        setup: Setup,
        decisions: Sequence[Decision],
        splits: Mapping[str, pipeline.Whole],
        say: Callable[[str], None],
    ):
        self.setup, self.decisions, self.say = setup, decisions, say
        self.whole = splits
        self.data: Data = {}  # what the places in batches are of
        self._splits: dict[str, pipeline.Rows] = dict(splits)
        self._start = -1  # the stages that what is being fed has been through; -1: nothing yet

    def batches(self, phase: int, step: int, values: Values) -> Iterator[pipeline.Batch]:
        """Returns the batches of a phase from a step on, at which the network has these values.

        Where `data` has their inputs, they have the places of these.
        """
        self._prepare(phase, values)
        config, split = self.setup.config, self._splits["train"]
        views = len(self.data["inputs"]) if self.data else 0
        return pipeline.training_batches(
            pipeline.Places(split, views) if views else split,
            seed=config.seed,
            batch_size=config.train.batch_size,
            start=step,
        )

    def evaluate(self, phase: int, values: Values) -> Evaluation:
        """Evaluates values on the validation split, in a phase whose batches have been asked for."""
        return self.setup.evaluate(self._splits["val"], values, self.decisions[phase].start)

    @property
    def steps_per_call(self) -> int:
        """How many steps a call of the device has; several on accelerators that hold what every phase trains on."""
        if given := self.setup.config.train.steps_per_call:
            return given
        held = all(self._fits(decision) for decision in self.decisions)
        return STEPS_PER_CALL if held and jax.default_backend() != "cpu" else 1

    @property
    def validates(self) -> bool:
        """Whether there is a validation split."""
        return "val" in self.whole

    def _prepare(self, phase: int, values: Values) -> None:
        """Makes what the phase is fed with, unless that is what is being fed."""
        decision = self.decisions[phase]
        if self._start == decision.start:
            return
        self.data = {}  # before there is another, what was kept goes
        self._splits = self._inputs(decision, values)
        self._start = decision.start
        held = self._splits["train"].held
        if held is not None and self._fits(decision):
            self.data = {"inputs": jax.device_put(held, replicated(self.setup.mesh))}
            self.say(f"data: what training reads, {readable_bytes(held.nbytes)}, is on each device")

    def _fits(self, decision: Decision) -> bool:
        """Returns whether what a phase trains on would be on the device."""
        config, split = self.setup.config, self.whole["train"]
        if decision.prefix is not None and decision.prefix.tokens:
            return False  # texts differ in length
        if decision.prefix is not None:
            nbytes = decision.prefix.nbytes * max(_views(config), 1) * len(split)
        elif split.in_memory is not None:
            nbytes = split.in_memory.nbytes
        else:
            return False
        return nbytes <= _device_bytes(config)

    def _inputs(self, decision: Decision, values: Values) -> dict[str, pipeline.Rows]:
        self._splits = dict(self.whole)
        prefix, config = decision.prefix, self.setup.config
        if prefix is None:
            return self._splits
        store = Store(_folder(config.cache.dir), config.cache.disk_gb * 2**30)
        cache = Cache(self.setup, values, prefix, store, self.say)
        cached: dict[str, pipeline.Rows] = {
            "train": cache.split("training", self.whole["train"], _views(config))
        }
        if self.validates:
            cached["val"] = cache.split("validation", self.whole["val"])
        return cached


def decisions(setup: Setup, tuning: Tuning) -> list[Decision]:
    """Returns for each phase from which stage on it runs.

    Raises:
      InputError: cache.use=on where every phase must have its inputs; several steps a call of batches that differ in length.
    """
    config, splits = setup.config, setup.splits
    assert splits.train is not None
    preprocess, tokens = setup.model.meta.preprocess, 0
    if isinstance(preprocess, TextPreprocess):
        tokens = typical_length(splits.train, preprocess, config.data)
    ends = [phase.start for phase in tuning.phases[1:]] + [tuning.cadence.total_steps]
    obstacle = _obstacle(setup, tuning)
    make = functools.partial(
        decide,
        setup.model,
        setup.leaves,
        config=config.cache,
        dtype=setup.dtype,
        last_stage_runs=any(one.name == "bss" for one in tuning.regularizers),
    )
    found = []
    for phase, end in zip(tuning.phases, ends, strict=True):
        passes = (end - phase.start) / tuning.steps_per_epoch
        evaluated = len(splits.val) if splits.val is not None else 0
        use = Use(len(splits.train), evaluated, passes, _views(config), obstacle, tokens)
        found.append(make(plan=phase.plan, use=use))
    together = config.train.steps_per_call
    lengths = tokens and any(one.prefix is None or one.prefix.tokens for one in found)
    if together > 1 and lengths:
        raise InputError(
            f"train.steps_per_call is {together}, but batches of texts differ in length: leave it out"
        )
    if config.cache.use == "on" and not any(decision.start for decision in found):
        raise InputError(f"cache.use=on: there is nothing to cache, {found[0].reason}")
    return found


def describe_decisions(found: Sequence[Decision]) -> list[str]:
    """Returns a line for each phase: what is cached, or why nothing is."""
    numbered = len(found) > 1
    lines = []
    for number, decision in enumerate(found, 1):
        phase = f"phase {number}: " if numbered else ""
        kept = decision.reason if decision.start else f"off ({decision.reason})"
        lines.append(f"cache: {phase}{kept}")
    return lines


def _obstacle(setup: Setup, tuning: Tuning) -> str:
    config = setup.config
    if config.data.augment and not config.cache.views:
        return "data.augment draws other pictures each time (cache.views=K keeps K of each)"
    if config.train.mixup or config.train.cutmix:
        return "train.mixup and train.cutmix mix pictures"
    if tuning.estimated_after is not None:
        return "statistics of the average are estimated on pictures"
    if jax.process_count() > 1:
        return "it is not shared between processes"
    if isinstance(setup.model.meta.preprocess, TextPreprocess) and (
        config.data.long_texts == "split"
    ):
        return "each pass reads other windows of long texts (data.long_texts=split)"
    return ""


def _views(config: Config) -> int:
    """Returns how many augmented pictures stand for each; 0: each is fed as it is."""
    return config.cache.views if config.data.augment else 0


def _device_bytes(config: Config) -> float:
    """Returns how much of a device training's inputs may take."""
    if config.data.device_gb >= 0:
        return config.data.device_gb * 2**30
    if jax.default_backend() == "cpu" or jax.process_count() > 1:
        return 0.0
    facts = jax.local_devices()[0].memory_stats() or {}
    return float(facts.get("bytes_limit", 0)) / 4


def _folder(given: str) -> Path:
    return Path(given).expanduser() if given else cache_dir() / "features"
