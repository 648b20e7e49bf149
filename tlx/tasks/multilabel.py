"""Several labels for each example, or none: the loss, and exact metrics of a split.

Each class is a question of its own with the answers yes and no; a label is given where its
probability is above 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.config import DEFAULT_LOSSES, TrainConfig
from tlx.errors import InputError
from tlx.evaluation import multi_label
from tlx.evaluation.report import Section, Shown
from tlx.tasks import PLAIN, LossOptions, by_class, losses

TARGETS = "multi_hot"


def metrics(num_classes: int) -> tuple[str, ...]:
    """Returns the metrics by which the best checkpoint may be chosen, the default one first."""
    del num_classes
    return ("mAP", "f1_micro", "f1_macro", "subset_accuracy", "loss")


def loss_options(
    config: TrainConfig, labels: np.ndarray, class_names: Sequence[str]
) -> LossOptions:
    """Returns the loss that the config describes, for a training split with these labels, [N, C] of 0 and 1.

    Class weights are of a class's yes beside its no; auto: the number of noes over that of yeses,
    each at least 1.

    Raises:
      InputError: a loss that is not binary cross-entropy, or weights that do not fit the classes.
    """
    name, _ = losses.parse_loss(config.loss or DEFAULT_LOSSES["multilabel"])
    if name == "focal":
        raise InputError(
            "train.loss: several labels are fitted by binary cross-entropy alone (bce)"
        )
    texts = config.class_weights
    if tuple(texts) == ("auto",):
        yes = np.sum(labels > 0, axis=0)
        no = len(labels) - yes
        weights = tuple((np.maximum(no, 1) / np.maximum(yes, 1)).tolist())
    else:
        weights = losses.class_weights(texts, labels, class_names)
    return LossOptions(config.label_smoothing, weights, "bce")


def loss(logits: jax.Array, batch: Any, options: LossOptions = PLAIN) -> jax.Array:
    """Returns the binary cross-entropy in nats, the mean over classes and examples of weight 1.

    It is `torch.nn.BCEWithLogitsLoss`, with its `pos_weight`. Label smoothing s makes a target t
    t * (1 - s) + s / 2: half of it goes to yes and half to no, which is what smoothed cross-entropy
    (`torch.nn.CrossEntropyLoss`) does with these two answers. `BCEWithLogitsLoss` itself has none,
    and timm's `BinaryCrossEntropy` smooths targets only where it makes them from class numbers.

    Args:
      logits: float [B, C].
      batch: targets, float [B, C] of 0 and 1; weight, float [B], 0 for padding.
      options: label smoothing, and as class weights PyTorch's `pos_weight`.
    """
    weights = jnp.asarray(options.class_weights) if options.class_weights else None
    targets = _smoothed(batch["targets"], options.label_smoothing)
    each = losses.binary_cross_entropy(logits.astype(jnp.float32), targets, weights)
    per_example = each.mean(axis=1)
    return jnp.sum(per_example * batch["weight"]) / jnp.maximum(total_weight(batch, options), 1.0)


def total_weight(batch: Any, options: LossOptions) -> jax.Array:
    """Returns the number of examples of weight 1."""
    del options
    return batch["weight"].sum()


def batch_metrics(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns micro F1 (0 where no label is there or given) and subset accuracy of a batch."""
    given, there = logits > 0, batch["targets"] >= 0.5  # of mixed examples: the larger share
    both = jnp.sum(given & there, dtype=jnp.float32)
    either = jnp.sum(given, dtype=jnp.float32) + jnp.sum(there, dtype=jnp.float32)
    return {
        "f1_micro": 2.0 * both / jnp.maximum(either, 1.0),
        "subset_accuracy": jnp.mean(jnp.all(given == there, axis=1), dtype=jnp.float32),
    }


def outcomes(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns for each example its loss [B], and its logits as float32 [B, C]."""
    logits = logits.astype(jnp.float32)
    each = losses.binary_cross_entropy(logits, batch["targets"].astype(jnp.float32))
    return {"loss": each.mean(axis=1), "logits": logits}


def _smoothed(targets: jax.Array, smoothing: float) -> jax.Array:
    return targets.astype(jnp.float32) * (1.0 - smoothing) + 0.5 * smoothing


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a split's evaluation found. Every example counts once; sums are taken in float64."""

    targets: np.ndarray  # [N, C] of 0 and 1
    outcomes: dict[str, np.ndarray]  # per example, in the split's order
    class_names: Sequence[str]

    @functools.cached_property
    def given(self) -> np.ndarray:
        """The labels that are given, bool [N, C]. What is not a number is wrong in any case."""
        logits = self.outcomes["logits"]
        return np.where(np.isnan(logits), self.targets == 0, logits > 0)

    @functools.cached_property
    def right(self) -> np.ndarray:
        """Which examples were given exactly their labels, bool [N]."""
        return (self.given == (self.targets > 0)).all(axis=1)

    @functools.cached_property
    def scores(self) -> multi_label.ClassScores:
        """AP, precision, recall and F1 of each class, and how many examples have its label."""
        there = self.targets > 0
        both = (self.given & there).sum(axis=0)
        given, support = self.given.sum(axis=0), there.sum(axis=0)
        return multi_label.ClassScores(
            support,
            average_precision(self.targets, self.outcomes["logits"]),
            precision=_quotient(both, given),
            recall=_quotient(both, support),
            f1=_quotient(2 * both, given + support),
        )

    def summary(self) -> dict[str, Any]:
        """Returns loss (nats), mAP, f1_micro, f1_macro, subset_accuracy, and counts.

        mAP is the mean of the classes' average precision, without those that no example has
        (`classes_without_positives`; scikit-learn counts them as 0). Macro F1 leaves out classes
        that no example has and none was given (`f1_score(zero_division=nan)`). Where that leaves
        nothing, a metric is NaN.
        """
        there = self.targets > 0
        both, either = (self.given & there).sum(), self.given.sum() + there.sum()
        return {
            "loss": float(self.outcomes["loss"].astype(np.float64).mean()),
            "mAP": _mean(self.scores.average_precision),
            "f1_micro": float(_quotient(2 * both, either)),
            "f1_macro": _mean(self.scores.f1),
            "subset_accuracy": float(self.right.mean()),
            "examples": len(self.targets),
            "classes_without_positives": int((self.scores.support == 0).sum()),
        }

    def headline(self) -> str:
        """Returns mAP, F1 and loss in words."""
        found = self.summary()
        return (
            f"mAP {found['mAP']:.4f}  micro F1 {found['f1_micro']:.4f}  loss {found['loss']:.4f}"
            f"  ({found['examples']:,} examples)"
        )

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns average precision and F1 of each class, where they are defined."""
        scores = {"ap": self.scores.average_precision, "f1": self.scores.f1}
        return {name: by_class(self.class_names, values) for name, values in scores.items()}

    def worst(self, limit: int) -> np.ndarray:
        """Returns the indices of examples that were not given their labels, highest loss first."""
        wrong = np.flatnonzero(~self.right)
        losses = np.nan_to_num(self.outcomes["loss"][wrong], nan=np.inf)
        return wrong[np.argsort(-losses, kind="stable")][:limit]

    def section(self, worst: Sequence[Shown]) -> Section:
        """Returns what a report says: a table of the classes, and the worst mistakes."""
        return multi_label.section(
            self.scores,
            self.class_names,
            [self._mistake(shown) for shown in worst],
            right=int(self.right.sum()),
            examples=len(self.targets),
        )

    def _mistake(self, shown: Shown) -> multi_label.Mistake:
        logits = self.outcomes["logits"][shown.index].astype(np.float64)
        there = self.targets[shown.index] > 0
        off = np.nan_to_num(np.where(there, -logits, logits), nan=np.inf)
        furthest = int(off.argmax())
        return multi_label.Mistake(
            image=shown.image,
            name=shown.name,
            targets=np.flatnonzero(there).tolist(),
            predicted=np.flatnonzero(self.given[shown.index]).tolist(),
            furthest=furthest,
            probability=float(0.5 + 0.5 * np.tanh(0.5 * logits[furthest])),
            loss=float(self.outcomes["loss"][shown.index]),
            text=shown.as_text,
        )


evaluation = Evaluation


def average_precision(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns each class's average precision, float64 [C]; NaN for one that no example has.

    The sum over thresholds of (R_n - R_n-1) P_n, without interpolation, examples of one score
    together, as `sklearn.metrics.average_precision_score`. A score that is not a number is the
    worst there can be: last for a positive example, first for another.

    Args:
      targets: [N, C] of 0 and 1.
      scores: float [N, C]; only their order within a class counts.
    """
    found = np.full(targets.shape[1], np.nan)
    for label in np.flatnonzero(targets.any(axis=0)):
        there, score = targets[:, label] > 0, scores[:, label]
        score = np.where(np.isnan(score), np.where(there, -np.inf, np.inf), score)
        order = np.argsort(-score, kind="stable")
        score = score[order]
        ends = np.append(np.flatnonzero(score[1:] != score[:-1]), len(score) - 1)
        hits = np.cumsum(there[order])[ends]
        found[label] = (np.diff(hits, prepend=0) / hits[-1] * (hits / (ends + 1))).sum()
    return found


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
