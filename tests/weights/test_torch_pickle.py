"""Torch's files are read without torch, and nothing in them is executed."""

import copyreg
import importlib.util
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.torch_pickle import read_torch

GOLDENS = Path(__file__).parent / "goldens"
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
MAGIC, PROTOCOL, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Global
    arguments: tuple


class Stored(NamedTuple):
    pid: tuple


class Raw(NamedTuple):
    opcodes: bytes


class Pickler(pickle._Pickler):
    """Writes the pickles that torch writes, and those it never would, without importing what they name."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Stored):
            self.save(obj.pid)
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Raw):
            self.write(obj.opcodes)
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(
    shape=(2, 3), strides=(3, 1), offset=0, *, key="0", numel=6, kind="FloatStorage", **more
) -> Call:
    storage = more.get("storage", Stored(("storage", Global("torch", kind), key, "cpu", numel)))
    return Call(Global(*REBUILD), (storage, offset, shape, strides, False, Call(ORDERED, ())))


ORDERED = Global("collections", "OrderedDict")
SIX = np.arange(6, dtype="<f4").tobytes()


def zip_file(folder: Path, program: bytes, *, extra=(), storages=None) -> Path:
    path = folder / "weights.pth"
    entries = [("data.pkl", program), ("byteorder", b"little")]
    entries += [(f"data/{k}", v) for k, v in ({"0": SIX} if storages is None else storages).items()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*entries, *extra]:
            archive.writestr(f"archive/{name}", content)
    return path


def legacy_file(folder: Path, program: bytes, *, keys=("0",), storages=((6, SIX),)) -> Path:
    path = folder / "weights.th"
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, SYSTEM)]
    parts += [program, pickle.dumps(list(keys), 2)]
    parts += [struct.pack("<q", numel) + content for numel, content in storages]
    path.write_bytes(b"".join(parts))
    return path


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

CANARY = "import os; open(os.environ['TLX_TEST_CANARY'], 'w').close()"
COMMAND = 'touch "$TLX_TEST_CANARY"'


def call(module: str, name: str, *arguments: Any) -> Call:
    return Call(Global(module, name), arguments)


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


OS_SYSTEM = call("os", "system", COMMAND)

# name -> (pickle, what the message must name)
HOSTILE: dict[str, tuple[bytes, str]] = {
    **{f"os.system, protocol {p}": (dumps(OS_SYSTEM, p), "os.system") for p in range(6)},
    "posix.system": (dumps(call("posix", "system", COMMAND)), "posix.system"),
    "eval": (dumps(call("builtins", "eval", CANARY)), "builtins.eval"),
    "exec": (dumps(call("builtins", "exec", CANARY)), "builtins.exec"),
    "python 2 eval": (dumps(call("__builtin__", "eval", CANARY)), "__builtin__.eval"),
    "getattr": (dumps(call("builtins", "getattr", 1, "real")), "builtins.getattr"),
    "import": (dumps(call("builtins", "__import__", "os")), "builtins.__import__"),
    "subprocess": (dumps(call("subprocess", "Popen", ["touch", "x"])), "subprocess.Popen"),
    "runpy": (dumps(call("runpy", "_run_code", CANARY, {})), "runpy._run_code"),
    "open": (dumps(call("io", "open", "/etc/passwd")), "io.open"),
    "pickle.loads": (dumps(call("pickle", "loads", dumps(OS_SYSTEM))), "pickle.loads"),
    "torch.load": (dumps(call("torch", "load", "x.pth")), "torch.load"),
    "torch.hub": (dumps(call("torch.hub", "load", "a/b", "c")), "torch.hub.load"),
    "numpy object array": (dumps(call("numpy.core.multiarray", "_reconstruct", 0)), "_reconstruct"),
    "numpy.load": (dumps(call("numpy", "load", "x.npy")), "numpy.load"),
    "a Namespace": (dumps({"args": call("argparse", "Namespace")}), "argparse.Namespace"),
    "a whole model": (dumps(call("torchvision.models.resnet", "ResNet")), "resnet.ResNet"),
    "ours": (dumps(call("tlx.weights.torch_pickle", "read_torch", "x")), "torch_pickle.read_torch"),
    "nested in arguments": (
        dumps(call("collections", "OrderedDict", [("a", OS_SYSTEM)])),
        "os.system",
    ),
    "nested in a tensor": (dumps(tensor(storage=OS_SYSTEM)), "os.system"),
    "as a storage type": (
        dumps(Stored(("storage", Global("os", "system"), "0", "cpu", 6))),
        "os.system",
    ),
    "dotted name": (dumps(call("torch", "_utils.os.system", COMMAND)), "torch._utils.os.system"),
    "dotted module": (dumps(call("torch._utils.os", "system", COMMAND)), "torch._utils.os.system"),
    "beneath an allowed class": (
        b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.",
        "__globals__",
    ),
    "STACK_GLOBAL": (
        b"\x80\x04" + text("os") + text("system") + b"\x93" + text(COMMAND) + b"\x85R.",
        "os.system",
    ),
    "STACK_GLOBAL through the memo": (
        b"\x80\x04"
        + text("system")
        + b"\x940"
        + text("os")
        + b"h\x00\x93"
        + text(COMMAND)
        + b"\x85R.",
        "os.system",
    ),
    "STACK_GLOBAL of no strings": (b"\x80\x04K\x01K\x02\x93.", "STACK_GLOBAL"),
    "INST": (b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n.", "os.system"),
    "INST of an allowed class": (b"(icollections\nOrderedDict\n.", "instances"),
    "OBJ": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "OBJ of an allowed class": (b"(ccollections\nOrderedDict\no.", "OBJ"),
    "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "EXT1": (b"\x80\x02\x82\xf0)R.", "EXT1"),
    "EXT2": (b"\x80\x02\x83\xf0\x00)R.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\xf0\x00\x00\x00)R.", "EXT4"),
    "PERSID": (b"Pos.system\n.", "PERSID"),
    "persistent id of another kind": (dumps(Stored(("module", "x", "y", "z"))), "storage"),
    "persistent id that is no tuple": (dumps(Stored("0")), "storage"),  # type: ignore[arg-type]
    "BUILD on a function": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        "attributes",
    ),
    "BUILD on a class": (b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "attributes"),
    "BUILD on a tensor": (dumps(tensor())[:-1] + b"}b.", "attributes"),
    "REDUCE of a dict": (b"\x80\x02})R.", "no function"),
    "REDUCE of a dtype": (b"\x80\x02ctorch\nFloatStorage\n)R.", "no function"),
    "items of a tensor": (dumps(tensor())[:-1] + b"K\x00K\x01s.", "items"),
    "items of a class": (b"\x80\x02ccollections\nOrderedDict\nK\x00K\x01s.", "items"),
    "numpy objects": (dumps(call("numpy", "dtype", "O8", False, True)), "numpy scalar"),
    "a codec": (dumps(call("_codecs", "encode", "x", "zip")), "encodes"),
    "other codecs": (dumps(call("codecs", "decode", b"x", "zip")), "codecs.decode"),
    "BYTEARRAY8 of an exabyte": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "BYTEARRAY8"),
    "BINBYTES8 of an exabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", ""),
    "FRAME of an exabyte": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N", ""),
    "unknown opcode": (b"\x80\x02\xff.", ""),
    "nothing on the stack": (b"\x80\x02.", ""),
    "no STOP": (b"\x80\x02N", ""),
    "an unknown memo entry": (b"\x80\x02h\x07.", ""),
    "empty": (b"", ""),
}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    path = tmp_path / "canary"
    monkeypatch.setenv("TLX_TEST_CANARY", str(path))
    yield path
    assert not path.exists(), "the pickle was executed"


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused_by_name(tmp_path, canary, container, case):
    program, named = HOSTILE[case]
    if container == "zip":
        path = zip_file(tmp_path, program)
    elif container == "legacy":
        path = legacy_file(tmp_path, program)
    else:  # in place of the magic number
        path = tmp_path / "weights.bin"
        path.write_bytes(program or b"\x80")
    with pytest.raises(InputError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    # Where the magic number belongs there are no tensors yet, so those cases end one step earlier.
    message = message.removeprefix(str(path))  # pytest names the folder after the case
    assert named in message or (container == "bare" and "no torch file" in message)


def test_the_hostile_pickles_would_leave_the_canary(tmp_path, monkeypatch):
    path = tmp_path / "canary"
    monkeypatch.setenv("TLX_TEST_CANARY", str(path))
    for case in ("os.system, protocol 0", "exec", "STACK_GLOBAL", "INST"):
        pickle.loads(HOSTILE[case][0])  # our own harmless payloads
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

TERA = 10 * 2**40
IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "beyond the storage": (tensor((7,), (1,)), "beyond"),
    "an offset beyond the storage": (tensor((1,), (1,), 6), "beyond"),
    "strides beyond the storage": (tensor((2, 3), (4, 1)), "beyond"),
    "10 TB": (tensor((TERA // 4,), (1,)), "beyond"),
    "10 TB by a stride of zero": (tensor((TERA // 4,), (0,)), "memory"),
    "many tensors of 1 MB by a stride of zero": ([tensor((2**18,), (0,))] * 3, "memory"),
    "negative strides": (tensor((2, 3), (-3, -1), 5), "invalid"),
    "negative offset": (tensor((1,), (1,), -1), "invalid"),
    "negative shape": (tensor((-1,), (1,)), "invalid"),
    "shape that overflows 64 bits": (tensor((2**62, 2**62), (0, 0)), "memory"),
    "shape above 64 bits": (tensor((2**70,), (0,)), "invalid"),
    "fractional shape": (tensor((1.5,), (1,)), "invalid"),
    "more strides than sizes": (tensor((2,), (1, 1)), "invalid"),
    "40 dimensions": (tensor((1,) * 40, (1,) * 40), "invalid"),
    "an impossible empty shape": (tensor((0, 2**62, 2**62), (1, 1, 1)), ""),
    "no storage": (tensor(storage=None), "storage"),
    "a storage of another size": (tensor(numel=7), "size"),
    "a storage of another type": ([tensor(), tensor(kind="IntStorage")], "type"),
    "a storage of negative size": (tensor(numel=-6), "storage"),
    "a storage that is not there": (tensor(key="1"), "1"),
    "a storage outside the archive": (tensor(key="../../../etc/passwd"), "passwd"),
    "a quantised storage": (tensor(kind="QInt8Storage"), "QInt8Storage"),
    "a sparse tensor": (
        call("torch._utils", "_rebuild_sparse_tensor", 0, ()),
        "_rebuild_sparse_tensor",
    ),
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_tensors(tmp_path, container, case):
    value, named = IMPOSSIBLE[case]
    if container == "zip":
        path = zip_file(tmp_path, dumps({"a": value}))
    else:
        six = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, None)
        path = legacy_file(tmp_path, dumps({"a": value, "six": tensor(storage=Stored(six))}))
    with pytest.raises(InputError) as caught:
        read_torch(path)
    assert str(caught.value).startswith(str(path))
    if container == "zip":
        assert named in str(caught.value).removeprefix(str(path))


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


def numpy_of(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_what_torch_saves(tmp_path, zipped, protocol):
    value = save_with_torch(tmp_path / "a.pth", zipped, protocol)
    found = read_torch(tmp_path / "a.pth")
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
