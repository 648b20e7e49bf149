import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.models.reference import images, random_arrays
from tlx import create_model, preprocess, save_weights
from tlx.errors import InputError
from tlx.models import abstract_model, family
from tlx.models import leaves as leaves_module
from tlx.models.leaves import leaves, values
from tlx.pretrained import source
from tlx.weights.files import read_weights, safetensors_metadata, write_safetensors

NAME = "resnet20_cifar"


def arrays_of(name=NAME, num_classes=10):
    """A complete file's arrays under the source's names, drawn from the names."""
    table, *_ = family(name).key_tables(name)
    found = leaves(abstract_model(name, num_classes=num_classes))
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in found.items()}
    return random_arrays({key: a.shape for key, a in table.to_source(zeros, {}).items()})


@pytest.fixture
def write(tmp_path):
    def write(arrays, name="net.safetensors"):
        path = tmp_path / name
        write_safetensors(arrays, path, {})
        return path

    return write


def test_every_value_comes_from_the_file(write):
    arrays = arrays_of()
    model = create_model(NAME, weights=write(arrays))
    expected = arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(values(model)["layer2.0.conv1.kernel"], expected)
    np.testing.assert_array_equal(values(model)["stem.bn.var"], arrays["bn1.running_var"])
    np.testing.assert_array_equal(values(model)["head.kernel"], arrays["linear.weight"].T)


def test_values_stay_when_the_file_is_overwritten(tmp_path):
    """jax takes memory that is aligned to 64 bytes as it is: a view of the file would change with it."""
    arrays = arrays_of()
    data = bytearray(safetensors.numpy.save(arrays))
    (length,) = struct.unpack_from("<Q", data)
    padding = -(8 + length) % 64
    data[8 + length : 8 + length] = b" " * padding
    struct.pack_into("<Q", data, 0, length + padding)
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    views = read_weights(path)
    assert sum(a.ndim == 1 and a.ctypes.data % 64 == 0 for a in views.values()) > 10
    model = create_model(NAME, weights=path)
    with open(path, "r+b") as file:
        file.seek(8 + length + padding)
        file.write(bytes(len(data) - file.tell()))
    assert not any(view.any() for view in views.values())
    for name in ("stem.bn.var", "layer3.2.bn2.scale", "head.bias"):
        assert np.asarray(values(model)[name]).any(), name


def test_drawing_nothing_compiles_nothing(write, monkeypatch):
    path = write(arrays_of())
    monkeypatch.setattr(leaves_module, "_drawer", None)
    create_model(NAME, weights=path)


def test_what_is_missing_is_listed_and_accepted_only_by_name(write):
    arrays = {k: v for k, v in arrays_of().items() if not k.startswith("layer3.") or "bn" in k}
    path = write(arrays)
    with pytest.raises(InputError) as caught:
        create_model(NAME, weights=path)
    assert "lacks 6 of the 97 values" in str(caught.value)
    assert "layer3.0.conv1.kernel, layer3.0.conv2.kernel, layer3.1.conv1.kernel" in str(
        caught.value
    )
    assert "--config.model.missing_ok=layer3" in str(caught.value)
    found = source(NAME, str(path), missing_ok=("layer3",))
    # The BatchNorms that the file has belong to convolutions that it lacks: the stage is fresh as a whole.
    assert found.loaded.fresh == tuple(p for p in found.leaves if p.startswith("layer3."))
    assert "layer3.0.bn1.weight" in found.loaded.dropped
    assert any("initialised afresh: layer3" in line for line in found.describe())


def test_a_pattern_that_names_nothing_is_refused_and_one_not_needed_changes_nothing(write):
    path = write(arrays_of())
    with pytest.raises(InputError, match=r"'layer4' names no parameter \(modules: stem, layer1"):
        create_model(NAME, weights=path, missing_ok=("layer4",))
    assert source(NAME, str(path), missing_ok=("layer3",)).loaded.fresh == ()


def test_a_pattern_over_several_stages_touches_only_those_that_lack_something(write):
    arrays = {k: v for k, v in arrays_of().items() if k != "layer3.1.conv2.weight"}
    path = str(write(arrays))
    whole = source(NAME, path, missing_ok=(r"layer[23]\..*",)).loaded.fresh
    assert {p.split(".")[0] for p in whole} == {"layer3"} and len(whole) == 30
    part = source(NAME, path, missing_ok=(r"layer3\.1\.(conv|bn)2\..*",)).loaded.fresh
    assert len(part) == 5 and all(p.startswith(("layer3.1.conv2", "layer3.1.bn2")) for p in part)


def test_unknown_keys_and_other_shapes_are_named(write):
    arrays = arrays_of()
    with pytest.raises(
        InputError, match=r"1 keys that .* has no place for: layer1\.0\.extra\.weight"
    ):
        create_model(
            NAME, weights=write(arrays | {"layer1.0.extra.weight": np.zeros(3, np.float32)})
        )
    arrays["layer1.0.conv1.weight"] = np.zeros((16, 16, 5, 5), np.float32)
    expected = r"layer1\.0\.conv1\.weight .* has shape \(5, 5, 16, 16\), the model expects \(3, 3, 16, 16\)"
    with pytest.raises(InputError, match=expected):
        create_model(NAME, weights=write(arrays))


def test_values_that_are_no_real_numbers_are_refused(write):
    for dtype in (np.int8, np.int64, np.bool_):
        arrays = arrays_of()
        arrays["layer2.1.conv1.weight"] = arrays["layer2.1.conv1.weight"].astype(dtype)
        kind = np.dtype(dtype).name
        with pytest.raises(InputError, match=rf"layer2\.1\.conv1\.weight .* holds {kind} values"):
            create_model(NAME, weights=write(arrays))
    arrays["layer2.1.conv1.weight"] = np.zeros((32, 32, 3, 3), ml_dtypes.bfloat16)
    assert create_model(NAME, weights=write(arrays)).head is not None


def test_weights_of_another_architecture_are_refused(write):
    with pytest.raises(
        InputError, match=r"lacks .* of the .* values of resnet18.*weights of another architecture"
    ):
        create_model("resnet18", weights=write(arrays_of()))
    with pytest.raises(InputError, match="does not look like"):
        create_model(
            NAME, weights=write({f"encoder.{i}.weight": np.zeros(2, np.float32) for i in range(9)})
        )
    with pytest.raises(
        InputError, match=r"holds resnet20_cifar weights .* the model is resnet32_cifar"
    ):
        create_model("resnet32_cifar", weights=write(arrays_of(), "resnet20-12fca82f.th"))


def test_head_is_kept_only_when_the_class_names_match(write):
    path = write(arrays_of(), "resnet20-12fca82f.th")  # known by its name: CIFAR-10's classes
    cifar = source(NAME, str(path)).model.meta.class_names
    assert len(cifar) == 10
    same = source(NAME, str(path), class_names=cifar)
    other = source(NAME, str(path), class_names=[f"c{i}" for i in range(10)])
    kept = source(NAME, str(path), class_names=[f"c{i}" for i in range(10)], head="keep")
    new = source(NAME, str(path), class_names=cifar, head="new")
    assert same.loaded.fresh == kept.loaded.fresh == ()
    assert other.loaded.fresh == new.loaded.fresh == ("head.bias", "head.kernel")
    assert set(other.loaded.dropped) == {"linear.weight", "linear.bias"}
    with pytest.raises(InputError, match="has a head of 10 classes and the data has 3"):
        source(NAME, str(path), class_names=["a", "b", "c"], head="keep")


def test_what_identifies_published_weights_ends_where_they_are_changed(tmp_path):
    same = create_model("resnet20_cifar.glyphs")
    assert same.meta.tag == "glyphs" and same.meta.sha256 and not same.meta.base
    changed = create_model("resnet20_cifar.glyphs", num_classes=3)
    assert changed.meta.base == "resnet20_cifar.glyphs"
    assert not any((changed.meta.tag, changed.meta.sha256, changed.meta.source))
    save_weights(same, tmp_path / "saved.safetensors")
    saved = create_model(NAME, weights=tmp_path / "saved.safetensors").meta
    assert saved == same.meta.derived() == saved.derived()
    assert saved.class_names == same.meta.class_names and saved.license == same.meta.license


def test_a_file_of_a_known_name_and_another_content_is_not_the_known_one(write):
    found = source(NAME, str(write(arrays_of(), "resnet20-12fca82f.th")))
    assert found.file.meta_origin == (
        "named as resnet20_cifar.akamaster_cifar10, but of another content"
    )
    assert found.model.meta.base == "resnet20_cifar.akamaster_cifar10"
    assert "weights_tag" not in found.facts()


def test_number_of_classes(write):
    path = write(arrays_of(num_classes=7))
    assert create_model(NAME, weights=path).head.kernel[...].shape == (64, 7)
    assert create_model(NAME, weights=path, num_classes=3).head.kernel[...].shape == (64, 3)
    assert create_model(NAME, weights=path, num_classes=0).head is None


def test_export_of_an_import_is_the_file_and_carries_the_meta(write, tmp_path):
    arrays = arrays_of() | {"bn1.num_batches_tracked": np.array(3, np.int64)}
    model = create_model(NAME, weights=write(arrays, "resnet20-12fca82f.th"))
    save_weights(model, tmp_path / "out.safetensors")
    back = read_weights(tmp_path / "out.safetensors")
    assert back.keys() == arrays.keys()  # of the buffers, too, those that the file has
    assert all(back[key].tobytes() == arrays[key].tobytes() for key in arrays)
    meta = json.loads(safetensors_metadata(tmp_path / "out.safetensors")["tlx_meta"])
    assert meta["class_names"][:2] == ["airplane", "automobile"]
    again = create_model(NAME, weights=tmp_path / "out.safetensors")
    assert again.meta == model.meta.derived()
    np.testing.assert_array_equal(again(images(1, 32, 32)), model(images(1, 32, 32)))


def test_tags_and_missing_files():
    with pytest.raises(
        InputError, match=r"no weights 'tv_in2k' for resnet18; did you mean 'tv_in1k'"
    ):
        create_model("resnet18", weights="tv_in2k")
    for path in ("nowhere/net.pth", "net.ckpt", "~no_such_user/net", "a/" * 3000):
        with pytest.raises(FileNotFoundError, match=f"no weights file {path[:20]}"):
            create_model("resnet18", weights=path)
    with pytest.raises(InputError, match="no weights 'aaa"):
        create_model("resnet18", weights="a" * 5000)


def test_a_known_tag_is_not_the_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glyphs").write_bytes(b"no weights")
    assert create_model(f"{NAME}.glyphs").meta.tag == "glyphs"
    assert create_model(NAME, weights="glyphs").meta.tag == "glyphs"
    assert create_model(f"{NAME}.glyphs", weights=f"{NAME}.glyphs").meta.tag == "glyphs"
    with pytest.raises(InputError, match="neither safetensors nor a torch file"):
        create_model(NAME, weights="./glyphs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "unknown model 'None'"),
        ({"name": f"{NAME}."}, "no set of weights is named"),
        ({"weights": ""}, "no set of weights is named"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"num_classes": 2.5}, r"num_classes is 2\.5"),
        ({"num_classes": "5"}, "num_classes is '5'"),
        ({"in_channels": -1}, "in_channels is -1, expected 0 to 1024"),
        ({"in_channels": 1500}, "in_channels is 1500"),
        ({"image_size": -5}, "image_size is -5"),
        ({"image_size": 224.5}, r"image_size is 224\.5, expected int"),
        ({"dtype": "bfloat"}, "dtype is 'bfloat', expected one of .* did you mean 'bfloat16'"),
        ({"dropout": 1.5}, r"dropout is 1\.5, expected -1\.0 to 0\.99"),
        ({"drop_path": "much"}, "drop_path is 'much', expected float"),
        ({"head_init": "zeros"}, "head_init is 'zeros', expected one of .* did you mean 'zero'"),
        ({"stem": "tiny"}, "stem is 'tiny'"),
        ({"missing_ok": 3}, "missing_ok is 3, expected a comma-separated list"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**({"name": NAME} | arguments))


def test_inputs_of_another_shape_are_named():
    model = create_model(NAME)
    for shape in ((32, 32, 3), (2, 3, 32, 32), (2, 32, 32)):
        with pytest.raises(InputError, match=r"takes pictures \[B, H, W, 3\], not \["):
            model(np.zeros(shape, np.float32))
    with pytest.raises(InputError, match="preprocess: expected a model"):
        preprocess(NAME)


def test_weights_are_saved_where_a_file_can_be(tmp_path):
    model = create_model(NAME)
    for path, message in (
        (tmp_path / "net.pth", r"call it NAME\.safetensors"),
        ("", r"call it NAME\.safetensors"),
        (tmp_path / "no" / "net.safetensors", "there is no folder"),
        (tmp_path / "folder.safetensors", "is no file"),
    ):
        (tmp_path / "folder.safetensors").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            save_weights(model, path)
    with pytest.raises(InputError, match="shapes and no values"):
        save_weights(abstract_model(NAME, num_classes=3), tmp_path / "net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_what_two_projects_files_have_in_common_needs_no_choice(write):
    name = "vgg11"
    arrays = {k: v for k, v in arrays_of(name, 1000).items() if k.startswith("features.")}
    found = source(name, str(write(arrays)), missing_ok=("prelogits", "head"))
    assert found.file.table.name == "torchvision" and len(found.loaded.arrays) == len(arrays)


@pytest.mark.shared
def test_a_real_file_without_layer4_is_refused_then_accepted_by_name(shared):
    path = shared / "weights" / "resnet18_imagenet_layers1to3.pth"
    with pytest.raises(InputError, match=r"layer4\.0\.conv1\.kernel.*missing_ok=layer4"):
        source("resnet18", str(path), class_names=["a", "b"])
    found = source("resnet18", str(path), class_names=["a", "b"], missing_ok=["layer4"])
    assert {p.split(".")[0] for p in found.loaded.fresh} == {"layer4", "head"}
    assert len(found.loaded.arrays) + len(found.loaded.fresh) == len(found.leaves)
