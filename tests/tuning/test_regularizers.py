"""The regularizers by hand: values and gradients in float64, and which texts are understood."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tlx.config import build
from tlx.errors import InputError
from tlx.models import abstract_model
from tlx.models.leaves import leaves
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.penalties import distance, l2sp, smallest_singular_values
from tlx.tuning.plan import make_plans
from tlx.tuning.regularizers import Regularizer, needed, parse
from tlx.tuning.schedule import make_schedule

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_what_is_written_is_read():
    assert parse(("l2sp:0.1:0.01", "init:1e-3", " delta : 2 ", "bss:1e-3:4")) == (
        Regularizer("l2sp", 0.1, head=0.01),
        Regularizer("init", 1e-3),
        Regularizer("delta", 2.0),
        Regularizer("bss", 1e-3, count=4),
    )
    assert parse(("l2sp:0.1", "bss:1")) == (Regularizer("l2sp", 0.1), Regularizer("bss", 1.0))
    assert parse(()) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("l2ps:0.1", "'l2ps'; did you mean 'l2sp'?"),
        ("l2sp", "expected l2sp:ALPHA[:BETA], the first number > 0, BETA >= 0"),
        ("l2sp:-1", "'l2sp:-1': expected"),
        ("l2sp:0", "'l2sp:0': expected"),
        ("l2sp:1:-1", "BETA >= 0"),
        ("l2sp:1:2:3", "expected l2sp:ALPHA[:BETA]"),
        ("init:much", "expected init:ALPHA"),
        ("init:1:1", "expected init:ALPHA"),
        ("delta:inf", "expected delta:STRENGTH"),
        ("delta:nan", "expected delta:STRENGTH"),
        ("bss:1:0", "K a whole number >= 1"),
        ("bss:1:1.5", "K a whole number >= 1"),
        ("bss:1,bss:2", "bss is there twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, says):
    with pytest.raises(InputError) as caught:
        parse(tuple(text.split(",")))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_l2sp_is_half_the_squared_distance_and_half_the_square_of_what_was_drawn():
    values = {"a.kernel": drawn(3, 4), "a.bias": drawn(4), "head.kernel": drawn(4, 2)}
    source = {"a.kernel": drawn(3, 4), "a.bias": drawn(4)}
    found, gradient = jax.value_and_grad(l2sp)(values, source, {"head.kernel"}, 0.3, 0.05)
    away = {p: values[p].astype(np.float64) - source[p] for p in source}
    head = values["head.kernel"].astype(np.float64)
    expected = 0.15 * sum((d**2).sum() for d in away.values()) + 0.025 * (head**2).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for path in source:
        np.testing.assert_allclose(gradient[path], 0.3 * away[path], rtol=1e-6)
    np.testing.assert_allclose(gradient["head.kernel"], 0.05 * head, rtol=1e-6)


def test_the_distance_of_stages_is_the_mean_over_examples_and_positions_summed_over_channels():
    ours, source = drawn(2, 3, 5, 4), drawn(2, 3, 5, 4)
    (found, (own, other)) = jax.value_and_grad(distance, argnums=(0, 1))(ours, source)
    away = ours.astype(np.float64) - source
    np.testing.assert_allclose(found, (away**2).sum() / 30, rtol=1e-6)
    np.testing.assert_allclose(own, 2 * away / 30, rtol=1e-5)
    assert not np.any(other)  # no gradient reaches the source


def test_of_a_dict_the_floating_arrays_count():
    mask = np.ones((2, 3), np.int32)
    ours = {"map": drawn(2, 3, 4), "mask": mask, "pending": drawn(2, 6)}
    source = {"map": drawn(2, 3, 4), "mask": 0 * mask, "pending": drawn(2, 6)}
    parts = {name: ours[name].astype(np.float64) - source[name] for name in ("map", "pending")}
    expected = (parts["map"] ** 2).sum() / 6 + (parts["pending"] ** 2).sum() / 2
    np.testing.assert_allclose(distance(ours, source), expected, rtol=1e-6)
    half = {name: jnp.asarray(array, jnp.bfloat16) for name, array in ours.items()}
    assert distance(half, source).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("count", [1, 3])
def test_the_smallest_singular_values_and_their_gradient(shape, count):
    features = drawn(*shape)
    found, gradient = jax.value_and_grad(smallest_singular_values)(features, count)
    left, values, right = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(found, (values[-count:] ** 2).sum(), rtol=1e-4)
    expected = 2 * (left[:, -count:] * values[-count:]) @ right[-count:]
    np.testing.assert_allclose(gradient, expected, atol=2e-5)


@pytest.mark.parametrize(
    "features",
    [np.eye(4, 7), np.eye(7, 4), np.zeros((4, 7)), np.ones((6, 3)), np.diag([3.0, 2, 2, 2, 1, 1])],
    ids=["wide", "tall", "zero", "rank one", "square"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_repeated_and_vanishing_singular_values_have_a_gradient(features, count):
    features = features.astype(np.float32)
    found, gradient = jax.jit(jax.value_and_grad(smallest_singular_values), static_argnums=1)(
        features, count
    )
    values = np.linalg.svd(features, compute_uv=False)[-count:]
    np.testing.assert_allclose(found, (values**2).sum(), atol=1e-5)
    # Of length 2 * value for each, wherever between equal ones it points.
    np.testing.assert_allclose(np.linalg.norm(gradient), 2 * np.sqrt((values**2).sum()), atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_the_shrinkage_equals_its_authors_formula_in_pytorch(shape):
    import torch

    features = drawn(*shape)
    theirs = torch.tensor(features, requires_grad=True)
    _, values, _ = torch.svd(theirs)
    loss = sum(torch.pow(values[len(values) - 1 - i], 2) for i in range(2))
    loss.backward()
    found, gradient = jax.value_and_grad(smallest_singular_values)(features, 2)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-5)


def tuned(**fields):
    config = build({"optimizer.schedule": "constant", "optimizer.lr": 0.1, **fields})
    model = abstract_model("resnet20_cifar", num_classes=2)
    found = leaves(model)
    (*_, plan) = make_plans(found, model.stages, config.tune)
    schedule = make_schedule(config.optimizer, total_steps=10, steps_per_epoch=5)
    return [make_optimizer(plan, config.optimizer, schedule, pull=p) for p in (0.0, 0.5)], plan


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_the_pull_to_the_source_is_decoupled_and_has_each_groups_rate(name):
    fields = {"optimizer.name": name, "optimizer.schedule": "cosine", "optimizer.warmup": "2"}
    fields |= {"optimizer.weight_decay": 0.1, "optimizer.clip_norm": 0.1}
    (plain, pulled), plan = tuned(**fields, **{"tune.groups": "head.lr=3"})
    shapes = {
        p: leaf.shape for p, leaf in leaves(abstract_model("resnet20_cifar", num_classes=2)).items()
    }
    values = {path: drawn(*shapes[path]) for path in plan.trainable}
    source = {path: drawn(*shapes[path]) for path in plan.trainable}
    gradients = {path: drawn(*shapes[path]) for path in plan.trainable}
    one, two = plain.init(values), pulled.init(values)
    schedule = make_schedule(
        build(fields | {"optimizer.lr": 0.1}).optimizer, total_steps=10, steps_per_epoch=5
    )
    for step in range(3):
        expected, one = plain.update(gradients, one, values)
        found, two = pulled.update(gradients, two, values, source=source)
        for path in values:
            rate = (3 if path.startswith("head") else 1) * np.float64(schedule(step))
            away = np.asarray(values[path], np.float64) - source[path]
            np.testing.assert_allclose(
                found[path], expected[path] - rate * 0.5 * away, rtol=1e-5, atol=1e-6
            )
        values = optax.apply_updates(values, found)


def test_the_pull_keeps_the_number_of_steps_alone():
    (plain, pulled), plan = tuned(**{"optimizer.name": "adamw", "tune.method": "head"})
    values = {path: drawn(3) for path in plan.trainable}
    one, two = (jax.tree.leaves(transform.init(values)) for transform in (plain, pulled))
    assert len(two) == len(one) + len(plan.groups)
    assert sum(leaf.nbytes for leaf in two) == sum(leaf.nbytes for leaf in one) + 4


def test_the_pull_does_not_go_with_averages():
    with pytest.raises(InputError, match="init moves the values behind the optimizer"):
        tuned(**{"optimizer.name": "schedule_free_adamw"})


def test_which_first_values_are_needed():
    config = build({"tune.method": "lpft", "tune.freeze_stages": 2})
    model = abstract_model("resnet20_cifar", num_classes=2)
    plans = make_plans(leaves(model), model.stages, config.tune)
    loaded = [path for path in leaves(model) if not path.startswith("head.")]

    def kinds(*texts):
        paths = needed(parse(texts), plans, model.stages, loaded)
        assert len(set(paths)) == len(paths)
        ends = {path.rsplit(".", 1)[1] for path in paths}
        return {path.split(".")[0] for path in paths}, "mean" in ends

    assert kinds("l2sp:1") == ({"layer2", "layer3"}, False)
    assert kinds("init:1") == ({"layer2", "layer3", "head"}, False)
    assert kinds("delta:1", "bss:1") == ({"layer2", "layer3"}, True)
    assert kinds("init:1", "delta:1") == ({"layer2", "layer3", "head"}, True)
    assert needed(parse(("bss:1",)), plans, model.stages, loaded) == ()
