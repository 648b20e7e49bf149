"""Fine-tuning, evaluation and loading as calls, on data small enough for a few seconds."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import tlx
from tests import levels
from tests.models.reference import images, random_arrays, timm_model, torchvision_model
from tlx.errors import InputError
from tlx.models import vgg
from tlx.models.leaves import values
from tlx.training.checkpoint import Checkpoints
from tlx.training.loop import Interrupted
from tlx.training.state import TrainState
from tlx.weights.files import read_weights, write_safetensors


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | {
        "model.name": "resnet20_cifar",
        "train.steps": 6,
        "optimizer.lr": 0.02,
    }


def test_the_best_checkpoint_by_validation_is_what_is_tested_and_loaded(tmp_path, config):
    fields = config | {
        "data.val_fraction": 0.25,
        "eval.every": "1",
        "train.steps": 8,
        "checkpoint.keep_last": 1,
    }
    summary = tlx.finetune(fields, tmp_path / "run")
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    curve = {r["step"]: r["val/accuracy"] for r in records if "val/accuracy" in r}
    best = max(curve, key=lambda step: (curve[step], -step))
    assert summary["checkpoint"] == "best" and summary["best_step"] == best
    assert summary["val/accuracy"] == curve[best]
    assert "To run it again" not in (tmp_path / "run" / "report.md").read_text()
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.steps() == sorted({best, 8})
    again = tlx.evaluate(fields, tmp_path / "run")
    assert again["test/loss"] == summary["test/loss"] and again["steps"] == best
    last = tlx.evaluate(fields | {"eval.checkpoint": "last"}, tmp_path / "run")
    assert last["steps"] == 8


def test_the_workdir_alone_is_enough_to_load(tmp_path, config):
    source = tlx.create_model("resnet20_cifar", num_classes=5, seed=3)
    tlx.save_weights(source, tmp_path / "net.safetensors")
    fields = config | {"model.weights": str(tmp_path / "net.safetensors"), "tune.method": "head"}
    summary = tlx.finetune(fields, tmp_path / "run")
    (tmp_path / "net.safetensors").unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert tlx.evaluate(fields, tmp_path / "moved")["test/loss"] == summary["test/loss"]
    (tmp_path / "moved" / "summary.json").unlink()
    assert tlx.finetune(fields, tmp_path / "moved")["test/loss"] == summary["test/loss"]
    model = tlx.load(tmp_path / "moved")
    before, after = values(source), values(model)
    for path in before:
        if not path.startswith("head."):
            np.testing.assert_array_equal(before[path], after[path])
    assert model.meta.class_names == ("level 0", "level 1", "level 2")
    # A head-only checkpoint holds the head and its momentum: 195 numbers, twice.
    arrays = sum(f.stat().st_size for f in (tmp_path / "moved" / "checkpoints").rglob("d/*"))
    assert arrays < 20_000


def original(name, classes):
    """The original library's network; of VGG-11 the two hidden layers are made small, as they are in `SMALL_VGG`."""
    if name.startswith("vit"):
        return timm_model(name, num_classes=classes)
    if name == "resnet18":
        return torchvision_model(name, num_classes=classes)
    import torch

    module = torchvision_model(name, init_weights=False)
    for place, sizes in ((0, (25_088, 16)), (3, (16, 16)), (6, (16, classes))):
        module.classifier[place] = torch.nn.Linear(*sizes)
    return module


SMALL_VGG = vgg.VGGPreset((1, 1, 2, 2, 2), batchnorm=False, hidden=16)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size", "tune"),
    [
        ("resnet18", 32, {"tune.method": "partial", "tune.freeze_stages": 4}),
        ("resnet18", 32, {"tune.method": "head"}),
        ("vit_tiny_patch16_224", 224, {"tune.method": "partial", "tune.freeze_stages": 12}),
        ("vgg11", 64, {"tune.method": "head"}),
        ("vgg11", 64, {"tune.method": "partial", "tune.freeze_stages": 4}),
    ],
)
def test_an_export_opens_strictly_in_the_original_library(
    tmp_path, config, monkeypatch, name, size, tune
):
    import torch

    monkeypatch.setitem(vgg.PRESETS, "vgg11", SMALL_VGG)
    shapes = {key: tuple(x.shape) for key, x in original(name, 7).state_dict().items()}
    arrays = random_arrays(shapes)
    write_safetensors(arrays, tmp_path / "net.safetensors", {})
    fields = {"model.name": name, "model.weights": str(tmp_path / "net.safetensors")}
    fields |= {"data.image_size": size, "data.resize": size, "train.steps": 2}
    tlx.finetune(config | fields | tune, tmp_path / "run")
    (written,) = tlx.run.export(tmp_path / "run")
    state = read_weights(written)
    module = original(name, 3).eval()
    module.load_state_dict(
        {key: torch.from_numpy(np.array(x)) for key, x in state.items()}, strict=True
    )
    kept = [key for key, x in arrays.items() if np.array_equal(state[key], x)]
    assert 10 < len(kept) < len(arrays)
    x = images(2, size, size)
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    logits = np.asarray(tlx.load(tmp_path / "run")(x))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_preprocessing_travels_with_the_model(tmp_path, config):
    tlx.finetune(
        config | {"data.mean": "0.5,0.5,0.5", "data.std": "0.25,0.25,0.25"}, tmp_path / "run"
    )
    model = tlx.load(tmp_path / "run")
    prepared = tlx.preprocess(model)(np.full((8, 8, 3), 255, np.uint8))
    np.testing.assert_allclose(prepared, np.full((8, 8, 3), 2.0))


def test_other_data_than_the_run_was_trained_on_is_refused(tmp_path, config):
    fields = config | {"train.steps": 4, "checkpoint.every": "2"}
    tlx.finetune(fields, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    levels.write_data(tmp_path / "levels.npz", seed=1)
    with pytest.raises(InputError, match="was trained on other data"):
        tlx.finetune(fields, tmp_path / "run")
    levels.write_data(tmp_path / "levels.npz", classes=4)
    for call in (tlx.evaluate, tlx.finetune):
        with pytest.raises(InputError, match=r"was trained on 3 classes .* the data has 4"):
            call(fields, tmp_path / "run")


def test_changed_frozen_weights_are_refused(tmp_path, config):
    fields = config | {"tune.method": "head", "train.steps": 4, "checkpoint.every": "2"}
    tlx.finetune(fields, tmp_path / "run")
    base = tmp_path / "run" / "base" / "frozen.safetensors"
    arrays = {name: np.array(array) for name, array in read_weights(base).items()}
    arrays["stem.bn.mean"] += 1
    write_safetensors(arrays, base, {})
    with pytest.raises(
        InputError, match="does not hold the frozen weights that the checkpoint was made on"
    ):
        tlx.load(tmp_path / "run")


@pytest.mark.parametrize("method", ["head", "full"])  # of full nothing is frozen
def test_checkpoints_on_other_base_weights_are_refused(tmp_path, config, method):
    fields = config | {"tune.method": method, "train.steps": 1}
    of = {}
    for seed, name in enumerate(("a", "b")):
        path = tmp_path / name / "net.safetensors"
        path.parent.mkdir()
        tlx.save_weights(tlx.create_model("resnet20_cifar", num_classes=5, seed=seed), path)
        tlx.finetune(fields | {"model.weights": str(path)}, tmp_path / name / "run")
        base = tmp_path / name / "run" / "base"
        of[name] = json.loads((base / "base.json").read_text())["weights_sha256"][:16]
    assert of["a"] != of["b"]
    run = tmp_path / "a" / "run"
    shutil.rmtree(run / "base")
    shutil.copytree(tmp_path / "b" / "run" / "base", run / "base")
    (run / "summary.json").unlink()
    says = f"expected sha256 {of['a']}, found {of['b']}"
    with pytest.raises(InputError, match=says):
        tlx.load(run)
    with pytest.raises(InputError, match=says):
        tlx.finetune(fields | {"model.weights": str(tmp_path / "a" / "net.safetensors")}, run)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path, config):
    with pytest.raises(InputError, match=r"the loss is not finite at step \d+: lower optimizer.lr"):
        tlx.finetune(
            config | {"optimizer.lr": 1e6, "optimizer.schedule": "constant", "train.log_every": 1},
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "summary.json").exists()


def test_nothing_to_do_and_unknown_metric(tmp_path, config):
    with pytest.raises(InputError, match="nothing to do"):
        tlx.finetune(config | {"train.steps": 0, "train.epochs": 0}, tmp_path / "run")
    with pytest.raises(InputError, match=r"'acuracy'; did you mean 'accuracy'\?; with 3 classes"):
        tlx.finetune(config | {"eval.metric": "acuracy"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stop_during_validation_saves_what_was_reached(tmp_path, config, monkeypatch):
    from tlx.setup import Setup

    fields = config | {"data.val_fraction": 0.25, "eval.every": "2", "checkpoint.every": "0"}
    evaluate, calls = Setup.evaluate, []

    def stopped_in_the_second(self, split, values, start=0):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, split, values, start)

    monkeypatch.setattr(Setup, "evaluate", stopped_in_the_second)
    with pytest.raises(Interrupted, match="interrupted at step 4 of 6"):
        tlx.finetune(fields, tmp_path / "run")
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert 4 in checkpoints.steps()


def test_two_processes_do_not_train_in_one_workdir(tmp_path, config):
    from tlx.workdir import Workdir

    with (
        Workdir(tmp_path / "run").locked(),
        pytest.raises(InputError, match="another process is training"),
    ):
        tlx.finetune(config, tmp_path / "run")


def test_a_broken_picture_in_streamed_data_keeps_what_was_reached(tmp_path, config, monkeypatch):
    from tlx.data.npz import ArrayExamples

    image = ArrayExamples.image

    def broken(self, index):
        if index == 7 and len(self) == 24:
            raise InputError("train[7]: broken")
        return image(self, index)

    monkeypatch.setattr(ArrayExamples, "image", broken)
    fields = config | {"data.storage": "stream", "train.batch_size": 2, "train.steps": 30}
    with pytest.raises(InputError, match="broken"):
        tlx.finetune(fields, tmp_path / "run")


@pytest.mark.slow
def test_streamed_and_in_memory_data_train_to_the_same_bits(tmp_path, config):
    runs = {}
    for storage in ("memory", "stream"):
        tlx.finetune(config | {"data.storage": storage, "train.steps": 4}, tmp_path / storage)
        runs[storage] = values(tlx.load(tmp_path / storage))
    for path, value in runs["memory"].items():
        np.testing.assert_array_equal(value, runs["stream"][path])


@pytest.mark.shared
def test_the_cifar_resnet20_is_right_as_often_as_the_original(tmp_path, shared):
    fields = {
        "model.name": "resnet20_cifar",
        "model.weights": str(shared / "weights" / "resnet20-12fca82f.th"),
        "data.source": "tfds:cifar10",
        "data.root": str(shared / "data" / "tfds"),
        "eval.batch_size": 500,
    }
    summary = tlx.evaluate(fields, tmp_path / "run")
    assert abs(summary["test/correct"] - 8103) <= 3
    assert summary["test/examples"] == 10_000
    assert summary["compilations/eval_step"] == 1


def test_a_schedule_free_run_evaluates_loads_and_resumes_with_its_averages(
    tmp_path, config, capsys
):
    fields = config | {
        "optimizer.name": "schedule_free_sgd",
        "optimizer.schedule": "constant",
        "optimizer.weight_decay": 0.01,
        "data.val_fraction": 0.25,
        "eval.every": "2",
        "checkpoint.every": "2",
        "checkpoint.keep_last": 9,
    }
    summary = tlx.finetune(fields, tmp_path / "run")
    trained = values(tlx.load(tmp_path / "run"))
    assert tlx.evaluate(fields, tmp_path / "run")["test/loss"] == summary["test/loss"]
    # The values that training goes on from are others.
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        shapes = {
            path: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding)
            for path, v in trained.items()
        }
        moving = {p: shape for p, shape in shapes.items() if p.endswith((".mean", ".var"))}
        others = {path: shape for path, shape in shapes.items() if path not in moving}
        steps = checkpoints.steps()
        as_trained, _, _ = checkpoints.restore_values(
            lambda _: TrainState(others, moving, ()), "best"
        )
    assert not np.allclose(as_trained["head.kernel"], trained["head.kernel"], rtol=1e-3)

    (tmp_path / "run" / "summary.json").unlink()
    assert steps == [2, 4, 6]
    for step in steps[1:]:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    again = tlx.finetune(fields, tmp_path / "run")
    assert "resuming at step 2 of 6" in capsys.readouterr().out
    assert again["test/loss"] == summary["test/loss"]
    for path, value in values(tlx.load(tmp_path / "run")).items():
        np.testing.assert_array_equal(value, trained[path])


def test_mixing_augmentation_and_class_weights_resume_to_the_same_bits(tmp_path, capsys):
    fields = {
        "model.name": "resnet20_cifar",
        "data.source": "digits",
        "data.image_size": 8,
        "data.resize": 8,
        "data.augment": "rand_augment:2:9,random_erasing:0.3",
        "train.batch_size": 16,
        "train.steps": 6,
        "train.mixup": 0.2,
        "train.cutmix": 1.0,
        "train.label_smoothing": 0.1,
        "train.class_weights": "auto",
        "train.accumulate": 2,
        "optimizer.name": "lion",
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 0.1,
        "checkpoint.every": "3",
    }
    summary = tlx.finetune(fields, tmp_path / "run")
    assert summary["compilations/train_step"] == 1
    out = capsys.readouterr().out
    assert "class weights: 0 1.01, 1 0.985, 2 1.01, 3 0.985" in out
    assert "train.accumulate=2: BatchNorm uses the statistics of each part of a batch" in out
    trained = values(tlx.load(tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    capsys.readouterr()
    again = tlx.finetune(fields, tmp_path / "run")
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    assert again["test/loss"] == summary["test/loss"]
    for path, value in values(tlx.load(tmp_path / "run")).items():
        np.testing.assert_array_equal(value, trained[path], err_msg=path)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("data.augment", "rand_augment:2:31", "0 <= MAGNITUDE <= 30"),
        ("train.class_weights", "1,2", "has 2 values"),
        ("train.loss", "hinge", "there are: cross_entropy, focal:GAMMA, bce"),
        ("optimizer.name", "lbfgs", "it needs the loss for its line search"),
        ("train.mixup", -1.0, "train.mixup is -1.0, expected 0.0 to 100.0"),
    ],
)
def test_what_training_cannot_do_is_said_before_anything_is_written(
    tmp_path, config, field, value, says
):
    with pytest.raises(InputError) as caught:
        tlx.finetune(config | {field: value}, tmp_path / "run")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        ({"method": "rules", "rules": "layer9=x,.*=rest"}, "(modules: stem, layer1, layer2, layer3, head)"),
        ({"method": "rules", "rules": "stem=frozen"}, "no rule matches layer1.0"),
        ({"method": "surgical", "train_stages": "layer9"}, "(stages: stem, layer1, layer2, layer3, head)"),
        ({"method": "partial", "freeze_stages": 5}, "has 4 stages: stem, layer1, layer2, layer3"),
        ({"method": "gradual", "freeze_stages": 5}, "has 4 stages: stem, layer1, layer2, layer3"),
        ({"method": "lpft", "freeze_stages": 5}, "has 4 stages: stem, layer1, layer2, layer3"),
        *(
            ({"method": method, "targets": "layer9"}, "the layers are called conv, conv1, conv2")
            for method in ("lora", "dora", "ia3", "bottleneck")
        ),
        ({"method": "head", "groups": "haed.lr=2"}, "(groups: head)"),
    ],
)  # fmt: skip
def test_what_a_method_has_wrong_is_said_before_weights_are_opened(
    tmp_path, config, monkeypatch, tune, says
):
    def opened(*arguments):
        raise AssertionError("opened")

    for name in ("tlx.network.open_weights", "tlx.weights.load.read_weights"):
        monkeypatch.setattr(name, opened)
    fields = {f"tune.{name}": value for name, value in tune.items()}
    with pytest.raises(InputError) as caught:
        tlx.finetune(config | {"model.name": "resnet20_cifar.glyphs"} | fields, tmp_path / "run")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(AssertionError, match="opened"):  # else it would be now
        tlx.finetune(config | {"model.name": "resnet20_cifar.glyphs"}, tmp_path / "run")


def test_a_batch_of_one_is_not_mixed_with_itself(tmp_path, config):
    fields = config | {"train.batch_size": 1, "train.cutmix": 1.0}
    with pytest.raises(InputError, match=r"train\.cutmix is 1, but train\.batch_size is 1"):
        tlx.finetune(fields, tmp_path / "run")
    assert not (tmp_path / "run").exists()
