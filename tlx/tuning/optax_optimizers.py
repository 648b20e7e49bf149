"""optax's optimizers by name: which there are, and how each takes rate, weight decay and its mask.

Every public function of `optax` and `optax.contrib` that takes a `learning_rate` and no other
optimizer is one. There is no class or line here for each, but these kinds of weight decay:

- it has the arguments `weight_decay` and a mask: it is told both (decoupled: adamw, lion, lamb, adan,
  nadamw, ...; within the trust ratio: lars);
- it has `weight_decay` but no mask (novograd, madgrad, schedule_free_*): what is not decayed gets its own
  instance with a decay of 0;
- it has its own or a partial one (adafactor, muon): decoupled decay, `rate * decay * value`, is added
  behind it, as adamw does;
- PyTorch's of that name adds decay to the gradient (sgd, rmsprop, adagrad): so does this one (L2);
- it has none (adam, radam, signum, ...): asking for one is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import optax.contrib

from tlx.config import nearest
from tlx.errors import InputError
from tlx.models.leaves import Values

Maker = Callable[..., optax.GradientTransformation]
Mask = Callable[[Values], Any]

REFUSED = {
    "dpsgd": "it needs the gradient of each example",
    "lbfgs": "it needs the loss for its line search",
    "momo": "it needs the loss of the batch",
    "momo_adam": "it needs the loss of the batch",
    "noisy_sgd": "its random key is no array that a checkpoint holds",
    "optimistic_adam": "it takes no schedule (optimistic_adam_v2 does)",
    "polyak_sgd": "it needs the loss of the batch",
    "rprop": "it is for whole-data gradients and takes no schedule",
    "schedule_free": "it wraps another one (there are schedule_free_sgd and schedule_free_adamw)",
    "sm3": "it takes no schedule",
    "sophia": "it needs the loss function for its Hessian",
}

# Arguments that come from the config's other fields, or that no text can give.
OWN_ARGUMENTS = frozenset(
    "learning_rate weight_decay mask weight_decay_mask weight_decay_rate adam_weight_decay trust_ratio_mask "
    "warmup_steps adam_learning_rate base_optimizer muon_weight_dimension_numbers "
    "weight_dimension_numbers clip_value_fn".split()
)

_DEFAULTS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
_L2 = frozenset(("sgd", "optimistic_gradient_descent", "rmsprop", "adagrad"))
_DECOUPLED_BEHIND = frozenset(("adafactor", "muon"))
# These estimate one step size from all values of a group, which two instances would not share.
_ONE_ESTIMATE = frozenset(("prodigy", "dadapt_adamw"))


class Fields(NamedTuple):
    """Where in the config it stands what an optimizer is told, for messages."""

    optimizer: str = "optimizer.name"
    options: str = "optimizer.options"
    weight_decay: str = "optimizer.weight_decay"


CONFIGS_OWN = Fields()


def names() -> tuple[str, ...]:
    """Returns the names of the optimizers that can be used, sorted."""
    found = {
        name for module in (optax, optax.contrib) for name in dir(module) if _is_one(module, name)
    }
    return tuple(sorted(found - REFUSED.keys()))


def maker(name: str, field: str) -> Maker:
    """Returns optax's function of that name.

    Raises:
      InputError: there is none, or it cannot be used here; `field` says where the name stands.
    """
    if name in REFUSED:
        raise InputError(f"{field} is {name!r}: {REFUSED[name]}; see optimizer.name for others")
    known = names()
    if name not in known:
        raise InputError(
            f"{field} is {name!r}{nearest(name, known)} (there are: {', '.join(known)})"
        )
    return getattr(optax, name) if _is_one(optax, name) else getattr(optax.contrib, name)


def make(
    name: str,
    options: dict[str, Any],
    rate: Callable[[Any], Any],
    weight_decay: float,
    mask: Mask | None,
    fields: Fields = CONFIGS_OWN,
) -> optax.GradientTransformation:
    """Returns the optimizer with the rate, decay and keyword arguments.

    muon orthogonalises kernels of matrices [in, out] and, as matrices [h*w*in, out], of convolutions
    [h, w, in, out] with more than one input to each output; all other values have its Adam. lars's trust ratio spares
    vectors (You et al. 2017).

    Args:
      name: one of `names()`.
      options: keyword arguments of optax's function.
      rate: step -> learning rate.
      weight_decay: see the module's docstring.
      mask: values -> which of them are decayed; None: all.
      fields: where all this stands.

    Raises:
      InputError: a weight decay that it cannot have, or what optax says of the options.
    """
    function = maker(name, fields.optimizer)
    accepted = inspect.signature(function).parameters

    def instance(decay: float, **more: Any) -> optax.GradientTransformation:
        arguments = _DEFAULTS.get(name, {}) | options | more | {"learning_rate": rate}
        if "weight_decay" in accepted:
            arguments["weight_decay"] = decay
        if name == "muon":
            arguments["muon_weight_dimension_numbers"] = _matrices
        if "trust_ratio_mask" in accepted:
            arguments["trust_ratio_mask"] = kernels
        try:
            return function(**arguments)
        except (TypeError, ValueError) as error:
            what = " ".join(str(error).split())
            raise InputError(f"{fields.options}: {name}: {what}") from error

    if not weight_decay:
        return instance(0.0)
    if name in _L2:
        return optax.chain(optax.add_decayed_weights(weight_decay, mask), instance(0.0))
    if name in _DECOUPLED_BEHIND:
        behind = optax.add_decayed_weights(lambda step: -weight_decay * rate(step), mask)
        return optax.chain(instance(0.0), behind)
    if "weight_decay" not in accepted:
        raise InputError(
            f"{fields.weight_decay} is {weight_decay:g}, but {name} has none: {_with_decay(name)}"
        )
    for argument in ("mask", "weight_decay_mask"):
        if argument in accepted:
            return instance(weight_decay, **{argument: True if mask is None else mask})
    if mask is None:
        return instance(weight_decay)
    if name in _ONE_ESTIMATE:
        raise InputError(
            f"{fields.weight_decay}: {name} decays all its values or none: set optimizer.decay_on=all"
        )
    transforms = {"decayed": instance(weight_decay), "spared": instance(0.0)}
    return optax.partition(
        transforms,
        lambda values: jax.tree.map(lambda on: "decayed" if on else "spared", mask(values)),
    )


def kernels(values: Values) -> Any:
    """Returns True for each value that is no vector: not for biases and normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, values)


def is_schedule_free(name: str) -> bool:
    """Returns whether its values for evaluation are an average, which takes the place of a decaying rate."""
    return name.startswith("schedule_free")


def _is_one(module: Any, name: str) -> bool:
    function = getattr(module, name, None)
    if name.startswith(("_", "scale_by_")) or not callable(function) or inspect.isclass(function):
        return False
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # an alias of a type
        return False
    base = parameters.get("base_optimizer")
    return "learning_rate" in parameters and (base is None or base.default is not base.empty)


def _with_decay(name: str) -> str:
    others = [other for other in (f"{name}w", f"{name}xw") if other in names()]
    return f"{' or '.join(others)} has" if others else "adamw, lion and lamb have"


def _matrices(values: Values) -> Any:
    spec = optax.contrib.MuonDimensionNumbers

    def of(path: str, value: Any) -> Any:
        if not path.endswith("kernel") or not hasattr(value, "ndim"):
            return None
        if value.ndim == 2:
            return spec(0, 1)
        return spec((0, 1, 2), 3) if value.ndim == 4 and value.shape[2] > 1 else None

    return {path: of(path, value) for path, value in values.items()}
