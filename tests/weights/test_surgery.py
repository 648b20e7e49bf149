"""Pretrained values in networks with other inputs, another stem or another head."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

import tlx
from tests.models.reference import images, random_arrays
from tests.models.zoo import TOLERANCE, outputs_of_tlx
from tlx import create_model, save_weights
from tlx.errors import InputError
from tlx.models import (
    FAMILIES,
    abstract_model,
    default_meta,
    densenet,
    efficientnet,
    family,
    is_text,
    mobilenet,
    resnet,
    squeezenet,
    vgg,
    vit,
)
from tlx.models.leaves import initial_values, leaves, values
from tlx.pretrained import shaped, source
from tlx.weights.files import write_safetensors
from tlx.weights.load import Fitting
from tlx.weights.surgery import centre_crop, input_channels, select_classes

# Networks as they are, but of few layers and channels.
SHRUNK = {
    "resnet18": resnet.ResNetPreset((1, 1, 1, 1), (16, 16, 32, 32)),
    "resnet18d": resnet.ResNetPreset((1, 1, 1, 1), (16, 16, 32, 32), deep=True),
    "vgg11_bn": vgg.VGGPreset((1,) * 5, batchnorm=True, hidden=32),
    "densenet121": densenet.DenseNetPreset((1, 1, 1, 2), growth=8, stem_width=16),
    "squeezenet1_0": squeezenet.SqueezeNetPreset(16, 7, (((8, 16),),) * 3),
    "vit_tiny_patch16_224": vit.ViTPreset(64, 2, 16),
}
for _module, _name in ((mobilenet, "mobilenet_v3_small"), (efficientnet, "efficientnet_b0")):
    _preset = _module.PRESETS[_name]
    SHRUNK[_name] = dataclasses.replace(_preset, stages=_preset.stages[:2], last=48)
NETWORKS = tuple(SHRUNK)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    for name, preset in SHRUNK.items():
        monkeypatch.setitem(family(name).PRESETS, name, preset)
    cached = (mobilenet.key_tables, efficientnet.key_tables)
    for tables in cached:
        tables.cache_clear()
    yield
    for tables in cached:
        tables.cache_clear()


@pytest.fixture
def write(tmp_path):
    def write(name, num_classes=7, channels=3):
        """A file of random values under the names of the family's first table; its path and arrays."""
        meta = shaped(default_meta(name), in_channels=channels)
        meta = dataclasses.replace(meta, num_classes=num_classes)
        found = leaves(abstract_model(name, num_classes=num_classes, meta=meta))
        zeros = {p: np.broadcast_to(np.float32(0), leaf.shape) for p, leaf in found.items()}
        names = family(name).key_tables(name)[0].to_source(zeros)
        drawn = random_arrays({key: array.shape for key, array in names.items()})
        arrays = {key: drawn[key] if a.dtype == np.float32 else a for key, a in names.items()}
        path = tmp_path / f"{name}.safetensors"
        metadata = {} if channels == 3 else {"tlx_meta": json.dumps(meta.to_json())}
        write_safetensors(arrays, path, metadata)
        return path, arrays

    return write


def kernel_of(model):
    return np.asarray(values(model)[model.input_kernel])


def logits_of(model, x):
    return outputs_of_tlx(model, x)["logits"]


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 1e-3 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def input_size(name):
    return 224 if name.startswith("vit") else 64


# The functions


def a_kernel(channels=3):
    return np.random.default_rng(0).standard_normal((5, 5, channels, 2)).astype(np.float32)


def test_one_channel_is_the_sum_and_others_are_repeated_and_rescaled():
    kernel = a_kernel()
    red, green, blue = (kernel[:, :, i] for i in range(3))
    np.testing.assert_allclose(
        input_channels(kernel, 1)[:, :, 0], red + green + blue, rtol=1e-5, atol=1e-6
    )
    for channels, order in ((2, [red, green]), (4, [red, green, blue, red])):
        expected = np.stack(order, 2) * (3 / channels)
        np.testing.assert_allclose(input_channels(kernel, channels), expected, rtol=1e-6)
    six = input_channels(kernel, 6)
    np.testing.assert_allclose(six, np.concatenate([kernel, kernel], 2) / 2, rtol=1e-6)
    np.testing.assert_array_equal(input_channels(kernel, 3), kernel)


def test_channels_are_summed_in_float32_whatever_the_files_type():
    kernel = np.full((1, 1, 3, 1), 2049.0).astype(np.float16)  # in float16 the sum is 6144
    kernel[0, 0, 1, 0] = 1
    assert input_channels(kernel, 1).dtype == np.float32
    assert input_channels(kernel, 1).item() == float(kernel[0, 0, 0, 0]) * 2 + 1


@pytest.mark.parity
@pytest.mark.parametrize(
    ("own", "channels"), [(3, n) for n in (1, 2, 3, 4, 6, 7)] + [(1, 3), (4, 3)]
)
def test_input_channels_are_timms(own, channels):
    import torch

    from tests.torchvision_import import import_torchvision

    import_torchvision()
    from timm.models._manipulate import adapt_input_conv

    kernel = a_kernel(own)
    theirs = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    expected = adapt_input_conv(channels, theirs, own).numpy().transpose(2, 3, 1, 0)
    assert_same(input_channels(kernel, channels), expected)


def test_centre_crop_keeps_the_middle():
    kernel = np.arange(7 * 7 * 2 * 3).reshape(7, 7, 2, 3)
    np.testing.assert_array_equal(centre_crop(kernel, (3, 3)), kernel[2:5, 2:5])
    np.testing.assert_array_equal(centre_crop(kernel, (5, 1)), kernel[1:6, 3:4])
    np.testing.assert_array_equal(centre_crop(kernel, (7, 7)), kernel)


def test_select_classes_keeps_their_order_in_kernels_and_biases():
    kernel = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(select_classes(kernel, (3, 1)), kernel[:, [3, 1]])
    np.testing.assert_array_equal(select_classes(np.arange(4), (2, 2, 0)), [2, 2, 0])
    maps = np.arange(8).reshape(1, 1, 2, 4)
    np.testing.assert_array_equal(select_classes(maps, (1,)), maps[..., 1:2])


# Channels of the input


@pytest.mark.parametrize("name", NETWORKS)
def test_grey_and_stacked_pictures_give_the_logits_of_the_file(name, write):
    path, _ = write(name)
    x = images(2, input_size(name), input_size(name))
    grey = x[..., :1]
    own = create_model(name, weights=path)
    one, six = (create_model(name, weights=path, in_channels=n) for n in (1, 6))
    assert kernel_of(one).shape[2] == 1
    assert_same(logits_of(one, grey), logits_of(own, np.repeat(grey, 3, -1)))
    assert kernel_of(six).shape[2] == 6
    assert_same(logits_of(six, np.concatenate([x, x], -1)), logits_of(own, x))
    for other in (one, six):
        for path, value in values(own).items():
            if path != own.input_kernel:
                np.testing.assert_array_equal(values(other)[path], value)


def test_a_file_of_grey_pictures_opens_for_colours(write):
    path, _ = write("resnet18", channels=1)
    own = create_model("resnet18", weights=path)
    assert own.meta.preprocess.channels == 1
    three = create_model("resnet18", weights=path, in_channels=3)
    grey = images(2, 48, 48)[..., :1]
    assert_same(logits_of(three, np.repeat(grey, 3, -1)), logits_of(own, grey))
    prepare = tlx.preprocess(dataclasses.replace(three.meta.preprocess, size=8, resize=8))
    assert prepare(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8, 3)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_meta_follows_the_channels(channels, write):
    path, arrays = write("resnet18")
    model = create_model("resnet18", weights=path, in_channels=channels, image_size=64)
    own = arrays["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel_of(model), input_channels(own, channels))
    preprocess, before = model.meta.preprocess, default_meta("resnet18").preprocess
    assert preprocess.channels == channels == len(preprocess.std)
    assert preprocess.channel_order == ("L" if channels == 1 else "RGB")
    if channels > 1:
        assert preprocess.mean == tuple(before.mean[i % 3] for i in range(channels))
        assert preprocess.std == tuple(before.std[i % 3] for i in range(channels))
    else:
        assert preprocess.mean == pytest.approx((np.mean(before.mean),), abs=1e-6)
        assert preprocess.std == pytest.approx((np.mean(before.std),), abs=1e-6)
    prepared = tlx.preprocess(model)(np.full((64, 64, channels), 255, np.uint8))
    assert prepared.shape == (64, 64, channels) and prepared.dtype == np.float32
    expected = (1 - np.array(preprocess.mean)) / preprocess.std
    np.testing.assert_allclose(prepared[3, 5], expected, rtol=1e-5)


LAST = {module: name for name, module in FAMILIES.items() if not is_text(name)}


@pytest.mark.parametrize("name", LAST.values())
def test_the_last_network_of_every_family_takes_other_channels(name):
    meta = shaped(default_meta(name), in_channels=5)
    own = {p: x.shape for p, x in leaves(abstract_model(name, num_classes=4)).items()}
    model = abstract_model(name, num_classes=4, meta=meta)
    other = {p: x.shape for p, x in leaves(model).items()}
    assert own.keys() == other.keys()
    changed = [p for p in own if own[p] != other[p]]
    assert changed == [model.input_kernel]
    assert other[model.input_kernel][2] == 5 and own[model.input_kernel][2] == 3


# Sizes of the input


def shape_of(model, height, width, *, stop=None):
    """The shape of the logits, or of a stage's output; nothing is computed."""
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, height, width, model.meta.preprocess.channels), np.float32)

    def forward(state, x):
        network = nnx.merge(graphdef, state)
        return network(x) if stop is None else network.run(x, 0, stop)

    return jax.eval_shape(forward, state, x).shape


CONVOLUTIONAL = (
    *("resnet18", "resnet18d", "resnet20_cifar", "vgg11_bn", "densenet121", "squeezenet1_0"),
    *("mobilenetv2_100", "mobilenet_v3_small", "efficientnet_b0", "tf_efficientnetv2_s"),
    *("convnext_tiny", "swin_tiny_patch4_window7_224"),
)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_size_of_the_input_changes_nothing_in_the_network(name):
    own = abstract_model(name, num_classes=4)
    meta = shaped(default_meta(name), image_size=64)
    other = abstract_model(name, num_classes=4, meta=meta)
    assert {p: x.shape for p, x in leaves(own).items()} == {
        p: x.shape for p, x in leaves(other).items()
    }
    assert other.meta.preprocess.size == 64
    for model in (own, other):
        assert shape_of(model, 64, 64) == shape_of(model, 97, 131) == (2, 4)


def test_a_file_at_another_size_is_the_same_network(write):
    path, _ = write("resnet18")
    own = create_model("resnet18", weights=path)
    other = create_model("resnet18", weights=path, image_size=64)
    assert (other.meta.preprocess.size, other.meta.preprocess.resize) == (64, 73)
    x = images(1, 97, 131)
    assert np.isfinite(logits_of(own, x)).all()
    np.testing.assert_array_equal(logits_of(own, x), logits_of(other, x))


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "squeezenet1_0", "convnext_tiny"])
def test_pictures_of_which_nothing_is_left_are_refused(name):
    with pytest.raises(InputError, match=rf"too small for {name}: no pixel is left .* after \w+"):
        shape_of(abstract_model(name, num_classes=4), 16, 16)


# Heads


@pytest.mark.parametrize("name", NETWORKS)
def test_without_classes_the_network_returns_its_features(name, write):
    path, _ = write(name)
    model = create_model(name, weights=path, num_classes=0)
    assert model.head is None and model.meta.num_classes == 0
    x = images(2, input_size(name), input_size(name))
    found = outputs_of_tlx(model, x)
    assert found["logits"].shape == (2, model.num_features)
    np.testing.assert_array_equal(found["logits"], found["features"])
    whole = outputs_of_tlx(create_model(name, weights=path), x)
    assert_same(found["features"], whole["features"])
    kept = source(name, str(path), num_classes=0).loaded
    assert kept.fresh == () and len(kept.dropped) == 2  # the head's kernel and bias


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_head_is_drawn_as_told(name, write):
    path, _ = write(name)
    heads = {}
    for how in ("default", "zero", "small"):
        placed = source(name, str(path), num_classes=5, head="new", head_init=how).place(3)
        heads[how] = np.asarray(placed["head.kernel"]), np.asarray(placed["head.bias"])
    kernel = heads["default"][0]
    assert kernel.shape[-1] == 5 and kernel.std() > 1e-3
    assert not heads["zero"][0].any() and not heads["zero"][1].any()
    np.testing.assert_allclose(heads["small"][0], kernel / 100, rtol=1e-5)
    assert not heads["small"][1].any()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0"])
def test_a_head_of_zeros_gives_logits_of_zero(name, write):
    path, _ = write(name)
    x = images(2, 64, 64)
    zero = create_model(name, weights=path, num_classes=5, head_init="zero")
    np.testing.assert_array_equal(logits_of(zero, x), np.zeros((2, 5)))


def test_a_head_of_zeros_needs_no_file():
    found = source("resnet18", num_classes=5, head_init="zero").leaves
    drawn = initial_values(found, ["head.kernel", "head.bias", "stem.conv.kernel"], 0)
    assert not drawn["head.kernel"].any() and not drawn["head.bias"].any()
    assert drawn["stem.conv.kernel"].any()


def test_a_head_that_is_kept_is_not_drawn(write):
    path, arrays = write("resnet18")
    model = create_model("resnet18", weights=path, num_classes=7, head_init="zero")
    np.testing.assert_array_equal(values(model)["head.kernel"], arrays["fc.weight"].T)
    with pytest.raises(InputError, match=r"head_init is 'zeros', .*did you mean 'zero'"):
        create_model("resnet18", weights=path, head_init="zeros")


# The stem for small pictures


STEMS = {  # name -> the first kernel's name in a file, and whether it is cropped
    "resnet18": ("conv1.weight", True),
    "resnet18d": ("conv1.0.weight", False),
    "densenet121": ("features.conv0.weight", True),
    "squeezenet1_0": ("features.0.weight", True),
    "efficientnet_b0": ("features.0.0.weight", False),
    "mobilenet_v3_small": ("features.0.0.weight", False),
}


@pytest.mark.parametrize("name", STEMS)
def test_the_small_stem_has_the_centre_of_the_kernel_and_keeps_all_pixels(name, write):
    path, arrays = write(name)
    key, cropped = STEMS[name]
    kernel = arrays[key].transpose(2, 3, 1, 0)
    own = create_model(name, weights=path)
    model = create_model(name, weights=path, stem="small")
    assert own.meta.stem == "" and model.meta.stem == "small"
    expected = kernel[2:5, 2:5] if cropped else kernel
    assert expected.shape[:2] == (3, 3)
    np.testing.assert_array_equal(kernel_of(model), expected)
    for path_, value in values(own).items():
        if path_ != own.input_kernel:
            np.testing.assert_array_equal(values(model)[path_], value)
    assert shape_of(model, 32, 32, stop=1)[1:3] == (32, 32)
    assert shape_of(own, 32, 32, stop=1)[1] <= 16
    fitted = source(name, str(path), meta=model.meta).loaded.fitted
    wide = list(kernel.shape)
    line = f"stem.conv.kernel {wide} made to fit {[3, 3, *wide[2:]]}"
    assert fitted == ((line,) if cropped else ())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_0"])
def test_a_small_stem_can_be_drawn_afresh(name, write):
    path, _ = write(name)
    meta = shaped(default_meta(name), stem="small")
    found = source(name, str(path), num_classes=7, meta=meta, fitting=Fitting("new"))
    assert found.loaded.fresh == ("stem.conv.kernel",)
    assert found.loaded.dropped == (STEMS[name][0],)
    assert found.loaded.fitted == ()
    assert "initialised afresh: stem.conv.kernel" in found.describe()
    cropped = create_model(name, weights=path, stem="small")
    one, same, other = (
        create_model(name, weights=path, stem="small", stem_init="new", seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(kernel_of(one), kernel_of(same))
    assert not np.array_equal(kernel_of(one), kernel_of(other))
    assert not np.array_equal(kernel_of(one), kernel_of(cropped))
    assert kernel_of(one).shape == kernel_of(cropped).shape and kernel_of(one).std() > 0.01
    for path_, value in values(cropped).items():
        if path_ != "stem.conv.kernel":
            np.testing.assert_array_equal(values(one)[path_], value)


def test_the_log_names_what_was_made_to_fit(write):
    path, arrays = write("resnet18")
    meta = shaped(default_meta("resnet18"), in_channels=1, stem="small")
    found = source("resnet18", str(path), meta=meta)
    line = "stem.conv.kernel [7, 7, 3, 16] made to fit [3, 3, 1, 16]"
    assert found.loaded.fitted == (line,) and line in found.describe()
    kernel = arrays["conv1.weight"].transpose(2, 3, 1, 0)[2:5, 2:5].sum(2, keepdims=True)
    np.testing.assert_allclose(
        found.loaded.arrays["stem.conv.kernel"], kernel, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "name", ["vgg11_bn", "vit_tiny_patch16_224", "convnext_tiny", "swin_tiny_patch4_window7_224"]
)
def test_networks_without_a_small_stem_are_refused(name):
    with pytest.raises(InputError, match=f"{name} has no small-image stem"):
        create_model(name, stem="small")


def test_unknown_stems_are_refused():
    with pytest.raises(InputError, match=r"stem is 'smal', .*did you mean 'small'"):
        create_model("resnet18", stem="smal")
    with pytest.raises(InputError, match=r"stem_init is 'fresh'"):
        create_model("resnet18", stem="small", stem_init="fresh")


# There and back


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_0"])
def test_a_saved_model_opens_without_its_options(name, write, tmp_path):
    path, _ = write(name)
    options = {"in_channels": 1, "stem": "small", "num_classes": 5, "image_size": 32}
    model = create_model(name, weights=path, seed=4, **options)
    save_weights(model, tmp_path / "cut.safetensors")
    again = create_model(name, weights=tmp_path / "cut.safetensors")
    assert again.meta == model.meta
    assert again.meta.preprocess.channels == 1 and again.meta.stem == "small"
    x = images(2, 32, 32)[..., :1]
    logits = logits_of(model, x)
    assert logits.shape == (2, 5) and np.isfinite(logits).all() and logits.std() > 0
    np.testing.assert_array_equal(logits_of(again, x), logits)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    prepared = tlx.preprocess(again)(picture)
    assert prepared.shape == (32, 32, 1)
    np.testing.assert_array_equal(prepared, tlx.preprocess(model)(picture))


def test_a_run_on_small_grey_pictures_is_loaded_from_its_folder(write, tmp_path):
    path, arrays = write("resnet18")
    fields = {
        "model.name": "resnet18",
        "model.weights": str(path),
        "model.in_channels": 1,
        "model.stem": "small",
        "model.head_init": "zero",
        "model.dropout": 0.1,
        "data.source": "digits",
        "data.image_size": 8,
        "data.resize": 8,
        "tune.method": "partial",
        "tune.freeze_stages": 1,
        "train.batch_size": 8,
        "train.steps": 3,
        "train.log_every": 1,
        "eval.batch_size": 200,
        "optimizer.lr": 0.02,
    }
    summary = tlx.finetune(fields, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [r["train/loss"] for r in map(json.loads, lines) if "train/loss" in r]
    assert losses[0] == pytest.approx(np.log(10), rel=1e-6)  # of logits that are all zero
    path.unlink()
    model = tlx.load(tmp_path / "run")
    assert model.meta.stem == "small" and model.meta.num_classes == 10
    assert model.meta.preprocess.channels == 1 and model.meta.preprocess.size == 8
    kernel = arrays["conv1.weight"].transpose(2, 3, 1, 0)[2:5, 2:5]
    np.testing.assert_array_equal(kernel_of(model), input_channels(kernel, 1))
    assert np.abs(values(model)["head.kernel"]).max() > 0
    prepared = tlx.preprocess(model)(np.full((8, 8), 255, np.uint8))
    assert prepared.shape == (8, 8, 1)
    assert np.isfinite(logits_of(model, prepared[None])).all()
    again = tlx.evaluate(fields, tmp_path / "run")
    assert again["test/loss"] == summary["test/loss"]
