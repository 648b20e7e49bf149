"""The tasks: a literal dict. A new task is one file with the functions of `Task`, and one line here."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import jax
import numpy as np

from tlx.config import TrainConfig

if TYPE_CHECKING:
    from tlx.evaluation.report import Section, Shown

TASKS = {
    "classification": "tlx.tasks.classification",
    "multilabel": "tlx.tasks.multilabel",
    "regression": "tlx.tasks.regression",
    "tagging": "tlx.tasks.tagging",
}

Batch = Any  # {inputs, targets, weight, index}, on the devices


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How a task's loss weighs the examples and classes of a batch; the defaults change nothing."""

    label_smoothing: float = 0.0  # in [0, 1)
    class_weights: tuple[float, ...] = ()  # one for each class; (): all the same
    name: str = "cross_entropy"  # one of the task's own losses
    gamma: float = 0.0  # of the focal loss


PLAIN = LossOptions()


def by_class(class_names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Returns class -> value for `Evaluation.per_class`; float [C], NaN where it is not defined."""
    named = zip(class_names, values.tolist(), strict=True)
    return {name: value for name, value in named if not np.isnan(value)}


class Evaluation(Protocol):
    """What the evaluation of a split found."""

    def summary(self) -> dict[str, Any]:
        """Returns metric -> value, for the summary and for selection."""
        ...

    def headline(self) -> str:
        """Returns the numbers that a person wants to see first."""
        ...

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns name -> class -> value, for the summary; without classes that have no such number."""
        ...

    def worst(self, limit: int) -> np.ndarray:
        """Returns the indices of at most `limit` examples that are wrong, the worst first."""
        ...

    def section(self, worst: Sequence[Shown]) -> Section:
        """Returns what a report says about the split; `worst` are the examples of that name."""
        ...


class Task(Protocol):
    """What the loop asks of a task: its loss and its metrics. The model owns the head."""

    TARGETS: str  # class: int32 [B] | multi_hot: [B, classes] of 0 and 1 | number: float32 [B] | tags: int32 [B, T]

    def metrics(self, num_classes: int) -> tuple[str, ...]:
        """Returns the metrics by which the best checkpoint may be chosen, the default one first."""
        ...

    def loss_options(
        self, config: TrainConfig, labels: np.ndarray, class_names: Sequence[str]
    ) -> LossOptions:
        """Returns what the config says about the loss; `labels` are the targets of the training split.

        Raises:
          InputError: a loss or class weights that the task does not have.
        """
        ...

    def loss(self, logits: jax.Array, batch: Batch, options: LossOptions) -> jax.Array:
        """Returns the scalar that training minimises: a mean."""
        ...

    def total_weight(self, batch: Batch, options: LossOptions) -> jax.Array:
        """Returns what the sum in that mean was divided by."""
        ...

    def batch_metrics(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns scalars of a training batch, beside its loss."""
        ...

    def outcomes(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns what evaluation keeps of each example, [B, ...] each."""
        ...

    def evaluation(
        self, targets: np.ndarray, outcomes: dict[str, np.ndarray], class_names: Sequence[str]
    ) -> Evaluation:
        """Returns the evaluation of a whole split from its examples' outcomes."""
        ...


def get_task(name: str) -> Task:
    """Returns the task of that name."""
    return cast(Task, importlib.import_module(TASKS[name]))
