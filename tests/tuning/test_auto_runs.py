"""tune.method=auto from the command to the workdir: what is printed, kept, resumed and refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tlx
from tests import levels
from tlx import config as config_lib
from tlx import main
from tlx.config import Config, OptimizerConfig, TrainConfig, TuneConfig, build
from tlx.errors import InputError
from tlx.lr_find import lr_find
from tlx.models.leaves import values
from tlx.notes import describe_drawn
from tlx.setup import prepare, prepare_tuning
from tlx.weights.files import read_weights, write_safetensors
from tlx.workdir import Workdir

pytestmark = pytest.mark.wide

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    fields = levels.fields(tmp_path) | {"tune.method": "auto", "train.steps": 6}
    del fields["train.batch_size"]
    return fields


def chosen(workdir):
    return {
        c["field"]: c["value"]
        for c in json.loads((workdir / "choices.json").read_text())["choices"]
    }


def test_the_command_prints_what_it_chose_and_the_run_is_made_of_it(tmp_path):
    command = [sys.executable, "-m", "tlx.main", f"--config={ROOT / 'configs' / 'auto.py'}"]
    fields = levels.fields(tmp_path) | {"model.weights": "glyphs", "model.name": "resnet20_cifar"}
    fields |= {"data.val_fraction": 0, "train.steps": 4}
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    workdir = tmp_path / "run"
    done = subprocess.run(
        [*command, f"--workdir={workdir}"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "tune.method=auto chose these; each can be set instead:" in done.stdout
    assert "8 examples a class, fewer than 200" in done.stdout
    assert (
        "left as they are set: train.steps, train.batch_size, data.image_size, data.resize"
        in done.stdout
    )
    assert "frozen    stem layer1 layer2" in done.stdout
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["chosen"] == chosen(workdir)
    assert summary["chosen"]["tune.method"] == "partial" and summary["steps"] == 4
    assert summary["chosen"]["data.augment"] == ["pad_crop:1", "flip"]
    report = (workdir / "report.md").read_text()
    assert "## What was chosen" in report and "| tune.freeze\\_stages | 3 |" in report
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["tune"]["method"] == "auto" and "train.steps" in stored["tune"]["keep"]
    again = main.main([*command[3:], f"--workdir={workdir}"])
    assert again == 0
    other = main.main([*command[3:], f"--workdir={workdir}", "--config.train.mixup=0"])
    assert other == 2  # at its default, but it is set


def test_a_stopped_run_goes_on_with_what_was_chosen_and_ends_with_the_same_bits(
    tmp_path, config, monkeypatch, capsys
):
    fields = config | {"checkpoint.every": "2", "checkpoint.keep_last": 9}
    summary = tlx.finetune(fields, tmp_path / "run")
    trained = values(tlx.load(tmp_path / "run"))
    first = capsys.readouterr().out
    (tmp_path / "run" / "summary.json").unlink()
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))

    def never(*arguments, **fields):
        raise AssertionError("decided anew")

    monkeypatch.setattr("tlx.tuning.auto.choose", never)
    again = tlx.finetune(fields, tmp_path / "run")
    out = capsys.readouterr().out
    assert "resuming at step 2 of 6" in out
    start, end = "tune.method=auto chose these", "trained:"  # the choices and the plan
    assert first[first.index(start) : first.index(end)] == out[out.index(start) : out.index(end)]
    assert again["test/loss"] == summary["test/loss"] and again["chosen"] == summary["chosen"]
    for path, value in values(tlx.load(tmp_path / "run")).items():
        np.testing.assert_array_equal(value, trained[path], err_msg=path)


def test_the_same_bits_as_the_choices_written_out(tmp_path, config):
    tlx.finetune(config, tmp_path / "auto")
    written = config | chosen(tmp_path / "auto")
    tlx.finetune(written, tmp_path / "written")
    one, two = (values(tlx.load(tmp_path / name)) for name in ("auto", "written"))
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)


@pytest.mark.slow
def test_adapters_that_were_chosen_are_evaluated_loaded_and_exported(tmp_path, config):
    fields = config | {"tune.rank": 2, "optimizer.lr": 0.01}
    summary = tlx.finetune(fields, tmp_path / "run")
    assert summary["chosen"]["tune.method"] == "lora" and "tune.rank" not in summary["chosen"]
    assert tlx.evaluate(fields, tmp_path / "run")["test/loss"] == summary["test/loss"]
    assert any(".adapter." in path for path in values(tlx.load(tmp_path / "run")))
    assert main.main(["--mode=evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    evaluated = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluated["test/loss"] == summary["test/loss"]
    assert evaluated["chosen"]["tune.method"] == "lora"
    assert main.main(["--mode=export", f"--workdir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "export" / "adapter" / "adapter_model.safetensors").is_file()


def test_without_training_nothing_is_decided(tmp_path, config):
    source = tlx.create_model("resnet20_cifar", num_classes=3, seed=3)
    tlx.save_weights(source, tmp_path / "net.safetensors")
    fields = config | {
        "model.name": "resnet20_cifar",
        "model.weights": str(tmp_path / "net.safetensors"),
        "model.head": "keep",
    }
    summary = tlx.evaluate(fields, tmp_path / "run")
    assert summary["steps"] == 0 and "chosen" not in summary
    assert not (tmp_path / "run" / "choices.json").exists()
    plain = tlx.evaluate(fields | {"tune.method": "full"}, tmp_path / "other")
    assert plain["test/loss"] == summary["test/loss"]


def test_the_range_test_uses_what_is_chosen_and_leaves_no_choices(tmp_path, config, capsys):
    del config["train.steps"]
    found = lr_find(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "tune.method=auto chose these" in out
    assert "left as they are set: optimizer.lr, " in out and "optimizer.lr  " not in out
    rate = {"optimizer.lr": float(f"{found.suggestion:.2g}")}
    searched, _ = prepare(build(config, {"optimizer.lr": config_lib.Config().optimizer.lr}))
    run, _ = prepare(build(config, rate))
    assert run.choices == searched.choices and run.config.tune.groups == ("head.lr=5",)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["lr_find.json", "lr_find.png"]


@pytest.mark.parametrize("entry", [tlx.finetune, lr_find])
def test_what_is_set_in_a_config_object_wins_too(tmp_path, config, capsys, entry):
    made = build(config)
    plain = Config(
        model=made.model,
        data=made.data,
        tune=TuneConfig(method="auto"),
        train=TrainConfig(steps=5),
        optimizer=OptimizerConfig(weight_decay=0.5),
    )
    edited = dataclasses.replace(
        build(plain), train=TrainConfig(steps=5, batch_size=4), optimizer=OptimizerConfig()
    )
    entry(plain, tmp_path / "plain")
    assert "optimizer.weight_decay, train.steps, data.image_size" in capsys.readouterr().out
    entry(edited, tmp_path / "edited")
    out = capsys.readouterr().out
    assert "weight_decay, train.steps, train.batch_size, data.image_size" in out
    assert "optimizer.weight_decay  " not in out  # set before the object was edited


def test_the_range_test_is_for_optimizers_that_auto_knows_no_rate_for_too(tmp_path, config):
    lr_find(config | {"optimizer.name": "lamb"}, tmp_path / "run")
    assert (tmp_path / "run" / "lr_find.json").is_file()


def test_evaluation_of_a_config_object_knows_its_run(tmp_path, config):
    plain = dataclasses.replace(build(config), tune=TuneConfig(method="auto"))
    summary = tlx.finetune(plain, tmp_path / "run")
    assert tlx.evaluate(plain, tmp_path / "run")["test/loss"] == summary["test/loss"]


def setup_of(config, **fields):
    return prepare(build(config, {name.replace("__", "."): v for name, v in fields.items()}))


def test_fields_that_are_set_win_over_the_choice(config):
    setup, lines = setup_of(config, optimizer__lr=0.01, train__batch_size=4, data__augment="")
    made = setup.config
    assert made.optimizer.lr == 0.01 and made.train.batch_size == 4 and made.data.augment == ()
    assert not {"optimizer.lr", "train.batch_size", "data.augment"} & {
        choice.field for choice in setup.choices
    }
    assert lines[-1].splitlines()[-1].startswith("left as they are set: optimizer.lr, ")
    setup, _ = setup_of(config, train__epochs=2)
    assert (setup.config.train.steps, setup.config.train.epochs) == (6, 2)


def test_regularizers_have_something_to_act_on(tmp_path, config):
    levels.write_data(tmp_path / "levels.npz", train=9)
    for regularizer in ("l2sp:0.1", "delta:0.1", "bss:0.1"):
        setup, _ = setup_of(config, tune__regularizers=regularizer)
        assert setup.config.tune.method == "partial"
        prepare_tuning(setup)
    assert setup_of(config)[0].config.tune.method == "head"


def test_options_reach_the_optimizer_that_has_them(config):
    setup, _ = setup_of(config, optimizer__options="b2=0.95,eps=1e-6")
    assert setup.config.optimizer.name == "adamw"
    prepare_tuning(setup)
    setup, _ = setup_of(config, optimizer__options="nesterov=true")
    assert setup.config.optimizer.name == "sgd"  # by the rule: a network with BatchNorm


def test_small_pictures_are_enlarged_for_a_network_that_knows_larger_ones(tmp_path, config):
    tlx.save_weights(tlx.create_model("resnet18", num_classes=7), tmp_path / "net.safetensors")
    weights = {"model.name": "resnet18", "model.weights": str(tmp_path / "net.safetensors")}
    for name in ("data.image_size", "data.resize"):
        del config[name]
    setup, lines = setup_of(config | weights)
    preprocess = setup.model.meta.preprocess
    assert (preprocess.size, preprocess.resize) == (128, 160)
    assert "preprocessing overridden by the config: size: 224 -> 128" in lines
    assert setup.augmentation.names == ("random_crop", "flip")
    setup, _ = setup_of(config | weights, data__image_size=64)
    assert (setup.model.meta.preprocess.size, setup.model.meta.preprocess.resize) == (64, 73)


def without_layer3(folder):
    """Writes the built-in weights without their last stage; returns the fields of a run with them."""
    tlx.save_weights(tlx.create_model("resnet20_cifar.glyphs"), folder / "net.safetensors")
    whole = read_weights(folder / "net.safetensors")
    part = {name: np.array(array) for name, array in whole.items() if "layer3." not in name}
    write_safetensors(part, folder / "part.safetensors", {})
    return {
        "model.name": "resnet20_cifar",
        "model.weights": str(folder / "part.safetensors"),
        "model.missing_ok": "layer3",
    }


def test_stages_that_the_file_lacks_are_trained(tmp_path, config, capsys):
    weights = without_layer3(tmp_path)
    setup, lines = setup_of(config | weights)
    assert (setup.config.tune.method, setup.config.tune.freeze_stages) == ("partial", 3)
    assert "the weights lack layer3: what comes before is kept" in lines[-1]
    assert describe_drawn(setup) == []
    tlx.finetune(config | weights | {"tune.rank": 2, "train.steps": 1}, tmp_path / "run")
    assert (
        "warning: the weights lack values of layer3, and tune.method=lora"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        ("head", {}, ", with BatchNorm statistics of 0 and 1: "),
        ("ia3", {}, ", with BatchNorm statistics of 0 and 1: "),
        ("bitfit", {}, ", with BatchNorm statistics of 0 and 1: "),
        ("norms", {}, "random ones there: tune.method=partial with tune.freeze_stages=3"),
        ("full", {"tune.batchnorm": "frozen"}, ""),
        ("lpft", {}, ""),
        ("surgical", {"tune.train_stages": "layer3,head"}, ""),
        ("rules", {"tune.rules": "(layer3|head).*=new,.*=frozen"}, ""),
        ("head", {"model.weights": "none", "model.missing_ok": ""}, ""),
    ],
)
def test_stages_that_stay_as_they_are_drawn_are_named(tmp_path, config, method, fields, says):
    weights = without_layer3(tmp_path)
    fields = {"tune.method": method, "train.batch_size": 8} | fields
    setup, _ = prepare(build(config | weights, fields))
    prepare_tuning(setup)
    lines = describe_drawn(setup)
    assert len(lines) == bool(says) and says in "".join(lines)


@pytest.mark.parametrize(
    ("labels", "method", "group"), [(100, "full", "block3"), (50, "lora", "adapters")]
)
def test_groups_are_those_of_the_method_that_is_chosen(tmp_path, config, labels, method, group):
    levels.write_data(tmp_path / "levels.npz", classes=2, train=2 * labels)
    tlx.save_weights(
        tlx.create_model("vit_tiny_patch16_224", image_size=16), tmp_path / "vit.safetensors"
    )
    weights = {
        "model.name": "vit_tiny_patch16_224",
        "model.weights": str(tmp_path / "vit.safetensors"),
    }
    fields = {"tune.groups": f"{group}.lr=2", "data.image_size": 16, "data.resize": 16}
    setup, _ = prepare(build(config, weights, fields))
    assert setup.config.tune.method == method
    assert setup.plans[-1].groups[group].lr == 2.0
    with pytest.raises(InputError, match=r"'nowhere\.lr=2' names no group in use"):
        prepare_tuning(prepare(build(config, weights, fields, {"tune.groups": "nowhere.lr=2"}))[0])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tune.freeze_stages": 9}, "tune.freeze_stages is 9, the model has 4 stages"),
        ({"tune.rank": 2, "tune.freeze_stages": 2}, "no method goes with them all"),
        ({"tune.targets": "nowhere"}, "tune.targets: 'nowhere' is no layer"),
        ({"optimizer.name": "addam"}, "did you mean 'adam"),
        ({"optimizer.name": "lamb"}, "auto knows no learning rate for lamb: set optimizer.lr"),
        ({"optimizer.options": "momentun=0.9"}, "did you mean 'momentum'"),
        ({"tune.train_stages": "layer1"}, "the head is new, and would stay as it is drawn"),
        ({"data.augment": "flop"}, "did you mean 'flip'"),
        ({"tune.keep": "optimizer.rate"}, "is no field that auto decides"),
        ({"train.accumulate": 3, "train.batch_size": 16}, "use a multiple of 3"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, config, fields, says):
    with pytest.raises(InputError) as caught:
        tlx.finetune(config | fields, tmp_path / "run")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_can_be_said_is_said_before_weights_are_fetched(tmp_path, config, monkeypatch):
    def fetched(*arguments):
        raise AssertionError("fetched")

    monkeypatch.setattr("tlx.network.open_weights", fetched)
    for fields in (
        {"tune.freeze_stages": 9},
        {"optimizer.name": "addam"},
        {"optimizer.name": "lamb"},
    ):
        with pytest.raises(InputError):
            tlx.finetune(config | fields, tmp_path / "run")


def test_parts_of_a_batch_share_the_batch_that_is_chosen(config):
    setup, _ = setup_of(config, train__accumulate=3)
    assert setup.config.train.batch_size == 18


def test_choices_that_are_missing_or_damaged_are_named(tmp_path, config):
    tlx.finetune(config | {"train.steps": 1}, tmp_path / "run")
    path = tmp_path / "run" / "choices.json"
    whole = path.read_text()
    for text, says in (
        (whole[:50], "choices.json is damaged"),
        ("{}", "choices.json is damaged"),
        (whole.replace('"partial"', '"partail"'), "did you mean 'partial'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            tlx.load(tmp_path / "run")
    path.unlink()
    with pytest.raises(InputError, match=r"there is no choices\.json"):
        tlx.load(tmp_path / "run")


def test_keep_belongs_to_auto(tmp_path, config):
    with pytest.raises(InputError, match=r"tune\.keep is given, but tune\.method is 'full'"):
        tlx.finetune(config | {"tune.method": "full", "tune.keep": "train.steps"}, tmp_path / "run")
    assert Workdir(tmp_path / "run").read_choices(build({"tune.method": "full"})) == ()
