"""Torch's files are read without torch, and nothing in them is executed."""

import argparse
import copyreg
import importlib.util
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.weights.hostile import COMMAND, PICKLES, TENSORS, TERA
from tests.weights.torch_writer import (
    MAGIC,
    ORDERED,
    SIX,
    Call,
    Global,
    Stored,
    dumps,
    legacy_file,
    tensor,
    text,
    zip_file,
)
from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.files import read_weights
from tlx.weights.torch_pickle import read_torch

GOLDENS = Path(__file__).parent / "goldens"


def golden() -> dict[str, np.ndarray]:
    """What make_goldens.py wrote."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
    return {
        "whole": base,
        "transposed": base.T,
        "column": base[1:, 2],
        "parameter": base[0],
        "half": base[0].astype(np.float16),
        "bfloat16": base[0].astype(ml_dtypes.bfloat16),
        "double": base[0].astype(np.float64),
        "int64": np.array([-(2**40), 0, 2**40]),
        "int32": np.array([-3, 7], np.int32),
        "int16": np.array([-3, 7], np.int16),
        "int8": np.array([-3, 7], np.int8),
        "uint8": np.array([3, 250], np.uint8),
        "bool": np.array([[True, False], [False, True]]),
        "complex64": np.array([1 + 2j, -3j], np.complex64),
        "scalar": np.array(42),
        "empty": np.zeros((0, 3), np.float32),
        "expanded": np.array([[1.5] * 3, [2.5] * 3], np.float32),
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_goldens(name):
    found = read_torch(GOLDENS / name)
    assert_same(found.pop("state_dict"), golden())
    assert found == {"epoch": 3, "arch": "tiny", "size": (2, 3)}


def test_tensors_of_an_archive_are_views_of_the_file_with_the_file_s_strides():
    found = read_torch(GOLDENS / "zip.pth")["state_dict"]
    assert not any(found[name].flags.owndata for name in ("whole", "transposed", "column"))
    assert np.shares_memory(found["whole"], found["transposed"])
    assert found["transposed"].strides == (4, 24)
    assert found["expanded"].strides == (4, 0)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_arrays_are_read_only_and_aligned(name):
    for array in read_torch(GOLDENS / name)["state_dict"].values():
        assert array.flags.aligned and not array.flags.writeable


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path, protocol):
    value = {
        "n": 1,
        "big": 2**70,
        "f": 0.5,
        "none": None,
        "t": (True, False),
        "l": [1, [2]],
        "s": "é",
    }
    assert read_torch(zip_file(tmp_path, dumps(value, protocol))) == value


def test_what_training_checkpoints_hold_beside_tensors(tmp_path):
    value = {
        "milestones": Counter({30: 1, 60: 1}),
        "best": np.float64(91.5),
        "count": np.int32(-7),
        "big_endian": np.dtype(">f4").type(2.5),
        "bytes": b"\x00\xff",
        "ordered": OrderedDict(a=1),
        "device": Call(Global("torch", "device"), ("cuda", 1)),
        "dtype": Global("torch", "bfloat16"),
    }
    found = read_torch(zip_file(tmp_path, dumps(value)))
    assert found.pop("dtype") == ml_dtypes.bfloat16
    assert found.pop("device") == "cuda:1"
    assert found == {
        "milestones": {30: 1, 60: 1},
        "best": 91.5,
        "count": -7,
        "big_endian": 2.5,
        "bytes": b"\x00\xff",
        "ordered": {"a": 1},
    }


class AttributeDict(dict):
    """As Lightning's, under whose name it is pickled here."""


@pytest.mark.parametrize("protocol", range(6))
def test_objects_that_trainers_put_beside_tensors(tmp_path, protocol, monkeypatch):
    module = types.ModuleType("lightning_fabric.utilities.data")
    module.AttributeDict = AttributeDict
    for i in range(3):
        name = ".".join(module.__name__.split(".")[: i + 1])
        monkeypatch.setitem(sys.modules, name, module if i == 2 else types.ModuleType(name))
    monkeypatch.setattr(AttributeDict, "__module__", module.__name__)
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = {
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.95), data=Path("a/b")),
        "simple": types.SimpleNamespace(a=1),
        "hyper_parameters": AttributeDict(width=64, names=["x"]),
        "seen": {3, 4},
        "frozen": frozenset(["a"]),
        "lists": defaultdict(list, {"loss": [0.5]}),
        "raw": bytearray(b"ab"),
        "complex": 1 + 2j,
        "array": base,
        "fortran": np.asfortranarray(base),
        "big_endian": base.astype(">f4"),
        "bool": np.array([True, False]),
        "none": np.zeros((0, 3)),
        "number": np.array(2.5),
        "rng": np.random.RandomState(0).get_state(),
    }
    found = read_torch(zip_file(tmp_path, dumps(value, protocol)))
    assert found["args"] == {"lr": 0.1, "betas": (0.9, 0.95), "data": "a/b"}
    assert (found["simple"], found["hyper_parameters"]) == ({"a": 1}, {"width": 64, "names": ["x"]})
    assert (found["seen"], found["frozen"], found["lists"]) == ({3, 4}, {"a"}, {"loss": [0.5]})
    assert (found["raw"], found["complex"]) == (b"ab", 1 + 2j)
    for name in ("array", "fortran", "big_endian", "bool", "none", "number"):
        assert found[name].shape == value[name].shape and not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], value[name], strict=name != "big_endian")
    np.testing.assert_array_equal(found["rng"][1], value["rng"][1], strict=True)


def test_an_array_that_the_memo_holds_is_the_one_that_is_filled(tmp_path):
    array = np.arange(3)
    first, second = read_torch(zip_file(tmp_path, dumps([array, array])))
    assert first is second and first.tolist() == [0, 1, 2]


def test_attributes_of_a_state_dict_are_dropped(tmp_path):
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata}sb."
    assert read_torch(zip_file(tmp_path, program)) == {}


def test_python_2_strings(tmp_path):
    program = b"\x80\x02}U\x06weight" + dumps(tensor())[2:-1] + b"s."
    found = read_torch(zip_file(tmp_path, program))
    np.testing.assert_array_equal(found["weight"], np.arange(6, dtype=np.float32).reshape(2, 3))


def test_big_endian_archive(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "a/data.pkl",
            dumps(
                {
                    "a": tensor(),
                    "c": tensor((3,), (1,), key="1", numel=3, kind="ComplexFloatStorage"),
                }
            ),
        )
        archive.writestr("a/byteorder", b"big")
        archive.writestr("a/data/0", np.arange(6, dtype=">f4").tobytes())
        archive.writestr("a/data/1", np.array([1 + 2j, 3, -4j], ">c8").tobytes())
    found = read_torch(path)
    assert_same(
        found,
        {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "c": np.array([1 + 2j, 3, -4j], np.complex64),
        },
    )


def test_types_without_a_storage_class_of_their_own(tmp_path):
    storage = Stored(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 4))
    arguments = (storage, 0, (2,), (1,), False, Call(ORDERED, ()), Global("torch", "uint16"))
    program = dumps({"a": Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)})
    found = read_torch(zip_file(tmp_path, program, storages={"0": struct.pack("<2H", 1, 65535)}))
    assert_same(found, {"a": np.array([1, 65535], np.uint16)})


def test_a_byte_above_one_is_true(tmp_path):
    program = dumps({"a": tensor((3,), (1,), numel=3, kind="BoolStorage")})
    found = read_torch(zip_file(tmp_path, program, storages={"0": b"\x00\x02\x01"}))
    assert found["a"].tobytes() == b"\x00\x01\x01"


def test_legacy_views_of_a_storage(tmp_path):
    pid = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("v", 2, 3))
    program = dumps({"a": tensor((3,), (1,), storage=Stored(pid))})
    assert_same(read_torch(legacy_file(tmp_path, program)), {"a": np.array([2, 3, 4], np.float32)})


# --- hostile pickles ---------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path, monkeypatch):
    path = tmp_path / "canary"
    monkeypatch.setenv("TLX_TEST_CANARY", str(path))
    yield path
    assert not path.exists(), "the pickle was executed"


def test_the_hostile_pickles_would_leave_the_canary(tmp_path, monkeypatch):
    path = tmp_path / "canary"
    monkeypatch.setenv("TLX_TEST_CANARY", str(path))
    for case in ("os.system, protocol 0", "exec", "STACK_GLOBAL", "INST"):
        pickle.loads(PICKLES[case][0])  # our own harmless payloads
        assert path.exists(), case
        path.unlink()


def test_copyreg_s_extension_cache_is_not_consulted(tmp_path, canary):
    copyreg.add_extension("os", "system", 0xF0)
    try:
        program = b"\x80\x02\x82\xf0" + text(COMMAND) + b"\x85R."
        with pytest.raises(InputError, match="EXT1"):
            read_torch(zip_file(tmp_path, program))
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_a_refused_pickle_changes_nothing_in_the_process(tmp_path):
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b."
    )
    with pytest.raises(InputError, match="attributes"):
        read_torch(zip_file(tmp_path, program))
    assert_same(read_torch(GOLDENS / "zip.pth")["state_dict"], golden())


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    assert read_torch(zip_file(tmp_path, b"\x80\x02Nr\xff\xff\xff\x7f.")) is None


def test_deeply_shared_tuples_as_keys_do_not_hang(tmp_path):
    doubled = b"N" + b"2\x86" * 100  # DUP, TUPLE2: hashing it would take 2**100 steps
    with pytest.raises(InputError, match="tuple as a key"):
        read_torch(zip_file(tmp_path, b"\x80\x02}" + doubled + b"Ns."))


def test_copies_of_a_shared_value_are_limited(tmp_path):
    # One dict of 10,000 entries, copied by 10,000 calls.
    items = pickle.dumps(dict.fromkeys(range(10000)), 2)[:-1]
    copy = b"h\x00ccollections\nOrderedDict\nh\x00\x85R0"
    with pytest.raises(InputError, match="in memory"):
        read_torch(zip_file(tmp_path, items + copy * 10_000 + b"."))


# --- tensors that are not what they say -------------------------------------------------------------------


# Views of a storage are what only legacy files have.
@pytest.mark.parametrize("case", [case for case in TENSORS if case != "a view in an archive"])
def test_impossible_tensors_in_a_legacy_file(tmp_path, case):
    six = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, None)
    program = dumps({"a": TENSORS[case][0], "six": tensor(storage=Stored(six))})
    path = legacy_file(tmp_path, program)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "view", [("v", 4, 3), ("v", -1, 2), ("v", 0, -1), ("v", 0.0, 1), ("v",), 3]
)
def test_impossible_legacy_views(tmp_path, view):
    pid = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, view)
    with pytest.raises(InputError):
        read_torch(legacy_file(tmp_path, dumps({"a": tensor((1,), (1,), storage=Stored(pid))})))


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_truncation_anywhere_is_noticed(tmp_path, name):
    whole = (GOLDENS / name).read_bytes()
    path = tmp_path / name
    for length in {*range(0, len(whole), 97), *range(len(whole) - 70, len(whole))}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=name):
            read_torch(path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_any_flipped_bit_is_an_input_error_or_harmless(tmp_path, name):
    whole = (GOLDENS / name).read_bytes()
    path = tmp_path / name
    refused = 0
    for position in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_torch(path)
        except InputError:
            refused += 1
        else:  # in an archive, what is read is right
            if name == "zip.pth":
                assert_same(found["state_dict"], golden())
    assert refused > 20


def test_a_flipped_bit_in_a_tensor_of_an_archive_is_named(tmp_path):
    path = zip_file(tmp_path, dumps({"a": tensor()}))
    whole = path.read_bytes()
    position = whole.index(SIX) + 5
    path.write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
    with pytest.raises(InputError, match=r"checksum.*archive/data/0"):
        read_torch(path)


def test_a_compressed_entry_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", dumps({"a": tensor(numel=2**20)}))
        archive.writestr("a/data/0", bytes(2**22))
    with pytest.raises(InputError, match="compressed or encrypted entry a/data"):
        read_torch(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="same name"):
        read_torch(zip_file(tmp_path, dumps({"a": tensor()}), extra=[("data/0", SIX)]))


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"photos/1.jpg": b""}, "not one that torch.save wrote"),
        ({"a/data.pkl": b"N.", "b/data.pkl": b"N."}, "not one that torch.save wrote"),
        ({"a/data.pkl": b"N.", "a/constants.pkl": b"N."}, "TorchScript"),
        ({"a/data.pkl": b"N.", "a/byteorder": b"middle"}, "byte order"),
    ],
)
def test_other_archives(tmp_path, entries, named):
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=named):
        read_torch(path)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": ("1",)},
        {"keys": ("0", "0")},
        {"keys": (0,)},
        {"keys": ()},
        {"storages": ((7, SIX + b"0000"),)},
        {"storages": ((-1, SIX),)},
        {"storages": ((6, SIX[:-1]),)},
        {"storages": ((6, SIX + b"x"),)},
        {"storages": ()},
    ],
)
def test_legacy_storages_that_do_not_match(tmp_path, change):
    pid = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, None)
    program = dumps({"a": tensor(storage=Stored(pid))})
    assert_same(
        read_torch(legacy_file(tmp_path, program)),
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
    )
    with pytest.raises(InputError):
        read_torch(legacy_file(tmp_path, program, **change))


def test_legacy_storages_larger_than_the_file_are_not_allocated(tmp_path):
    pid = ("storage", Global("torch", "FloatStorage"), "0", "cpu", TERA, None)
    with pytest.raises(InputError, match="larger than the file"):
        read_torch(legacy_file(tmp_path, dumps({"a": tensor(storage=Stored(pid))})))


def test_other_files(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(InputFileNotFoundError, match="no weights file"):
        read_torch(path)
    with pytest.raises(InputError, match="folder"):
        read_torch(tmp_path)
    for content, named in (
        (b"", "empty"),
        (pickle.dumps({"a": 1}), "not one that torch.save wrote"),
        (pickle.dumps(MAGIC) + pickle.dumps(1002), "unknown version"),
        (b"\x00" * 257 + b"ustar\x00", "before 0.1.10"),
        (b"hello", "no torch file"),
        (dumps({"a": tensor()}, 0), "no torch file"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=named):
            read_torch(path)


# --- against torch -----------------------------------------------------------------------------------------


def save_with_torch(path: Path, zipped: bool, protocol: int) -> dict[str, Any]:
    import torch

    source = importlib.util.spec_from_file_location(
        "make_goldens", GOLDENS.parent / "make_goldens.py"
    )
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]).state_dict(),
        "tensors": module.tensors(),
        "rng": torch.get_rng_state(),
    }
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return value


def numpy_state(model: Any) -> dict[str, np.ndarray]:
    return {name: numpy_of(tensor) for name, tensor in model.state_dict().items()}


def numpy_of(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", range(1, 6))  # torch reads no 0 of its own
def test_reads_what_torch_saves(tmp_path, zipped, protocol):
    value = save_with_torch(tmp_path / "a.pth", zipped, protocol)
    found = read_torch(tmp_path / "a.pth")
    assert_same(
        read_weights(tmp_path / "a.pth"), {k: numpy_of(t) for k, t in value["model"].items()}
    )
    for part in ("model", "tensors"):
        assert_same(found[part], {name: numpy_of(tensor) for name, tensor in value[part].items()})
    for i, state in value["optimizer"]["state"].items():
        momentum = found["optimizer"]["state"][i]["momentum_buffer"]
        np.testing.assert_array_equal(momentum, state["momentum_buffer"].numpy())
    assert found["scheduler"]["milestones"] == {1: 1, 2: 1}
    np.testing.assert_array_equal(found["rng"], value["rng"].numpy())


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_s_newest_types(tmp_path, zipped):
    import torch

    value = {
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "float8_e4m3fn": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    }
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    expected = {
        "uint16": np.array([1, 65535], np.uint16),
        "float8_e4m3fn": np.array([1.5, -2], ml_dtypes.float8_e4m3fn),
    }
    assert_same(read_torch(tmp_path / "a.pth"), expected)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_that_numpy_has_a_match_for(tmp_path, zipped):
    import torch

    names = (
        "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 "
        "complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
    ).split()
    value = {name: torch.tensor([0, 1, 1, 0]).to(getattr(torch, name)) for name in names}
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pth")
    assert [array.dtype.name for array in found.values()] == names
    for name, array in found.items():
        assert array.tobytes() == value[name].view(torch.uint8).numpy().tobytes()
        assert array.astype(np.complex128).tolist() == [0, 1, 1, 0]


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_shared_storages_views_parameters_and_buffers(tmp_path, zipped):
    import torch

    base = torch.arange(60, dtype=torch.float32)
    tagged = base[40:44].clone()
    tagged.note = "an attribute"
    parameter = torch.nn.Parameter(base[:6].clone())
    parameter.note = "an attribute"
    value = {
        "base": base,
        "tied": base,
        "middle": base[20:40].view(4, 5),
        "transposed": base[20:40].view(4, 5).t(),
        "stepped": base[::7],
        "permuted": base.view(3, 4, 5).permute(2, 0, 1),
        "channels_last": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "diagonal": base[:49].view(7, 7).diagonal(),
        "expanded": base[:3].view(3, 1).expand(3, 4),
        "one": base[7:8].as_strided((1, 1), (2**40, 3)),
        "parameter": parameter,
        "buffer": torch.nn.Buffer(base[:4].clone()),
        "tagged": tagged,
        "nothing": base[60:],
    }
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pth")
    assert_same(found, {name: numpy_of(tensor) for name, tensor in value.items()})
    views = ("tied", "middle", "transposed", "stepped", "permuted", "diagonal", "expanded")
    assert all(np.shares_memory(found["base"], found[name]) for name in views)


@pytest.mark.parity
def test_a_checkpoint_as_timm_writes_it(tmp_path):
    import torch

    model = torch.nn.Linear(2, 3)
    value = {
        "epoch": 3,
        "arch": "tiny",
        "state_dict": model.state_dict(),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "version": 2,
        "torch": torch.__version__,
        "args": argparse.Namespace(lr=1e-3, opt="adamw", output=Path("out")),
        "amp_scaler": torch.amp.GradScaler("cpu").state_dict(),
        "metric": np.float64(91.5),
        "device": torch.device("cuda", 1),
        "dtype": torch.float16,
    }
    torch.save(value, tmp_path / "a.pth.tar")
    found = read_torch(tmp_path / "a.pth.tar")
    assert (found["torch"], found["metric"]) == (str(torch.__version__), 91.5)
    assert found["args"] == {"lr": 1e-3, "opt": "adamw", "output": "out"}
    assert_same(read_weights(tmp_path / "a.pth.tar"), numpy_state(model))


@pytest.mark.parity
def test_a_checkpoint_as_lightning_writes_it(tmp_path):
    import torch

    model = torch.nn.Linear(2, 3)
    value = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.ones(())}},
        "optimizer_states": [torch.optim.SGD(model.parameters(), 0.1).state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "data": Path("x")},
    }
    torch.save(value, tmp_path / "a.ckpt")
    assert_same(read_weights(tmp_path / "a.ckpt"), numpy_state(model))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["sparse", "sparse_csr", "meta", "conjugated", "quantised"])
def test_tensors_that_cannot_be_read_are_said_to_be_what_they_are(tmp_path, kind):
    import torch

    made = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
        "meta": lambda: torch.empty(3, device="meta"),
        "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }
    torch.save({"a": made[kind]()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"holds a .*({kind[:6]}|without values)"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parity
def test_a_pickled_model_is_refused_by_name(tmp_path):
    import torch

    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_torch(tmp_path / "a.pth")


@pytest.mark.parity
@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    ["resnet18_imagenet_layers1to3.pth", "squeezenet1_0_imagenet.pth", "resnet20-12fca82f.th"],
)
def test_real_files_equal_torch_load(shared, name):
    import torch

    expected = torch.load(shared / "weights" / name, map_location="cpu", weights_only=True)
    found = read_torch(shared / "weights" / name)
    if "state_dict" in expected:
        assert found["best_prec1"] == expected["best_prec1"]
        found, expected = found["state_dict"], expected["state_dict"]
    assert_same(found, {key: numpy_of(tensor) for key, tensor in expected.items()})


def test_torch_is_not_imported(tmp_path):
    code = (
        "import sys; from tlx.weights.torch_pickle import read_torch; read_torch(sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, GOLDENS / "zip.pth"], check=True)
