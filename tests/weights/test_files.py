"""Flat dicts of arrays come out of every format, and go into safetensors whole or not at all."""

import errno
import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights import files
from tlx.weights.files import (
    content_hash,
    read_weights,
    safetensors_metadata,
    sha256_of,
    unwrap,
    write_safetensors,
)

GOLDENS = Path(__file__).parent / "goldens"


def arrays() -> dict[str, np.ndarray]:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "transposed": base.T,
        "column": base[:, 1],
        "reversed": base[::-1],
        "big_endian": base.astype(">f4"),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "odd": np.arange(3, dtype=np.uint8),
        "bfloat16": base.astype(ml_dtypes.bfloat16),
        "float8": base.astype(ml_dtypes.float8_e4m3fn),
        "half": base.astype(np.float16),
        "bool": base > 3,
    }


def test_what_is_written_is_read(tmp_path):
    write_safetensors(arrays(), tmp_path / "a.safetensors", {"licence": "BSD-3"})
    found = read_weights(tmp_path / "a.safetensors")
    assert set(found) == set(arrays())
    for name, expected in arrays().items():
        assert found[name].dtype == expected.dtype.newbyteorder("="), name
        assert found[name].shape == expected.shape, name
        np.testing.assert_array_equal(found[name].astype(np.float64), expected.astype(np.float64))
        assert found[name].flags.aligned and not found[name].flags.writeable
    assert safetensors_metadata(tmp_path / "a.safetensors") == {"licence": "BSD-3"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_extension_does_not_matter(tmp_path):
    write_safetensors({"a": np.ones(3)}, tmp_path / "a.pth")
    np.testing.assert_array_equal(read_weights(tmp_path / "a.pth")["a"], np.ones(3))
    (tmp_path / "b.safetensors").write_bytes((GOLDENS / "zip.pth").read_bytes())
    assert "transposed" in read_weights(tmp_path / "b.safetensors")


def test_tensors_come_from_the_wrapper_and_are_views_of_the_file():
    found = read_weights(GOLDENS / "zip.pth")
    assert list(found)[:3] == ["whole", "transposed", "column"]
    assert not found["whole"].flags.owndata


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_one_content_hash_in_every_format(tmp_path, name):
    found = read_weights(GOLDENS / name)
    del found["complex64"]  # not in every safetensors version
    write_safetensors(dict(reversed(found.items())), tmp_path / "a.safetensors")
    assert content_hash(read_weights(tmp_path / "a.safetensors")) == content_hash(found)


def test_content_hash_is_what_it_says():
    digest = hashlib.sha256()
    digest.update(b'["a", "float32", [2]]\n' + np.array([1, 2], "<f4").tobytes())
    digest.update(b'["b", "bfloat16", []]\n' + b"\x80\x3f")
    found = content_hash(
        {"b": np.array(1, ml_dtypes.bfloat16), "a": np.array([1, 9, 2], ">f4")[::2]}
    )
    assert found == digest.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.ones((2, 3), np.float32)},
        {"a": np.ones((3, 2), np.float32)},
        {"a": np.ones((2, 3), np.int32)},
        {"a": np.full((2, 3), np.float32(1) + np.finfo(np.float32).eps)},
        {"a": np.ones((2, 3), np.float32), "b": np.ones(0)},
    ],
)
def test_content_hash_sees_name_shape_type_and_value(other):
    assert content_hash(other) != content_hash({"a": np.ones((2, 3), np.float32)})


def test_sha256_of(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(InputFileNotFoundError):
        sha256_of(tmp_path / "b")


# --- wrappers and prefixes ---------------------------------------------------------------------------------

ONE, TWO, NOTHING = {"w": np.zeros(1)}, {"w": np.ones(1)}, {"state": {0: {"m": np.ones(1)}}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ONE, ONE),
        ({"state_dict": ONE, "epoch": 3, "best_prec1": 91.8, "optimizer": NOTHING}, ONE),
        ({"epoch": np.array(3), "model": ONE}, ONE),
        ({"model": ONE, "state_dict": TWO}, TWO),
        ({"model_ema": ONE, "model": TWO}, TWO),
        ({"network_weights": ONE, "optimizer": NOTHING, "config": {"lr": 0.1}}, ONE),
        ({"model": {"state_dict": ONE, "name": "x"}}, ONE),
        ({"w": np.zeros(1), "epoch": 3, "optimizer": NOTHING}, ONE),
    ],
)
def test_wrappers(value, expected):
    found = unwrap(value, Path("x.pth"))
    assert list(found) == list(expected)
    np.testing.assert_array_equal(found["w"], expected["w"])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"generator": ONE, "critic": TWO}, "several sets of tensors: 'generator', 'critic'"),
        ({"w": np.zeros(1), "critic": TWO}, "'critic' beside tensors of its own"),
        ({"epoch": 3}, "no tensors"),
        ({}, "no tensors"),
        ({"optimizer": NOTHING}, "no tensors"),
        (np.zeros(1), "holds a ndarray"),
        ([ONE], "holds a list"),
        ({0: np.zeros(1)}, "whose name is no text but 0"),
    ],
)
def test_no_single_set_of_tensors(value, named):
    with pytest.raises(InputError, match=named) as caught:
        unwrap(value, Path("x.pth"))
    assert str(caught.value).startswith("x.pth ")


def test_a_dict_that_holds_itself():
    value: dict = {"epoch": 3}
    value["model"] = value
    with pytest.raises(InputError, match="no tensors"):
        unwrap(value, Path("x.pth"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b.c"], ["a", "b.c"]),
        (["_orig_mod.a"], ["a"]),
        (["_orig_mod.module.a"], ["a"]),
        (["module._orig_mod.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["module."], ["module."]),
        (["modules.a"], ["modules.a"]),
    ],
)
def test_prefixes_that_every_name_has(tmp_path, names, expected):
    write_safetensors({name: np.ones(1) for name in names}, tmp_path / "a.safetensors")
    assert sorted(read_weights(tmp_path / "a.safetensors")) == sorted(expected)


# --- what is not weights, or damaged -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404", "web page"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (b'<?xml version="1.0"?><Error/>', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b'{"error": "not found"}', "neither safetensors nor a torch file"),
        (b"\x89HDF\r\n\x1a\n", "neither safetensors nor a torch file"),
        (b"\x93NUMPY", "neither safetensors nor a torch file"),
        (b"\x80\x02N.", "not one that torch.save wrote"),
        (b"PK\x03\x04", "zip archive"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, named):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=named) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    for function in (read_weights, safetensors_metadata):
        with pytest.raises(InputFileNotFoundError, match=r"no weights file .*missing\.pth"):
            function(tmp_path / "missing.pth")
        with pytest.raises(InputError, match="is a folder"):
            function(tmp_path)
        with pytest.raises(InputError):
            function(GOLDENS / "zip.pth" / "inside")
        with pytest.raises(InputError, match="no path"):
            function("a\0.pth")


def test_torch_files_have_no_safetensors_metadata():
    assert safetensors_metadata(GOLDENS / "zip.pth") == {}


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(arrays(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.safetensors"):
            read_weights(path)
    for length in (9, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="truncated or damaged"):
            safetensors_metadata(path)


def raw_safetensors(header: dict | bytes, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


@pytest.mark.parametrize(
    "content",
    [
        raw_safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        raw_safetensors(
            {"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}, bytes(8)
        ),
        raw_safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        raw_safetensors({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        raw_safetensors(b'{"a": ', bytes(8)),
        raw_safetensors(b"{\xff}", bytes(8)),
        b"\xff" * 8 + b'{"a": 1}',
        raw_safetensors({}),
    ],
)
def test_damaged_safetensors(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        read_weights(path)


def test_unaligned_safetensors(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        "c": {"dtype": "BOOL", "shape": [2], "data_offsets": [9, 11]},
    }
    path = tmp_path / "a.safetensors"
    content = b"\x05" + np.array([1.5, -2], "<f4").tobytes() + b"\x02\x00"
    path.write_bytes(raw_safetensors(header, content))
    found = read_weights(path)
    assert found["b"].tolist() == [1.5, -2] and found["b"].flags.aligned
    assert found["c"].tobytes() == b"\x01\x00"


# --- writing -----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors({"a": np.zeros(3)}, path)

    def full(arrays, temporary, metadata):
        Path(temporary).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(InputError, match=r"cannot write .*a\.safetensors: No space left on device"):
        write_safetensors({"a": np.ones(3)}, path)
    np.testing.assert_array_equal(read_weights(path)["a"], np.zeros(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_safetensors({"a": np.ones(3)}, tmp_path / "no" / "a.safetensors")


def test_a_type_that_safetensors_lacks(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_safetensors({"a": np.ones(3, np.complex128)}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


# --- against the originals ---------------------------------------------------------------------------------


@pytest.mark.parity
def test_torch_and_this_project_read_each_other_s_safetensors(tmp_path):
    import safetensors.torch
    import torch

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2]).bfloat16()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    found = read_weights(tmp_path / "a.safetensors")
    assert found["b"].dtype == ml_dtypes.bfloat16
    write_safetensors(found, tmp_path / "b.safetensors")
    for name, tensor in safetensors.torch.load_file(tmp_path / "b.safetensors").items():
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "key", "shape"),
    [
        ("resnet18_imagenet_layers1to3.pth", 96, "layer3.1.conv2.weight", (256, 256, 3, 3)),
        ("squeezenet1_0_imagenet.pth", 52, "classifier.1.weight", (1000, 512, 1, 1)),
        ("resnet20-12fca82f.th", 97, "linear.weight", (10, 64)),
    ],
)
def test_real_files(shared, name, count, key, shape):
    found = read_weights(shared / "weights" / name)
    assert (len(found), found[key].shape, found[key].dtype) == (count, shape, np.float32)
    assert all(np.isfinite(array).all() for array in found.values())
