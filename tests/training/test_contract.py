"""The freeze contract, for every method and three kinds of network: what is frozen keeps its bits, the rest moves."""

import dataclasses

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import tlx
from tests import levels
from tests.training.test_step import SMALL, Fixture
from tlx import config as config_lib
from tlx.config import METHODS
from tlx.data.preprocess import normalize
from tlx.models import resnet, vgg, vit
from tlx.models.leaves import values, with_values
from tlx.setup import prepare, prepare_tuning
from tlx.steps import train_step
from tlx.tasks import LossOptions, get_task
from tlx.training.checkpoint import Checkpoints, Position
from tlx.training.state import advance, all_values, create_state, inference_values
from tlx.training.step import training_model
from tlx.tuning.plan import digests

STEPS = 20
QUICK = {"xla_backend_optimization_level": 0}  # most of the time would go into compiling

# Networks of the zoo, made small.
NETWORKS = {
    "resnet18": (resnet, resnet.ResNetPreset((1, 1, 1), (8, 16, 16))),
    "vit_tiny_patch16_224": (vit, vit.ViTPreset(64, 2, 8)),
    "vgg11_bn": (vgg, vgg.VGGPreset((1,) * 5, batchnorm=True, hidden=16)),
}

# Everything that could touch a frozen value.
REGIME = {
    "optimizer__weight_decay": 0.1,
    "optimizer__decay_on": "all",
    "optimizer__clip_norm": 1.0,
    "optimizer__options": "momentum=0.9",
    "optimizer__average": "ema:0.9",
    "optimizer__schedule": "constant",
    "data__augment": "pad_crop:1,flip",
    "data__image_size": 32,
    "data__resize": 32,
    "train__batch_size": 4,
    "train__steps": STEPS,
}

# What a method needs beside its name, by the name of the second stage.
OPTIONS = {
    "partial": lambda stage: {"tune__freeze_stages": 2},
    "surgical": lambda stage: {"tune__train_stages": f"{stage},head"},
    "surgical without head": lambda stage: {"tune__train_stages": stage},
    "gradual": lambda stage: {"tune__unfreeze_every": "6", "tune__freeze_stages": 2},
    "lpft": lambda stage: {"tune__head_first": "50%", "tune__layer_decay": 0.8},
    "rules": lambda stage: {"tune__rules": f"{stage}=middle,head=head,.*=frozen"},
    "lora": lambda stage: {"tune__rank": 2},
    "dora": lambda stage: {"tune__rank": 2},
    "bottleneck": lambda stage: {"tune__rank": 2},
}
STAGE = {"resnet18": "layer1", "vit_tiny_patch16_224": "block0", "vgg11_bn": "block2"}


@pytest.fixture
def network(request, monkeypatch):
    return made_small(request.param, monkeypatch)


def made_small(name, monkeypatch):
    module, preset = NETWORKS[name]
    monkeypatch.setitem(module.PRESETS, name, preset)
    monkeypatch.setattr(vgg, "WIDTHS", (8, 8, 16, 16, 16))
    return name


def fields_of(network, method, **fields):
    options = OPTIONS.get(method, lambda stage: {})(STAGE[network])
    names = {"model__name": network, "tune__method": method.split()[0]}
    return REGIME | options | fields | names


def fixture(network, method, **fields):
    return Fixture(**fields_of(network, method, **fields))


def seen_in(it):
    """The digests of the values that training goes on from, and of those that evaluation uses."""
    return tuple(
        digests(those(it.state, it.frozen), tuple(it.values))
        for those in (all_values, inference_values)
    )


def train(it):
    """Trains through all phases; returns what was seen at the start of each, and at the end."""
    batches, seen, index = it.batches(), [], 0
    for step in range(STEPS):
        if index < len(it.tuning.phases) and it.tuning.phases[index].start == step:
            if index:
                it.state, it.frozen = advance(
                    it.state, it.frozen, it.tuning.phases[index], step, it.sharding
                )
            seen.append(seen_in(it))
            arguments = (it.state, it.frozen, next(it.batches()), np.int32(0))
            compiled = it.steps[index].lower(*arguments).compile(compiler_options=QUICK)
            index += 1
        it.state, _ = compiled(it.state, it.frozen, next(batches), np.int32(step))
    seen.append(seen_in(it))
    return seen


# Of the larger networks some methods are quick enough to be tried each time.
EVERY_TIME = {("vit_tiny_patch16_224", "lora"), ("vgg11_bn", "partial")}


def case(network, method):
    quick = network == "resnet18" or (network, method) in EVERY_TIME
    return pytest.param(network, method, marks=[] if quick else pytest.mark.slow)


ALL_METHODS = (*METHODS, "surgical without head")
CASES = [case(network, method) for network in NETWORKS for method in ALL_METHODS]


@pytest.mark.parametrize(("network", "method"), CASES, indirect=["network"])
def test_exactly_the_planned_leaves_change_in_every_phase(network, method):
    it = fixture(network, method)
    seen = train(it)
    assert seen[0] == (it.before, it.before)
    assert len(seen) == len(it.tuning.phases) + 1
    for phase, before, after in zip(it.tuning.phases, seen, seen[1:], strict=False):
        for old, new in zip(before, after, strict=True):
            changed = {path for path in old if old[path] != new[path]}
            assert changed == {*phase.plan.trainable, *phase.plan.statistics}
    trained, served = seen[-1]
    averaged = {path for path in trained if trained[path] != served[path]}
    last = it.tuning.phases[-1].plan
    assert averaged == {*last.trainable, *last.statistics}
    if method not in ("full", "lpft"):
        assert last.frozen


# Arrays of a parameter's shape that an optimizer keeps of each, and its counts for each group.
KEPT = {"sgd": (1, 1), "adamw": (2, 2)}


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_the_optimizer_holds_trainable_leaves_alone(network, method):
    for name, (arrays, counts) in KEPT.items():
        for average in ("", "ema:0.9"):
            options = {"optimizer__name": name, "optimizer__average": average}
            options["optimizer__options"] = ""
            fields = fields_of(network, method, **options)
            found = {field.replace("__", "."): value for field, value in fields.items()}
            setup, _ = prepare(config_lib.build(SMALL, found))
            for phase in prepare_tuning(setup).phases:
                own = {
                    path: jax.ShapeDtypeStruct(setup.leaves[path].shape, np.float32)
                    for path in phase.plan.trainable
                }
                held = jax.tree.leaves(jax.eval_shape(phase.optimizer.init, own))
                times = arrays + bool(average)
                assert sorted(x.shape for x in held if x.ndim) == sorted(
                    [x.shape for x in own.values()] * times
                )
                trained = sum(4 * x.size for x in own.values())
                number = counts * len(phase.plan.groups) + bool(average)
                assert nbytes(held) == times * trained + 4 * number


def nbytes(arrays):
    return sum(x.size * x.dtype.itemsize for x in arrays)


@pytest.mark.parametrize(
    ("network", "method"),
    [
        case(network, method)
        for network in ("resnet18", "vit_tiny_patch16_224")
        for method in ("head", "partial", "lora")
    ],
    indirect=["network"],
)
def test_the_gradient_norm_is_that_of_the_trainable_leaves(network, method):
    plain = {"optimizer__average": "", "optimizer__options": "momentum=0", "optimizer__lr": 1.0}
    plain |= {"optimizer__weight_decay": 0.0, "data__augment": ""}
    it = moved(fixture(network, method, **plain))
    norm = float(optax.tree.norm(gradient(it)))
    for clip in (0.5 * norm, 2.0 * norm):
        it = moved(fixture(network, method, **plain, optimizer__clip_norm=clip))
        before = jax.device_get(it.state.trainable)
        arguments = (it.state, it.frozen, next(it.batches()), np.int32(0))
        compiled = it.step.lower(*arguments).compile(compiler_options=QUICK)
        state, metrics = compiled(*arguments)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        update = {path: value - before[path] for path, value in state.trainable.items()}
        np.testing.assert_allclose(optax.tree.norm(update), min(norm, clip), rtol=1e-5)


def moved(it):
    """The adapters away from where they begin, where some of their gradients are zero."""
    rng = np.random.default_rng(0)
    for path, value in it.state.trainable.items():
        if ".adapter." in path:
            draw = 0.1 * rng.standard_normal(value.shape).astype(np.float32)
            it.state.trainable[path] = value + draw
    return it


def gradient(it):
    """The first batch's gradient by the trainable leaves; all other values are closed over."""
    batch, model = next(it.batches()), training_model(it.setup.model, it.phase.plan, "float32")
    images = normalize(batch["inputs"], it.setup.model.meta.preprocess)
    fixed = {**it.frozen, **it.state.statistics}

    def loss(trainable):
        network = with_values(model, {**fixed, **trainable})
        logits, _ = network.training_outputs(images, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    own = it.state.trainable
    return jax.jit(jax.grad(loss)).lower(own).compile(compiler_options=QUICK)(own)


WEIGHTS = ",".join(str(1 + i % 3) for i in range(10))
LOSSES = {
    "cross entropy": {},
    "mixed": {"data__augment": "pad_crop:1,flip", "train__mixup": 0.3, "optimizer__clip_norm": 1.0},
    "weights": {"train__class_weights": WEIGHTS, "train__label_smoothing": 0.1},
    "focal": {"train__loss": "focal:2", "train__class_weights": WEIGHTS},
    "bce": {"train__loss": "bce"},
    "multilabel": {"train__loss": "bce"},
}


@pytest.mark.parametrize(
    ("network", "loss"),
    [
        pytest.param(
            network,
            loss,
            marks=[]
            if (network[0], loss) in {("r", "mixed"), ("v", "focal")}
            else pytest.mark.slow,
        )
        for network in ("resnet18", "vit_tiny_patch16_224")
        for loss in LOSSES
    ],
    indirect=["network"],
)
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(network, loss):
    # The momentum of the first step is the gradient itself, clipped where it is. Errors are relative to the largest
    # element of the leaf's gradient; to that of the kernel for the bias of keys, which softmax does not see: its
    # gradient is rounding alone. The networks compute in float64 (their losses do not): in float32 rounding makes up
    # to 3e-6 of what a ViT's queries and keys have, and just over 1e-6 of a ResNet's stem.
    plain = {"train__batch_size": 24, "tune__batchnorm": "frozen", "optimizer__average": ""}
    plain |= {"optimizer__weight_decay": 0.0, "optimizer__clip_norm": 0.0, "data__augment": ""}
    found = []
    for parts in (1, 3):
        it = fixture(network, "full", **plain | LOSSES[loss], train__accumulate=parts)
        batch = jax.device_get(next(it.batches()))
        if loss == "multilabel":
            it.setup = dataclasses.replace(it.setup, task=get_task("multilabel"))
            options = LossOptions(class_weights=tuple(map(float, WEIGHTS.split(","))))
            it.tuning = dataclasses.replace(it.tuning, loss_options=options)
            labels = np.random.default_rng(0).random((24, 10)) < 0.3
            batch["targets"] = labels.astype(np.float32)
        with jax.enable_x64(True):
            it.setup = dataclasses.replace(it.setup, dtype="float64")
            start = {path: value.astype("float64") for path, value in it.before_values.items()}
            start = jax.device_put(start, it.sharding)
            state, frozen = create_state(start, it.phase.plan, it.phase.optimizer, it.sharding)
            arguments = (state, frozen, batch, np.int32(0))
            step = train_step(it.setup, it.tuning, it.phase)
            compiled = step.lower(*arguments).compile(compiler_options=QUICK)
            found.append(jax.device_get(compiled(*arguments)))
    (one, metrics), (two, others) = found
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    whole, summed = (momentum(state) for state in (one, two))
    assert whole.keys() == set(one.trainable)
    for path, value in whole.items():
        scale = np.abs(whole[path.replace("key.bias", "key.kernel")]).max()
        assert np.abs(summed[path] - value).max() <= 1e-6 * scale, path


def momentum(state):
    """The gradients that sgd has summed up, by path."""
    named = jax.tree.leaves_with_path(state.optimizer)
    return {path[-1].key: leaf for path, leaf in named if leaf.ndim}


@pytest.mark.parametrize("network", ["resnet18", "vit_tiny_patch16_224"], indirect=True)
def test_a_checkpoint_of_lora_holds_the_adapters_and_the_head(tmp_path, network):
    fields = levels.fields(tmp_path) | {"model.name": network, "train.steps": 1}
    fields |= {"data.image_size": 32, "data.resize": 32, "tune.method": "lora", "tune.rank": 2}
    tlx.finetune(fields, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "1"
    with ocp.StandardCheckpointer() as reader:
        held = {name: reader.restore(folder / name) for name in ("values", "optimizer")}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {*held, "meta"}
    model = tlx.load(tmp_path / "run")
    own = {p: x for p, x in values(model).items() if ".adapter." in p or p.startswith("head.")}
    assert len(own) > 10 and {p.rsplit(".", 1)[1] for p in own} == {"a", "b", "kernel", "bias"}
    assert {p: x.shape for p, x in held["values"].items()} == {p: x.shape for p, x in own.items()}
    trained = nbytes(own.values())
    assert nbytes(held["values"].values()) == trained
    assert nbytes(held["optimizer"].values()) == trained + 2 * 4  # momentum; two groups' steps
    assert trained < 0.2 * nbytes(values(model).values())


@pytest.mark.slow
def test_a_step_of_resnet18_costs_what_it_differentiates():
    sizes = {"data__image_size": 128, "data__resize": 128, "train__batch_size": 16}
    sizes |= {"model__name": "resnet18", "model__dtype": "float32", "train__steps": 1}

    def cost(**tune):
        it = Fixture(**sizes, **tune)
        arguments = (it.state, it.frozen, next(it.batches()), np.int32(0))
        return analysed(it.step.lower(*arguments)), it

    (head, head_memory), it = cost(tune__method="head")
    whole_network = all_values(it.state, it.frozen)
    forward, forward_memory = analysed(it.setup.eval_step.lower(whole_network, next(it.batches())))
    (last, last_memory), part = cost(tune__method="partial", tune__freeze_stages=4)
    (full, full_memory), whole = cost(tune__method="full")
    assert 0.98 * forward <= head <= 1.02 * forward
    assert last <= 1.36 * forward
    assert full > 2.5 * forward
    # Beside the gradients themselves, nothing of the frozen prefix is kept for the backward pass.
    last_memory -= gradient_bytes(part)
    full_memory -= gradient_bytes(whole)
    assert head_memory <= 1.1 * forward_memory
    assert last_memory <= 1.1 * forward_memory < 0.5 * full_memory


def gradient_bytes(it):
    return sum(it.values[path].nbytes for path in it.phase.plan.trainable)


def analysed(lowered):
    """The FLOPs and the bytes of temporary memory of a compiled step."""
    compiled = lowered.compile(compiler_options=QUICK)
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_a_head_of_resnet50_leaves_small_checkpoints(tmp_path):
    fields = {
        "model.name": "resnet50",
        "data.image_size": 32,
        "data.resize": 32,
        "tune.method": "head",
        "train.steps": 1,
        "train.batch_size": 4,
        "data.labels_per_class": 10,
        "data.test_fraction": 0.0,
    }
    it = Fixture(**{name.replace(".", "__"): value for name, value in fields.items()})
    held = [leaf.nbytes for leaf in jax.tree.leaves(it.state.optimizer)]
    assert 0 < sum(held) < 100_000
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(it.state, Position(step=1))
    sizes = [
        path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()
    ]
    assert 80_000 < sum(sizes) < 1_000_000
