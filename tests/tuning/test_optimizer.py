import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tlx.config import build
from tlx.errors import InputError
from tlx.models import abstract_model
from tlx.models.leaves import leaves
from tlx.tuning.optimizer import clip_by_global_norm, make_optimizer, state_bytes
from tlx.tuning.plan import make_plans
from tlx.tuning.schedule import make_schedule

VALUES = {"head.kernel": jnp.array([[1.0, -2.0]]), "head.bias": jnp.array([0.5, 4.0])}
GRADIENTS = {"head.kernel": jnp.array([[0.3, 0.4]]), "head.bias": jnp.array([0.0, 1.2])}


def optimizer_for(**fields):
    config = build({"tune.method": "head", "optimizer.schedule": "constant", **fields})
    model = abstract_model("resnet20_cifar", num_classes=2)
    (*_, plan) = make_plans(leaves(model), model.stages, config.tune)
    schedule = make_schedule(config.optimizer, total_steps=10, steps_per_epoch=5)
    return make_optimizer(plan, config.optimizer, schedule), plan, leaves(model)


def steps(optimizer, count=3, values=VALUES):
    state = optimizer.init(values)
    for _ in range(count):
        updates, state = optimizer.update(GRADIENTS, state, values)
        values = optax.apply_updates(values, updates)
    return values


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_three_steps_equal_pytorchs(name):
    import torch

    options = {
        "optimizer.name": name,
        "optimizer.lr": 0.1,
        "optimizer.weight_decay": 0.05,
        "optimizer.decay_on": "all",
    }
    ours = steps(optimizer_for(**options)[0])
    theirs = {
        path: torch.tensor(np.array(value), requires_grad=True) for path, value in VALUES.items()
    }
    kind = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9, weight_decay=0.05)
    if name == "adamw":
        kind = torch.optim.AdamW(theirs.values(), lr=0.1, weight_decay=0.05)
    for _ in range(3):
        for path, value in theirs.items():
            value.grad = torch.tensor(np.array(GRADIENTS[path]))
        kind.step()
    for path in VALUES:
        np.testing.assert_allclose(ours[path], theirs[path].detach().numpy(), rtol=1e-5)


def test_decay_spares_vectors_by_default():
    plain, decayed = (
        steps(optimizer_for(**{"optimizer.weight_decay": wd})[0]) for wd in (0.0, 0.1)
    )
    np.testing.assert_array_equal(plain["head.bias"], decayed["head.bias"])
    assert not np.array_equal(plain["head.kernel"], decayed["head.kernel"])


def test_clipping_bounds_the_norm_of_all_trainable_gradients_together():
    fields = {"optimizer.lr": 1.0, "optimizer.options": "momentum=0.0"}
    clipped = steps(optimizer_for(**fields, **{"optimizer.clip_norm": 0.13})[0], count=1)
    moved = {path: VALUES[path] - clipped[path] for path in VALUES}
    np.testing.assert_allclose(optax.tree.norm(moved), 0.13, rtol=1e-5)
    np.testing.assert_allclose(
        moved["head.bias"], 0.1 * GRADIENTS["head.bias"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("largest", [1.0, 1e-3, 0.0, np.inf, np.nan])
def test_clipping_is_optaxs(largest):
    gradients = {"a": jnp.full((40, 30), largest), "b": jnp.asarray([0.1, -0.2])}
    ours, theirs = (
        clip(0.5).update(gradients, clip(0.5).init(gradients))[0]
        for clip in (clip_by_global_norm, optax.clip_by_global_norm)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_a_groups_multiplier_scales_its_rate():
    fields = {"optimizer.lr": 0.1, "optimizer.options": "momentum=0.0", "tune.groups": "head.lr=10"}
    moved = VALUES["head.bias"] - steps(optimizer_for(**fields)[0], count=1)["head.bias"]
    np.testing.assert_allclose(moved, GRADIENTS["head.bias"], rtol=1e-6)


def test_state_exists_for_trainable_leaves_only():
    optimizer, plan, found = optimizer_for()
    assert plan.trainable == ("head.bias", "head.kernel")
    assert (
        state_bytes(optimizer, found, plan.trainable) == 4 * (64 * 2 + 2) + 4
    )  # momentum and one step count


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"optimizer.options": "momentun=0.9"}, "did you mean 'momentum'"),
        ({"optimizer.options": "momentum"}, "takes momentum"),
        ({"optimizer.options": "momentum=high"}, "'high' is not a value for momentum"),
        (
            {"optimizer.name": "muon", "optimizer.options": "ns_steps=4.5"},
            "'4.5' is not a value for ns_steps",
        ),
        ({"tune.groups": "head.optimizer=admw"}, "did you mean 'adamw'"),
    ],
)
def test_wrong_options_are_named(fields, says):
    with pytest.raises(InputError) as caught:
        optimizer_for(**fields)
    assert says in str(caught.value)


def rates(**fields):
    config = build({f"optimizer.{name}": value for name, value in fields.items()}).optimizer
    schedule = make_schedule(config, total_steps=100, steps_per_epoch=10)
    return np.array(jax.vmap(schedule)(jnp.arange(100)))


def test_cosine_falls_from_the_peak_to_zero_as_pytorchs():
    expected = 0.2 * 0.5 * (1 + np.cos(np.pi * np.arange(100) / 100))
    np.testing.assert_allclose(rates(lr=0.2, schedule="cosine"), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("warmup", ["20", "2ep", "20%"])
def test_warmup_rises_linearly_to_the_peak(warmup):
    found = rates(lr=0.2, schedule="cosine", warmup=warmup)
    np.testing.assert_allclose(found[:20], 0.2 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(found[20], 0.2, rtol=1e-6)
    assert np.all(np.diff(found[20:]) < 0)


def test_step_multiplies_at_each_milestone():
    found = rates(lr=1.0, schedule="step", milestones="3ep,60%", gamma=0.1)
    np.testing.assert_allclose(
        found[[0, 29, 30, 59, 60, 99]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6
    )


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="150 steps, longer than the run of 100"):
        rates(warmup="15ep")
