"""Adapters in peft's layout: there and back, and with peft itself."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.reference import images
from tests.torchvision_import import import_torchvision
from tlx.config import TuneConfig
from tlx.errors import InputError
from tlx.models import family
from tlx.models.adapters import adapted_layers, merged
from tlx.models.leaves import values, with_values
from tlx.pretrained import create_model, save_weights, source
from tlx.tuning.adapters import with_adapters
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.peft_config import CONFIG, WEIGHTS
from tlx.weights.peft_read import load_adapters
from tlx.weights.peft_write import save_adapters

pytestmark = pytest.mark.wide

# Model -> the source's own names, some layers there, and pictures that it takes.
NETWORKS = {
    "resnet18": ("torchvision", ("conv1", "layer2.1.conv2", "layer3.0.downsample.0"), 64),
    "vit_tiny_patch16_224": (
        "timm",
        ("blocks.0.attn.qkv", "blocks.3.mlp.fc1", "blocks.5.mlp.fc2"),
        224,
    ),
}


def adapted(name, seed=0, **tune):
    """The plain network, and the same with adapters of drawn values."""
    model = source(name, num_classes=5)
    plain = with_values(model.model, model.place(0))
    found = with_adapters(model, TuneConfig(**tune))
    arrays = found.place(0)
    rng = np.random.default_rng(seed)
    for path in [path for path in arrays if ".adapter." in path or path.startswith("head")]:
        draw = rng.standard_normal(arrays[path].shape).astype(np.float32)
        arrays[path] = arrays[path] + 0.1 * jnp.asarray(draw)
    return plain, with_values(found.model, arrays)


TARGETS = {
    "resnet18": ("stem", "layer2.1.conv2", "layer3.0.shortcut"),
    "vit_tiny_patch16_224": ("block0", "block3.attention.(query|value)"),
}


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_is_read_back(name, method, tmp_path):
    plain, model = adapted(name, method=method, rank=2, alpha=6.0, targets=TARGETS[name])
    save_adapters(model, tmp_path)
    again = load_adapters(plain, tmp_path)
    x = images(2, NETWORKS[name][2], NETWORKS[name][2])
    expected = np.asarray(model(x))
    assert np.abs(plain(x) - expected).max() > 0.01 * np.abs(expected).max()
    assert np.abs(again(x) - expected).max() <= 5e-6 * np.abs(expected).max()
    save_adapters(again, tmp_path / "again")
    assert (tmp_path / CONFIG).read_text() == (tmp_path / "again" / CONFIG).read_text()
    one, two = read_weights(tmp_path / WEIGHTS), read_weights(tmp_path / "again" / WEIGHTS)
    assert one.keys() == two.keys()
    for key, array in one.items():
        np.testing.assert_allclose(two[key], array, rtol=1e-6, err_msg=key)


@pytest.mark.parity
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_peft_trained_is_read(name, method, tmp_path):
    torch, peft, network = original(name)
    _, modules, size = NETWORKS[name]
    torch.manual_seed(0)
    if method == "ia3":
        config = peft.IA3Config(
            target_modules=list(modules), feedforward_modules=list(modules[1:2]),
            modules_to_save=["head" if name.startswith("vit") else "fc"],
        )  # fmt: skip
    else:
        config = peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=list(modules), use_dora=method == "dora",
            modules_to_save=["head" if name.startswith("vit") else "fc"],
            rank_pattern={modules[1]: 4}, alpha_pattern={modules[1]: 9},
        )  # fmt: skip
    theirs = peft.get_peft_model(network, config).eval()
    with torch.no_grad():
        for _, value in theirs.named_parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn_like(value)
    theirs.save_pretrained(tmp_path)
    plain = create_model(name, weights=weights_of(network, tmp_path))
    model = load_adapters(plain, tmp_path)
    x = images(2, size, size)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(plain(x) - expected).max() > 0.01 * np.abs(expected).max()
    assert np.abs(model(x) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parity
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", NETWORKS)
def test_peft_opens_what_is_written(name, method, tmp_path):
    torch, peft, network = original(name)
    plain, model = adapted(name, method=method, rank=2, targets=TARGETS[name])
    save_weights(plain, tmp_path / "plain.safetensors", names=NETWORKS[name][0])
    state = {
        key: torch.from_numpy(np.array(array))
        for key, array in read_weights(tmp_path / "plain.safetensors").items()
    }
    network.load_state_dict(state, strict=True)
    save_adapters(model, tmp_path / "adapter", names=NETWORKS[name][0])
    theirs = peft.PeftModel.from_pretrained(network, tmp_path / "adapter").eval()
    x = images(2, NETWORKS[name][2], NETWORKS[name][2])
    with torch.no_grad():
        found = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    expected = np.asarray(model(x))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def original(name):
    import torch

    torchvision = import_torchvision()
    import peft
    import timm

    if name.startswith("vit"):
        return torch, peft, timm.create_model(name, num_classes=5).eval()
    return torch, peft, torchvision.models.resnet18(num_classes=5).eval()


def weights_of(network, folder):
    """The plain network's weights, out of what peft made of it."""
    found = {}
    for key, value in network.state_dict().items():
        if "lora_" in key or "ia3_" in key or "modules_to_save" in key:
            continue
        key = key.replace(".base_layer.", ".").replace(".original_module.", ".")
        found[key] = value.numpy()
    write_safetensors(found, folder / "plain.safetensors")
    return folder / "plain.safetensors"


@pytest.fixture
def folder(tmp_path):
    _, model = adapted("resnet18", method="lora", rank=2, targets=("layer1",))
    save_adapters(model, tmp_path)
    return tmp_path


def changed(folder, config=(), drop=(), **arrays):
    found = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(found | dict(config)))
    stored = {k: np.array(v) for k, v in read_weights(folder / WEIGHTS).items() if k not in drop}
    write_safetensors(stored | arrays, folder / WEIGHTS)


FIRST = "base_model.model.layer1.0.conv1"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {"init_lora_weights": "pissa_niter_4"}}, "'pissa_niter_4' changes the weights"),
        ({"config": {"init_lora_weights": "olora"}}, "init_lora_weights='olora'"),
        ({"config": {"peft_type": "LOHA"}}, "peft_type is 'LOHA', expected LORA"),
        ({"config": {"bias": "all"}}, "bias='all' is not supported"),
        ({"config": {"fan_in_fan_out": True}}, "fan_in_fan_out=True is not supported"),
        ({"drop": [f"{FIRST}.lora_A.weight"]}, "layer1.0.conv1 has lora_B.weight, expected lora_A"),
        ({"config": {"use_dora": True}}, "expected lora_A.weight, lora_B.weight, lora_magnitude"),
        (
            {f"{FIRST}.lora_A.weight": np.zeros((2, 9, 3, 3), np.float32)},
            "lora_A [2, 9, 3, 3] and lora_B [64, 2, 1, 1] do not fit a kernel of [3, 3, 64, 64]",
        ),
        (
            {"base_model.model.layer9.conv.lora_A.weight": np.zeros((2, 3), np.float32)},
            "has adapters at layer9.conv, which resnet18 does not have",
        ),
        ({"base_model.model.fc.weight": np.zeros((7, 512), np.float32)}, "fc.weight does not fit"),
        ({"base_model.model.extra": np.zeros(3, np.float32)}, "holds unknown extra"),
    ],
)
def test_what_does_not_fit_is_named(folder, change, says):
    changed(folder, **change)
    plain = create_model("resnet18", num_classes=5)
    with pytest.raises(InputError) as caught:
        load_adapters(plain, folder)
    assert says in str(caught.value)


def test_missing_and_damaged_files(folder):
    plain = create_model("resnet18", num_classes=5)
    with pytest.raises(FileNotFoundError, match="no adapter config"):
        load_adapters(plain, folder / "nowhere")
    (folder / CONFIG).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_adapters(plain, folder)


def test_what_has_no_place_in_the_layout_is_refused(tmp_path):
    plain, model = adapted("resnet18", method="bottleneck", rank=2)
    with pytest.raises(InputError, match="the model has Bottleneck"):
        save_adapters(model, tmp_path)
    with pytest.raises(InputError, match="the model has none"):
        save_adapters(plain, tmp_path)
    assert not list(adapted_layers(plain)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_every_projects_names_are_read_back(name, method, tmp_path):
    _, model = adapted(name, method=method, rank=2, targets=(r".*\.attention\.(query|value)",))
    plain = create_model(name, num_classes=5)
    expected = values(merged(model))
    tables = [table.name for table in family(name).key_tables(name)]
    # In one tensor, which is no module.
    fused = ("torchvision", "torchvision_published") if name.startswith("vit") else ()
    for names in tables:
        if names in fused:
            with pytest.raises(InputError, match="no modules of their own"):
                save_adapters(model, tmp_path / names, names=names)
            continue
        save_adapters(model, tmp_path / names, names=names)
        # Where three layers are one there, the adapter of all has the rank of all: the kernels are the same.
        again = values(merged(load_adapters(plain, tmp_path / names)))
        for path, value in expected.items():
            np.testing.assert_allclose(again[path], value, rtol=1e-5, atol=1e-7, err_msg=path)
    assert len(tables) >= 2


def test_the_head_comes_along(folder):
    plain = create_model("resnet18", num_classes=5, seed=3)
    model = load_adapters(plain, folder)
    stored = read_weights(folder / WEIGHTS)["base_model.model.fc.weight"]
    np.testing.assert_array_equal(values(model)["head.kernel"], stored.T)
