import jax
import numpy as np
import pytest

from tlx import config as config_lib
from tlx import setup as setup_lib
from tlx.data import pipeline
from tlx.models.leaves import leaves
from tlx.notes import describe_parts
from tlx.steps import train_step
from tlx.training import step
from tlx.training.mesh import place_batch, replicated
from tlx.training.state import all_values, create_state
from tlx.tuning.plan import digests

SMALL = {
    "model.name": "resnet20_cifar",
    "data.image_size": 8,
    "data.resize": 8,
    "data.test_fraction": 0.5,
    "train.batch_size": 8,
    "train.steps": 20,
}


class Fixture:
    """A setup, its state and its compiled step."""

    def __init__(self, **fields):
        self.config = config_lib.build(
            SMALL, {name.replace("__", "."): v for name, v in fields.items()}
        )
        self.setup, _ = setup_lib.prepare(self.config)
        self.tuning = setup_lib.prepare_tuning(self.setup)
        self.phase = self.tuning.phases[0]
        self.sharding = sharding = replicated(self.setup.mesh)
        self.values = self.setup.weights.place(0, sharding)
        self.before_values = {path: np.array(value) for path, value in self.values.items()}
        self.steps = [train_step(self.setup, self.tuning, phase) for phase in self.tuning.phases]
        self.step = self.steps[0]
        self.state, self.frozen = create_state(
            self.values, self.phase.plan, self.phase.optimizer, sharding
        )
        self.before = digests(self.values, tuple(self.values))

    def batches(self):
        split = self.setup.open("train")["train"]
        size = self.config.train.batch_size
        for batch in pipeline.training_batches(split, seed=0, batch_size=size, start=0):
            yield place_batch(batch, self.setup.mesh)

    def train(self, steps):
        metrics = []
        for index, batch in zip(range(steps), self.batches(), strict=False):
            self.state, found = self.step(self.state, self.frozen, batch, np.int32(index))
            metrics.append(jax.device_get(found))
        return metrics

    def changed(self):
        after = digests(all_values(self.state, self.frozen), tuple(self.before))
        return {path for path in self.before if before_differs(self.before, after, path)}

    def lowered(self):
        return self.step.lower(self.state, self.frozen, next(self.batches()), np.int32(0))

    def flops(self):
        return self.lowered().compile().cost_analysis()["flops"]

    def forward_flops(self):
        arguments = (all_values(self.state, self.frozen), next(self.batches()))
        return self.setup.eval_step.lower(*arguments).compile().cost_analysis()["flops"]


def before_differs(before, after, path):
    return before[path] != after[path]


REGIME = {
    "optimizer__weight_decay": 0.1,
    "optimizer__decay_on": "all",
    "optimizer__clip_norm": 1.0,
    "data__augment": "pad_crop:1,flip",
}


@pytest.mark.parametrize(
    "tune",
    [
        {"tune__method": "full"},
        {"tune__method": "head"},
        {"tune__method": "partial", "tune__freeze_stages": 3},
        {"tune__method": "rules", "tune__rules": "layer2=middle,head=head,.*=frozen"},
        {"tune__method": "head", "optimizer__name": "adamw"},
    ],
)
def test_exactly_the_planned_leaves_change_in_20_steps(tune):
    it = Fixture(**REGIME, **tune)
    it.train(20)
    plan = it.phase.plan
    assert it.changed() == {*plan.trainable, *plan.statistics}
    assert not it.changed() & set(plan.frozen)


def test_head_only_costs_the_forward_pass():
    it = Fixture(tune__method="head")
    forward = it.forward_flops()
    assert 0.98 * forward <= it.flops() <= 1.02 * forward
    assert Fixture(tune__method="full").flops() > 2.5 * forward


def test_each_step_compiles_once_and_the_loss_falls():
    it = Fixture(optimizer__lr=0.05, train__batch_size=32)
    losses = [metrics["loss"] for metrics in it.train(15)]
    assert it.step._cache_size() == 1
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_a_batch_in_parts_moves_batch_statistics_with_each_of_them():
    whole, parts = Fixture(), Fixture(train__accumulate=2)
    whole.train(1), parts.train(1)
    assert parts.changed() == whole.changed()
    moved = "stem.bn.mean"
    assert not np.allclose(whole.state.statistics[moved], parts.state.statistics[moved], rtol=1e-3)
    (line,) = describe_parts(2, parts.tuning)
    assert line.startswith("train.accumulate=2: BatchNorm uses the statistics of each part")
    assert describe_parts(1, whole.tuning) == []
    frozen = setup_lib.prepare_tuning(
        setup_lib.prepare(config_lib.build(SMALL, {"tune.batchnorm": "frozen"}))[0]
    )
    assert describe_parts(2, frozen) == []


@pytest.mark.parametrize(
    ("regularizers", "built"), [("", 0), ("l2sp:1,init:1,bss:1", 0), ("bss:1,delta:1", 1)]
)
def test_the_source_network_is_built_where_its_outputs_are_needed(monkeypatch, regularizers, built):
    config = config_lib.build(SMALL, {"model.weights": "glyphs", "tune.regularizers": regularizers})
    setup, _ = setup_lib.prepare(config)
    tuning = setup_lib.prepare_tuning(setup)
    models = []
    monkeypatch.setattr(step, "inference_model", lambda *args: models.append(args))
    train_step(setup, tuning, tuning.phases[0])
    assert len(models) == built


def test_randomness_follows_seed_and_step_alone():
    one, two = Fixture(data__augment="flip"), Fixture(data__augment="flip")
    first = [m["loss"] for m in one.train(3)]
    again = [m["loss"] for m in two.train(3)]
    assert first == again


def test_bfloat16_computes_in_it_and_keeps_the_state_in_float32():
    exact, rough = (
        Fixture(train__batch_size=32),
        Fixture(train__batch_size=32, model__dtype="bfloat16"),
    )
    assert rough.setup.dtype == "bfloat16"
    one, two = exact.train(2)[0]["loss"], rough.train(2)[0]["loss"]
    assert one != two
    np.testing.assert_allclose(two, one, rtol=0.02)
    dtypes = {
        leaf.dtype for leaf in jax.tree.leaves((rough.state.trainable, rough.state.statistics))
    }
    assert dtypes == {np.dtype(np.float32)}


def test_statistics_are_no_parameters():
    found = leaves(Fixture(tune__method="head").setup.model)
    assert sum(leaf.is_parameter for leaf in found.values()) == 59
    assert sum(not leaf.is_parameter for leaf in found.values()) == 38


@pytest.mark.parity
def test_three_full_steps_equal_pytorchs():
    import torch

    from tests.models.originals.resnet import cifar_resnet
    from tlx.data.preprocess import normalize
    from tlx.models import family

    it = Fixture(train__batch_size=16, optimizer__lr=0.01, optimizer__weight_decay=1e-3, train__label_smoothing=0.1,
                 optimizer__decay_on="all", optimizer__schedule="cosine")  # fmt: skip
    (table,) = family("resnet20_cifar").key_tables("resnet20_cifar")
    original = cifar_resnet(20).train()
    arrays = table.to_source({path: np.asarray(value) for path, value in it.values.items()})
    original.load_state_dict(
        {k: torch.tensor(np.ascontiguousarray(v)) for k, v in arrays.items()}, strict=False
    )
    optimizer = torch.optim.SGD(original.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    batches = pipeline.training_batches(
        it.setup.open("train")["train"], seed=0, batch_size=16, start=0
    )
    theirs = []
    for _, batch in zip(range(3), batches, strict=False):
        x = normalize(batch["inputs"], it.setup.model.meta.preprocess).transpose(0, 3, 1, 2)
        loss = criterion(
            original(torch.from_numpy(x.copy())), torch.from_numpy(batch["targets"]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        theirs.append(loss.item())
    ours = [float(metrics["loss"]) for metrics in it.train(3)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    trained = table.to_source(
        {k: np.asarray(v) for k, v in all_values(it.state, it.frozen).items()}, carried={}
    )
    expected = original.state_dict()
    for name, value in trained.items():
        theirs = expected[name].numpy()
        np.testing.assert_allclose(
            value, theirs, atol=2e-5 * max(np.abs(theirs).max(), 1e-3), err_msg=name
        )


def test_mixing_in_a_step_is_that_of_its_key():
    fields = {"train__mixup": 0.5, "train__cutmix": 1.0, "train__label_smoothing": 0.1}
    one, two, plain = Fixture(**fields), Fixture(**fields), Fixture()
    first, again = ([m["loss"] for m in it.train(3)] for it in (one, two))
    assert first == again
    assert one.step._cache_size() == 1
    assert first[0] != plain.train(1)[0]["loss"]
