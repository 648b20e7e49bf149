"""Regularizers that hold a network near the one it came from, as `tune.regularizers` names them.

- `l2sp:ALPHA[:BETA]`, L2-SP (Li, Grandvalet & Davoine 2018, arXiv:1802.01483):
  ALPHA / 2 * |w - w0|^2 over the trainable parameters that the weights file filled, and BETA / 2 * |w|^2 (0 unless it
  is given) over those that were drawn, as a new head is. As in the paper over all of them: biases, and the scales and
  biases of normalisations, too.
- `init:ALPHA`: the same pull without a gradient (decoupled, as AdamW's decay: Loshchilov & Hutter 2017,
  arXiv:1711.05101): behind the optimizer's update w -= rate * ALPHA * (w - w0), with the group's own rate, for every
  trainable parameter; w0 of a new head or an adapter is what was drawn for it, or what `model.adapters` has.
- `delta:STRENGTH`, the behaviour of DELTA (Li et al. 2019, arXiv:1901.09229) without its attention: for each stage of which
  a parameter is trained, the squared distance of its output from that of the source network on the same batch, summed over
  channels, averaged over examples and positions; STRENGTH times the sum over stages. All channels of all of these stages count
  the same, where the paper weights each filter by a softmax over how much the loss of the source network, with a classifier
  for the new classes, rises without that filter. The source network is in inference mode, so that a stage whose BatchNorms use
  the batch's statistics is away from it at the first step already. The paper's second term, a decay of the weights that the
  source network does not have (the new head), is not part of it.
- `bss:STRENGTH[:K]`, batch spectral shrinkage (Chen et al. 2019, NeurIPS, "Catastrophic forgetting meets negative
  transfer"): STRENGTH times the sum of the squares of the K (1 unless it is given) smallest singular values of the
  batch's features, [B, D], the head's input before its dropout. With `train.accumulate` it sees one part of the batch at a
  time: the mean of the parts' penalties, which is not that of the whole batch, whose singular values are others.

A phase regularizes what it trains. All but init are part of the loss that is minimised; each is logged by its name, as it
counts in the loss, and init as ALPHA / 2 * |w - w0|^2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from tlx.config import nearest
from tlx.errors import InputError
from tlx.models.adapters import NAME as ADAPTER
from tlx.models.base import Model
from tlx.models.leaves import Values, is_within
from tlx.tuning.plan import TuningPlan

FORMS = {
    "l2sp": "l2sp:ALPHA[:BETA]",
    "init": "init:ALPHA",
    "delta": "delta:STRENGTH",
    "bss": "bss:STRENGTH[:K]",
}
FROM_SOURCE = frozenset(("l2sp", "init", "delta"))  # those that need the source's values


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """One of `FORMS` with its numbers."""

    name: str
    strength: float  # > 0
    head: float = 0.0  # l2sp: BETA
    count: int = 1  # bss: K


@dataclasses.dataclass(frozen=True)
class Reference:
    """The source network, as far as training changes it."""

    values: Values = dataclasses.field(default_factory=dict)  # before the first step
    drawn: frozenset[str] = frozenset()  # which of them came from no weights file


def parse(texts: Sequence[str]) -> tuple[Regularizer, ...]:
    """Reads `tune.regularizers`.

    Raises:
      InputError: an unknown name, one that is there twice, or numbers that it does not take.
    """
    found: dict[str, Regularizer] = {}
    for text in texts:
        name, *numbers = (part.strip() for part in text.split(":"))
        if name not in FORMS:
            raise InputError(
                f"tune.regularizers: {name!r}{nearest(name, FORMS)} (there are: {', '.join(FORMS.values())})"
            )
        if name in found:
            raise InputError(f"tune.regularizers: {name} is there twice")
        try:
            found[name] = _read(name, numbers)
        except ValueError as error:
            more = {"l2sp": ", BETA >= 0", "bss": ", K a whole number >= 1"}.get(name, "")
            raise InputError(
                f"tune.regularizers: {text!r}: expected {FORMS[name]}, the first number > 0{more}"
            ) from error
    return tuple(found.values())


def _read(name: str, numbers: Sequence[str]) -> Regularizer:
    if not 1 <= len(numbers) <= (2 if name in ("l2sp", "bss") else 1):
        raise ValueError
    strength, second = float(numbers[0]), numbers[1:]
    head = float(second[0]) if second and name == "l2sp" else 0.0
    count = int(second[0]) if second and name == "bss" else 1
    if not (0 < strength < math.inf and 0 <= head < math.inf and count >= 1):
        raise ValueError
    return Regularizer(name, strength, head, count)


def check(
    regularizers: Sequence[Regularizer],
    plans: Sequence[TuningPlan],
    model: Model,
    *,
    method: str,
    pretrained: bool,
    loaded: Collection[str] | None,
    batch_size: int,
) -> None:
    """Raises InputError where a regularizer makes no sense in a run.

    Args:
      regularizers: the run's.
      plans: of its phases.
      model: abstract.
      method: what chose the plans, for the message.
      pretrained: whether the run has weights to start from.
      loaded: the paths that the weights file fills; None: the run is resumed, and was checked when it began.
      batch_size: of training.
    """
    trained = {path for plan in plans for path in plan.trainable}
    stages = [stage for stage in model.stages if any(is_within(path, (stage,)) for path in trained)]
    for one in regularizers:
        start = f"tune.regularizers: {one.name}"
        if one.name in FROM_SOURCE and not pretrained:
            raise InputError(
                f"{start} holds the network near its weights, but model.weights is none"
            )
        if one.name == "l2sp" and any(f".{ADAPTER}." in path for path in trained):
            raise InputError(
                f"{start} pulls values back to those of the weights file, which tune.method={method} leaves as they are: "
                "use init (it pulls the adapters back to where they began), delta or bss"
            )
        if one.name == "l2sp" and loaded is not None and not trained & set(loaded):
            raise InputError(
                f"{start} pulls values back to those of the weights file, of which tune.method={method} trains none"
            )
        if one.name in ("delta", "bss") and not stages:
            raise InputError(
                f"{start} acts on the outputs of stages, of which tune.method={method} trains none"
            )
        if one.name == "bss" and model.meta.per_token:
            raise InputError(
                f"{start} shrinks the features of whole examples, and the task has those of words"
            )
        most = min(batch_size, model.num_features)
        if one.count > most:
            raise InputError(
                f"{start}:{one.strength:g}:{one.count}: {batch_size} examples of {model.num_features} features have "
                f"{most} singular values"
            )


def needed(
    regularizers: Sequence[Regularizer],
    plans: Sequence[TuningPlan],
    stages: Sequence[str],
    loaded: Collection[str],
) -> tuple[str, ...]:
    """Returns the paths whose first values are needed for as long as the run trains.

    Of what a phase changes: for init the parameters, for l2sp those that the file filled (`loaded`), for delta all
    values of the stages. The source's other values are the frozen ones of the model.
    """
    names = {one.name for one in regularizers}
    trained = {path for plan in plans for path in plan.trainable}
    changing = dict.fromkeys(p for plan in plans for p in (*plan.trainable, *plan.statistics))

    def is_needed(path: str) -> bool:
        return (
            ("init" in names and path in trained)
            or ("l2sp" in names and path in trained and path in loaded)
            or ("delta" in names and is_within(path, stages))
        )

    return tuple(filter(is_needed, changing))


def pull_to_source(alpha: float, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Returns the transformation that adds -rate * alpha * (value - source) to updates.

    Its update takes `source`, path -> value, as an argument of its own: its state is the number of steps alone.

    Args:
      alpha: the strength.
      rate: step -> learning rate.
    """

    def init(values: Values) -> optax.ScaleByScheduleState:
        del values
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(
        updates: Values,
        state: optax.ScaleByScheduleState,
        values: Values,
        *,
        source: Values,
        **further: Any,
    ) -> tuple[Values, optax.ScaleByScheduleState]:
        del further
        factor = alpha * rate(state.count)
        pulled = {
            path: change
            if isinstance(change, optax.MaskedNode)  # of another group
            else change - (factor * (values[path] - source[path])).astype(change.dtype)
            for path, change in updates.items()
        }
        return pulled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
