import itertools

import numpy as np
import pytest

from tlx.soups.recipe import Ingredient, Mean, greedy, uniform

# Networks of one number; the best is at 1, and the metric falls with the distance from it.
NUMBERS = {0: 0.75, 1: 1.25, 2: 40.0, 3: 0.5, 4: float("nan")}


def metric(number):
    return float(1.0 - abs(number - 1.0))


def evaluate(mean, members):
    assert len(members) == mean.count
    (value,) = mean.values().values()
    return mean.values(), metric(value)


def ingredients(*names):
    return [Ingredient(f"run {name}", name, metric(NUMBERS[name])) for name in names]


def values(ingredient):
    return {"w": np.array(NUMBERS[ingredient.step], np.float32)}


def steps(soup):
    return [one.step for one in soup.ingredients]


def test_a_mean_is_rounded_once():
    rng = np.random.default_rng(0)
    found = [{"w": rng.normal(size=1000).astype(np.float32)} for _ in range(3)]
    mean = Mean().plus(found[0]).plus(found[1]).plus(found[2])
    wide = np.mean([one["w"].astype(np.float64) for one in found], axis=0)
    assert mean.values()["w"].dtype == np.float32
    np.testing.assert_array_equal(mean.values()["w"], wide.astype(np.float32))
    same = Mean().plus(found[0]).plus(found[0]).plus(found[0])
    np.testing.assert_array_equal(same.values()["w"], found[0]["w"])


def test_uniform_takes_all():
    soup = uniform(ingredients(0, 1, 2), values, evaluate)
    assert steps(soup) == [0, 1, 2]
    assert soup.network["w"] == np.float32(42 / 3)


def test_greedy_begins_with_the_best_and_leaves_the_bad_out(capsys):
    soup = greedy(ingredients(2, 0, 1, 3, 4), values, evaluate)
    assert steps(soup) == [0, 1]
    assert soup.network["w"] == soup.metric == 1.0
    assert capsys.readouterr().out.splitlines() == [
        "with run 1 at step 1: 1, kept",
        "with run 3 at step 3: 0.833333, left out",
        "with run 2 at step 2: -12, left out",
        "with run 4 at step 4: nan, left out",
    ]


@pytest.mark.parametrize("order", [*itertools.permutations((0, 1, 2, 3))])
def test_greedy_is_never_worse_than_the_best(order):
    found = ingredients(*order)
    soup = greedy(found, values, evaluate)
    assert soup.metric >= max(one.metric for one in found)


def test_an_equal_metric_is_kept_and_a_lower_loss_is_better():
    found = [Ingredient("run", step, 0.5) for step in (0, 1)]
    constant = greedy(found, values, lambda mean, members: (mean.values(), 0.5))
    assert steps(constant) == [0, 1]
    losses = [Ingredient("run", step, 1.0 - metric(NUMBERS[step])) for step in (2, 1)]
    soup = greedy(
        losses,
        values,
        lambda mean, members: (mean.values(), 1.0 - evaluate(mean, members)[1]),
        sign=-1.0,
    )
    assert steps(soup) == [1]
