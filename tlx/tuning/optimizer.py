"""The optimizer of a plan: one optax transformation per group, over trainable leaves only."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

from tlx.config import OptimizerConfig, nearest
from tlx.errors import InputError
from tlx.models.leaves import Leaf, Values
from tlx.tuning.plan import Group, TuningPlan
from tlx.tuning.schedule import Schedule

Maker = Callable[..., optax.GradientTransformation]


def _sgd(
    schedule: Any, weight_decay: float, mask: Any, **options: Any
) -> optax.GradientTransformation:
    # Decay joins the gradient before the momentum, as in PyTorch's SGD.
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    return optax.chain(decay, optax.sgd(schedule, **{"momentum": 0.9} | options))


def _adamw(
    schedule: Any, weight_decay: float, mask: Any, **options: Any
) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=weight_decay, mask=mask, **options)


OPTIMIZERS: dict[str, tuple[Maker, Callable[..., Any]]] = {
    "sgd": (_sgd, optax.sgd),
    "adamw": (_adamw, optax.adamw),
}


def make_optimizer(
    plan: TuningPlan, config: OptimizerConfig, schedule: Schedule
) -> optax.GradientTransformation:
    """Returns the transformation of a flat dict of trainable leaves.

    The global norm that `clip_norm` bounds is that of all trainable gradients together. Weight decay skips
    vectors (biases and normalisation) unless `decay_on` is "all".

    Raises:
      InputError: unknown optimizer or keyword argument.
    """
    transforms = {
        name: _group_transform(name, group, config, schedule) for name, group in plan.groups.items()
    }
    labels = {path: plan.labels[path] for path in plan.trainable}
    partition = optax.partition(transforms, labels)
    return (
        optax.chain(optax.clip_by_global_norm(config.clip_norm), partition)
        if config.clip_norm
        else partition
    )


def parse_options(text: str, function: Callable[..., Any], where: str) -> dict[str, Any]:
    """Reads "b2=0.95,eps=1e-6" as keyword arguments of the function."""
    accepted = [
        name
        for name in inspect.signature(function).parameters
        if name not in ("learning_rate", "weight_decay", "mask")
    ]
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in accepted:
            raise InputError(
                f"{where}: {part!r}{nearest(name, accepted)} (takes {', '.join(accepted)})"
            )
        try:
            options[name] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError) as error:
            raise InputError(f"{where}: {value!r} is not a value for {name}") from error
    return options


def state_bytes(
    optimizer: optax.GradientTransformation, found: dict[str, Leaf], plan: TuningPlan
) -> int:
    """Returns the bytes of optimizer state, counted from shapes."""
    shapes = {
        path: jax.ShapeDtypeStruct(found[path].shape, found[path].dtype) for path in plan.trainable
    }
    state = jax.eval_shape(optimizer.init, shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def group_state_bytes(
    plan: TuningPlan, config: OptimizerConfig, found: dict[str, Leaf], name: str
) -> int:
    """Returns the bytes of optimizer state of one group, counted from shapes."""
    transform = _group_transform(name, plan.groups[name], config, lambda step: step)
    shapes = {p: jax.ShapeDtypeStruct(found[p].shape, found[p].dtype) for p in plan.paths(name)}
    state = jax.eval_shape(transform.init, shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _group_transform(
    name: str, group: Group, config: OptimizerConfig, schedule: Schedule
) -> optax.GradientTransformation:
    kind = group.optimizer or config.name
    if kind not in OPTIMIZERS:
        raise InputError(
            f"tune.groups: {name}.optimizer={kind!r}{nearest(kind, OPTIMIZERS)} (there are: {', '.join(OPTIMIZERS)})"
        )
    maker, documented = OPTIMIZERS[kind]
    # Options are written for the config's optimizer; a group with another one takes that one's defaults.
    options = (
        parse_options(config.options, documented, "optimizer.options")
        if kind == config.name
        else {}
    )
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    mask = _decay_kernels if config.decay_on == "kernels" else None
    return maker(lambda step: group.lr * schedule(step), decay, mask, **options)


def _decay_kernels(params: Values) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
