"""optax's optimizers by name, each through make_optimizer with two groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from tlx.config import build
from tlx.errors import InputError
from tlx.models.leaves import Leaf
from tlx.tuning.optax_optimizers import REFUSED, make, names
from tlx.tuning.optimizer import evaluation_values, make_optimizer, parse_options, state_bytes
from tlx.tuning.phases import make_phases
from tlx.tuning.plan import make_plans
from tlx.tuning.schedule import make_schedule

SHAPES = {
    "a.kernel": (3, 3, 2, 4),
    "a.bias": (4,),
    "b.kernel": (6, 4),
    "b.table": (5, 3),
    "frozen.kernel": (1000, 1000),
    "head.kernel": (4, 3),
    "head.bias": (3,),
}
FOUND = {path: Leaf(shape, jnp.float32, None, True) for path, shape in SHAPES.items()}
TRAINED = {path: shape for path, shape in SHAPES.items() if not path.startswith("frozen")}
VALUES = {
    path: jnp.asarray(np.random.default_rng(i).uniform(0.5, 2, shape), jnp.float32)
    for i, (path, shape) in enumerate(TRAINED.items())
}
PARAMETERS = sum(value.size for value in VALUES.values())
VECTORS = ("a.bias", "head.bias")

# Those that find their rate, and those that are slow at 0.05.
RATES = dict.fromkeys(("prodigy", "dadapt_adamw", "dog", "dowg", "cocob"), 1.0) | {
    "adadelta": 50.0,
    "adagrad": 0.5,
    "simplified_ademamix": 1e-3,
}
WITHOUT_DECAY = frozenset(
    "adabelief adam adamax adopt amsgrad fromage nadam optimistic_adam_v2 radam sign_sgd signum yogi".split()
)
OPTIONS = {"lars": "trust_coefficient=0.1"}
ONE_ESTIMATE = ("dadapt_adamw", "prodigy")


def optimizer_for(name, groups="first.lr=0.5", **fields):
    fields = {
        "tune.method": "rules",
        "tune.rules": "a=first,frozen=frozen,.*=second",
        "tune.groups": groups,
        "optimizer.name": name,
        "optimizer.lr": RATES.get(name, 0.05),
        "optimizer.options": OPTIONS.get(name, ""),
        "optimizer.schedule": "constant",
    } | {f"optimizer.{field}": value for field, value in fields.items()}
    config = build(fields)
    (*_, plan) = make_plans(FOUND, ("a", "b", "frozen"), config.tune)
    schedule = make_schedule(config.optimizer, total_steps=1000, steps_per_epoch=10)
    return make_optimizer(plan, config.optimizer, schedule), plan


def loss(values):
    return sum(jnp.sum((value - 0.1) ** 2) for value in values.values())


gradient_of = jax.grad(loss)


def none_of(values):
    return jax.tree.map(jnp.zeros_like, values)


def trained(optimizer, steps, gradient=gradient_of):
    def step(carry, _):
        values, state = carry
        updates, state = optimizer.update(gradient(values), state, values)
        return (optax.apply_updates(values, updates), state), None

    start = VALUES, optimizer.init(VALUES)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])(start)


@pytest.mark.parametrize("name", names())
def test_each_lowers_the_loss_and_keeps_state_for_what_it_trains(name):
    optimizer, plan = optimizer_for(name)
    values, state = trained(optimizer, 300)
    assert loss(evaluation_values(state, values)) < 0.5 * loss(VALUES)
    # Five arrays for each value is the most that any keeps; the frozen one alone would be 4 MB.
    assert state_bytes(optimizer, FOUND, plan.trainable) < 5 * 4 * PARAMETERS + 200
    assert all(leaf.dtype.kind in "biuf" for leaf in jax.tree.leaves(state))


def moved_by_decay(name, **fields):
    """Returns the values that a decay changes where there is no gradient."""
    # An estimate of the rate needs one.
    gradients = none_of(VALUES) if name not in ONE_ESTIMATE else gradient_of(VALUES)
    plain, decayed = (
        optimizer.update(gradients, optimizer.init(VALUES), VALUES)[0]
        for optimizer, _ in (
            optimizer_for(name, weight_decay=decay, **fields) for decay in (0.0, 0.1)
        )
    )
    return {path for path in VALUES if not np.array_equal(plain[path], decayed[path])}


@pytest.mark.parametrize("name", sorted(set(names()) - WITHOUT_DECAY))
def test_decay_is_of_kernels_unless_told_otherwise(name):
    if name in ONE_ESTIMATE:
        with pytest.raises(InputError, match=r"set optimizer\.decay_on=all"):
            optimizer_for(name, weight_decay=0.1)
    else:
        assert moved_by_decay(name) == set(VALUES) - set(VECTORS)
    assert moved_by_decay(name, decay_on="all") == set(VALUES)


@pytest.mark.parametrize("name", sorted(WITHOUT_DECAY))
def test_those_without_decay_say_which_have_it(name):
    with pytest.raises(InputError) as caught:
        optimizer_for(name, weight_decay=0.1)
    expected = {"adam": "adamw has", "nadam": "nadamw has", "adamax": "adamaxw has"}
    said = expected.get(name, "adamw, lion and lamb have")
    assert str(caught.value) == f"optimizer.weight_decay is 0.1, but {name} has none: {said}"


@pytest.mark.parametrize(
    "name",
    "acprop adafactor adamaxw adamw ademamix galore lion muon nadamw schedule_free_adamw".split(),
)
def test_decoupled_decay_shrinks_by_rate_times_decay_where_nothing_else_moves(name):
    optimizer, _ = optimizer_for(
        name, groups="first.lr=0.5,second.weight_decay=0.4", lr=0.25, weight_decay=0.2
    )
    values, state = trained(optimizer, 1, none_of)
    values = evaluation_values(state, values)
    shrunk = {"a.kernel": 1 - 0.125 * 0.2, "b.kernel": 1 - 0.25 * 0.4, "b.table": 1 - 0.25 * 0.4}
    for path, factor in shrunk.items():
        np.testing.assert_allclose(values[path], factor * VALUES[path], rtol=1e-5)
    for path in VECTORS:
        np.testing.assert_allclose(values[path], VALUES[path], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adagrad"])
def test_l2_decay_is_part_of_the_gradient(name):
    def with_decay(values):
        gradient = jax.grad(loss)(values)
        return {p: g if p in VECTORS else g + 0.1 * values[p] for p, g in gradient.items()}

    found, _ = trained(optimizer_for(name, weight_decay=0.1)[0], 3)
    expected, _ = trained(optimizer_for(name)[0], 3, with_decay)
    for path in VALUES:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options", "theirs", "arguments"),
    [
        ("adam", "", "Adam", {}),
        ("radam", "", "RAdam", {}),
        ("adamw", "", "AdamW", {"weight_decay": 0.1}),
        ("rmsprop", "decay=0.99,eps_in_sqrt=false", "RMSprop", {"weight_decay": 0.1}),
    ],
)
def test_five_steps_equal_pytorchs(name, options, theirs, arguments):
    import torch

    decay = arguments.get("weight_decay", 0.0)
    optimizer, _ = optimizer_for(name, "", options=options, weight_decay=decay, decay_on="all")
    values, _ = trained(optimizer, 5)
    parameters = {p: torch.tensor(np.array(v), requires_grad=True) for p, v in VALUES.items()}
    kind = getattr(torch.optim, theirs)(parameters.values(), lr=0.05, **arguments)
    for _ in range(5):
        kind.zero_grad()
        sum(((value - 0.1) ** 2).sum() for value in parameters.values()).backward()
        kind.step()
    for path, value in parameters.items():
        np.testing.assert_allclose(values[path], value.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "bytes_each"),
    [
        ("sgd", "", 4),
        ("sgd", "momentum=None", 0),
        ("sgd", "accumulator_dtype=bfloat16", 2),
        ("lion", "", 4),
        ("adamw", "", 8),
        ("adamw", "mu_dtype=bfloat16", 6),
        ("amsgrad", "", 12),
        ("schedule_free_sgd", "", 4),
        ("schedule_free_adamw", "", 8),
        ("ademamix", "", 12),
    ],
)
def test_bytes_of_state(name, options, bytes_each):
    optimizer, plan = optimizer_for(name, options=options)
    found = state_bytes(optimizer, FOUND, plan.trainable)
    # Beside them a few counters for each group.
    assert bytes_each * PARAMETERS <= found <= bytes_each * PARAMETERS + 2 * 32


def test_adafactor_keeps_rows_and_columns_of_large_matrices():
    optimizer = make("adafactor", {}, lambda step: 0.1, 0.0, None)
    state = jax.eval_shape(
        optimizer.init, {"x.kernel": jax.ShapeDtypeStruct((512, 256), "float32")}
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 512 + 256 + 8


def first_update(optimizer, gradients):
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    return optimizer.update(gradients, optimizer.init(zeros), zeros)[0]


def test_muon_takes_kernels_of_convolutions_as_matrices_and_leaves_the_rest_to_adam():
    gradients = {path: value - 1.2 for path, value in VALUES.items()}
    gradients["depthwise.kernel"] = jnp.ones((3, 3, 1, 8)) * jnp.arange(8)
    found = first_update(make("muon", {}, lambda step: 0.1, 0.0, None), gradients)
    plain = optax.contrib.muon(0.1)
    adam = first_update(optax.adam(0.1, nesterov=True), gradients)
    for path, gradient in gradients.items():
        if path in ("a.bias", "b.table", "head.bias", "depthwise.kernel"):
            expected = adam[path]
        else:
            matrix = gradient.reshape(-1, gradient.shape[-1])
            expected = first_update(plain, {"x": matrix})["x"].reshape(gradient.shape)
            scale = np.sqrt(max(1, matrix.shape[1] / matrix.shape[0]))
            singular = np.linalg.svd(found[path].reshape(matrix.shape), compute_uv=False)
            # Newton-Schulz's five steps bring them near to 1, not to it.
            assert np.all((singular > 0.05 * scale) & (singular < 0.13 * scale)), path
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-7, err_msg=path)


def test_the_trust_ratio_of_lars_spares_vectors():
    gradients = {"x.kernel": jnp.full((2, 2), 2.0), "x.bias": jnp.array([2.0, 4.0])}
    values = jax.tree.map(jnp.ones_like, gradients)
    optimizer = make("lars", {"momentum": 0.0}, lambda step: 0.5, 0.0, None)
    updates, _ = optimizer.update(gradients, optimizer.init(values), values)
    np.testing.assert_allclose(updates["x.bias"], -0.5 * gradients["x.bias"])
    np.testing.assert_allclose(updates["x.kernel"], -0.5 * 0.001 * np.ones((2, 2)), rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_evaluation_uses_the_average_of_a_schedule_free_group_and_no_other(decay):
    optimizer, plan = optimizer_for(
        "schedule_free_sgd", "second.optimizer=sgd", lr=0.1, weight_decay=decay
    )
    values, state = trained(optimizer, 5)
    found = evaluation_values(state, values)
    for path in plan.paths("second"):
        np.testing.assert_array_equal(found[path], values[path])
    for path in plan.paths("first"):
        own = 0.0 if path in VECTORS else decay
        x = y = z = np.asarray(VALUES[path], np.float64)
        for step in range(1, 6):
            z = z - 0.1 * (2 * (y - 0.1) + own * y)
            x = x + (z - x) / step
            y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(values[path], y, rtol=1e-5)
        np.testing.assert_allclose(found[path], x, rtol=1e-5)


def after(groups, **fields):
    optimizer, plan = optimizer_for("adamw", groups, lr=0.1, **fields)
    values, _ = trained(optimizer, 2)
    return plan, values


def test_a_groups_options_are_its_own():
    plan, values = after("first.options=b1=0.5;eps=1e-2", options="b2=0.9")
    _, everywhere = after("first.lr=1", options="b2=0.9,b1=0.5,eps=1e-2")
    _, nowhere = after("first.lr=1", options="b2=0.9")
    for path, value in values.items():
        expected = everywhere if plan.labels[path] == "first" else nowhere
        np.testing.assert_array_equal(value, expected[path])
    assert not np.array_equal(everywhere["a.kernel"], nowhere["a.kernel"])


def test_a_group_with_another_optimizer_takes_its_own_options_and_not_the_configs():
    plan, values = after("first.optimizer=sgd,first.options=momentum=0.5", options="b2=0.9")
    plain, _ = optimizer_for("sgd", "first.lr=1", lr=0.1, options="momentum=0.5")
    expected, _ = trained(plain, 2)
    _, others = after("first.lr=1", options="b2=0.9")
    for path, value in values.items():
        source = expected if plan.labels[path] == "first" else others
        np.testing.assert_array_equal(value, source[path])


def test_options_are_literals_names_and_dtypes():
    read = lambda name, text: parse_options(text, getattr(optax.contrib, name), "here")  # noqa: E731
    assert read("prodigy", "betas=(0.9, 0.99),eps=1e-6") == {"betas": (0.9, 0.99), "eps": 1e-6}
    assert read("muon", "preconditioning=aol,nesterov=false,mu_dtype=bfloat16") == {
        "preconditioning": "aol",
        "nesterov": False,
        "mu_dtype": jnp.bfloat16,
    }


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        (
            "admw",
            {},
            "optimizer.name is 'admw'; did you mean 'adamw'? (there are: acprop, adabelief",
        ),
        ("lookahead", {}, "optimizer.name is 'lookahead'"),
        ("apply_if_finite", {}, "optimizer.name is 'apply_if_finite'"),
        ("scale_by_learning_rate", {}, "optimizer.name is 'scale_by_learning_rate'"),
        ("lbfgs", {}, "optimizer.name is 'lbfgs': it needs the loss"),
        (
            "sgd",
            {"groups": "first.optimizer=polyak_sgd"},
            "tune.groups: first.optimizer is 'polyak_sgd': it",
        ),
        (
            "sgd",
            {"groups": "first.optimizer=adamw,first.options=b2=0.9;momentum=0.5"},
            "tune.groups: first.options: 'momentum=0.5' (takes b1, b2, eps,",
        ),
        ("sgd", {"groups": "first.options=b2=0.9"}, "tune.groups: first.options: 'b2=0.9'"),
        (
            "sgd",
            {"groups": "first.optimizer=muon,first.options=ns_coeffs='none'"},
            "tune.groups: first.options: muon: Unknown ns_coeff",
        ),
        (
            "adam",
            {"groups": "second.weight_decay=0.1"},
            "tune.groups: second.weight_decay is 0.1, but adam has none: adamw has",
        ),
        (
            "sgd",
            {"groups": "first.optimizer=prodigy,first.weight_decay=0.1"},
            "tune.groups: first.weight_decay: prodigy decays all its values or none",
        ),
        (
            "sgd",
            {"groups": "first.optimizer=adam", "weight_decay": 0.1},
            "optimizer.weight_decay is 0.1, but adam has none",
        ),
        ("schedule_free_sgd", {"schedule": "cosine"}, "set optimizer.schedule=constant"),
        ("adamw", {"options": "weight_decay=0.1"}, "(takes b1, b2, eps,"),
        ("adamw", {"options": "mu_dtype=float33"}, "'float33' is not a value for mu_dtype"),
        ("prodigy", {"options": "betas=(0.9"}, "'(0.9' is not a value for betas"),
        ("muon", {"options": "ns_coeffs='none'"}, "optimizer.options: muon: Unknown ns_coeff"),
    ],
)
def test_what_cannot_be_used_is_named(name, fields, says):
    with pytest.raises(InputError) as caught:
        optimizer_for(name, **fields)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_refused_exists_and_is_not_offered():
    assert all(hasattr(optax.contrib, name) or hasattr(optax, name) for name in REFUSED)
    assert not set(names()) & set(REFUSED)
    assert {"adafactor", "adan", "lamb", "lars", "lion", "muon", "nadamw", "prodigy"} <= set(
        names()
    )


def test_options_that_no_group_would_take_are_refused():
    def phases(groups):
        fields = {"tune.method": "rules", "tune.rules": "a=first,frozen=frozen,.*=second"}
        config = build(fields | {"optimizer.options": "momentum=0.5", "tune.groups": groups})
        plans = make_plans(FOUND, ("a", "b", "frozen"), config.tune)
        schedule = make_schedule(config.optimizer, total_steps=10, steps_per_epoch=10)
        return make_phases(plans, config, schedule, None, total_steps=10, steps_per_epoch=10)

    with pytest.raises(InputError, match=r"for sgd, and .* \(adamw, lion\): set GROUP.options"):
        phases("first.optimizer=adamw,second.optimizer=lion")
    assert phases("first.optimizer=adamw") and phases("first.optimizer=sgd,second.optimizer=lion")
