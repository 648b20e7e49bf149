import jax.numpy as jnp
import numpy as np
import pytest

import tlx
from tests import levels
from tests.models.reference import images
from tlx import create_model, main, save_weights
from tlx.config import TuneConfig
from tlx.errors import InputError
from tlx.models import abstract_model, resnet, vgg, vit
from tlx.models.adapters import adapted_layers, attached, column_norms, merged
from tlx.models.leaves import values, with_values
from tlx.pretrained import source
from tlx.tasks import get_task
from tlx.training.mesh import make_mesh
from tlx.training.step import make_eval_step
from tlx.tuning.adapters import METHODS, chosen, with_adapters
from tlx.weights.files import read_weights
from tlx.weights.peft_read import load_adapters

pytestmark = pytest.mark.wide

MERGEABLE = ("lora", "dora", "ia3")
NETWORKS = {
    "resnet50": (resnet, resnet.ResNetPreset((1, 1), (8, 16), bottleneck=True)),
    "vit_tiny_patch16_224": (vit, vit.ViTPreset(64, 2, 8)),
    "vgg11_bn": (vgg, vgg.VGGPreset((1, 1, 2, 1, 1), batchnorm=True, hidden=16)),
}


@pytest.fixture(params=NETWORKS)
def network(request, monkeypatch):
    module, preset = NETWORKS[request.param]
    monkeypatch.setitem(module.PRESETS, request.param, preset)
    monkeypatch.setattr(vgg, "WIDTHS", (8, 8, 16, 16, 16))
    return request.param


def adapted(name, moved=False, **tune):
    """The network as it is, and with adapters, which are moved from where they begin or not."""
    model = source(name, num_classes=5)
    plain = with_values(model.model, model.place(0))
    found = with_adapters(model, TuneConfig(**tune))
    arrays = found.place(0)
    rng = np.random.default_rng(0)
    for path in [path for path in arrays if moved and ".adapter." in path]:
        draw = rng.standard_normal(arrays[path].shape).astype(np.float32)
        arrays[path] = arrays[path] + 0.1 * jnp.asarray(draw)
    return plain, with_values(found.model, arrays)


@pytest.mark.parametrize("method", METHODS)
def test_at_first_adapters_change_nothing(network, method):
    plain, model = adapted(network, method=method, rank=2)
    assert list(adapted_layers(model))
    x = images(2, 224, 224) if network.startswith("vit") else images(2, 32, 32)
    for logits in (lambda network: np.asarray(network(x)), evaluated):
        found, expected = logits(model), logits(plain)
        if method == "dora":  # divides by a norm that is computed again: close, not equal
            assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
        else:
            np.testing.assert_array_equal(found, expected)


def evaluated(model):
    """The logits of a batch, by the jitted evaluation step."""
    size = model.meta.preprocess.size
    inputs = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    batch = {"inputs": inputs, "targets": np.zeros((2, 5), np.float32)}
    step = make_eval_step(model, get_task("multilabel"), make_mesh(), dtype="float32")
    return np.asarray(step(values(model), batch)["logits"])


@pytest.mark.parametrize("method", MERGEABLE)
def test_merged_gives_the_same_and_is_written_under_the_sources_names(network, method, tmp_path):
    plain, model = adapted(network, moved=True, method=method, rank=2)
    x = images(2, 224, 224) if network.startswith("vit") else images(2, 32, 32)
    expected, before = np.asarray(model(x)), np.asarray(plain(x))
    assert np.abs(expected - before).max() > 0.01 * np.abs(before).max()
    whole = merged(model)
    assert not list(adapted_layers(whole)) and values(whole).keys() == values(plain).keys()
    assert np.abs(whole(x) - expected).max() <= 1e-5 * np.abs(expected).max()
    for file, network_of in (("merged", model), ("plain", plain)):
        save_weights(network_of, tmp_path / f"{file}.safetensors")
    one, two = (read_weights(tmp_path / f"{name}.safetensors") for name in ("merged", "plain"))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    again = create_model(network, weights=tmp_path / "merged.safetensors")
    np.testing.assert_array_equal(again(x), whole(x))


def test_lora_adds_the_scaled_product_of_its_two_matrices(network):
    _, model = adapted(network, moved=True, method="lora", rank=3, alpha=6.0)
    for _, layer in adapted_layers(model):
        kernel, a, b = (
            np.asarray(part[...], np.float64)
            for part in (layer.kernel, layer.adapter.a, layer.adapter.b)
        )
        found, bias = layer.adapter.merged(np.asarray(layer.kernel[...]), None)
        update = 2.0 * np.tensordot(a, b, 1)
        np.testing.assert_allclose(found - kernel, update, atol=1e-6)
        assert bias is None and a.shape[-1] == b.shape[0] == 3


def test_dora_gives_every_column_its_magnitude():
    _, model = adapted("resnet20_cifar", moved=True, method="dora", rank=2)
    for _, layer in adapted_layers(model):
        kernel, _ = layer.adapter.merged(np.asarray(layer.kernel[...]), None)
        sign = np.sign(layer.adapter.magnitude[...])
        np.testing.assert_allclose(
            column_norms(kernel) * sign, layer.adapter.magnitude[...], rtol=1e-5
        )


@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_a_column_of_nothing_stays_what_it_is(size):
    """As in some published weights; a norm of 0 would make every logit nan."""
    found = with_adapters(source("resnet20_cifar"), TuneConfig(method="dora", targets=("layer3",)))
    arrays = found.place(0)
    kernel = "layer3.1.conv1.kernel"
    arrays[kernel] = arrays[kernel].at[..., 5].set(size)
    arrays["layer3.1.conv1.adapter.magnitude"] = column_norms(arrays[kernel])
    model = with_values(found.model, arrays)
    plain = source("resnet20_cifar").model
    expected = np.asarray(
        with_values(plain, {p: arrays[p] for p in values(plain)})(images(2, 16, 16))
    )
    for network in (model, merged(model)):
        error = np.abs(network(images(2, 16, 16)) - expected).max()
        assert error <= 2e-6 * np.abs(expected).max()


def test_ia3_multiplies_inputs_or_outputs():
    _, model = adapted("vit_tiny_patch16_224", method="ia3")
    layers = dict(adapted_layers(model))
    assert len(layers) == 36
    assert layers["block3.fc2"].adapter.inputs and not layers["block3.attention.key"].adapter.inputs
    x = np.random.default_rng(0).standard_normal((2, 5, 768)).astype(np.float32)
    layer = layers["block3.fc2"]
    layer.adapter.factor.set_value(jnp.arange(768.0))
    np.testing.assert_allclose(
        layer(x), layer.plain(x * np.arange(768, dtype=np.float32)), rtol=1e-5
    )


def targets_of(name, method, *targets):
    model = abstract_model(name, num_classes=5)
    specs = chosen(model, TuneConfig(method=method, targets=targets))
    return [path for path, _ in adapted_layers(attached(model, specs))]


def test_which_layers_get_one():
    every = targets_of("resnet18", "lora")
    assert len(every) == 19 and not any(path.startswith("stem") for path in every)
    assert targets_of("resnet18", "bottleneck") == every
    assert targets_of("resnet18", "lora", "layer4.1", r".*\.0\.conv1") == [
        "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1", "layer4.1.conv1",
        "layer4.1.conv2",
    ]  # fmt: skip
    assert "stem.conv" in targets_of("resnet18", "lora", "stem", "layer1")
    vit_layers = targets_of("vit_tiny_patch16_224", "lora")
    assert len(vit_layers) == 12 * 6
    assert len(targets_of("vit_tiny_patch16_224", "bottleneck")) == 12 * 2
    convnext = targets_of("convnext_tiny", "lora")  # the depthwise convolutions have none
    assert {path.rsplit(".", 1)[1] for path in convnext} == {"fc1", "fc2", "conv"}
    assert all("downsample" in path for path in convnext if path.endswith("conv"))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (("layer9",), "'layer9' is no layer that can have an adapter; did you mean 'layer"),
        (("head",), "'head' is no layer that can have an adapter"),
        (("layer1.0.bn1",), "the layers are called conv, conv1, conv2, as stem.conv"),
        (("(",), "tune.targets: '(' is not a regular expression"),
        (("layer1.0.conv1:input",), "is no layer that can have an adapter"),
    ],
)
def test_targets_that_hit_nothing_are_named(targets, says):
    with pytest.raises(InputError) as caught:
        targets_of("resnet18", "lora", *targets)
    assert says in str(caught.value)


def test_a_grouped_convolution_can_have_none():
    with pytest.raises(InputError, match="is no layer that can have an adapter"):
        targets_of("resnext50_32x4d", "lora", "layer1.0.conv2")


def test_a_bottleneck_is_not_written_under_the_sources_names(tmp_path):
    _, model = adapted("resnet20_cifar", method="bottleneck")
    with pytest.raises(InputError, match="has a bottleneck adapter"):
        save_weights(model, tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        (
            {"method": "lora", "targets": ("layer3.0", "layer3.2.conv1")},
            "LoRA adapters at 3 layers: layer3.0.conv1, layer3.0.conv2, layer3.2.conv1",
        ),
        ({"method": "ia3"}, "IA3 adapters at 18 layers: layer1 (6), layer2 (6), layer3 (6)"),
    ],
)
def test_what_is_printed_of_the_weights_lists_the_adapters(tune, says):
    plain = source("resnet20_cifar", "glyphs")
    found = with_adapters(plain, TuneConfig(**tune)).describe()
    line = f"initialised afresh, so that they change nothing at first: {says}"
    assert found == [*plain.describe(), line]


@pytest.mark.parametrize("method", ["dora", "bottleneck"])
def test_a_run_with_adapters_is_loaded_and_exported(tmp_path, method, capsys):
    fields = levels.fields(tmp_path) | {
        "train.steps": 4,
        "tune.method": method,
        "tune.rank": 2,
        "tune.targets": "layer3",
    }
    summary = tlx.finetune(fields, tmp_path / "run")
    evaluated = tlx.evaluate(fields, tmp_path / "run")
    assert evaluated["test/loss"] == summary["test/loss"]
    start, model = create_model("resnet20_cifar.glyphs"), tlx.load(tmp_path / "run")
    layers = dict(adapted_layers(model))
    assert set(layers) == {f"layer3.{i}.conv{j}" for i in range(3) for j in (1, 2)}
    for path, value in values(start).items():
        if not path.startswith("head"):
            np.testing.assert_array_equal(values(model)[path], value)
    if method == "dora":
        assert main.main([f"--workdir={tmp_path / 'run'}", "--mode=export"]) == 0
        exported = tmp_path / "run" / "export"
        x = images(2, 8, 8)
        whole = create_model("resnet20_cifar", weights=exported / "resnet20_cifar.safetensors")
        np.testing.assert_array_equal(whole(x), merged(model)(x))
        assert whole.meta.class_names == model.meta.class_names
        base = create_model("resnet20_cifar.glyphs", num_classes=3)
        again = load_adapters(base, exported / "adapter")
        np.testing.assert_allclose(again(x), model(x), rtol=1e-5, atol=1e-5)
    else:
        assert main.main([f"--workdir={tmp_path / 'run'}", "--mode=export"]) == 2
        assert "has a bottleneck adapter" in capsys.readouterr().err
    assert summary["params/trainable"] == sum(
        value.size
        for path, value in values(model).items()
        if ".adapter." in path or path.startswith("head")
    )
