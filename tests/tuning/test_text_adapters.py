"""Adapters in text networks: where they are by default, and heads of several layers that were trained beside them."""

import functools

import numpy as np
import pytest

from tests import text_models
from tlx import create_model, preprocess, save_weights
from tlx.config import TuneConfig
from tlx.models.adapters import Spec, specs_of
from tlx.models.leaves import values, with_values
from tlx.pretrained import source
from tlx.tuning.trained_adapters import with_trained_adapters
from tlx.weights.peft_read import open_adapters
from tlx.weights.peft_write import save_adapters

pytestmark = pytest.mark.wide

LAYERS = ("layer.0", "layer.1")


@pytest.mark.parametrize("name", text_models.NAMES)
@pytest.mark.parametrize(
    ("method", "places"),
    [
        ("lora", {"attention.query": False, "attention.value": False}),
        ("dora", {"attention.query": False, "attention.value": False}),
        ("ia3", {"attention.key": False, "attention.value": False, "fc2": True}),
        ("bottleneck", {"attention.output": False, "fc2": False}),
    ],
)
def test_where_they_are_by_default(name, method, places):
    _, model = text_models.network(name, adapters={"method": method})
    found = {path: spec.inputs for path, spec in specs_of(model).items()}
    assert found == {f"{layer}.{place}": own for layer in LAYERS for place, own in places.items()}


def test_layers_can_be_named():
    targets = ("layer.1", r"layer\.0\.fc1")
    _, model = text_models.network("bert", adapters={"method": "lora", "rank": 2, "targets": targets})  # fmt: skip
    expected = ["attention.query", "attention.key", "attention.value", "attention.output"]
    expected = [f"layer.1.{name}" for name in (*expected, "fc1", "fc2")]
    assert sorted(specs_of(model)) == sorted([*expected, "layer.0.fc1"])
    assert specs_of(model)["layer.0.fc1"] == Spec("lora", 2, 16.0)


@pytest.fixture
def written(tmp_path):
    """A RoBERTa without a head, and adapters that were trained in it with one."""
    encoder, adapter = tmp_path / "encoder", tmp_path / "adapter"
    encoder.mkdir()
    save_weights(text_models.headless("roberta"), encoder / "model.safetensors")
    plain = create_model("roberta", weights=encoder)
    _, model = text_models.network("roberta", adapters={"method": "lora"})
    model = with_values(model, values(model) | values(plain))
    save_adapters(model, adapter)
    return encoder, adapter, model


def taken(written, names, head="auto"):
    encoder, adapter, _ = written
    make = functools.partial(source, "roberta", str(encoder), class_names=names)
    return with_trained_adapters(
        make, open_adapters(adapter), TuneConfig(method="lora"), head, names
    )


def test_the_whole_head_comes_along(written):
    found = taken(written, ("neg", "neu", "pos"))
    beside = ("head.dense.bias", "head.dense.kernel", "head.out.bias", "head.out.kernel")
    assert sorted(found.trained.beside) == sorted(beside) and found.loaded.fresh == ()
    model = with_values(found.model, found.place(0))
    expected = written[2]
    batch = preprocess(expected)(text_models.BYTE_TEXTS)
    np.testing.assert_allclose(model(batch), expected(batch), rtol=1e-5, atol=1e-6)


def test_none_of_a_head_for_other_classes_is_used(written):
    found = taken(written, ("a", "b"))
    assert found.trained.beside == () and found.trained.no_head == "it is for other classes"
    assert {path.split(".")[0] for path in found.loaded.fresh} == {"head"}
    assert len(found.loaded.fresh) == 4
