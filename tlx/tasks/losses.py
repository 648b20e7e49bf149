"""The losses of single-label classification, per example, and what the config says about them.

Targets are distributions over the classes, so that hard labels and mixed examples take the same path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tlx.config import nearest
from tlx.errors import InputError
from tlx.tasks import LossOptions

Loss = Callable[[jax.Array, jax.Array, LossOptions], jax.Array]


def distributions(targets: jax.Array, num_classes: int) -> jax.Array:
    """Returns float32 [B, C]: the targets, or one-hot rows where they are classes, int [B]."""
    if targets.ndim == 1:
        return jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)
    return targets.astype(jnp.float32)


def smoothed(targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Returns the targets with that share spread evenly over all classes (Szegedy et al. 2015, section 7).

    It is linear: smoothing mixed targets equals mixing smoothed ones, as timm's Mixup does.
    """
    if not label_smoothing:
        return targets
    return targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[1]


def cross_entropy(logits: jax.Array, targets: jax.Array, options: LossOptions) -> jax.Array:
    """Returns `-sum_c w_c t_c log p_c`, float [B], t smoothed: the terms of `torch.nn.CrossEntropyLoss`.

    Divided by the sum of `w` over the targets before smoothing it is PyTorch's weighted mean for class
    indices. (For distributions PyTorch divides by the number of examples instead; here both are divided
    alike, so that a one-hot row and its index have the same loss.)
    """
    return _modulated(logits, targets, options, gamma=0.0)


def focal(logits: jax.Array, targets: jax.Array, options: LossOptions) -> jax.Array:
    """Returns `-sum_c w_c t_c (1 - p_c)^gamma log p_c`, float [B], t smoothed.

    Lin et al. 2017, section 3, with the softmax in place of the sigmoid; `w` is its alpha.
    """
    return _modulated(logits, targets, options, gamma=options.gamma)


def bce(logits: jax.Array, targets: jax.Array, options: LossOptions) -> jax.Array:
    """Returns the binary cross-entropy of the smoothed targets, averaged over the classes, float [B].

    One sigmoid for each class (Wightman et al. 2021, "ResNet strikes back"), as timm's BinaryCrossEntropy.
    """
    targets = smoothed(targets, options.label_smoothing)
    return binary_cross_entropy(logits, targets).mean(axis=1)


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, pos_weight: jax.Array | None = None
) -> jax.Array:
    """Returns the terms of `torch.nn.BCEWithLogitsLoss`, [B, C], `pos_weight` [C] included."""
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    yes = yes if pos_weight is None else yes * pos_weight
    return -(targets * yes + (1.0 - targets) * no)


def _modulated(
    logits: jax.Array, targets: jax.Array, options: LossOptions, *, gamma: float
) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits)
    terms = smoothed(targets, options.label_smoothing) * log_probs
    if gamma:
        # Above 0, because the derivative of a power below 1 is infinite there.
        missed = jnp.maximum(-jnp.expm1(log_probs), jnp.finfo(jnp.float32).tiny)
        terms = terms * missed**gamma
    if options.class_weights:
        terms = terms * jnp.asarray(options.class_weights)
    return -terms.sum(axis=1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "bce": bce}


def parse_loss(text: str) -> tuple[str, float]:
    """Reads `train.loss`, cross_entropy | focal:GAMMA | bce, as its name and gamma.

    Raises:
      InputError: an unknown name, or a gamma that is no number from 0 to 100.
    """
    name, colon, value = text.partition(":")
    if name not in LOSSES:
        raise InputError(
            f"train.loss is {text!r}{nearest(name, LOSSES)} (there are: cross_entropy, focal:GAMMA, bce)"
        )
    gamma = _number(value) if colon else math.nan
    if name == "focal" and not 0 <= gamma <= 100:
        raise InputError(f"train.loss is {text!r}, expected focal:GAMMA with 0 <= GAMMA <= 100")
    if name != "focal" and colon:
        raise InputError(f"train.loss is {text!r}, expected {name} without a value")
    return name, gamma if name == "focal" else 0.0


def class_weights(
    texts: Sequence[str], labels: np.ndarray, class_names: Sequence[str]
) -> tuple[float, ...]:
    """Reads `train.class_weights`; () where all classes count the same.

    Args:
      texts: ("none",) or (): no weights; ("auto",): N / (C n_c), n_c of the N labels being c, which is
        scikit-learn's "balanced" (King, Zeng 2001); or one number >= 0 for each class.
      labels: int [N], of the training split.
      class_names: C names, in the order of the labels.

    Raises:
      InputError: a wrong number of weights, a negative one, none above 0, or for auto a class without
        examples.
    """
    if tuple(texts) in ((), ("none",)):
        return ()
    if tuple(texts) == ("auto",):
        counts = np.bincount(labels, minlength=len(class_names))
        empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if empty:
            raise InputError(
                f"train.class_weights=auto: no training example of {_listed(empty)}: give one number "
                "for each class"
            )
        return tuple((len(labels) / (len(class_names) * counts)).tolist())
    given = tuple(map(_number, texts))
    if len(given) != len(class_names):
        raise InputError(
            f"train.class_weights has {len(given)} values, expected auto, none or {len(class_names)} "
            f"numbers, one for each of {_listed(class_names)}"
        )
    wrong = [
        f"{name} ({text})"
        for name, text, value in zip(class_names, texts, given, strict=True)
        if not 0 <= value < math.inf
    ]
    if wrong or not any(given):
        raise InputError(
            f"train.class_weights: expected numbers >= 0, not all of them 0; wrong: "
            f"{_listed(wrong or class_names)}"
        )
    return given


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f"... ({len(names)})" if len(names) > 10 else "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
