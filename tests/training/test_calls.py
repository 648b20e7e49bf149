"""Several steps in one call, inputs on the device, batches made ahead, stages computed again: the run stays what it is."""

import itertools
import json
import threading
import weakref

import jax
import numpy as np
import pytest
from PIL import Image

import tlx
from tests import levels
from tests.training.test_phases import stop_at
from tests.training.test_step import Fixture
from tlx.data import pipeline
from tlx.errors import InputError
from tlx.features import feeds
from tlx.training import compilation, loop
from tlx.training.calls import ahead, grouped
from tlx.training.loop import Cadence, Interrupted

PICTURES = {"data__image_size": 32, "data__resize": 32, "train__batch_size": 32}


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | {
        "model.name": "resnet20_cifar",
        "data.val_fraction": 0.25,
        "data.augment": "flip",
        "eval.every": "5",
        "checkpoint.every": "0",
        "train.steps": 12,
        "train.log_every": 3,
        "optimizer.lr": 1e-3,
        "train.steps_per_call": 1,
        "data.device_gb": 0.0,
    }


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def trained(workdir):
    return {p: np.asarray(v) for p, v in tlx.models.leaves.values(tlx.load(workdir)).items()}


def assert_bits_equal(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize("method", [{}, {"tune.method": "gradual", "tune.unfreeze_every": "4"}])
def test_calls_of_several_steps_on_data_of_the_device_train_as_single_ones(
    tmp_path, config, method
):
    config |= method
    together = {"train.steps_per_call": 4, "data.device_gb": 1.0}
    summary = tlx.finetune(config | together, tmp_path / "together")
    tlx.finetune(config, tmp_path / "single")
    assert summary["compilations/train_step"] == 1
    found, expected = records(tmp_path / "together"), records(tmp_path / "single")
    assert found.keys() == expected.keys()
    for step, record in found.items():
        assert record.keys() == expected[step].keys()
        for name, value in record.items():
            if name not in ("time", "examples_per_second", "seconds"):
                assert value == pytest.approx(expected[step][name], rel=2e-5), (step, name)


def test_a_run_ends_with_the_same_bits_however_its_steps_are_called(tmp_path, config, monkeypatch):
    fields = config | {"train.steps_per_call": 4}
    tlx.finetune(fields, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_at(patched, 2)
        tlx.finetune(fields, tmp_path / "stopped")
    other = {"train.steps_per_call": 3, "data.device_gb": 1.0, "train.log_every": 1}
    tlx.finetune(config | other, tmp_path / "stopped")
    assert_bits_equal(trained(tmp_path / "stopped"), trained(tmp_path / "whole"))


def test_batches_made_ahead_of_a_broken_picture_are_trained_on_and_it_is_named(
    tmp_path, config, monkeypatch
):
    folder = tmp_path / "pictures"
    for split, count in (("train", 12), ("val", 2)):
        for name in ("dark", "light"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((8, 8, 3), 200 * (name == "light") + number, np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    fields = config | {
        "data.source": "folder",
        "data.root": str(folder),
        "data.val_fraction": 0.0,
        "data.storage": "stream",
        "train.steps_per_call": 4,
    }
    tlx.finetune(fields, tmp_path / "whole")
    broken = folder / "train" / "dark" / "3.png"
    content = broken.read_bytes()
    monkeypatch.setattr(loop, "calls_ahead", lambda: 2)
    broken.write_bytes(content[:40])
    before = threading.active_count()
    with pytest.raises(InputError, match=r"3\.png"):
        tlx.finetune(fields, tmp_path / "run")
    broken.write_bytes(content)
    tlx.finetune(fields, tmp_path / "run")
    assert_bits_equal(trained(tmp_path / "run"), trained(tmp_path / "whole"))
    assert threading.active_count() <= before + 1


def test_inputs_of_a_phase_leave_the_device_before_those_of_the_next_are_placed(
    tmp_path, config, monkeypatch
):
    placed, alive = [], []

    def replicated(mesh):
        alive.append([one() is not None for one in placed])
        return sharding_of(mesh)

    def device_put(array, sharding):
        found = put(array, sharding)
        if isinstance(array, np.ndarray) and len(array) == 1:  # of one view
            placed.append(weakref.ref(found))
        return found

    sharding_of, put = feeds.replicated, jax.device_put
    monkeypatch.setattr(feeds, "replicated", replicated)
    monkeypatch.setattr(feeds.jax, "device_put", device_put)
    method = {"tune.method": "lpft", "data.augment": "", "cache.use": "on", "data.device_gb": 1.0}
    tlx.finetune(config | method | {"cache.dir": str(tmp_path / "c")}, tmp_path / "run")
    assert alive == [[], [False]]


def test_operations_are_counted_where_jax_may_use_no_cpu(monkeypatch):
    def none(**_):
        raise RuntimeError("Unknown backend cpu")

    def product(x):
        return x @ x

    x = np.ones((16, 16), np.float32)
    expected = compilation.operations(product, x)
    assert expected == pytest.approx(2 * 16**3, rel=0.1)
    monkeypatch.setattr(compilation.jax, "local_devices", none)
    assert compilation.operations(product, x) == pytest.approx(expected, rel=0.1)


def test_kept_outputs_are_read_from_the_device_view_by_view(tmp_path, config, capsys):
    config |= {
        "tune.method": "head",
        "cache.use": "on",
        "cache.views": 2,
        "cache.dir": str(tmp_path / "c"),
    }
    tlx.finetune(config, tmp_path / "host")
    tlx.finetune(config | {"data.device_gb": 1.0}, tmp_path / "device")
    assert "data: what training reads, 9.2 KB, is on each device" in capsys.readouterr().out
    assert_bits_equal(trained(tmp_path / "device"), trained(tmp_path / "host"))


def test_what_does_not_fit_on_the_device_stays_on_the_host(tmp_path, config, monkeypatch):
    placed = []
    monkeypatch.setattr(feeds, "replicated", placed.append)
    tlx.finetune(config | {"data.device_gb": 1e-6}, tmp_path / "run")
    assert placed == []


def test_a_batch_of_places_takes_twenty_bytes_of_each_example():
    it = Fixture()
    split = it.setup.open("train")["train"]
    places = next(places_of(split, it.config.train.batch_size))
    assert places["inputs"].dtype == np.int32 and places["inputs"].shape == (8, 2)
    assert sum(rows.nbytes for rows in places.values()) == 8 * (8 + 4 + 4 + 4)


def places_of(split, batch_size):
    return pipeline.training_batches(
        pipeline.Places(split, 1), seed=0, batch_size=batch_size, start=0
    )


def test_a_call_ends_where_something_is_due():
    cadence = Cadence(100, eval_every=7, save_every=0, log_every=10, metric="accuracy")
    counts, step = [], 0
    while step < 25:
        counts.append(cadence.together(step, 25, 4))
        step += counts[-1]
    assert counts == [4, 3, 3, 4, 4, 2, 1, 4]
    assert step == 25


def numbered(*, broken=None):
    for number in itertools.count():
        if number == broken:
            raise InputError("broken")
        yield {"index": np.array([number])}


def test_batches_before_a_broken_one_are_still_called():
    groups = grouped(numbered(broken=5), itertools.repeat(3), 3)
    count, group = next(groups)
    assert count == 3 and group["index"].tolist() == [[0], [1], [2]]
    count, group = next(groups)
    assert count == 2 and group["index"].tolist() == [[3], [4], [4]]
    with pytest.raises(InputError, match="broken"):
        next(groups)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_made_ahead_come_in_order_and_errors_in_their_place(depth):
    assert list(ahead(iter(range(10)), depth)) == list(range(10))
    found = ahead(numbered(broken=2), depth)
    assert [next(found)["index"][0] for _ in range(2)] == [0, 1]
    with pytest.raises(InputError):
        next(found)


def test_no_more_than_depth_is_made_ahead_and_the_thread_ends_with_the_iterator():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    before = threading.active_count()
    found = ahead(items(), 2)
    for _ in range(5):
        next(found)
    found.close()
    assert 5 <= len(made) <= 8
    assert threading.active_count() == before


def test_remat_asks_for_the_stages_again_and_gives_the_same_step():
    plain, again = Fixture(**PICTURES), Fixture(**PICTURES, model__remat=True)
    flops = [it.lowered().cost_analysis()["flops"] for it in (plain, again)]
    assert 1.25 * flops[0] < flops[1] < 1.4 * flops[0]
    (one,), (other,) = plain.train(1), again.train(1)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    for path, value in plain.state.statistics.items():
        np.testing.assert_allclose(again.state.statistics[path], value, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="XLA computes nothing twice on the CPU")
def test_remat_keeps_less_for_the_backward_pass():
    plain, again = Fixture(**PICTURES), Fixture(**PICTURES, model__remat=True)
    memory = [it.lowered().compile().memory_analysis().temp_size_in_bytes for it in (plain, again)]
    assert memory[1] < 0.8 * memory[0]


def test_remat_of_a_frozen_prefix_costs_nothing():
    fields = {"tune__method": "head", "train__batch_size": 16}
    plain, again = Fixture(**fields), Fixture(**fields, model__remat=True)
    flops = [it.lowered().cost_analysis()["flops"] for it in (plain, again)]
    assert flops[1] == pytest.approx(flops[0], rel=1e-3)
