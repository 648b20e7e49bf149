"""`tune.method=auto`: the method and its numbers from the data, the weights and the model. Imports no jax.

The origin is BiT-HyperRule (Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3), which decides resolution, steps and
mixup from the number of pictures and their size. Here it also decides what is trained, and for data down to a few
pictures. A class's examples are the training labels over the classes; the constants below are the thresholds.

  method     no weights: full. Stages that the file lacks: partial, those and what follows them trained.
             Else by examples a class: head below 5; then convolutional networks partial (the last third of the stages)
             below 200, lpft below 500, and full; transformers lora below 100, and full with layer decay 0.75.
             A head that comes from the file is where lpft's first phase leads: full in its place.
             Where what is set (a method's field, regularizers, model.adapters) does not go with it: the next one that does.
  optimizer  sgd where BatchNorm keeps the scale of the layers from mattering, as BiT's; adamw for other networks, heads
             alone and adapters; for others that are set lion's is known, and optimizer.lr is asked for. RATES are for a batch of 32: sgd's go with the batch (Goyal et al. 2017,
             arXiv:1706.02677), the others' with its root (Malladi et al. 2022, arXiv:2205.10287), as far as the rule's
             largest batch and the number of examples. A new head learns
             five times as fast as the network behind it; with a head from the file all learn at a tenth. Cosine after a warmup of 10 %.
  batch      about the root of the number of examples: a power of two from 16 to 256.
  steps      16 for each root of the number of examples, at least 100: about BiT's 500 at a thousand, 16,000 at a
             million. From scratch four times as many; in batches smaller than the rule's more, to see as many examples.
  input      the weights' own size. Pictures below 96x96 are enlarged to 160 and cut to 128, as BiT's, where the
             network takes that and was trained on larger ones.
  augment    flips, but not of characters and of left and right; crops. Mixup 0.1 from 20,000 examples, as BiT's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from tlx.columns import aligned
from tlx.config import FIELDS_OF, METHODS, OWN_STEPS, Config, build
from tlx.errors import InputError

# Examples a class below which a method is the choice.
HEAD_BELOW = 5
PARTIAL_BELOW, LPFT_BELOW = 200, 500  # convolutional networks
LORA_BELOW = 100  # transformers
FROZEN_SHARE = 2 / 3  # of the stages, by partial
LAYER_DECAY, RANK = 0.75, 8

SMALLEST_BATCH, LARGEST_BATCH = 16, 256
STEPS_PER_ROOT, FEWEST_STEPS, FROM_SCRATCH = 16, 100, 4
MIXUP_FROM, MIXUP = 20_000, 0.1
SMALL_PICTURE, SMALL_RESIZE, SMALL_INPUT = 96, 160, 128  # pixels
PADDED_INPUT = 64  # pixels, the input up to which pictures are shifted rather than cut
WARMUP = "10%"
OFTEN = 10  # evaluations and checkpoints of a run whose epochs are shorter than that

REFERENCE_BATCH = 32
NEW_HEAD = 5  # times the rate of the network that is trained with it
# Times the rate, where the weights have the head for these classes: at the whole rate a CIFAR network lost 4 points on 10
# examples a class, at this it won 1 (experiments/tuning).
KNOWN_HEAD = 0.1
# Optimizer -> what is trained -> the rate for a batch of 32.
RATES = {
    "sgd": {"head": 0.1, "adapters": 0.1, "network": 0.02, "transformer": 0.003, "scratch": 0.05},
    "adamw": {
        # At twice this, in batches of 16, a head that a ReLU follows (SqueezeNet's) can end with all logits 0 for good.
        "head": 3e-3,
        "adapters": 1e-3,
        "network": 3e-4,
        "transformer": 1e-4,
        "scratch": 1e-3,
    },
    # A fifth of adamw's, with five times its decay: a third to a tenth, and the decay to match, says its paper (Chen
    # et al. 2023, arXiv:2302.06675).
    "lion": {
        "head": 6e-4,
        "adapters": 2e-4,
        "network": 6e-5,
        "transformer": 2e-5,
        "scratch": 2e-4,
    },
}
# What else the rule's optimizers can be told.
OPTIONS = {
    "sgd": frozenset("momentum nesterov accumulator_dtype".split()),
    "adamw": frozenset("b1 b2 eps eps_root mu_dtype nesterov".split()),
}
LIKE_SGD = frozenset(("sgd", "schedule_free_sgd"))
LIKE_ADAMW = frozenset(
    "adam adamw adamax adamaxw adabelief amsgrad nadam nadamw radam schedule_free_adamw".split()
)
FIND_THEIR_RATE = frozenset("cocob dadapt_adamw dog dowg prodigy".split())
DECAY, LION_DECAY = 0.01, 0.05  # of adamw and lion

ADAPTERS = ("lora", "dora", "ia3", "bottleneck")
# Whether the network is a transformer -> the rule's methods, from those for few examples to those for many.
LADDERS = {
    False: ("head", "partial", "lpft", "full"),
    True: ("head", "lora", "partial", "full"),
}
# Regularizer -> the methods that train nothing that it acts on: l2sp on the weights file's own values, delta and bss on
# the outputs of stages.
NOT_REGULARIZED = {"l2sp": ("head", *ADAPTERS), "delta": ("head",), "bss": ("head",)}
_SIDES = re.compile(r"(?:^|[^a-z])(?:left|right)(?:[^a-z]|$)")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the choices follow from: see tlx/tuning/facts.py."""

    examples: int  # of training
    labels: int  # of these examples; as many, unless the task takes several or none of each
    class_names: tuple[str, ...]
    picture: int  # pixels, the median side of the training pictures (the root of the area)
    input_size: (
        int  # pixels, the side of the input: data.image_size, or what the weights were trained with
    )
    takes_small: bool  # pictures are small, and the network can be fed SMALL_INPUT pixels
    attention: bool  # a transformer
    batchnorm: bool
    stages: tuple[str, ...]
    pretrained: bool  # a file has values
    fresh_stages: tuple[str, ...]  # of which the file lacks something
    new_head: bool
    numbered: bool = False  # the classes' names are their numbers, for want of others
    multiple: int = 1  # what a batch must be a multiple of
    adapters: str = ""  # the method of those that `model.adapters` has put into the network

    @property
    def per_class(self) -> float:
        """Training labels a class."""
        return self.labels / len(self.class_names)

    @property
    def oriented(self) -> bool:
        """Whether a class's mirror image may be another class's: single letters or digits, left and right."""
        if self.numbered:
            return False
        names = [name.strip().lower() for name in self.class_names]
        characters = all(len(name) == 1 and name.isalnum() for name in names)
        return characters or any(map(_SIDES.search, names))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One field that was decided."""

    field: str
    value: Any  # of the field's type
    reason: str


class _Picks:
    """The choices so far, and the fields that are not to be chosen."""

    def __init__(self, config: Config):
        self.config = config
        self.choices: list[Choice] = []

    def given(self, field: str) -> bool:
        """Returns whether the user has set the field."""
        return field in self.config.tune.keep

    def value(self, field: str) -> Any:
        """Returns what the config has there."""
        section, name = field.split(".")
        return getattr(getattr(self.config, section), name)

    def pick(self, field: str, value: Any, reason: str) -> Any:
        """Returns the user's value where there is one, else this one, which is now chosen."""
        if self.given(field):
            return self.value(field)
        self.choices.append(Choice(field, value, reason))
        return value


def choose(facts: Facts, config: Config) -> tuple[Choice, ...]:
    """Returns what auto decides: tune.method, and those of `config.AUTO_FIELDS` that are not in `tune.keep`.

    What is in `tune.keep` is taken into account: a batch size scales the rate, a method's field and `tune.regularizers` ask for methods that go with them.

    Raises:
      InputError: fields are set that belong to different methods, or an optimizer without a rate that auto has none for.
    """
    check_rate(config)
    picks = _Picks(config)
    method = _method(facts, picks)
    kind = _optimizer(facts, picks, method)
    usual, batch = _batch(facts, picks)
    steps = _steps(facts, picks, usual, batch)
    _rate(facts, picks, method, kind, batch)
    _input(facts, picks)
    _cadence(facts, picks, steps, batch)
    return tuple(picks.choices)


def decided(config: Config, choices: Sequence[Choice]) -> Config:
    """Returns the config with the choices in it, whose method is no longer auto; as it is where there are none."""
    if not choices:
        return config
    return build(config, {"tune.keep": ()}, {choice.field: choice.value for choice in choices})


def methods_for(config: Config, adapters: str = "") -> tuple[str, ...]:
    """Returns the methods that go with all that the user has set.

    Args:
      config: with tune.method=auto.
      adapters: the method of those that `model.adapters` names; "": there are none.

    Raises:
      InputError: there is none.
    """
    narrowing = _narrowing(config, adapters)
    allowed = tuple(
        method for method in METHODS if all(method in those for those in narrowing.values())
    )
    if not allowed:
        raise InputError(
            f"tune.method=auto: {' and '.join(narrowing)} are given, and no method goes with them all: leave one out"
        )
    return allowed


def _narrowing(config: Config, adapters: str) -> dict[str, tuple[str, ...]]:
    """Returns what the user has set -> the methods that go with it."""
    found = {
        f"tune.{field}": readers
        for field, readers in FIELDS_OF.items()
        if f"tune.{field}" in config.tune.keep
    }
    if adapters:
        found["model.adapters"] = (adapters,)
    for text in config.tune.regularizers:
        name = text.partition(":")[0].strip()
        if without := NOT_REGULARIZED.get(name):
            those = tuple(method for method in METHODS if method not in without)
            found[f"tune.regularizers={name}"] = those
    return found


def optimizers_taking(options: str) -> tuple[str, ...]:
    """Returns those of the rule's optimizers that have all these `optimizer.options`; all of them where none has."""
    names = {part.partition("=")[0].strip() for part in options.split(",") if part.strip()}
    return tuple(name for name, own in OPTIONS.items() if names <= own) or tuple(OPTIONS)


def choices_table(choices: Sequence[Choice], config: Config) -> str:
    """Returns the choices, one line each with its reason, and what was left as the user has it."""
    rows = [(choice.field, as_text(choice.value), choice.reason) for choice in choices]
    lines = ["tune.method=auto chose these; each can be set instead:", *aligned(rows)]
    if config.tune.keep:
        lines.append(f"left as they are set: {', '.join(config.tune.keep)}")
    return "\n".join(lines)


def as_text(value: Any) -> str:
    """Returns a field's value as the command line takes it."""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _method(facts: Facts, picks: _Picks) -> str:
    allowed = methods_for(picks.config, facts.adapters)
    method, reason = _preferred(facts, _without_phases(picks))
    if method not in allowed:
        narrowing = _narrowing(picks.config, facts.adapters)
        causes = [what for what, those in narrowing.items() if method not in those]
        ladder = LADDERS[facts.attention]
        for_more = ladder[ladder.index(method) + 1 :]
        method = next((other for other in for_more if other in allowed), allowed[0])
        reason = (
            f"it goes with {' and '.join(causes)}, which {'is' if len(causes) == 1 else 'are'} set"
        )
    picks.pick("tune.method", method, reason)
    if method == "partial":
        _frozen_stages(facts, picks)
    if method in ("lora", "dora") and not facts.adapters:
        picks.pick("tune.rank", RANK, "the usual rank of the update")
    if method == "full" and facts.attention and facts.pretrained:
        picks.pick("tune.layer_decay", LAYER_DECAY, "a transformer's early blocks change least")
    return method


def _without_phases(picks: _Picks) -> str:
    """Returns the optimizer that is set and would begin its schedule again with each phase; "": there is none."""
    pairs = (text.partition("=")[::2] for text in picks.value("tune.groups"))
    groups = [name.strip() for key, name in pairs if key.strip().endswith(".optimizer")]
    names = [picks.value("optimizer.name"), *groups]
    return next((name for name in names if name in OWN_STEPS), "")


def _preferred(facts: Facts, without_phases: str) -> tuple[str, str]:
    """Returns the method and the reason; `without_phases` is an optimizer that takes none."""
    count = f"{facts.per_class:.3g} examples a class"
    if not facts.pretrained:
        return "full", "there are no weights to keep"
    if facts.fresh_stages:
        missing = f"the weights lack {', '.join(facts.fresh_stages)}"
        if facts.fresh_stages[0] == facts.stages[0]:
            return "full", f"{missing}, and all stages follow it"
        if facts.per_class >= LPFT_BELOW:
            return "full", f"{missing}; {count}, at least {LPFT_BELOW}"
        return "partial", f"{missing}: what comes before is kept"
    if facts.per_class < HEAD_BELOW:
        return "head", f"{count}, fewer than {HEAD_BELOW}: the network is kept"
    if facts.attention:
        if facts.per_class < LORA_BELOW:
            return "lora", f"a transformer, {count}, fewer than {LORA_BELOW}"
        return "full", f"a transformer, {count}, at least {LORA_BELOW}"
    if facts.per_class < PARTIAL_BELOW:
        return "partial", f"{count}, fewer than {PARTIAL_BELOW}: the last stages are trained"
    if facts.per_class >= LPFT_BELOW:
        return "full", f"{count}, at least {LPFT_BELOW}"
    if not facts.new_head:
        return "full", f"{count}, at least {PARTIAL_BELOW}, and the head is not new"
    if without_phases:
        return "full", f"{count}, at least {PARTIAL_BELOW}; {without_phases} takes no phases"
    return "lpft", f"{count}, fewer than {LPFT_BELOW}: the new head first, then everything"


def _frozen_stages(facts: Facts, picks: _Picks) -> None:
    stages = facts.stages
    if facts.fresh_stages:
        count = stages.index(facts.fresh_stages[0])
        reason = f"those before {facts.fresh_stages[0]}"
    else:
        count = min(math.ceil(FROZEN_SHARE * len(stages)), len(stages) - 1)
        reason = f"{count} of {len(stages)}"
    frozen = f": {stages[0]} to {stages[count - 1]}" if count else ""
    picks.pick("tune.freeze_stages", count, reason + frozen)


def _optimizer(facts: Facts, picks: _Picks, method: str) -> str:
    """Returns what RATES calls the optimizer; "" where auto knows no rate for it."""
    if method in ("head", *ADAPTERS):
        name, reason = "adamw", f"{method} trains few values, of any scale"
    elif facts.batchnorm:
        name, reason = "sgd", "a network with BatchNorm, as BiT's rule"
    else:
        name, reason = "adamw", "a network without BatchNorm"
    taking = optimizers_taking(picks.config.optimizer.options)
    if name not in taking:
        name, reason = taking[0], "optimizer.options are set, which are its"
    name = picks.pick("optimizer.name", name, reason)
    kind = _rates_of(name)
    if kind:
        decay = DECAY if name.endswith("adamw") else LION_DECAY if name == "lion" else 0.0
        reason = f"{kind}'s usual one" if decay else "none, as BiT's rule"
        picks.pick("optimizer.weight_decay", decay, reason)
    if name.startswith("schedule_free"):
        picks.pick("optimizer.schedule", "constant", f"{name} averages instead")
    elif picks.given("optimizer.milestones") or picks.given("optimizer.gamma"):
        picks.pick("optimizer.schedule", "step", "milestones or gamma are set")
    else:
        picks.pick("optimizer.schedule", "cosine", "falls smoothly, for runs of any length")
    picks.pick("optimizer.warmup", WARMUP, "of the run, before the full rate")
    return kind or ""


def _rates_of(name: str) -> str | None:
    if name in LIKE_SGD:
        return "sgd"
    if name in LIKE_ADAMW:
        return "adamw"
    return "lion" if name == "lion" else None


def check_rate(config: Config) -> None:
    """Raises InputError where the rate is to be chosen, for an optimizer that auto knows none for."""
    name, set_ = config.optimizer.name, config.tune.keep
    known = "optimizer.name" not in set_ or _rates_of(name) or name in FIND_THEIR_RATE
    if not known and "optimizer.lr" not in set_:
        raise InputError(
            f"tune.method=auto knows no learning rate for {name}: set optimizer.lr (--mode=lr_find suggests one)"
        )


def _batch(facts: Facts, picks: _Picks) -> tuple[int, int]:
    """Returns the rule's batch size, and the one that is used."""
    power = 2 ** math.floor(math.log2(math.sqrt(facts.examples)))
    usual = min(max(power, SMALLEST_BATCH), LARGEST_BATCH)
    usual = -(-usual // facts.multiple) * facts.multiple
    reason = f"about the root of {facts.examples:,} training examples"
    if power < SMALLEST_BATCH:
        reason = f"the smallest that is used, for {facts.examples} training examples"
    if power > LARGEST_BATCH:
        reason = f"the largest that is used, for {facts.examples:,} training examples"
    return usual, picks.pick("train.batch_size", usual, reason)


def _steps(facts: Facts, picks: _Picks, usual: int, batch: int) -> int:
    """Returns the steps of the run."""
    if picks.given("train.epochs") and not picks.value("train.steps"):
        return math.ceil(picks.value("train.epochs") * facts.examples / batch)
    count = max(STEPS_PER_ROOT * math.sqrt(facts.examples), FEWEST_STEPS)
    count *= (1 if facts.pretrained else FROM_SCRATCH) * max(usual / batch, 1)
    steps = _round(count)
    epochs = f"{steps * batch / facts.examples:.3g} epochs"
    reason = f"{epochs}: {STEPS_PER_ROOT} for each root of {facts.examples:,} examples"
    if STEPS_PER_ROOT * math.sqrt(facts.examples) < FEWEST_STEPS:
        reason = f"{epochs} of {facts.examples} examples: the fewest"
    if not facts.pretrained:
        reason += f", times {FROM_SCRATCH} from scratch"
    if batch < usual:
        reason += f", for batches of {batch}"
    return picks.pick("train.steps", steps, reason)


def _rate(facts: Facts, picks: _Picks, method: str, kind: str, batch: int) -> None:
    if not kind:
        name = picks.value("optimizer.name")  # chosen ones are known
        if name in FIND_THEIR_RATE:
            picks.pick("optimizer.lr", 1.0, f"{name} finds its own")
        return
    rates = RATES[kind]
    part = "transformer" if facts.attention else "network"
    if not facts.pretrained or (facts.fresh_stages and method == "partial"):
        part = "scratch"
    elif method == "head":
        part = "head"
    elif method in ADAPTERS:
        part = "adapters"
    counted = min(batch, LARGEST_BATCH, max(facts.examples, SMALLEST_BATCH))
    share = counted / REFERENCE_BATCH
    scale = share if kind == "sgd" else math.sqrt(share)
    scaled = "the batch" if kind == "sgd" else "the root of the batch"
    of = f"{batch}" if counted == batch else f"{batch}, counted as {counted},"
    what = {"head": "a head", "scratch": "training from scratch", "network": "a network"}
    reason = f"{kind}'s {rates[part]:g} for {what.get(part, part)}, by {scaled} of {of} over {REFERENCE_BATCH}"
    by_stages = part in ("network", "transformer") and method in _STAGEWISE
    if by_stages and not facts.new_head:
        scale *= KNOWN_HEAD
        reason += f", times {KNOWN_HEAD}: the weights have the head too"
    picks.pick("optimizer.lr", _digits(rates[part] * scale), reason)
    if facts.new_head and by_stages and _trains_head(picks, method):
        picks.pick("tune.groups", (f"head.lr={NEW_HEAD}",), "the head is new, the network is not")


_STAGEWISE = ("full", "partial", "surgical", "gradual", "lpft")


def _trains_head(picks: _Picks, method: str) -> bool:
    return method != "surgical" or "head" in picks.value("tune.train_stages")


def _input(facts: Facts, picks: _Picks) -> None:
    size, shrunk = facts.input_size, False
    if picks.given("data.image_size") or picks.given("data.resize"):
        size = picks.value("data.image_size") or size
    elif facts.takes_small and facts.input_size > SMALL_INPUT:
        reason = f"the pictures are about {facts.picture} pixels, fewer than {SMALL_PICTURE}"
        picks.pick("data.image_size", SMALL_INPUT, reason)
        picks.pick("data.resize", SMALL_RESIZE, f"cut to {SMALL_INPUT}, as BiT's rule")
        size, shrunk = SMALL_INPUT, True
    if size <= PADDED_INPUT:
        crop, reason = f"pad_crop:{max(size // 8, 1)}", f"shifts, for an input of {size} pixels"
    elif shrunk:
        crop, reason = "random_crop", "the enlarged picture is cut anywhere"
    else:
        crop, reason = "random_resized_crop:0.35", f"parts at an input of {size} pixels"
    flip = () if facts.oriented else ("flip",)
    reason += "; no flips: the classes are characters or sides" if facts.oriented else "; flips"
    picks.pick("data.augment", (crop, *flip), reason)
    if facts.examples >= MIXUP_FROM and not picks.given("train.cutmix"):
        picks.pick("train.mixup", MIXUP, f"at least {MIXUP_FROM:,} examples, as BiT's rule")


def _cadence(facts: Facts, picks: _Picks, steps: int, batch: int) -> None:
    if facts.examples / batch < steps / OFTEN:
        share = f"{100 // OFTEN}%"
        reason = f"of the run: its epochs are shorter, {facts.examples / batch:.3g} steps"
        picks.pick("eval.every", share, reason)
        picks.pick("checkpoint.every", share, reason)


def _round(count: float) -> int:
    """Returns the number with two digits, rounded up."""
    unit = 10 ** max(math.floor(math.log10(count)) - 1, 0)
    return math.ceil(count / unit - 1e-9) * unit


def _digits(rate: float) -> float:
    """Returns the rate with two significant digits."""
    return float(f"{rate:.2g}")
