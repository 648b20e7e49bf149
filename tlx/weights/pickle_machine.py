"""An interpreter for pickles of plain data; what else a pickle asks for, a subclass admits by name.

A pickle is a program for a stack machine (CPython's Lib/pickletools.py describes its instructions), and
Python's own interpreter runs whatever it says. This one can make numbers, texts and containers only: it
imports nothing, sets no attributes, and calls nothing but a `Function` that the subclass handed out. Size,
number of instructions and number of calls are limited, so that no file takes long or much memory.
"""

from __future__ import annotations

import codecs
import dataclasses
import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable
from typing import Any

# Real checkpoints stay far below: ResNet-50 with an optimizer's state has 30,000 instructions in 200 kB.
MAX_PROGRAM = 2**26  # bytes
MAX_INSTRUCTIONS = 2_000_000
MAX_CALLS = 100_000
MAX_COPIES = 2**27  # bytes that calls may make out of what is there already

_MAX_INTEGER = 256  # bytes; hashing a long one takes long, and a pickle can have it hashed often
_MAX_KEY = 4096  # characters; as for integers, and for comparing two equal ones
_MAX_LINE = 2**16  # bytes, of the older instructions that end with a line


class BadFileError(Exception):
    """What is wrong with the file, worded to follow its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """What a pickle may call in place of the global that it names: `call(machine, *arguments)`."""

    call: Callable[..., Any]
    is_class: bool = False  # may be called by NEWOBJ too


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """A global that a pickle may mention and not use, as `torch.Tensor` beside a tensor's contents."""

    name: str


class PickleMachine:
    """Interprets the pickles in `data`, one after another, from `position` on."""

    def __init__(self, data: bytes | mmap.mmap, position: int = 0) -> None:
        self.position = position
        self._data = data
        self._limit = position + MAX_PROGRAM
        self._end = min(len(data), self._limit)
        self._instructions_left = MAX_INSTRUCTIONS
        self._calls_left = MAX_CALLS
        self._copies_left = MAX_COPIES

    # What a subclass says about the rest of the world.

    def find_global(self, module: str, name: str) -> Any:
        """Returns a Function, a Named or another harmless value for the name; raises BadFileError."""
        raise NotImplementedError

    def find_persistent(self, identity: Any) -> Any:
        """Returns what the pickle refers to outside itself; raises BadFileError."""
        raise NotImplementedError

    def build(self, target: Any, state: Any) -> None:
        """Gives `target`, which a Function made, its state; raises BadFileError."""
        raise NotImplementedError

    # What Functions use.

    def spend(self, size: int) -> None:
        """Counts bytes that a call is about to copy. Raises BadFileError past the limit."""
        self._copies_left -= size
        if self._copies_left < 0:
            raise BadFileError("needs far more than its own size in memory; refused")

    def load(self) -> Any:
        """Returns what the pickle at `position` makes; `position` is then behind it."""
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._frame_end = self.position
        for left in range(self._instructions_left, 0, -1):
            if self.position >= self._end:
                self.take(1)
            code = self._data[self.position]
            self.position += 1
            if code == _STOP:
                self._instructions_left = left - 1
                return self._result()
            _INSTRUCTIONS[code](self)
        raise BadFileError("has a pickle of more instructions than any weights need; refused")

    def _result(self) -> Any:
        value = self.pop()
        if self._stack or self._below_marks or self.position < self._frame_end:
            raise BadFileError("is damaged: its pickle ends with something left over")
        return value

    def take(self, count: int) -> bytes:
        """Returns the program's next bytes, which are an instruction's argument."""
        start = self.position
        if not 0 <= count <= self._end - start:
            if count < 0:
                raise BadFileError("is damaged: its pickle announces a negative length")
            if start + count > self._limit and self._end == self._limit:
                raise BadFileError(f"has a pickle of more than {MAX_PROGRAM >> 20} MB; refused")
            raise BadFileError("is truncated or damaged: its pickle goes on beyond the end")
        self.position = start + count
        return self._data[start : self.position]

    def take_line(self) -> bytes:
        stop = self._data.find(b"\n", self.position, min(self.position + _MAX_LINE, self._end))
        if stop < 0:
            raise BadFileError("is truncated or damaged: a line of its pickle has no end")
        line = self._data[self.position : stop]
        self.position = stop + 1
        return line

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            raise BadFileError("is damaged: its pickle takes from an empty stack")
        return self._stack.pop()

    def top(self) -> Any:
        if not self._stack:
            raise BadFileError("is damaged: its pickle takes from an empty stack")
        return self._stack[-1]

    def mark(self) -> None:
        self._below_marks.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """Returns what was pushed since the last mark."""
        if not self._below_marks:
            raise BadFileError("is damaged: its pickle refers to a mark that is not there")
        items, self._stack = self._stack, self._below_marks.pop()
        return items

    def remember(self, index: int) -> None:
        if index < 0:
            raise BadFileError("is damaged: its pickle has a negative memo index")
        self._memo[index] = self.top()

    def memoize(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise BadFileError("is damaged: its pickle recalls something it never stored")
        self.push(self._memo[index])

    def discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def discard_marked(self) -> None:
        self.pop_mark()

    def collect(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def extend(self, items: Iterable[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise BadFileError(f"appends to a {type(target).__name__}; refused")
        target.extend(items)

    def append(self) -> None:
        item = self.pop()
        self.extend([item])

    def set_items(self, flat: list[Any]) -> None:
        """Sets `[key, value, key, value...]` in the dict on top."""
        target = self.top()
        if not isinstance(target, dict):
            raise BadFileError(f"sets items of a {type(target).__name__}; refused")
        if len(flat) % 2:
            raise BadFileError("is damaged: its pickle holds a key without a value")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target[checked_key(key)] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    def add_items(self) -> None:
        items = self.pop_mark()
        target = self.top()
        if type(target) is not set:
            raise BadFileError(f"adds to a {type(target).__name__}; refused")
        target.update(map(checked_key, items))

    def named_global(self) -> None:
        module, name = (_converted(bytes.decode, self.take_line()) for _ in range(2))
        self.push(self.find_global(module, name))

    def stacked_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise BadFileError("names a global with something that is no text (STACK_GLOBAL)")
        self.push(self.find_global(module, name))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Function or type(arguments) is not tuple:
            raise BadFileError("calls something that is no function; refused")
        self._call(function, arguments)

    def new_object(self) -> None:
        arguments, function = self.pop(), self.pop()
        admitted = type(function) is Function and function.is_class
        if not admitted or type(arguments) is not tuple:
            raise BadFileError("makes an instance by NEWOBJ of what is no plain class; refused")
        self._call(function, arguments)

    def _call(self, function: Function, arguments: tuple[Any, ...]) -> None:
        self._calls_left -= 1
        if self._calls_left < 0:
            raise BadFileError("has a pickle of more calls than any weights need; refused")
        try:
            self.push(function.call(self, *arguments))
        except TypeError as error:
            raise BadFileError("calls something with unexpected arguments; refused") from error

    def build_top(self) -> None:
        state = self.pop()
        self.build(self.top(), state)

    def old_instance(self) -> None:
        self.named_global()
        raise BadFileError("makes instances of classes (INST); refused")

    def begin_frame(self) -> None:
        """A frame only tells a reader how much to read ahead; a wrong one is a sign of damage."""
        (size,) = struct.unpack("<Q", self.take(8))
        if self.position - 9 < self._frame_end or size > self._end - self.position:
            raise BadFileError("is truncated or damaged: its pickle's frames do not fit it")
        self._frame_end = self.position + size

    def protocol(self) -> None:
        version = self.take(1)[0]
        if version > 5:
            raise BadFileError(f"has a pickle of protocol {version}; known are 0 to 5")


def checked_key(key: Any) -> Any:
    """Returns what may be a dict's key. Tuples are out: hashing deeply shared ones never ends.

    Raises:
      BadFileError: it is neither text nor a number, or is too long.
    """
    if not isinstance(key, str | bytes | int | float | None):
        raise BadFileError(f"holds a dict with a {type(key).__name__} as a key; refused")
    if isinstance(key, str | bytes) and len(key) > _MAX_KEY:
        raise BadFileError(f"holds a name of {len(key)} characters; refused")
    return key


def short(value: Any) -> str:
    """Returns the value as one line of at most 120 printable ASCII characters."""
    text = str(value)[:1000].encode("ascii", "replace").decode()
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return text if len(text) <= 120 else text[:117] + "..."


Instruction = Callable[[PickleMachine], None]


def _converted(convert: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return convert(content)
    except ValueError as error:  # of which wrong encodings are a kind
        raise BadFileError(
            f"is damaged: its pickle holds a text or a number that is none: {short(repr(content[:40]))}"
        ) from error


def _constant(value: Any) -> Instruction:
    return lambda machine: machine.push(value)


def _number(layout: str) -> Instruction:
    unpack, size = struct.Struct(layout).unpack, struct.calcsize(layout)
    return lambda machine: machine.push(unpack(machine.take(size))[0])


def _sized(layout: str, convert: Callable[[bytes], Any]) -> Instruction:
    """An argument that follows its own length."""
    unpack, size = struct.Struct(layout).unpack, struct.calcsize(layout)
    return lambda machine: machine.push(
        _converted(convert, machine.take(unpack(machine.take(size))[0]))
    )


def _line(convert: Callable[[bytes], Any]) -> Instruction:
    return lambda machine: machine.push(_converted(convert, machine.take_line()))


def _memo(layout: str, action: Callable[[PickleMachine, int], None]) -> Instruction:
    unpack, size = struct.Struct(layout).unpack, struct.calcsize(layout)
    return lambda machine: action(machine, unpack(machine.take(size))[0])


def _integer(content: bytes) -> int:
    if len(content) > _MAX_INTEGER:
        raise BadFileError(f"holds an integer of {len(content)} bytes; refused")
    return int.from_bytes(content, "little", signed=True)


def _integer_line(line: bytes) -> int | bool:
    if line in (b"00", b"01"):  # how protocols 0 and 1 write False and True
        return line == b"01"
    if len(line) > 2 * _MAX_INTEGER:
        raise BadFileError(f"holds an integer of {len(line)} digits; refused")
    return int(line.removesuffix(b"L"))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _quoted(line: bytes) -> str:
    line = line.strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise BadFileError("is damaged: a text of its pickle lacks its quotation marks")
    return codecs.escape_decode(line[1:-1])[0].decode("utf-8")  # type: ignore[attr-defined]


def _refused(name: str) -> Instruction:
    def refuse(machine: PickleMachine) -> None:
        raise BadFileError(
            f"uses the pickle instruction {name}, which tensors and plain data do not need; refused"
        )

    return refuse


def _unknown(machine: PickleMachine) -> None:
    raise BadFileError("is damaged, or no torch file: its pickle has an unknown instruction")


_STOP = pickle.STOP[0]

_ADMITTED: dict[bytes, Instruction] = {
    pickle.PROTO: PickleMachine.protocol,
    pickle.FRAME: PickleMachine.begin_frame,
    pickle.MARK: PickleMachine.mark,
    pickle.POP: PickleMachine.discard,
    pickle.POP_MARK: PickleMachine.discard_marked,
    pickle.DUP: lambda machine: machine.push(machine.top()),
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.INT: _line(_integer_line),
    pickle.BININT: _number("<i"),
    pickle.BININT1: _number("<B"),
    pickle.BININT2: _number("<H"),
    pickle.LONG: _line(_integer_line),
    pickle.LONG1: _sized("<B", _integer),
    pickle.LONG4: _sized("<i", _integer),
    pickle.FLOAT: _line(float),
    pickle.BINFLOAT: _number(">d"),
    pickle.STRING: _line(_quoted),  # Python 2 wrote keys as byte strings
    pickle.BINSTRING: _sized("<i", bytes.decode),
    pickle.SHORT_BINSTRING: _sized("<B", bytes.decode),
    pickle.BINBYTES: _sized("<I", bytes),
    pickle.SHORT_BINBYTES: _sized("<B", bytes),
    pickle.BINBYTES8: _sized("<Q", bytes),
    pickle.BYTEARRAY8: _sized("<Q", bytes),
    pickle.UNICODE: _line(lambda line: line.decode("raw-unicode-escape")),
    pickle.BINUNICODE: _sized("<I", _text),
    pickle.SHORT_BINUNICODE: _sized("<B", _text),
    pickle.BINUNICODE8: _sized("<Q", _text),
    pickle.EMPTY_LIST: lambda machine: machine.push([]),
    pickle.LIST: lambda machine: machine.push(machine.pop_mark()),
    pickle.APPEND: PickleMachine.append,
    pickle.APPENDS: lambda machine: machine.extend(machine.pop_mark()),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.TUPLE: lambda machine: machine.push(tuple(machine.pop_mark())),
    pickle.TUPLE1: lambda machine: machine.collect(1),
    pickle.TUPLE2: lambda machine: machine.collect(2),
    pickle.TUPLE3: lambda machine: machine.collect(3),
    pickle.EMPTY_DICT: lambda machine: machine.push({}),
    pickle.DICT: PickleMachine.make_dict,
    pickle.SETITEM: PickleMachine.set_item,
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_mark()),
    pickle.EMPTY_SET: lambda machine: machine.push(set()),
    pickle.ADDITEMS: PickleMachine.add_items,
    pickle.FROZENSET: lambda machine: machine.push(frozenset(map(checked_key, machine.pop_mark()))),
    pickle.PUT: lambda machine: machine.remember(_converted(_integer_line, machine.take_line())),
    pickle.BINPUT: _memo("<B", PickleMachine.remember),
    pickle.LONG_BINPUT: _memo("<I", PickleMachine.remember),
    pickle.MEMOIZE: PickleMachine.memoize,
    pickle.GET: lambda machine: machine.recall(_converted(_integer_line, machine.take_line())),
    pickle.BINGET: _memo("<B", PickleMachine.recall),
    pickle.LONG_BINGET: _memo("<I", PickleMachine.recall),
    pickle.GLOBAL: PickleMachine.named_global,
    pickle.STACK_GLOBAL: PickleMachine.stacked_global,
    pickle.REDUCE: PickleMachine.reduce,
    pickle.NEWOBJ: PickleMachine.new_object,
    pickle.BUILD: PickleMachine.build_top,
    pickle.BINPERSID: lambda machine: machine.push(machine.find_persistent(machine.pop())),
    pickle.INST: PickleMachine.old_instance,
}

_INSTRUCTIONS: list[Instruction] = [_unknown] * 256
for _opcode in pickletools.opcodes:
    _INSTRUCTIONS[ord(_opcode.code)] = _refused(_opcode.name)
for _code, _action in _ADMITTED.items():
    _INSTRUCTIONS[_code[0]] = _action
