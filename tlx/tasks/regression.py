"""Regression: one number for each example. The loss, and exact metrics of a split.

The network has one output, which is the number itself: targets are neither shifted nor scaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.config import DEFAULT_LOSSES, TrainConfig, nearest
from tlx.errors import InputError
from tlx.evaluation import predictions as told
from tlx.evaluation import regression
from tlx.evaluation.report import Section, Shown
from tlx.tasks import LossOptions

TARGETS = "number"

# Of the difference between output and target, [B] each; PyTorch's MSELoss, L1Loss and HuberLoss (delta 1).
LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mse": jnp.square,
    "mae": jnp.abs,
    "huber": lambda off: jnp.where(jnp.abs(off) < 1.0, 0.5 * off**2, jnp.abs(off) - 0.5),
}
PLAIN = LossOptions(name=DEFAULT_LOSSES["regression"])


def metrics(num_classes: int) -> tuple[str, ...]:
    """Returns the metrics by which the best checkpoint may be chosen, the default one first."""
    del num_classes
    return ("spearman", "pearson", "r2", "mse", "mae", "loss")


def loss_options(
    config: TrainConfig, labels: np.ndarray, class_names: Sequence[str]
) -> LossOptions:
    """Returns the loss that the config describes.

    Raises:
      InputError: an unknown loss, or what only a loss of classes has.
    """
    del labels, class_names
    name = config.loss or DEFAULT_LOSSES["regression"]
    if name not in LOSSES:
        raise InputError(
            f"train.loss is {name!r}{nearest(name, LOSSES)} (of a regression there are: "
            f"{', '.join(LOSSES)})"
        )
    for field in ("label_smoothing", "class_weights", "mixup", "cutmix"):
        if getattr(config, field) not in (0, (), ("none",)):
            raise InputError(f"train.{field} is for tasks with classes, and a regression has none")
    return LossOptions(name=name)


def loss(logits: jax.Array, batch: Any, options: LossOptions = PLAIN) -> jax.Array:
    """Returns the mean loss over the examples of weight 1.

    Args:
      logits: float [B, 1].
      batch: targets, float [B]; weight, float [B], 0 for padding.
      options: which loss.
    """
    each = LOSSES[options.name](_off(logits, batch))
    return jnp.sum(each * batch["weight"]) / jnp.maximum(total_weight(batch, options), 1.0)


def total_weight(batch: Any, options: LossOptions) -> jax.Array:
    """Returns the number of examples of weight 1."""
    del options
    return batch["weight"].sum()


def batch_metrics(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns the mean absolute error of a training batch."""
    return {"mae": jnp.mean(jnp.abs(_off(logits, batch)))}


def outcomes(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns for each example, [B]: its squared error as loss, whatever training minimises, and the prediction."""
    return {
        "loss": jnp.square(_off(logits, batch)),
        "prediction": logits.astype(jnp.float32)[:, 0],
    }


def _off(logits: jax.Array, batch: Any) -> jax.Array:
    return logits.astype(jnp.float32)[:, 0] - batch["targets"].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a split's evaluation found. Every example counts once; sums are taken in float64."""

    targets: np.ndarray  # float [N]
    outcomes: dict[str, np.ndarray]  # per example, in the split's order

    @property
    def off(self) -> np.ndarray:
        """Prediction minus target, float64 [N]."""
        return self.outcomes["prediction"].astype(np.float64) - self.targets

    def summary(self) -> dict[str, Any]:
        """Returns loss (the mean squared error), spearman, pearson, r2, mse, mae and examples.

        Correlations are NaN where the targets or the predictions are all the same, and r2 where the
        targets are.
        """
        targets, predictions = self.targets.astype(np.float64), self.outcomes["prediction"]
        mse = float(np.mean(self.off**2))
        spread = float(np.mean((targets - targets.mean()) ** 2))
        return {
            "loss": mse,
            "spearman": correlation(ranks(targets), ranks(predictions)),
            "pearson": correlation(targets, predictions),
            "r2": 1.0 - mse / spread if spread else float("nan"),
            "mse": mse,
            "mae": float(np.mean(np.abs(self.off))),
            "examples": len(targets),
        }

    def headline(self) -> str:
        """Returns the correlations and the error in words."""
        found = self.summary()
        return (
            f"spearman {found['spearman']:.4f}  pearson {found['pearson']:.4f}  "
            f"mae {found['mae']:.4f}  ({found['examples']:,} examples)"
        )

    def per_class(self) -> dict[str, Any]:
        """Returns nothing: there are no classes."""
        return {}

    def worst(self, limit: int) -> np.ndarray:
        """Returns the indices of the examples furthest from their target; what is not a number is furthest."""
        off = np.nan_to_num(np.abs(self.off), nan=np.inf)
        order = np.argsort(-off, kind="stable")
        return order[off[order] > 0][:limit]

    def section(self, worst: Sequence[Shown]) -> Section:
        """Returns what a report says: predictions against targets, and the worst mistakes."""
        predictions = self.outcomes["prediction"]
        mistakes = [
            regression.Mistake(
                image=shown.image,
                name=shown.name,
                text=shown.as_text,
                target=float(self.targets[shown.index]),
                predicted=float(predictions[shown.index]),
            )
            for shown in worst
        ]
        return regression.section(self.targets, predictions, mistakes)


def evaluation(
    targets: np.ndarray, outcomes: dict[str, np.ndarray], class_names: Sequence[str]
) -> Evaluation:
    """Returns the evaluation of a whole split; there are no classes."""
    del class_names
    return Evaluation(targets, outcomes)


def predictions(
    targets: np.ndarray, outcomes: dict[str, np.ndarray], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns of each example the value; None where it is no number.

    Args:
      targets, class_names: not looked at.
      outcomes: logits, float [N, 1].
    """
    del targets, class_names
    return [{"prediction": told.number(value)} for value in outcomes["logits"][:, 0]]


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks from 1, float64 [N], the mean one for equal values, as `scipy.stats.rankdata`; NaN if any is."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Pearson's correlation; NaN where either is constant or not finite. Of ranks it is Spearman's."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    one, other = (
        values.astype(np.float64) - values.mean(dtype=np.float64) for values in (first, second)
    )
    spread = float(np.sqrt((one @ one) * (other @ other)))
    return float(np.clip(one @ other / spread, -1.0, 1.0)) if spread else float("nan")
