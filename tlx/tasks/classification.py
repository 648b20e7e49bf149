"""Single-label classification: the loss, what evaluation keeps of each example, and exact metrics of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.config import DEFAULT_LOSSES, TrainConfig
from tlx.errors import InputError
from tlx.evaluation import single_label
from tlx.evaluation.class_counts import ClassCounts
from tlx.evaluation.report import Section, Shown
from tlx.tasks import PLAIN, LossOptions, by_class, losses

TARGETS = "class"
TOP_K = 5


def metrics(num_classes: int) -> tuple[str, ...]:
    """Returns the metrics by which the best checkpoint may be chosen, the default one first."""
    top = ("top5_accuracy",) if num_classes > TOP_K else ()
    return ("accuracy", "loss", *top, "f1", "macro_f1", "matthews")


def loss_options(
    config: TrainConfig, labels: np.ndarray, class_names: Sequence[str]
) -> LossOptions:
    """Returns the loss that the config describes, for a training split with these labels, int [N].

    Raises:
      InputError: an unknown loss, or class weights that do not fit the classes.
    """
    name, gamma = losses.parse_loss(config.loss or DEFAULT_LOSSES["classification"])
    weights = losses.class_weights(config.class_weights, labels, class_names)
    if name == "bce" and weights:
        raise InputError(
            "train.class_weights: the loss bce has none (train.loss=cross_entropy and focal have)"
        )
    return LossOptions(config.label_smoothing, weights, name, gamma)


def loss(logits: jax.Array, batch: Any, options: LossOptions = PLAIN) -> jax.Array:
    """Returns the mean loss over the examples of weight 1, in nats; see tlx.tasks.losses.

    Args:
      logits: float [B, C].
      batch: targets, int [B] or distributions over the classes, float [B, C]; weight, float [B], 0
        for padding.
      options: which loss, label smoothing and class weights.
    """
    targets = losses.distributions(batch["targets"], logits.shape[1])
    per_example = losses.LOSSES[options.name](logits.astype(jnp.float32), targets, options)
    total = total_weight(batch, options)
    return jnp.sum(per_example * batch["weight"]) / jnp.where(total > 0, total, 1.0)


def total_weight(batch: Any, options: LossOptions) -> jax.Array:
    """Returns the sum of the examples' weights, each times that of its class."""
    share = batch["weight"]
    if options.class_weights:
        targets = losses.distributions(batch["targets"], len(options.class_weights))
        share = share * jnp.sum(targets * jnp.asarray(options.class_weights), axis=1)
    return share.sum()


def batch_metrics(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns the accuracy of a training batch; of mixed examples against the class of the larger share."""
    targets = batch["targets"] if batch["targets"].ndim == 1 else jnp.argmax(batch["targets"], 1)
    return {"accuracy": jnp.mean(jnp.argmax(logits, axis=1) == targets, dtype=jnp.float32)}


def outcomes(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns for each example, [B]: its loss, prediction, the prediction's probability, top-5 hit.

    The loss is the plain cross-entropy in nats, whatever training minimises.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probs, batch["targets"][:, None], axis=1)
    # Ties, and comparisons with NaN, count against the network: a constant output is not right by chance.
    not_worse = jnp.sum(~(log_probs < own), axis=1) - 1
    return {
        "loss": -own[:, 0],
        "prediction": jnp.argmax(logits, axis=1).astype(jnp.int32),
        "probability": jnp.exp(log_probs.max(axis=1)),
        "top5": (not_worse < TOP_K).astype(jnp.float32),
    }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a split's evaluation found. Every example counts once; sums are taken in float64."""

    targets: np.ndarray  # int [N]
    outcomes: dict[str, np.ndarray]  # per example, in the split's order
    class_names: Sequence[str]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def correct(self) -> int:
        """How many predictions were right."""
        return int((self.outcomes["prediction"] == self.targets).sum())

    def summary(self) -> dict[str, Any]:
        """Returns loss (nats), accuracy, top5_accuracy (more than 5 classes), f1, macro_f1, matthews, correct, examples.

        f1 is that of the second of two classes (GLUE's for MRPC and QQP), of more classes macro_f1.
        """
        count = len(self.targets)
        counts = ClassCounts.of(self.targets, self.outcomes["prediction"], self.num_classes)
        found = {
            "loss": float(self.outcomes["loss"].astype(np.float64).mean()),
            "accuracy": self.correct / count,
            "f1": float(counts.f1()[1]) if self.num_classes == 2 else counts.macro_f1(),
            "macro_f1": counts.macro_f1(),
            "matthews": counts.matthews(),
            "correct": self.correct,
            "examples": count,
        }
        if self.num_classes > TOP_K:
            found["top5_accuracy"] = float(self.outcomes["top5"].astype(np.float64).mean())
        return found

    def headline(self) -> str:
        """Returns accuracy and loss in words."""
        found = self.summary()
        return (
            f"accuracy {found['accuracy']:.4f} ({found['correct']:,} of {found['examples']:,})  "
            f"loss {found['loss']:.4f}"
        )

    def confusion(self) -> np.ndarray:
        """Returns int [C, C]: rows are the true classes, columns the predicted ones."""
        pairs = self.targets.astype(np.int64) * self.num_classes + self.outcomes["prediction"]
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)

    def per_class_accuracy(self) -> np.ndarray:
        """Returns float [C]; nan for a class without examples."""
        confusion = self.confusion()
        total = confusion.sum(axis=1)
        return np.where(total > 0, np.diag(confusion) / np.maximum(total, 1), np.nan)

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns the accuracy of each class that has examples."""
        return {"accuracy": by_class(self.class_names, self.per_class_accuracy())}

    def worst(self, limit: int) -> np.ndarray:
        """Returns the indices of the wrong predictions with the highest loss."""
        wrong = np.flatnonzero(self.outcomes["prediction"] != self.targets)
        order = np.argsort(-self.outcomes["loss"][wrong], kind="stable")
        return wrong[order][:limit]

    def section(self, worst: Sequence[Shown]) -> Section:
        """Returns what a report says: the confusion matrix, accuracies, and the worst mistakes."""
        found, class_names = self.outcomes, self.class_names
        mistakes = [
            single_label.Mistake(
                image=shown.image,
                name=shown.name,
                target=class_names[self.targets[shown.index]],
                predicted=class_names[found["prediction"][shown.index]],
                probability=float(found["probability"][shown.index]),
                loss=float(found["loss"][shown.index]),
                text=shown.as_text,
            )
            for shown in worst
        ]
        return single_label.section(
            self.confusion(), self.per_class_accuracy(), class_names, mistakes
        )


evaluation = Evaluation
