"""Adapters that were trained before: what of them a run takes, that it must agree with the config, and that it goes on."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import tlx
from tests import levels
from tests.models.reference import images
from tests.training.test_phases import stop_at
from tlx.config import TuneConfig
from tlx.errors import InputError
from tlx.models import abstract_model
from tlx.models.adapters import Spec, attached, specs_of
from tlx.models.leaves import leaves, values, with_values
from tlx.pretrained import create_model, source
from tlx.training.loop import Interrupted
from tlx.tuning.adapters import with_adapters
from tlx.tuning.plan import digests
from tlx.tuning.trained_adapters import with_trained_adapters
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.peft_config import CONFIG, WEIGHTS
from tlx.weights.peft_read import fit_adapters, load_adapters, open_adapters
from tlx.weights.peft_write import save_adapters

NAMES = ("level 0", "level 1", "level 2")
LAYERS = ("layer3.0.conv1", "layer3.2.conv2")


def written(folder, names=NAMES, specs=None, **tune):
    """Writes adapters of drawn values, and a head, on the built-in weights; returns the model that has them."""
    plain = source("resnet20_cifar", "glyphs", class_names=names)
    if specs is None:
        model = with_adapters(plain, TuneConfig(**{"targets": LAYERS} | tune)).model
    else:
        model = attached(plain.model, specs)
    rng = np.random.default_rng(0)
    base = values(create_model("resnet20_cifar.glyphs"))
    found = {
        path: base[path]
        if path in base and not path.startswith("head.")
        else jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)
        for path, leaf in leaves(model).items()
    }
    model = with_values(model, found)
    save_adapters(model, folder)
    return model


def taken(folder, head="auto", names=NAMES, **tune):
    make = functools.partial(source, "resnet20_cifar", "glyphs", class_names=names)
    files = open_adapters(folder)
    tune = TuneConfig(**{"method": files.method} | tune)
    return with_trained_adapters(make, files, tune, head, names)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_run_begins_with_what_the_folder_holds(tmp_path, method):
    options = {} if method == "ia3" else {"rank": 3, "alpha": 7.0}
    model = written(tmp_path, method=method, **options)
    found = taken(tmp_path)
    assert specs_of(found.model) == specs_of(model)
    assert found.loaded.fresh == ()
    placed = found.place(1)
    expected = values(load_adapters(create_model("resnet20_cifar.glyphs", num_classes=3), tmp_path))
    assert placed.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(placed[path], value, err_msg=path)
    x = images(2, 16, 16)
    logits = with_values(found.model, placed)(x)
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=1e-4)
    (line,) = [line for line in found.describe() if line.startswith("adapters:")]
    assert f"({method}, content" in line and line.split(") at ")[1] == (
        "2 layers: layer3.0.conv1, layer3.2.conv2"
        + ("" if method == "ia3" else "; rank 3; alpha 7")
    )
    assert "from there too: head.bias, head.kernel" in found.describe()
    assert ": 95 values loaded" in found.describe()[0]
    assert found.facts()["adapters"] == str(tmp_path)


def test_options_that_agree_are_as_good_as_none(tmp_path):
    model = written(tmp_path, method="lora", rank=3, alpha=7.0)
    found = taken(tmp_path, rank=3, alpha=7.0, targets=(r"layer3\.(0\.conv1|2\.conv2)",))
    assert specs_of(found.model) == specs_of(model)


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        (
            {"method": "dora"},
            "holds lora adapters, but tune.method is 'dora': set tune.method=lora",
        ),
        ({"method": "full"}, "but tune.method is 'full'"),
        ({"rank": 4}, "tune.rank is 4, but the adapters of"),
        ({"alpha": 7.5}, "have 7: leave tune.alpha out"),
        ({"targets": ("layer3.0",)}, "they differ in layer3.0.conv2, layer3.2.conv2; leave"),
    ],
)
def test_what_disagrees_is_named(tmp_path, tune, says):
    written(tmp_path, method="lora", rank=3, alpha=7.0)
    with pytest.raises(InputError) as caught:
        taken(tmp_path, **tune)
    assert says in str(caught.value) and str(tmp_path) in str(caught.value)


def test_auto_goes_on_with_the_folders_own_method(tmp_path):
    written(tmp_path / "peft", method="lora", rank=3, alpha=7.0)
    fields = levels.fields(tmp_path) | {"tune.method": "auto", "train.steps": 2}
    fields["model.adapters"] = str(tmp_path / "peft")
    summary = tlx.finetune(fields, tmp_path / "run")
    assert summary["chosen"]["tune.method"] == "lora" and "tune.rank" not in summary["chosen"]
    assert {spec.rank for spec in specs_of(tlx.load(tmp_path / "run")).values()} == {3}
    assert tlx.evaluate(fields, tmp_path / "run")["test/loss"] == summary["test/loss"]
    tlx.evaluate(fields | {"model.head": "keep"}, tmp_path / "before")  # nothing is decided
    with pytest.raises(InputError, match=r"tune\.rank is 4, but the adapters of"):
        tlx.finetune(fields | {"tune.rank": 4}, tmp_path / "other")
    with pytest.raises(InputError, match=r"tune\.freeze_stages and model\.adapters are given, and"):
        tlx.finetune(fields | {"tune.freeze_stages": 1}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def without_meta(folder):
    arrays = {name: np.array(array) for name, array in read_weights(folder / WEIGHTS).items()}
    write_safetensors(arrays, folder / WEIGHTS, {})


@pytest.mark.parametrize(
    ("head", "names", "known", "why"),
    [
        ("auto", NAMES, True, ""),
        ("auto", NAMES[::-1], True, "it is for other classes"),
        ("auto", (*NAMES, "level 3"), True, "it is for other classes"),
        ("auto", NAMES, False, "its classes have no names there (model.head=keep takes it)"),
        ("keep", NAMES, False, ""),
        ("keep", ("a", "b", "c"), True, ""),
        ("new", NAMES, True, "model.head=new"),
    ],
)
def test_the_head_is_taken_where_its_classes_are_the_datas(tmp_path, head, names, known, why):
    model = written(tmp_path, method="lora", rank=2)
    if not known:
        without_meta(tmp_path)
    found = taken(tmp_path, head, names)
    placed = found.place(0)
    same = np.array_equal(placed["head.kernel"], values(model)["head.kernel"])
    assert same == (not why)
    assert found.loaded.fresh == (("head.bias", "head.kernel") if why else ())
    assert found.model.num_classes == len(names)
    line = f"the head that is there is not used: {why}"
    assert (line in found.describe()) == bool(why)
    key = "layer3.0.conv1.adapter.b"
    np.testing.assert_allclose(placed[key], values(model)[key], rtol=1e-6)


def test_a_kept_head_must_be_of_as_many_classes(tmp_path):
    written(tmp_path, method="lora", rank=2)
    with pytest.raises(InputError, match="has a head of 3 classes and the data has 2"):
        taken(tmp_path, "keep", NAMES[:2])


def test_other_weights_are_said_and_another_architecture_is_refused(tmp_path):
    written(tmp_path, method="lora", rank=2)
    files = open_adapters(tmp_path)
    assert files.meta.base == "resnet20_cifar.glyphs"
    assert not any("they were trained on" in line for line in taken(tmp_path).describe())
    without_meta(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "x/y"}))
    line = "they were trained on 'x/y', these weights are resnet20_cifar.glyphs"
    assert line in taken(tmp_path).describe()
    written(tmp_path, method="lora", rank=2)
    with pytest.raises(InputError, match="adapters of resnet20_cifar, but the model is resnet32"):
        fit_adapters(abstract_model("resnet32_cifar", num_classes=3), open_adapters(tmp_path))


def test_adapters_of_a_head_are_refused(tmp_path):
    written(tmp_path, method="lora", rank=2)
    arrays = {name: np.array(array) for name, array in read_weights(tmp_path / WEIGHTS).items()}
    arrays |= {
        "base_model.model.linear.lora_A.weight": np.ones((2, 64), np.float32),
        "base_model.model.linear.lora_B.weight": np.ones((3, 2), np.float32),
    }
    write_safetensors(arrays, tmp_path / WEIGHTS, {})
    with pytest.raises(InputError, match="has adapters at head; a run trains those at layers"):
        taken(tmp_path)


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | {
        "train.steps": 4,
        "tune.method": "lora",
        "optimizer.lr": 0.05,
        "model.adapters": str(tmp_path / "adapter"),
    }


@pytest.mark.slow
def test_a_run_goes_on_from_them_and_needs_the_folder_no_more(tmp_path, config, monkeypatch):
    specs = {LAYERS[0]: Spec("lora", 2, 4.0), LAYERS[1]: Spec("lora", 3, 5.0)}
    model = written(tmp_path / "adapter", specs=specs)
    tlx.save_weights(model, tmp_path / "merged.safetensors")
    merged = {"model.name": "resnet20_cifar", "model.weights": str(tmp_path / "merged.safetensors")}
    merged |= {"tune.method": "full", "model.adapters": ""}
    before, same = (
        tlx.evaluate(fields, tmp_path / name)
        for name, fields in (("before", config), ("merged", config | merged))
    )
    np.testing.assert_allclose(before["test/loss"], same["test/loss"], rtol=1e-5)
    summary = tlx.finetune(config, tmp_path / "whole")
    assert summary["adapters"] == config["model.adapters"] and "adapter_layers" not in summary
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 2 of 4"):
        stop_at(patched, 2)
        tlx.finetune(config, tmp_path / "stopped")
    (tmp_path / "adapter").rename(tmp_path / "gone")
    assert tlx.finetune(config, tmp_path / "stopped")["test/loss"] == summary["test/loss"]
    assert tlx.evaluate(config, tmp_path / "whole")["test/loss"] == summary["test/loss"]
    one, two = (tlx.load(tmp_path / name) for name in ("whole", "stopped"))
    assert specs_of(one) == specs_of(two) == specs
    first, second = values(one), values(two)
    assert digests(first, tuple(first)) == digests(second, tuple(second))
    for path, value in values(model).items():
        trained = ".adapter." in path or path.startswith("head.")
        assert np.array_equal(value, first[path]) != trained, path


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model.name": "resnet20_cifar"}, "but model.weights is none"),
        ({"tune.method": "head"}, "set tune.method=lora"),
        ({"model.adapters": "nowhere"}, "no adapter config nowhere/adapter_config.json"),
        ({"tune.rank": 5}, "tune.rank is 5, but"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, config, fields, says):
    written(tmp_path / "adapter", method="lora", rank=2)
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        tlx.finetune(config | fields, tmp_path / "run")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
