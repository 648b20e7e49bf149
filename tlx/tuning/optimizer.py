"""The optimizer of a plan: one optax transformation per group, over trainable leaves only."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from tlx.config import OptimizerConfig, nearest
from tlx.errors import InputError
from tlx.models.formulations import global_norm
from tlx.models.leaves import Leaf, Values
from tlx.tuning import optax_optimizers
from tlx.tuning.average import Average, AverageState, averaged
from tlx.tuning.plan import Group, TuningPlan
from tlx.tuning.regularizers import pull_to_source
from tlx.tuning.schedule import Schedule


def make_optimizer(
    plan: TuningPlan,
    config: OptimizerConfig,
    schedule: Schedule,
    average: Average | None = None,
    *,
    pull: float = 0.0,
) -> optax.GradientTransformation:
    """Returns the transformation of a flat dict of trainable leaves.

    The global norm that `clip_norm` bounds is that of all trainable gradients together. Weight decay skips
    vectors (biases and normalisation) unless `decay_on` is "all". With `pull` its update takes the argument `source`:
    see `tlx.tuning.regularizers.pull_to_source`.

    Args:
      plan: whose groups and labels are used.
      config: of the optimizer.
      schedule: of the learning rate.
      average: of the values, that evaluation uses; None: they are used as they are.

    Raises:
      InputError: unknown optimizer or keyword argument, or a second average.
    """
    transforms = {
        name: _group_transform(name, group, config, schedule, pull)
        for name, group in plan.groups.items()
    }
    labels = {path: plan.labels[path] for path in plan.trainable}
    parts = [optax.partition(transforms, labels)]
    if config.clip_norm:
        parts.insert(0, clip_by_global_norm(config.clip_norm))
    if average is not None:
        names = [group.optimizer or config.name for group in plan.groups.values()]
        if any(map(optax_optimizers.is_schedule_free, names)):
            raise InputError(
                f"optimizer.average={config.average}: schedule-free optimizers are evaluated at averages of their own"
            )
        parts.append(averaged(average))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def clip_by_global_norm(bound: float) -> optax.GradientTransformation:
    """Scales gradients down to this norm where theirs, of all together, is larger (Pascanu et al. 2013).

    optax's divides each value, which XLA computes apart from the update, and sums its squares slowly on the CPU.
    """

    def clip(gradients: optax.Updates, _: optax.Params | None) -> optax.Updates:
        norm = global_norm(gradients)
        factor = jnp.where(norm < bound, 1.0, bound / norm)
        return jax.tree.map(lambda array: array * factor.astype(array.dtype), gradients)

    return optax.stateless(clip)


def parse_options(text: str, function: Callable[..., Any], where: str) -> dict[str, Any]:
    """Reads "b2=0.95,eps=1e-6" as keyword arguments of the function.

    Values are Python literals, as `betas=(0.9, 0.99)`; a dtype or a name needs no quotes.

    Raises:
      InputError: an argument that the function does not have or a value that is none; names what it takes.
    """
    accepted = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in optax_optimizers.OWN_ARGUMENTS
    }
    options = {}
    outside_brackets = r",(?![^(\[]*[)\]])"
    for part in filter(None, (part.strip() for part in re.split(outside_brackets, text))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in accepted:
            raise InputError(
                f"{where}: {part!r}{nearest(name, accepted)} (takes {', '.join(accepted)})"
            )
        try:
            options[name] = _read_value(value, accepted[name])
        except (ValueError, SyntaxError, TypeError) as error:
            raise InputError(f"{where}: {value!r} is not a value for {name}") from error
    return options


def state_bytes(
    optimizer: optax.GradientTransformation, found: dict[str, Leaf], paths: Sequence[str]
) -> int:
    """Returns the bytes of optimizer state of these parameters, counted from shapes."""
    shapes = {path: jax.ShapeDtypeStruct(found[path].shape, found[path].dtype) for path in paths}
    state = jax.eval_shape(optimizer.init, shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def group_state_bytes(
    plan: TuningPlan, config: OptimizerConfig, found: dict[str, Leaf], name: str
) -> int:
    """Returns the bytes of optimizer state of one group, counted from shapes."""
    transform = _group_transform(name, plan.groups[name], config, lambda step: step)
    return state_bytes(transform, found, plan.paths(name))


def evaluation_values(optimizer_state: Any, values: Values) -> Values:
    """Returns the values that evaluation and inference use: as they are, where nothing is averaged.

    Schedule-free optimizers train at y, between their base optimizer's z and the average x of the z; x is evaluated
    (Defazio et al. 2024, "The Road Less Scheduled"). With `optimizer.average` that average is, with ema also of the running
    statistics. Else these are those of training; where they do not fit, `tlx.training.statistics` estimates others.

    Args:
      optimizer_state: of `make_optimizer`; groups may have different optimizers.
      values: path -> array, with at least the trainable ones.
    """
    found = dict(values)
    for state in _averages(optimizer_state):
        if isinstance(state, AverageState):
            found |= state.average | (state.statistics or {})
            continue
        own = {p: z for p, z in state.z.items() if not isinstance(z, optax.MaskedNode)}
        y = {path: values[path] for path in own}
        found |= optax.contrib.schedule_free_eval_params(state._replace(z=own), y)
    return found


def has_averages(optimizer_state: Any) -> bool:
    """Returns whether `evaluation_values` changes anything; shapes of a state are enough."""
    return bool(_averages(optimizer_state))


def _averages(optimizer_state: Any) -> list[Any]:
    def is_average(node: Any) -> bool:
        return isinstance(node, (optax.contrib.ScheduleFreeState, AverageState))

    return [x for x in jax.tree.leaves(optimizer_state, is_leaf=is_average) if is_average(x)]


def _group_transform(
    name: str, group: Group, config: OptimizerConfig, schedule: Schedule, pull: float = 0.0
) -> optax.GradientTransformation:
    kind = group.optimizer or config.name
    fields = _fields(name, group)
    function = optax_optimizers.maker(kind, fields.optimizer)
    if optax_optimizers.is_schedule_free(kind) and config.schedule != "constant":
        raise InputError(
            f"{fields.optimizer} is {kind!r}, whose averages take the place of a falling rate: set "
            "optimizer.schedule=constant"
        )
    if pull and optax_optimizers.is_schedule_free(kind):
        raise InputError(
            f"tune.regularizers: init moves the values behind the optimizer, and {fields.optimizer}={kind} averages only what "
            "it moves itself: use l2sp, or another optimizer"
        )
    # Options are written for the config's optimizer; a group with another one takes that one's defaults, and its own.
    options = (
        parse_options(config.options, function, "optimizer.options") if kind == config.name else {}
    )
    options |= parse_options(group.options.replace(";", ","), function, fields.options)
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    mask = optax_optimizers.kernels if config.decay_on == "kernels" else None

    def rate(step: Any) -> Any:
        return group.lr * schedule(step)

    transform = optax_optimizers.make(kind, options, rate, decay, mask, fields)
    return optax.chain(transform, pull_to_source(pull, rate)) if pull else transform


def _fields(name: str, group: Group) -> optax_optimizers.Fields:
    """Returns where it stands how the group is trained: what the group does not say, the config does."""
    own = [
        field
        for field in optax_optimizers.Fields._fields
        if getattr(group, field) not in ("", None)
    ]
    return optax_optimizers.Fields(**{field: f"tune.groups: {name}.{field}" for field in own})


def _read_value(text: str, parameter: inspect.Parameter) -> Any:
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        if "dtype" not in parameter.name and not isinstance(parameter.default, str):
            raise
        value = text
    if type(parameter.default) is int and type(value) is not int:
        raise ValueError
    return jnp.dtype(value) if "dtype" in parameter.name and value is not None else value
