"""Running statistics of a network that no step has trained: an average of others, estimated from training batches.

The mean over steps, or over runs, of weights has other activations than any of the networks it is made of, and so other
BatchNorm statistics than training left behind (Izmailov et al. 2018, arXiv:1803.05407, section 3.2); so do the averages that
schedule-free optimizers are evaluated at. They are estimated
as torch's `update_bn` does: the mean over batches of the batch's mean and of its unbiased variance, in training mode. Only what the
plan says moves is estimated; the rest keeps its bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from tlx.data import pipeline
from tlx.models.leaves import Values
from tlx.training.mesh import place_batch
from tlx.training.state import TrainState, inference_values
from tlx.training.step import StatisticsStep
from tlx.tuning.plan import TuningPlan

# Of one estimate. With the two batches of an epoch of 100 digits the loss is higher than with training's own statistics, which
# are of more batches; with 16 it is not.
LEAST_BATCHES, MOST_BATCHES = 16, 256


def batches_of_estimate(examples: int, batch_size: int) -> int:
    """Returns how many training batches an estimate takes: as many as an epoch has, within LEAST_ and MOST_BATCHES."""
    return min(max(-(-examples // batch_size), LEAST_BATCHES), MOST_BATCHES)


def estimate(
    step: StatisticsStep, values: Values, batches: Iterable[pipeline.Batch], first: int, mesh: Mesh
) -> Values:
    """Returns the statistics of a network with these values.

    Args:
      step: of `make_statistics_step`.
      values: of the whole network, on the devices.
      batches: of training, at least one.
      first: the number of the first one, from which its augmentation follows.
      mesh: of the devices.
    """
    statistics: Values = {}
    for count, batch in enumerate(batches):
        arguments = place_batch(batch, mesh), np.int32(first + count), np.int32(count)
        statistics = step({**values, **statistics}, *arguments)
    return statistics


class Estimator:
    """Estimates the statistics of the average that a run is evaluated with, once it has begun.

    The batches are those that training saw last, as it saw them: augmented, mixed, with the same values dropped. So the
    result is a function of the state alone, and no picture is read that training has not read.

    Args:
      after: steps of training without an average; nothing is estimated up to then.
      plans: of the phases.
      steps: of `make_statistics_step`, of the phases.
      split: the training split.
      seed: of the run.
      batch_size: of training.
      mesh: of the devices.
    """

    def __init__(
        self,
        after: int,
        plans: Sequence[TuningPlan],
        steps: Sequence[StatisticsStep],
        *,
        split: pipeline.Rows,
        seed: int,
        batch_size: int,
        mesh: Mesh,
    ):
        self.after, self.plans, self.steps = after, plans, steps
        self.split, self.seed, self.batch_size, self.mesh = split, seed, batch_size, mesh

    def __call__(
        self,
        state: TrainState,
        frozen: Values,
        *,
        phase: int,
        done: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Values | None:
        """Returns the statistics in place of training's after `done` steps; {} where those of training are right.

        None where `stopping` says so before they are estimated: there may be no time.

        Raises:
          InputError: a picture is broken.
        """
        if done <= self.after or not self.plans[phase].statistics:
            return {}
        first = max(done - batches_of_estimate(len(self.split), self.batch_size), 0)
        batches = pipeline.training_batches(
            self.split, seed=self.seed, batch_size=self.batch_size, start=first, stop=done
        )
        values = inference_values(state, frozen)
        in_time = itertools.takewhile(lambda batch: not stopping(), batches)
        found = estimate(self.steps[phase], values, in_time, first, self.mesh)
        return None if stopping() else found
