import subprocess
import sys

import pytest

from tlx import config as config_lib
from tlx.errors import InputError


def test_layers_override_in_turn_and_strings_become_the_fields_types():
    base = config_lib.defaults()
    base.train.epochs = 3.0
    config = config_lib.build(
        base,
        {"train": {"steps": "7"}, "data.augment": "flip, pad_crop:2", "data.mean": "0.5,0.5,0.5"},
    )
    assert (config.train.epochs, config.train.steps) == (3.0, 7)
    assert config.data.augment == ("flip", "pad_crop:2")
    assert config.data.mean == (0.5, 0.5, 0.5)
    assert config_lib.build({"tune.rules": "(a|b).*=x"}).tune.rules == ("(a|b).*=x",)
    assert config_lib.build({"data.mean": "(1, 2, 3)"}).data.mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("train.epoch", 3, "did you mean 'train.epochs'"),
        ("tune.metod", "head", "did you mean 'tune.method'"),
        ("lr", 0.1, "did you mean 'optimizer.lr'"),
        ("train.steps", "many", "train.steps is 'many', expected int"),
        ("train.steps", 2.5, "expected int"),
        ("train.epochs", True, "expected float"),
        ("optimizer.lr", "nan", "optimizer.lr is nan"),
        ("tune.method", "heed", "did you mean 'head'"),
        ("train.batch_size", 0, "expected 1 to"),
        ("optimizer.warmup", "soon", "expected 500 (whole steps), 2ep (epochs) or 5%"),
        ("eval.every", "0.5", "eval.every is '0.5', expected 500 (whole steps), 2ep (epochs) or"),
        ("checkpoint.every", "2.5steps", "checkpoint.every is '2.5steps', expected 500 (whole"),
        ("optimizer.milestones", "50%,x", "optimizer.milestones is 'x'"),
        ("data.augment", 3, "comma-separated"),
    ],
)
def test_wrong_fields_are_named(field, value, says):
    with pytest.raises(InputError) as caught:
        config_lib.build({field: value})
    assert says in str(caught.value)


def test_every_default_is_in_range_and_survives_json():
    config = config_lib.build()
    assert config == config_lib.Config()
    assert config_lib.build(config_lib.to_json(config)) == config


def test_every_field_can_be_overridden_by_a_string():
    for name, (_, default) in config_lib.fields().items():
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert config_lib.build({name: text}) == config_lib.Config()


def test_the_metric_that_selects_is_the_tasks_first_unless_it_is_set():
    from tlx.tasks import TASKS, get_task

    assert set(TASKS) == set(config_lib.CHOICES["task"])
    for task in TASKS:
        config = config_lib.build({"task": task})
        first = get_task(task).metrics(10)[0]
        assert config_lib.selecting_metric(config) == first
        named = config_lib.build({"task": task, "eval.metric": first})
        assert config_lib.differences(config, named) == []
        assert config_lib.digest(config) == config_lib.digest(named)
        other = config_lib.build({"task": task, "eval.metric": "loss"})
        assert config_lib.differences(config, other) == [f"eval.metric: {first!r} -> 'loss'"]
        assert config_lib.digest(config) != config_lib.digest(other)


def test_a_locked_default_refuses_typos_in_config_files(tmp_path):
    path = tmp_path / "typo.py"
    path.write_text(
        "from tlx.config import defaults\ndef get_config():\n  c = defaults()\n  c.train.epoch = 3\n  return c\n"
    )
    with pytest.raises(InputError, match=r'typo\.py.*epoch.*Did you mean "epochs"'):
        config_lib.load(path)


def test_a_config_that_edits_another(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text(
        "from tlx.config import defaults\ndef get_config():\n  c = defaults()\n  c.train.epochs = 3.0\n"
        "  c.data.augment = ('flip',)\n  return c\n"
    )
    other = tmp_path / "other.py"
    other.write_text(
        "from pathlib import Path\nfrom tlx.config import based_on\ndef get_config():\n"
        "  c = based_on(Path(__file__).with_name('one.py'))\n  c.seed = 7\n  return c\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    one, two = (config_lib.build(config_lib.load(tmp_path / f"{n}.py")) for n in ("one", "other"))
    assert config_lib.differences(one, two) == ["seed: 0 -> 7"]
    other.write_text(other.read_text().replace("c.seed", "c.sed"))
    with pytest.raises(InputError, match=r'other\.py.*Did you mean "seed"'):
        config_lib.load(other)
    other.write_text(other.read_text().replace("one.py", "none.py"))
    with pytest.raises(FileNotFoundError, match=r"no config file .*none\.py; there are: .*one\.py"):
        config_lib.load(other)


def test_a_missing_config_file_names_those_beside_it(tmp_path):
    (tmp_path / "there.py").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"no config file .*absent\.py; there are: .*there\.py"
    ):
        config_lib.load(tmp_path / "absent.py")


@pytest.mark.parametrize(
    ("text", "steps"),
    [("500", 500), ("2ep", 20), ("1.5 epochs", 15), ("5%", 10), ("0", 0), ("1e3", 1000)],
)
def test_durations(text, steps):
    assert config_lib.duration(text, steps_per_epoch=10, total_steps=200) == steps


def test_a_part_of_a_step_is_no_duration():
    with pytest.raises(InputError, match=r"'4\.5' is not a duration: write 500 \(whole steps\)"):
        config_lib.duration("4.5", steps_per_epoch=10, total_steps=200)


def test_the_digest_and_the_differences_follow_what_makes_another_run():
    one = config_lib.build()
    elsewhere = config_lib.build({"data.root": "moved", "train.log_every": 7})
    other = config_lib.build({"optimizer.lr": 0.5})
    assert config_lib.digest(one) == config_lib.digest(elsewhere) != config_lib.digest(other)
    assert config_lib.differences(one, elsewhere) == []
    assert config_lib.differences(one, other) == ["optimizer.lr: 0.01 -> 0.5"]


def test_importing_tlx_and_checking_a_config_import_no_jax():
    code = (
        "import sys, tlx, tlx.main; from tlx import config; config.build(config.defaults());"
        "print([m for m in ('jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


AUTO = {"tune.method": "auto"}


def kept(*layers):
    return set(config_lib.build(*layers).tune.keep)


def test_auto_keeps_the_fields_that_a_partial_layer_names_even_at_their_defaults():
    assert kept(AUTO) == set()
    assert kept(AUTO, {"optimizer.lr": "0.01", "train": {"steps": 0}, "seed": 3}) == {
        "optimizer.lr",
        "train.steps",
    }
    assert kept(AUTO | {"optimizer.lr": 0.3}, {"optimizer.lr": 0.01}) == {"optimizer.lr"}
    assert kept(AUTO, {"tune.keep": "train.mixup"}, {"train.steps": 5}) == {
        "train.mixup",
        "train.steps",
    }


def test_auto_keeps_of_a_complete_layer_what_differs_from_the_defaults():
    edited = config_lib.defaults()
    edited.tune.method, edited.train.batch_size, edited.optimizer.lr = "auto", 7, 0.01
    edited.data.root, edited.train.log_every = "there", 3
    assert kept(edited) == {"train.batch_size"}
    assert kept(edited, {"optimizer.lr": 0.01}) == {"train.batch_size", "optimizer.lr"}
    edited.tune.keep = ("train.mixup",)
    assert kept(edited) == {"train.batch_size", "train.mixup"}
    edited.tune.method = "head"
    edited.tune.keep = ()
    assert kept(edited, AUTO) == {"train.batch_size"}


def test_what_auto_keeps_survives_json_and_is_part_of_the_run():
    config = config_lib.build(AUTO, {"optimizer.lr": 0.01})
    assert config.tune.keep == ("optimizer.lr",)
    stored = config_lib.to_json(config)
    assert config_lib.from_json(stored) == config_lib.build(stored) == config
    assert config_lib.build(config, {"data.root": "moved"}).tune.keep == ("optimizer.lr",)
    del stored["train"]["mixup"]  # as a version wrote it that did not know the field
    assert config_lib.from_json(stored) == config
    assert config_lib.build(config_lib.build(AUTO), {"optimizer.lr": 0.01}) == config
    assert config_lib.differences(config_lib.build(AUTO), config) == [
        "tune.keep: () -> ('optimizer.lr',)"
    ]
    assert config_lib.digest(config) != config_lib.digest(config_lib.build(AUTO))


def test_without_auto_nothing_is_kept_and_other_names_are_refused():
    assert kept({"tune.method": "head", "optimizer.lr": 0.01}) == set()
    assert kept(config_lib.build(AUTO, {"optimizer.lr": 0.01}), {"tune.method": "head"}) == set()
    for layers in ((AUTO | {"tune.keep": "optimiser.lr"},), (AUTO, {"tune.keep": "seed"})):
        with pytest.raises(InputError, match=r"tune\.keep: .* is no field that auto decides"):
            config_lib.build(*layers)
