"""The start order, once: resume the own workdir, else pretrained weights, else from scratch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding

from tlx.config import Config
from tlx.errors import InputError, InputFileNotFoundError
from tlx.models.adapters import Spec, specs_of
from tlx.models.base import Model
from tlx.models.leaves import Leaf, Values
from tlx.pretrained import Source
from tlx.training.checkpoint import (
    Checkpoints,
    Position,
    check_base,
    load_base,
    load_origin,
    load_tokenizer,
    save_base,
    weights_hash,
)
from tlx.training.state import TrainState, create_state, initial_optimizer
from tlx.tuning.average import parse_average
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.phases import Phase, pull_of
from tlx.tuning.plan import TuningPlan, digests
from tlx.weights.keymap import Origin
from tlx.weights.meta import TextPreprocess, WeightsMeta
from tlx.workdir import Workdir

Messages = list[str]

# Facts of the base: which adapter each layer has, and the hashes of the first values that came from no file.
_LAYERS, _DRAWN = "adapter_layers", "drawn_sha256"


def start(
    workdir: Path,
    checkpoints: Checkpoints,
    weights: Source,
    phases: Sequence[Phase],
    *,
    seed: int,
    fingerprint: str,
    sharding: NamedSharding,
) -> tuple[TrainState, Values, Position, Messages]:
    """Returns the state, the frozen values, how far the run has come, and what to tell the user.

    Raises:
      InputError: the run was trained on other data, or nothing intact is left of it.
    """
    found = weights.leaves
    restored = checkpoints.restore(
        lambda phase: _state_shapes(found, phases[phase].plan, phases[phase].optimizer, sharding)
    )
    if restored is not None:
        state, position, messages = restored
        if position.fingerprint != fingerprint:
            raise InputError(
                f"{workdir} was trained on other data than there is now (fingerprint "
                f"{position.fingerprint!r}, now {fingerprint!r}): use another --workdir"
            )
        checkpoints.set_aside_after(position.step)
        plan = phases[position.phase].plan
        check_base(workdir, position)
        frozen = load_base(workdir, plan.frozen, position.base, sharding)
        return state, frozen, position, [f"{text}: using the one before it" for text in messages]
    values, first = weights.place(seed, sharding), phases[0]
    state, frozen = create_state(values, first.plan, first.optimizer, sharding)
    loaded = weights.loaded.arrays if weights.loaded else {}
    drawn = digests(values, [path for path in values if path not in loaded])
    facts = weights.facts() | adapter_facts(weights.model) | {_DRAWN: drawn}
    digest = save_base(workdir, frozen, weights.model.meta, facts, weights.model.origin)
    position = Position(fingerprint=fingerprint, base=digest, weights=weights_hash(facts))
    return state, frozen, position, []


def restore_values(
    workdir: Path,
    found: Mapping[str, Leaf],
    plans: Sequence[TuningPlan],
    config: Config,
    which: str | int,
    sharding: NamedSharding,
) -> tuple[Values, Position, Messages]:
    """Returns all values of a workdir's model for inference; writes nothing.

    Args:
      found: the model's leaves.
      plans: of the method's phases.
      config: the run's.
      which: auto or best: of the best validation metric where there is one, else the last; last; or a step.

    Raises:
      InputError: there is no checkpoint, or none is intact.
    """

    def state_of(phase: int) -> TrainState:
        plan = plans[phase]
        average = parse_average(config.optimizer.average, lambda text: 0)
        transform = make_optimizer(
            plan, config.optimizer, optax.constant_schedule(0.0), average, pull=pull_of(config)
        )
        return _state_shapes(found, plan, transform, sharding)

    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_values(state_of, which)
    if restored is None:
        raise InputError(f"{workdir} holds no checkpoint yet")
    values, position, messages = restored
    if which == "best" and position.best_step < 0:
        raise InputError(f"{workdir} was trained without validation, there is no best checkpoint")
    check_base(workdir, position)
    frozen = load_base(workdir, plans[position.phase].frozen, position.base, sharding)
    return {**frozen, **values}, position, messages


def adapter_facts(model: Model) -> dict[str, Any]:
    """Returns what `stored_model` reads of a model's adapters; nothing where it has none."""
    adapters = {path: spec._asdict() for path, spec in specs_of(model).items()}
    return {_LAYERS: adapters} if adapters else {}


class StoredModel(NamedTuple):
    """What a workdir says of its model."""

    meta: WeightsMeta
    origin: Origin | None  # what its weights file had besides its values
    adapters: (
        dict[str, Spec] | None
    )  # by the paths of their layers; None: it has none, or does not say


def stored_model(folder: Workdir) -> StoredModel:
    """Returns what the workdir says of its model.

    Raises:
      InputFileNotFoundError: training has not begun there.
    """
    facts, meta = _read_base(folder)
    adapters = facts.get(_LAYERS)
    specs = adapters and {path: Spec(**spec) for path, spec in adapters.items()}
    return StoredModel(meta, load_origin(folder.path), specs)


def stored_facts(folder: Workdir) -> tuple[WeightsMeta, dict[str, Any]]:
    """Returns the meta of the model in a workdir, and where its weights came from.

    Raises:
      InputFileNotFoundError: training has not begun there.
    """
    facts, meta = _read_base(folder)
    return meta, {name: fact for name, fact in facts.items() if name not in (_LAYERS, _DRAWN)}


def drawn_digests(folder: Workdir) -> dict[str, str]:
    """Returns path -> sha256 of what training began with and no file filled. Raises as `stored_facts`."""
    return _read_base(folder)[0].get(_DRAWN, {})


def _read_base(folder: Workdir) -> tuple[dict[str, Any], WeightsMeta]:
    if not folder.base.is_file():
        raise InputFileNotFoundError(f"{folder.path} holds no trained model")
    facts = json.loads(folder.base.read_text())
    meta = WeightsMeta.from_json(facts.pop("weights_meta"))
    if isinstance(meta.preprocess, TextPreprocess) and meta.preprocess.tokenizer:
        meta = meta.with_tokenizer(load_tokenizer(folder.path, meta.preprocess.tokenizer))
    return facts, meta


def _shapes(found: Mapping[str, Leaf], paths: Sequence[str], sharding: NamedSharding) -> Values:
    return {
        path: jax.ShapeDtypeStruct(found[path].shape, found[path].dtype, sharding=sharding)
        for path in paths
    }


def _state_shapes(
    found: Mapping[str, Leaf],
    plan: TuningPlan,
    optimizer: optax.GradientTransformation,
    sharding: NamedSharding,
) -> TrainState:
    trainable = _shapes(found, plan.trainable, sharding)
    statistics = _shapes(found, plan.statistics, sharding)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(initial_optimizer(optimizer), trainable, statistics),
    )
    return TrainState(trainable, statistics, state)
