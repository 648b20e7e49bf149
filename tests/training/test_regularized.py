"""Steps and runs with regularizers towards the source: what each adds, what stays, and that a stop changes nothing."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

import tlx
from tests import levels
from tests.training.test_contract import NETWORKS, QUICK, STEPS, fields_of, made_small, seen_in
from tests.training.test_phases import stop_at
from tests.training.test_step import Fixture
from tlx.data.preprocess import normalize
from tlx.errors import InputError
from tlx.models.leaves import values, with_values
from tlx.notes import describe_parts
from tlx.steps import train_step
from tlx.training.checkpoint import Position
from tlx.training.loop import Interrupted
from tlx.training.reference import start_reference
from tlx.training.state import advance, all_values
from tlx.training.step import inference_model
from tlx.tuning.plan import digests
from tlx.weights.files import read_weights, write_safetensors

pytestmark = pytest.mark.slow  # together a minute or two

WEIGHTS = {"model__weights": "glyphs", "data__image_size": 16, "data__resize": 16}
PARTIAL = {"tune__method": "partial", "tune__freeze_stages": 2}


class Regularized(Fixture):
    """A fixture whose steps have its regularizers, and the source's values."""

    def __init__(self, folder, regularizers, **fields):
        super().__init__(**WEIGHTS | fields, tune__regularizers=regularizers)
        (folder / "base").mkdir(parents=True)
        self.reference, self.position = start_reference(
            folder, self.setup.weights, self.tuning.phases, self.tuning.regularizers, self.state,
            self.frozen, Position()
        )  # fmt: skip
        self.steps = [
            train_step(self.setup, self.tuning, phase, self.reference.drawn)
            for phase in self.tuning.phases
        ]
        self.step = self.steps[0]
        self.further = (self.reference.values,) if self.reference.values else ()

    def train(self, steps, first=0):
        metrics = []
        for index, batch in zip(range(first + steps), self.batches(), strict=False):
            if index >= first:
                arguments = (batch, np.int32(index), *self.further)
                self.state, found = self.step(self.state, self.frozen, *arguments)
                metrics.append(jax.device_get(found))
        return metrics

    def flops(self):
        arguments = (self.state, self.frozen, next(self.batches()), np.int32(0), *self.further)
        return self.step.lower(*arguments).compile().cost_analysis()["flops"]

    def images(self, step=0):
        batch = next(itertools.islice(self.batches(), step, None))
        return normalize(batch["inputs"], self.setup.model.meta.preprocess)


def squared(one, other):
    return float(((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2).sum())


def test_the_penalties_are_in_the_loss_and_init_is_not(tmp_path):
    texts = "l2sp:0.3:0.05,init:0.7,delta:0.5,bss:0.01:2"
    it, plain = Regularized(tmp_path, texts, **PARTIAL), Fixture(**WEIGHTS, **PARTIAL)
    first, without = it.train(1)[0], plain.train(1)[0]
    head = squared(it.setup.weights.place(0)["head.kernel"], 0)
    head += squared(it.setup.weights.place(0)["head.bias"], 0)
    np.testing.assert_allclose(first["l2sp"], 0.025 * head, rtol=1e-5)
    assert first["init"] == 0.0
    added = first["l2sp"] + first["delta"] + first["bss"]
    np.testing.assert_allclose(first["loss"], without["loss"] + added, rtol=1e-6)
    assert first["accuracy"] == without["accuracy"]


def test_at_the_first_step_nothing_is_away_from_the_source(tmp_path):
    # With running statistics everywhere both networks compute the same; one that a batch normalises is another function.
    fixed = Regularized(tmp_path / "a", "l2sp:1,init:1,delta:1", tune__batchnorm="frozen")
    first, second = fixed.train(2)
    assert first["l2sp"] == first["init"] == first["delta"] == 0.0
    assert min(second["l2sp"], second["init"], second["delta"]) > 0
    moving = Regularized(tmp_path / "b", "l2sp:1,delta:1").train(1)[0]
    assert moving["l2sp"] == 0.0 and moving["delta"] > 1e-3


def test_l2sp_counts_every_trained_value_of_the_file(tmp_path):
    it = Regularized(tmp_path, "l2sp:0.3:0.05", **PARTIAL)
    it.train(3)
    now = jax.device_get(it.state.trainable)
    own = {path for path in now if not path.startswith("head.")}
    assert {path.rsplit(".", 1)[1] for path in own} == {"kernel", "scale", "bias"}
    assert set(it.reference.values) == own and not it.reference.drawn
    start = it.setup.weights.place(0, it.sharding)
    expected = 0.15 * sum(squared(now[path], start[path]) for path in own)
    expected += 0.025 * sum(squared(now[path], 0) for path in now.keys() - own)
    np.testing.assert_allclose(it.train(1, first=3)[0]["l2sp"], expected, rtol=1e-5)


def test_init_moves_the_values_by_rate_times_strength_times_distance(tmp_path):
    fields = PARTIAL | {"optimizer__options": "momentum=0", "optimizer__schedule": "constant"}
    it = Regularized(tmp_path, "init:0.7", **fields)
    plain = Fixture(**WEIGHTS, **fields, optimizer__lr=0.01)
    first, without = it.train(1)[0], plain.train(1)[0]
    assert first["loss"] == without["loss"]
    one, two = jax.device_get((it.state.trainable, plain.state.trainable))
    for path, value in one.items():  # nothing is away from its start yet
        np.testing.assert_allclose(value, two[path], rtol=1e-6, atol=1e-8)
    batches = plain.batches()
    next(batches)
    it.train(1, first=1)
    plain.state, _ = plain.step(plain.state, plain.frozen, next(batches), np.int32(1))
    after, unpulled = jax.device_get((it.state.trainable, plain.state.trainable))
    for path, start in it.reference.values.items():
        expected = unpulled[path] - 0.01 * 0.7 * (one[path] - np.asarray(start))
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-7)
    assert {"head.kernel", "head.bias"} == it.reference.drawn
    assert set(it.reference.values) == set(it.phase.plan.trainable)


def test_delta_is_the_distance_of_the_trained_stages_outputs(tmp_path):
    it = Regularized(
        tmp_path, "delta:0.5", **PARTIAL, tune__batchnorm="frozen", optimizer__lr=0.005
    )
    it.train(3)
    start = it.setup.weights.place(0, it.sharding)
    model = inference_model(it.setup.model, "float32")
    now = with_values(model, all_values(it.state, it.frozen))
    source = with_values(model, start)
    images = it.images(3)
    total = 0.0
    for stop in (3, 4):  # layer2, layer3
        ours, theirs = (network.run(images, stop=stop) for network in (now, source))
        total += squared(ours, theirs) / np.prod(ours.shape[:-1])
    assert total > 1e-4
    np.testing.assert_allclose(it.train(1, first=3)[0]["delta"], 0.5 * total, rtol=1e-4)


def test_delta_of_a_block_in_the_middle_compares_that_block(tmp_path):
    it = Regularized(tmp_path, "delta:1", tune__method="surgical", tune__train_stages="layer1,head",
                     tune__batchnorm="frozen", optimizer__lr=0.1)  # fmt: skip
    it.train(2)
    assert {path.split(".")[0] for path in it.reference.values} == {"layer1"}
    model = inference_model(it.setup.model, "float32")
    images = it.images(2)
    both = all_values(it.state, it.frozen), it.setup.weights.place(0, it.sharding)
    ours, theirs = (with_values(model, found).run(images, stop=2) for found in both)
    expected = squared(ours, theirs) / np.prod(ours.shape[:-1])
    np.testing.assert_allclose(it.train(1, first=2)[0]["delta"], expected, rtol=1e-4)


def test_delta_costs_a_forward_pass_of_what_is_trained(tmp_path):
    it, plain = Regularized(tmp_path, "delta:1", **PARTIAL), Fixture(**WEIGHTS, **PARTIAL)
    model = inference_model(it.setup.model, "float32")

    def forward(found, carry):
        return with_values(model, found).run(carry, 2)

    found = all_values(it.state, it.frozen)
    carry = with_values(model, found).run(it.images(), stop=2)
    once = jax.jit(forward).lower(found, carry).compile().cost_analysis()["flops"]
    assert 0.9 * once < it.flops() - plain.flops() < 1.1 * once


def test_the_shrinkage_is_that_of_the_features(tmp_path):
    it = Regularized(tmp_path, "bss:0.01:3", **PARTIAL, tune__batchnorm="frozen")
    assert it.further == () and not list((tmp_path / "base").iterdir())
    model = with_values(inference_model(it.setup.model, "float32"), it.values)
    singular = np.linalg.svd(np.asarray(model.features(it.images()), np.float64), compute_uv=False)
    np.testing.assert_allclose(it.train(1)[0]["bss"], 0.01 * (singular[-3:] ** 2).sum(), rtol=1e-4)


def test_in_parts_the_shrinkage_is_that_of_each_part(tmp_path):
    it = Regularized(
        tmp_path, "bss:0.01:2", **PARTIAL, tune__batchnorm="frozen", train__accumulate=2
    )
    model = with_values(inference_model(it.setup.model, "float32"), it.values)
    features = np.asarray(model.features(it.images()), np.float64)
    # A part takes every second example.
    parts = [np.linalg.svd(features[i::2], compute_uv=False)[-2:] for i in range(2)]
    expected = 0.01 * np.mean([(values**2).sum() for values in parts])
    np.testing.assert_allclose(it.train(1)[0]["bss"], expected, rtol=1e-4)
    (line,) = describe_parts(2, it.tuning)
    assert line.startswith("train.accumulate=2: bss shrinks the smallest singular values of")
    assert describe_parts(1, it.tuning) == []


def test_in_parts_the_penalties_are_those_of_the_batch_whatever_its_classes_weigh(tmp_path):
    fields = PARTIAL | {"tune__batchnorm": "frozen", "optimizer__lr": 1e-4}
    fields |= {"train__class_weights": ",".join(str(9 * (i % 2)) for i in range(10))}
    fields |= {"train__batch_size": 4}  # of which often a part, or all, weighs nothing
    texts = "l2sp:0.3:0.05,delta:0.5"
    whole = Regularized(tmp_path / "whole", texts, **fields)
    parts = Regularized(tmp_path / "parts", texts, **fields, train__accumulate=2)
    targets = [np.asarray(b["targets"]) for _, b in zip(range(8), whole.batches(), strict=False)]
    shares = [[part.sum() for part in (t[::2] % 2, t[1::2] % 2)] for t in targets]
    assert any(one != two for one, two in shares)
    for one, two in zip(whole.train(8), parts.train(8), strict=True):
        for name, value in one.items():
            assert np.isfinite(value), name
            np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
    for path, value in whole.state.trainable.items():
        moved = np.abs(np.asarray(value) - whole.before_values[path]).max()
        error = np.abs(np.asarray(parts.state.trainable[path]) - np.asarray(value)).max()
        assert error <= 1e-4 * max(moved, np.abs(value).max()), path


def test_a_batch_of_classes_that_weigh_nothing_has_a_finite_loss(tmp_path):
    weights = ",".join("1" if i == 3 else "0" for i in range(10))
    it = Regularized(tmp_path, "delta:0.5", **PARTIAL, tune__batchnorm="frozen", optimizer__lr=1e-4,
                     train__class_weights=weights, train__batch_size=2, train__accumulate=2)  # fmt: skip
    assert any(3 not in b["targets"] for _, b in zip(range(4), it.batches(), strict=False))
    assert all(np.isfinite(found["loss"]) for found in it.train(4))
    assert all(np.isfinite(value).all() for value in it.state.trainable.values())


def test_squeezenets_features_are_its_maps_average(tmp_path):
    fields = {"model__name": "squeezenet1_1", "model__stem": "small", "data__image_size": 32}
    it = Fixture(**fields, data__resize=32, model__dropout=0.0)
    found = Regularized(tmp_path, "bss:0.01:3", **fields, data__resize=32, model__weights="none")
    model = with_values(inference_model(it.setup.model, "float32"), it.values)
    singular = np.linalg.svd(
        np.asarray(model.features(found.images()), np.float64), compute_uv=False
    )
    np.testing.assert_allclose(
        found.train(1)[0]["bss"], 0.01 * (singular[-3:] ** 2).sum(), rtol=1e-3
    )


@pytest.mark.parametrize("method", ["full", "partial", "bitfit", "norms"])
def test_frozen_values_keep_their_bits_and_a_step_compiles_once(tmp_path, method):
    fields = {"tune__method": method, "optimizer__weight_decay": 0.1, "optimizer__decay_on": "all"}
    fields |= {"tune__freeze_stages": 2} if method == "partial" else {}
    it = Regularized(tmp_path, "l2sp:0.1:0.1,init:0.1,delta:0.1,bss:0.01", **fields)
    kept = digests(it.reference.values, tuple(it.reference.values))
    losses = [found["loss"] for found in it.train(5)]
    assert np.all(np.isfinite(losses))
    assert it.changed() == {*it.phase.plan.trainable, *it.phase.plan.statistics}
    assert it.step._cache_size() == 1
    assert kept == digests(it.reference.values, tuple(it.reference.values))
    assert kept == {path: it.before[path] for path in kept}


@pytest.mark.parametrize("method", ["full", "partial", "lora"])
@pytest.mark.parametrize("network", NETWORKS)
def test_frozen_values_keep_their_bits_in_every_network(tmp_path, monkeypatch, network, method):
    made_small(network, monkeypatch)
    weights = tmp_path / "net.safetensors"
    tlx.save_weights(tlx.create_model(network, num_classes=5), weights)
    texts = (
        "init:0.1,delta:0.1,bss:0.01"
        if method == "lora"
        else "l2sp:0.1,init:0.1,delta:0.1,bss:0.01"
    )
    fields = {**fields_of(network, method), "model__weights": str(weights)}
    it = Regularized(tmp_path, texts, **fields)
    kept = digests(it.reference.values, tuple(it.reference.values))
    (before, _), batches = seen_in(it), it.batches()
    arguments = (it.state, it.frozen, next(it.batches()), np.int32(0), *it.further)
    compiled = it.step.lower(*arguments).compile(compiler_options=QUICK)
    for step in range(STEPS):
        arguments = (it.frozen, next(batches), np.int32(step), *it.further)
        it.state, found = compiled(it.state, *arguments)
    assert np.isfinite(found["loss"])
    assert all(found[text.split(":")[0]] > 0 for text in texts.split(","))
    for after in seen_in(it):  # trained, and averaged
        changed = {path for path in before if before[path] != after[path]}
        assert changed == {*it.phase.plan.trainable, *it.phase.plan.statistics}
    assert kept == digests(it.reference.values, tuple(it.reference.values))
    assert kept == {path: it.before[path] for path in kept}


def test_a_stronger_pull_ends_nearer_to_the_source(tmp_path):
    def away(name, texts):
        it = Regularized(tmp_path / name, texts, **PARTIAL, optimizer__lr=0.05)
        it.train(15)
        start = it.setup.weights.place(0, it.sharding)
        own = [path for path in it.state.trainable if not path.startswith("head.")]
        return sum(squared(it.state.trainable[path], start[path]) for path in own)

    free = away("none", "bss:1e-6")
    assert away("l2sp", "l2sp:1") < 0.8 * free
    assert away("init", "init:1") < 0.8 * free


def test_the_source_outlives_the_phases(tmp_path):
    # What is frozen first and trained later is shared with the frozen values, and must not be given away.
    fields = {"tune__method": "gradual", "tune__unfreeze_every": "2", "tune__freeze_stages": 2}
    it = Regularized(tmp_path, "l2sp:0.1,init:0.1,delta:0.1,bss:0.01", **fields)
    stored = read_weights(tmp_path / "base" / "source.safetensors")
    assert set(stored) == {"head.kernel", "head.bias"}  # the rest is with the frozen values
    kept = digests(it.reference.values, tuple(it.reference.values))
    assert {path.split(".")[0] for path in kept} == {"layer2", "layer3", "head"}
    seen = []
    for index, phase in enumerate(it.tuning.phases):
        if index:
            it.state, it.frozen = advance(it.state, it.frozen, phase, 2 * index, it.sharding)
        it.step = it.steps[index]
        seen += it.train(2, first=2 * index)
    assert [found["l2sp"] > 0 for found in seen] == [False] * 3 + [True] * 3
    assert [found["delta"] > 0 for found in seen] == [False] * 2 + [True] * 4
    assert kept == digests(it.reference.values, tuple(it.reference.values))
    assert kept == {path: it.before[path] for path in kept}


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | {
        "train.steps": 6,
        "train.log_every": 1,
        "optimizer.lr": 0.02,
    }


ALL = "l2sp:0.1:0.01,init:0.2,delta:0.3,bss:0.01:2"
QUIET = {"optimizer.name": "adamw", "optimizer.lr": 1e-3}
PHASED = {
    "full": QUIET,
    "gradual": {"tune.unfreeze_every": "2", "tune.freeze_stages": 2},
    "lpft": {"tune.head_first": "50%", "optimizer.clip_norm": 1.0},
    "lora": QUIET | {"tune.rank": 2},
    "dora": QUIET | {"tune.rank": 2},
    "ia3": {},
    "bottleneck": QUIET | {"tune.rank": 2},
    "bitfit": {},
}


@pytest.mark.parametrize(
    "method",
    ["gradual", "lora"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in PHASED
        if name not in ("gradual", "lora")
    ],
)
def test_a_run_ends_with_the_same_bits_wherever_it_was_stopped(
    tmp_path, config, monkeypatch, method
):
    adapters = method in ("lora", "dora", "ia3", "bottleneck")
    texts = ALL.split(",", 1)[1] if adapters else ALL
    fields = config | PHASED[method] | {"tune.method": method, "tune.regularizers": texts}
    summary = tlx.finetune(fields, tmp_path / "whole")
    assert summary["compilations/train_step"] == 1
    done = 0
    for stop in (3, 5):
        with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"step {stop} of"):
            stop_at(patched, stop - done)
            tlx.finetune(fields, tmp_path / "stopped")
        done = stop
    again = tlx.finetune(fields, tmp_path / "stopped")
    assert again["test/loss"] == summary["test/loss"]
    one, two = (values(tlx.load(tmp_path / name)) for name in ("whole", "stopped"))
    assert digests(one, tuple(one)) == digests(two, tuple(two))
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    names = [f"train/{text.split(':')[0]}" for text in texts.split(",")]
    curves = [
        [[line[name] for name in ("train/loss", *names)] for line in found if "train/loss" in line]
        for found in lines
    ]
    assert len(curves[0]) == 6 and curves[0] == curves[1]
    assert all(last > 0 for last in curves[0][-1])


@pytest.mark.parametrize("name", ["l2sp", "init", "delta", "bss"])
def test_each_alone_is_a_run(tmp_path, config, name):
    fields = config | {"tune.method": "partial", "tune.freeze_stages": 3, "train.steps": 2}
    tlx.finetune(fields | {"tune.regularizers": f"{name}:0.01"}, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1])[f"train/{name}"] > 0
    kept = tmp_path / "run" / "base" / "source.safetensors"
    if name == "bss":
        assert not kept.exists()
        return
    arrays = read_weights(kept)
    start = values(tlx.create_model("resnet20_cifar.glyphs"))
    wanted = {"l2sp": {"layer3"}, "init": {"layer3", "head"}, "delta": {"layer3"}}[name]
    assert {path.split(".")[0] for path in arrays} == wanted
    assert any(path.endswith(".mean") for path in arrays) == (name == "delta")
    for path, array in arrays.items():
        if not path.startswith("head."):
            np.testing.assert_array_equal(array, start[path])


def test_changed_source_values_are_refused(tmp_path, config):
    fields = config | {"tune.regularizers": "l2sp:0.1", "checkpoint.every": "3"}
    tlx.finetune(fields, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    kept = tmp_path / "run" / "base" / "source.safetensors"
    arrays = {path: np.array(array) for path, array in read_weights(kept).items()}
    write_safetensors(arrays | {"stem.conv.kernel": 2 * arrays["stem.conv.kernel"]}, kept, {})
    says = "does not hold the source's values that the checkpoint was trained with"
    with pytest.raises(InputError, match=says):
        tlx.finetune(fields, tmp_path / "run")
    kept.unlink()
    with pytest.raises(InputError, match=says):
        tlx.finetune(fields, tmp_path / "run")
    write_safetensors(arrays, kept, {})
    assert tlx.finetune(fields, tmp_path / "run")["steps"] == 6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tune.regularizers": "l2pp:1"}, "'l2pp'; did you mean 'l2sp'?"),
        ({"tune.regularizers": "delta"}, "expected delta:STRENGTH"),
        ({"tune.regularizers": "l2sp:1", "model.name": "resnet20_cifar"}, "model.weights is none"),
        ({"tune.regularizers": "init:1", "model.name": "resnet20_cifar"}, "model.weights is none"),
        ({"tune.regularizers": "delta:1", "model.name": "resnet20_cifar"}, "model.weights is none"),
        ({"tune.regularizers": "l2sp:1", "tune.method": "lora"}, "tune.method=lora leaves as they"),
        ({"tune.regularizers": "l2sp:1", "tune.method": "head"}, "tune.method=head trains none"),
        ({"tune.regularizers": "delta:1", "tune.method": "head"}, "tune.method=head trains none"),
        ({"tune.regularizers": "bss:1", "tune.method": "head"}, "tune.method=head trains none"),
        ({"tune.regularizers": "bss:1:9"}, "8 examples of 64 features have 8 singular values"),
        (
            {"tune.regularizers": "init:1", "optimizer.name": "schedule_free_sgd",
             "optimizer.schedule": "constant"},
            "use l2sp, or another optimizer",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_before_anything_is_written(tmp_path, config, fields, says):
    with pytest.raises(InputError) as caught:
        tlx.finetune(config | fields, tmp_path / "run")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_shrinkage_needs_no_weights(tmp_path, config):
    fields = {"model.name": "resnet20_cifar", "tune.regularizers": "bss:0.01", "train.steps": 1}
    assert tlx.finetune(config | fields, tmp_path / "run")["steps"] == 1
