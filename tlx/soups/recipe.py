"""Which checkpoints go into a soup: all, or those that validation does not lose by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from tlx.models.leaves import Values


@dataclasses.dataclass(frozen=True, eq=False)
class Ingredient:
    """A checkpoint of a run."""

    run: str  # its folder
    step: int
    metric: float | None = None  # of the validation split; None: there is none
    phase: int = 0  # of the run's method, that the checkpoint was made in

    def __str__(self) -> str:
        return f"{self.run} at step {self.step}"


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of the values of some networks: summed as float64 on the host, and rounded once."""

    sums: Values = dataclasses.field(default_factory=dict)
    count: int = 0

    def plus(self, values: Values) -> Mean:
        """Returns the mean with one network more."""
        wide = {path: np.asarray(value, np.float64) for path, value in values.items()}
        if self.count:
            wide = {path: self.sums[path] + value for path, value in wide.items()}
        return Mean(wide, self.count + 1)

    def values(self) -> Values:
        """Returns the mean, float32."""
        return {path: (value / self.count).astype(np.float32) for path, value in self.sums.items()}


@dataclasses.dataclass(frozen=True)
class Soup:
    """What is in a soup, the values of its network, and its validation metric."""

    ingredients: list[Ingredient]
    network: Values
    metric: float | None


ValuesOf = Callable[[Ingredient], Values]
# The mean, and what it is of -> the network, and its validation metric.
Evaluate = Callable[[Mean, Sequence[Ingredient]], tuple[Values, float | None]]


def uniform(found: Sequence[Ingredient], values: ValuesOf, evaluate: Evaluate) -> Soup:
    """Returns the soup of all."""
    mean = Mean()
    for ingredient in found:
        mean = mean.plus(values(ingredient))
    return Soup([*found], *evaluate(mean, found))


def greedy(
    found: Sequence[Ingredient], values: ValuesOf, evaluate: Evaluate, sign: float = 1.0
) -> Soup:
    """Returns the greedy soup (Wortsman et al. 2022, recipe 1).

    Args:
      found: with their validation metrics; of equal ones the first comes first.
      values: returns what of an ingredient's is averaged.
      evaluate: returns the network of a mean, and its validation metric.
      sign: 1.0 where a higher metric is better, -1.0 where a lower one is.
    """

    def worth(metric: float | None) -> float:
        assert metric is not None
        return -math.inf if math.isnan(metric) else sign * metric

    best, *others = sorted(found, key=lambda one: worth(one.metric), reverse=True)
    mean = Mean().plus(values(best))
    soup = Soup([best], *evaluate(mean, [best]))
    for other in others:
        larger = mean.plus(values(other))
        members = [*soup.ingredients, other]
        network, metric = evaluate(larger, members)
        keeps = worth(metric) >= worth(soup.metric)
        print(f"with {other}: {metric:.6g}, {'kept' if keeps else 'left out'}", flush=True)
        if keeps:
            mean, soup = larger, Soup(members, network, metric)
    return soup
