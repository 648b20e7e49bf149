"""Files that try to execute something, or to exhaust the reader: none of them is weights.

`PICKLES` are programs, `TENSORS` are tensors that are not what they say; each has a piece of the
message that refuses it. The payloads would only create an empty file, the canary;
tests/weights/hostile_formats.py has the damaged containers.
"""

import struct
from typing import Any

from tests.weights.torch_writer import (
    ORDERED,
    Global,
    Raw,
    Stored,
    call,
    dumps,
    tensor,
    text,
    zip_bytes,
)

CANARY = "import os; open(os.environ['TLX_TEST_CANARY'], 'w').close()"
COMMAND = 'touch "$TLX_TEST_CANARY"'
FLOATS = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
SIX_FLOATS = Stored(("storage", FLOATS, "0", "cpu", 6))
NAMESPACE = b"\x80\x02cargparse\nNamespace\n)\x81"

# Thirty lists, each of two references to the one before: 2**30 items for who walks through them.
LAUGHS = (
    b"]q\x300" + b"".join(b"](h%ch%ceq%c0" % (48 + i, 48 + i, 49 + i) for i in range(30)) + b"h\x4e"
)


def numpy_array(code: str, shape: Any, content: Any) -> Raw:
    """An array as protocol 2 has it, whatever the arguments."""
    made = call("numpy.core.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,), b"b")
    contents = (1, shape, call("numpy", "dtype", code, False, True), False, content)
    return Raw(dumps(made, 4)[11:-1] + dumps(contents, 4)[11:-1] + b"b")


def tensor_called(name: Any) -> bytes:
    """Instructions for a state_dict of one tensor."""
    return b"}" + dumps(name)[2:-1] + dumps(tensor())[2:-1] + b"s"


def state(name: str, value: Any) -> bytes:
    """The instructions that give what is on the stack an attribute."""
    return dumps({name: value})[2:-1] + b"b"


def wrappers(inner: bytes, index: int) -> bytes:
    """A dict in which every known wrapper holds `inner`; it goes to the memo."""
    names = "state_dict model_state_dict model net network params weights module".split()
    return b"}(" + b"".join(text(name) + inner for name in names) + b"uq" + bytes([index]) + b"0"


OS_SYSTEM = call("os", "system", COMMAND)

# name -> (pickle, what the message must name)
PICKLES: dict[str, tuple[bytes, str]] = {
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
    "numpy array of no array": (
        dumps(call("numpy.core.multiarray", "_reconstruct", 0, 0, 0)),
        "numpy array",
    ),
    "numpy.load": (dumps(call("numpy", "load", "x.npy")), "numpy.load"),
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
    "BYTEARRAY8 of an exabyte": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "goes on"),
    "BINBYTES8 of an exabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "goes on"),
    "FRAME of an exabyte": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N", "frames"),
    "unknown opcode": (b"\x80\x02\xff.", "unknown instruction"),
    "nothing on the stack": (b"\x80\x02.", "empty stack"),
    "no STOP": (b"\x80\x02N", "goes on"),
    "an unknown memo entry": (b"\x80\x02h\x07.", "never stored"),
    "empty": (b"", "goes on"),
    # Deeper disguises.
    "a call as the function of a call": (
        b"\x80\x02" + dumps(call("collections", "OrderedDict"))[2:-1] + b")R.",
        "no function",
    ),
    "three calls deep": (
        dumps({"a": [(call("collections", "OrderedDict", [("b", {"c": (OS_SYSTEM,)})]),)]}),
        "os.system",
    ),
    "operator.attrgetter": (dumps(call("operator", "attrgetter", "system")), "operator.attrgetter"),
    "functools.partial": (dumps(call("functools", "partial", 1)), "functools.partial"),
    "importlib": (dumps(call("importlib", "import_module", "os")), "importlib.import_module"),
    "ctypes": (dumps(call("ctypes", "CDLL", "libc.so.6")), "ctypes.CDLL"),
    "socket": (dumps(call("socket", "socket")), "socket.socket"),
    "shutil.rmtree": (dumps(call("shutil", "rmtree", "/nonexistent")), "shutil.rmtree"),
    "webbrowser": (dumps(call("webbrowser", "open", "http://localhost")), "webbrowser.open"),
    "code.interact": (dumps(call("code", "interact")), "code.interact"),
    "numpy's runstring": (
        dumps(call("numpy.testing._private.utils", "runstring", CANARY, {})),
        "runstring",
    ),
    "torch's bytes in bytes": (
        dumps(call("torch.storage", "_load_from_bytes", zip_bytes(dumps(OS_SYSTEM)))),
        "_load_from_bytes",
    ),
    "torch.jit": (dumps(call("torch.jit", "load", "x.pth")), "torch.jit.load"),
    "type": (dumps(call("builtins", "type", "A", (), {})), "builtins.type"),
    "setattr": (dumps(call("builtins", "setattr", 1, "a", 1)), "builtins.setattr"),
    "copyreg to register": (dumps(call("copyreg", "add_extension", "os", "a", 1)), "add_extension"),
    "_reconstructor of Popen": (
        dumps(call("copyreg", "_reconstructor", Global("subprocess", "Popen"), 0, None)),
        "subprocess.Popen",
    ),
    "_reconstructor of a function": (
        dumps(call("copyreg", "_reconstructor", ORDERED, Global("builtins", "object"), None)),
        "no plain class",
    ),
    "a defaultdict that makes system": (
        dumps(call("collections", "defaultdict", Global("os", "system"))),
        "os.system",
    ),
    "a mentioned type is called": (dumps(call("builtins", "list", [1])), "no function"),
    "a mentioned torch type is called": (dumps(call("torch", "Tensor", [1])), "no function"),
    "NEWOBJ of system": (b"\x80\x02cos\nsystem\n" + text(COMMAND) + b"\x85\x81.", "os.system"),
    "NEWOBJ of a mentioned type": (b"\x80\x02ctorch\nTensor\n)\x81.", "NEWOBJ"),
    # State.
    "__setstate__ of a Namespace": (
        NAMESPACE + state("__setstate__", 1) + b".",
        "holds a Attributes",
    ),
    "__class__ of a Namespace": (NAMESPACE + state("__class__", 1) + b".", "holds a Attributes"),
    "__dict__ of a Namespace": (
        NAMESPACE + state("__dict__", {"a": 1}) + b".",
        "holds a Attributes",
    ),
    "slots of a Namespace": (NAMESPACE + b"N}" + b"\x86b.", "attributes of a Attributes"),
    "system as a Namespace's attribute": (
        NAMESPACE + b"}" + text("a") + dumps(OS_SYSTEM)[2:-1] + b"sb.",
        "os.system",
    ),
    "BUILD on a list": (b"\x80\x02]}b.", "attributes of a list"),
    "BUILD on a text": (b"\x80\x02" + text("a") + b"}b.", "attributes of a str"),
    "BUILD on None": (b"\x80\x02N}b.", "attributes of a NoneType"),
    "BUILD on a rebuild function": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + state("__globals__", {}) + b".",
        "attributes of a Function",
    ),
    "BUILD on a device": (b"\x80\x02ctorch\nFloatStorage\n}b.", "attributes of a"),
    # Persistent ids.
    "persistent id None": (dumps(Stored(None)), "storage"),  # type: ignore[arg-type]
    "persistent id of a number": (dumps(Stored(7)), "storage"),  # type: ignore[arg-type]
    "persistent id of a list": (dumps(Stored(["storage"])), "storage"),  # type: ignore[arg-type]
    "persistent id that is too short": (dumps(Stored(("storage",))), "storage"),
    "persistent id with a key of bytes": (
        dumps(Stored(("storage", FLOATS, b"0", "cpu", 6))),
        "storage",
    ),
    "persistent id with a number as key": (
        dumps(Stored(("storage", FLOATS, 0, "cpu", 6))),
        "storage",
    ),
    "persistent id with a fractional size": (
        dumps(Stored(("storage", FLOATS, "0", "cpu", 6.0))),
        "storage",
    ),
    "persistent id with a size above 64 bits": (
        dumps(Stored(("storage", FLOATS, "0", "cpu", 2**70))),
        "storage",
    ),
    "persistent id with a text as type": (
        dumps(Stored(("storage", "FloatStorage", "0", "cpu", 6))),
        "storage",
    ),
    # Names.
    "a name of another alphabet": (
        b"\x80\x04" + text("\u043es") + text("system") + b"\x93.",
        "?s.system",
    ),
    "a name with a line break": (
        b"\x80\x04" + text("os\n") + text("system") + b"\x93.",
        "os .system",
    ),
    "a name with NUL": (b"\x80\x04" + text("os\0") + text("system") + b"\x93.", "os?.system"),
    "a name with a colour": (b"\x80\x04" + text("\x1b[31mos") + text("a") + b"\x93.", "?[31mos.a"),
    "a name that is no UTF-8": (b"c\xff\xfe\nsystem\n.", "text"),
    "an empty name": (b"c\n\n.", "asks for"),
    "a carriage return": (b"cos\r\nsystem\r\n.", "os .system"),
    "a name of a megabyte": (b"\x80\x04" + text("o" * 2**20) + text("s") + b"\x93.", "ooo..."),
    "a line of a megabyte": (b"c" + b"o" * 2**20 + b"\nsystem\n.", "no end"),
    "a line without an end": (b"S'abc", "no end"),
    "STACK_GLOBAL of bytes": (b"\x80\x04C\x02osC\x06system\x93.", "STACK_GLOBAL"),
    "STACK_GLOBAL of a text that was called": (
        b"\x80\x04" + dumps(call("torch", "device", "cpu"))[2:-1] + text("system") + b"\x93.",
        "cpu:0.system",
    ),
    # The memo, the stack, marks, frames.
    "GET of nothing": (b"g7\n.", "never stored"),
    "GET of a negative": (b"g-1\n.", "never stored"),
    "LONG_BINGET of nothing": (b"j\xff\xff\xff\xff.", "never stored"),
    "PUT at a negative": (b"Np-1\n.", "negative"),
    "PUT at a huge index": (b"Np" + b"9" * 600 + b"\n.", "digits"),
    "PUT at no number": (b"Npabc\n.", "number"),
    "PUT of nothing": (b"q\x00.", "empty stack"),
    "MEMOIZE of nothing": (b"\x80\x04\x94.", "empty stack"),
    "POP of nothing": (b"\x80\x020.", "mark"),
    "DUP of nothing": (b"\x80\x022.", "empty stack"),
    "TUPLE3 of one": (b"\x80\x02N\x87.", "empty stack"),
    "TUPLE without a mark": (b"\x80\x02Nt.", "mark"),
    "POP_MARK without a mark": (b"\x80\x02N1.", "mark"),
    "APPENDS without a mark": (b"\x80\x02]Ne.", "mark"),
    "APPENDS without a list": (b"\x80\x02(Ne.", "empty stack"),
    "APPEND to a dict": (b"\x80\x02}Na.", "appends"),
    "APPEND to a tuple": (b"\x80\x02)Na.", "appends"),
    "ADDITEMS to a list": (b"\x80\x04](K\x01\x90.", "adds"),
    "a set of lists": (b"\x80\x04\x8f(]\x90.", "list as a key"),
    "a frozen set of tuples": (b"\x80\x04()\x91.", "tuple as a key"),
    "SETITEM without a dict": (b"\x80\x02K\x01K\x02s.", "empty stack"),
    "SETITEMS of an odd number": (b"\x80\x02}(K\x01u.", "without a value"),
    "DICT of an odd number": (b"(K\x01d.", "without a value"),
    "a list as a key": (b"\x80\x02}]Ns.", "list as a key"),
    "REDUCE below a mark": (b"\x80\x02ccollections\nOrderedDict\n()R.", "empty stack"),
    "STOP with something left": (b"\x80\x02NN.", "left over"),
    "STOP with a mark left": (b"\x80\x02(N.", "left over"),
    "only marks": (b"\x80\x02" + b"(" * 10_000 + b".", "empty stack"),
    "a frame that is too large": (b"\x80\x04\x95" + struct.pack("<Q", 100) + b"N.", "frames"),
    "a frame beyond the pickle": (b"\x80\x04\x95" + struct.pack("<Q", 3) + b"N.N", "left over"),
    "a frame in a frame": (
        b"\x80\x04\x95" + struct.pack("<Q", 12) + b"\x95" + struct.pack("<Q", 2) + b"N..",
        "frames",
    ),
    "protocol 6": (b"\x80\x06N.", "protocol 6"),
    "protocol 255": (b"\x80\xffN.", "protocol 255"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "READONLY_BUFFER": (b"\x80\x05N\x98.", "READONLY_BUFFER"),
    # Numbers and texts.
    "LONG4 of two gigabytes": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "goes on"),
    "LONG4 of a negative length": (b"\x80\x02\x8b\xff\xff\xff\xff.", "negative length"),
    "LONG4 of a megabyte": (
        b"\x80\x02\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + b".",
        "integer of 1048576 bytes",
    ),
    "LONG of 60,000 digits": (b"L" + b"9" * 60_000 + b"L\n.", "digits"),
    "INT that is none": (b"Iabc\n.", "number"),
    "FLOAT that is none": (b"Fabc\n.", "number"),
    "BINSTRING of a negative length": (b"T\xff\xff\xff\xff.", "negative length"),
    "BINUNICODE8 of an exabyte": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b".", "goes on"),
    "BINUNICODE8 of all bits": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "goes on"),
    "a text that is no UTF-8": (b"X\x02\x00\x00\x00\xff\xfe.", "text"),
    "STRING without quotation marks": (b"Sabc\n.", "quotation"),
    "STRING with half an escape": (b"S'\\x1'\n.", "text"),
    # Bombs.
    "300,000 lists in lists": (
        b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "holds a list",
    ),
    "300,000 tuples in tuples": (b"\x80\x02)" + b"\x85" * 300_000 + b".", "holds a tuple"),
    "300,000 dicts in dicts": (
        b"\x80\x02" + b"}K\x00" * 300_000 + b"N" + b"s" * 300_000 + b".",
        "no tensors",
    ),
    "two million instructions": (b"\x80\x02" + b"N" * 2_100_000 + b".", "instructions"),
    "two million dicts": (b"\x80\x02(" + b"}" * 2_100_000 + b"t.", "instructions"),
    "two million marks": (b"\x80\x02" + b"(" * 2_100_000 + b".", "instructions"),
    "two million memo entries": (b"\x80\x04]" + b"\x94" * 2_100_000 + b".", "instructions"),
    "two million sets": (b"\x80\x04(" + b"\x8f" * 1_990_000 + b"t.", "holds a tuple"),
    "half a million calls": (
        b"\x80\x02ctorch\nSize\nq\x00)q\x01" + b"h\x00h\x01R0" * 500_000 + b".",
        "calls",
    ),
    "90,000 tensors in one megabyte": (
        b"\x80\x02"
        + dumps(tensor())[2:-2]  # without its REDUCE
        + b"q\xe000"
        + b"ctorch._utils\n_rebuild_tensor_v2\nq\xe10("
        + b"h\xe1h\xe0R" * 90_000
        + b"t.",
        "holds a tuple",
    ),
    "a list that holds itself": (b"\x80\x02]q\x00h\x00a.", "holds a list"),
    "a dict that holds itself": (
        b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.",
        "no tensors",
    ),
    "a dict that holds itself and a tensor": (
        b"\x80\x02}q\x00" + text("model") + b"h\x00s" + text("w") + dumps(tensor())[2:-1] + b"s.",
        "wrappers",
    ),
    "two dicts that hold each other": (
        b"\x80\x02}q\x00"
        + text("w")
        + dumps(tensor())[2:-1].replace(b"q\x00", b"q\x20")
        + b"s"
        + text("model")
        + b"}q\x21"
        + text("model")
        + b"h\x00ss.",
        "wrappers",
    ),
    "a billion laughs": (b"\x80\x02" + LAUGHS + b".", "holds a list"),
    "a billion laughs as a shape": (
        dumps(tensor(Raw(LAUGHS), (1,))),
        "invalid",
    ),
    "a billion laughs as an offset": (dumps(tensor((1,), (1,), Raw(LAUGHS))), "invalid"),
    "a billion laughs as a persistent id": (dumps(Stored(Raw(LAUGHS))), "storage"),  # type: ignore[arg-type]
    "a billion laughs as a name": (b"\x80\x04" + LAUGHS + text("a") + b"\x93.", "STACK_GLOBAL"),
    "a billion laughs as a key": (b"\x80\x02}" + LAUGHS + b"Ns.", "as a key"),
    "long equal keys compared without end": (
        b"\x80\x02" + text("x" * 10_000) + b"q\x00" + b"}h\x00Ns.",
        "name of 10000",
    ),
    "three hundred sets of tensors": (
        b"\x80\x02}(" + b"".join(text(f"set{i}") + tensor_called("a") for i in range(300)) + b"u.",
        "and 292 more",
    ),
    "four hundred kilobytes of names": (
        b"\x80\x02}("
        + b"".join(text(f"{i}" + "x" * 4000) + tensor_called("a") for i in range(100))
        + b"u.",
        "and 92 more",
    ),
    "the wrappers of a million dicts": (
        # 300,000 references to one dict of wrappers of wrappers, and it alone has 584 paths.
        b"\x80\x02}q\x050"
        + wrappers(b"h\x05", 0)
        + wrappers(b"h\x00", 1)
        + wrappers(b"h\x01", 2)
        + b"}("
        + b"".join(b"M" + struct.pack("<H", i) + b"h\x02" for i in range(60_000))
        + b"u"
        + b".",
        "no tensors",
    ),
}


TERA = 10 * 2**40
TENSORS: dict[str, tuple[Any, str]] = {
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
    "an impossible empty shape": (tensor((0, 2**62, 2**62), (1, 1, 1)), "impossible"),
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
    "strides that overflow 64 bits": (tensor((2, 2), (2**62, 2**62)), "beyond"),
    "an offset of all bits": (tensor((1,), (1,), 2**63 - 1), "beyond"),
    "an offset above 64 bits": (tensor((1,), (1,), 2**64), "invalid"),
    "an offset of text": (tensor((1,), (1,), "0"), "invalid"),
    "a shape of text": (tensor("ab", (1, 1)), "invalid"),
    "a shape that is a dict": (tensor({2: 3}, (1,)), "invalid"),
    "a shape that is a number": (tensor(6, (1,)), "invalid"),
    "strides that are None": (tensor((6,), None), "invalid"),
    "truth as a size": (tensor((True,), (1,)), "invalid"),
    "half a million dimensions": (tensor(Raw(b"(" + b"K\x01" * 500_000 + b"t"), (1,)), "invalid"),
    "a tensor as a shape": (tensor(tensor(), (1,)), "invalid"),
    "a tensor as a storage": (tensor(storage=tensor()), "storage"),
    "a storage called like another entry": (tensor(key="../byteorder"), "byteorder"),
    "a storage with an absolute name": (tensor(key="/etc/passwd"), "passwd"),
    "a storage with NUL in its name": (tensor(key="0\0"), "0?"),
    "a storage with a surrogate in its name": (tensor(key="\ud800"), "lacks"),
    "a storage with a name of a megabyte": (tensor(key="0" * 2**20), "lacks"),
    "a storage of all bits": (tensor(numel=2**63 - 1), "size"),
    "a type where the storage's class belongs": (tensor(kind="int8"), "size"),
    "an unknown type": (tensor(kind="float4"), "float4"),
    "a view in an archive": (
        tensor(
            storage=Stored(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("v", 0, 6)))
        ),
        "mixes",
    ),
    "a conjugated tensor": (
        call(*REBUILD, SIX_FLOATS, 0, (6,), (1,), False, call(*ORDERED), {"conj": True}),
        "conj",
    ),
    "a late type that is none": (
        call("torch._utils", "_rebuild_tensor_v3", SIX_FLOATS, 0, (6,), (1,), False, {}, "uint16"),
        "kind",
    ),
    "a tensor with too few arguments": (call(*REBUILD, SIX_FLOATS), "arguments"),
    "a tensor with too many arguments": (call(*REBUILD, *range(20)), "arguments"),
    "a parameter that is a text": (
        call("torch._utils", "_rebuild_parameter", "x", True, {}),
        "parameter",
    ),
    "a subclass that rebuilds with system": (
        call("torch._tensor", "_rebuild_from_type_v2", Global("os", "system"), 0, (COMMAND,), {}),
        "os.system",
    ),
    "a subclass that rebuilds with another function": (
        call("torch._tensor", "_rebuild_from_type_v2", ORDERED, Global("torch", "Tensor"), (), {}),
        "subclass",
    ),
    "a subclass that rebuilds itself": (
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            Global("torch._tensor", "_rebuild_from_type_v2"),
            Global("torch", "Tensor"),
            (),
            {},
        ),
        "subclass",
    ),
    "a size of a million dimensions": (call("torch", "Size", [1] * 100), "dimensions"),
    "a size of text": (call("torch", "Size", "abc"), "dimensions"),
    "a quantised tensor": (call("torch._utils", "_rebuild_qtensor", 0), "quantised"),
    "a meta tensor": (call("torch._utils", "_rebuild_meta_tensor_no_storage", 0), "meta device"),
    "numpy objects in an array": (numpy_array("O8", (1,), b"12345678"), "numpy scalar"),
    "a numpy array of 10 TB": (numpy_array("f4", (TERA,), b"1234"), "shape"),
    "a numpy array that overflows": (numpy_array("f4", (2**62, 2**62), b"1234"), "shape"),
    "a numpy array of a negative shape": (numpy_array("f4", (-1,), b"1234"), "shape"),
    "a numpy array of 40 dimensions": (numpy_array("f4", (1,) * 40, b"1234"), "shape"),
    "a numpy array with records": (numpy_array("V4", (1,), b"1234"), "numpy scalar"),
    "a numpy array of text": (numpy_array("f4", (1,), "1234"), "form"),
    "a numpy array built twice": (
        Raw(dumps(numpy_array("f4", (1,), b"1234"))[2:-1] + b"Nb"),
        "attributes",
    ),
    "a name of 10,000 letters": (Raw(tensor_called("a" * 10_000)), "name of 10000"),
    "a name of 600 letters": (Raw(tensor_called("a" * 600)), "impossible name"),
    "a name with a colour": (Raw(tensor_called("\x1b[31mred")), "impossible name"),
    "a name with a NUL": (Raw(tensor_called("a\0b")), "impossible name"),
    "a name with a line break": (Raw(tensor_called("a\nb")), "impossible name"),
    "a name with a surrogate": (Raw(tensor_called("\udcff")), "impossible name"),
    "a name that is a number": (Raw(tensor_called(7)), "no text"),
    "an array where metadata belong": (
        call(*REBUILD, SIX_FLOATS, 0, (6,), (1,), False, call(*ORDERED), tensor()),
        "conj",
    ),
    "an array where a late tensor's metadata belong": (
        call(
            "torch._utils",
            "_rebuild_tensor_v3",
            SIX_FLOATS,
            0,
            (6,),
            (1,),
            False,
            {},
            Global("torch", "uint16"),
            tensor(),
        ),
        "kind",
    ),
    "an array where an encoding belongs": (call("_codecs", "encode", "a", tensor()), "encodes"),
    "an array where an order belongs": (
        call(
            "numpy.core.numeric", "_frombuffer", b"", call("numpy", "dtype", "f4"), (0,), tensor()
        ),
        "form",
    ),
    "an array where a byte order belongs": (
        Raw(dumps(call("numpy", "dtype", "f4"))[2:-1] + dumps((3, tensor()), 4)[11:-1] + b"b"),
        "numpy type",
    ),
    "an array where a persistent id's kind belongs": (
        tensor(storage=Stored((tensor(), FLOATS, "0", "cpu", 6))),
        "storage",
    ),
    "an array where a persistent id's key belongs": (
        tensor(storage=Stored(("storage", FLOATS, tensor(), "cpu", 6))),
        "storage",
    ),
    "an array as a key": (Raw(b"}" + dumps(tensor())[2:-1] + b"Ns"), "as a key"),
    "an array as a name": (Raw(dumps(tensor())[2:-1] + text("a") + b"\x93"), "STACK_GLOBAL"),
}
