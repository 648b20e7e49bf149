"""The freeze contract, for every method and three kinds of network: what is frozen keeps its bits, the rest moves."""

import jax
import numpy as np
import pytest

from tests.training.test_step import Fixture
from tlx.config import METHODS
from tlx.models import resnet, vgg, vit
from tlx.training.checkpoint import Checkpoints, Position
from tlx.training.state import advance, all_values
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
    module, preset = NETWORKS[request.param]
    monkeypatch.setitem(module.PRESETS, request.param, preset)
    monkeypatch.setattr(vgg, "WIDTHS", (8, 8, 16, 16, 16))
    return request.param


def fixture(network, method, **fields):
    options = OPTIONS.get(method, lambda stage: {})(STAGE[network])
    return Fixture(**(REGIME | options | fields), model__name=network, tune__method=method)


def train(it):
    """Trains through all phases; returns the values at the start of each, and at the end."""
    batches, seen, index = it.batches(), [], 0
    for step in range(STEPS):
        if index < len(it.tuning.phases) and it.tuning.phases[index].start == step:
            if index:
                it.state, it.frozen = advance(
                    it.state, it.frozen, it.tuning.phases[index], step, it.sharding
                )
            seen.append(digests(all_values(it.state, it.frozen), tuple(it.values)))
            arguments = (it.state, it.frozen, next(it.batches()), np.int32(0))
            compiled = it.steps[index].lower(*arguments).compile(compiler_options=QUICK)
            index += 1
        it.state, _ = compiled(it.state, it.frozen, next(batches), np.int32(step))
    seen.append(digests(all_values(it.state, it.frozen), tuple(it.values)))
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "network",
    [
        "resnet18",
        *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name != "resnet18"),
    ],
    indirect=True,
)
def test_exactly_the_planned_leaves_change_in_every_phase(network, method):
    it = fixture(network, method)
    seen = train(it)
    assert seen[0] == it.before
    assert len(seen) == len(it.tuning.phases) + 1
    for phase, before, after in zip(it.tuning.phases, seen, seen[1:], strict=False):
        changed = {path for path in before if before[path] != after[path]}
        assert changed == {*phase.plan.trainable, *phase.plan.statistics}
    if method not in ("full", "lpft"):
        assert it.tuning.phases[-1].plan.frozen


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_holds_trainable_leaves_alone(method, monkeypatch):
    monkeypatch.setitem(resnet.PRESETS, "resnet18", NETWORKS["resnet18"][1])
    it = fixture("resnet18", method, optimizer__name="adamw")
    for phase in it.tuning.phases:
        state = jax.eval_shape(
            phase.optimizer.init, {p: it.values[p] for p in phase.plan.trainable}
        )
        held = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        shapes = [it.values[path].shape for path in phase.plan.trainable]
        assert sorted(leaf.shape for leaf in held) == sorted(shapes * 2)  # two moments of each


@pytest.mark.slow
def test_a_step_of_resnet18_costs_what_it_differentiates():
    sizes = {"data__image_size": 128, "data__resize": 128, "train__batch_size": 16}
    sizes |= {"model__name": "resnet18", "model__dtype": "float32", "train__steps": 1}

    def cost(**tune):
        it = Fixture(**sizes, **tune)
        arguments = (it.state, it.frozen, next(it.batches()), np.int32(0))
        return analysed(it.step.lower(*arguments)), it

    (head, head_memory), it = cost(tune__method="head")
    values = all_values(it.state, it.frozen)
    forward, forward_memory = analysed(it.setup.eval_step.lower(values, next(it.batches())))
    (last, last_memory), part = cost(tune__method="partial", tune__freeze_stages=4)
    (full, full_memory), whole = cost(tune__method="full")
    assert head <= 1.02 * forward
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
