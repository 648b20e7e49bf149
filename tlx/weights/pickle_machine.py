"""An interpreter for pickles of plain data; what else a pickle asks for, a subclass admits by name.

A pickle is a program for a stack machine (CPython's Lib/pickletools.py describes its instructions),
and Python's own interpreter runs whatever it says. This one can make numbers, texts and containers
only: it imports nothing, sets no attributes, and calls nothing but a `Function` that the subclass
handed out. Size, number of instructions and number of calls are limited, so that no file takes long
or much memory.
"""

from __future__ import annotations

import dataclasses
import mmap
import pickle
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

# Real checkpoints stay far below: ResNet-50 with AdamW's state has 26,000 instructions in 79 kB.
MAX_PROGRAM = 2**26  # bytes
MAX_INSTRUCTIONS = 2_000_000
MAX_CALLS = 100_000
MAX_COPIES = 2**27  # bytes that calls may make out of what is there already

# Characters of a name: comparing two equal long ones takes long, and a pickle can do it often.
_MAX_KEY = 4096
_MAX_LINE = 2**16  # bytes, of the older instructions that end with a line


_STOP = pickle.STOP[0]


class BadFileError(Exception):
    """What is wrong with the file, worded to follow its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """What a pickle may call in place of the global that it names: `call(machine, *arguments)`."""

    call: Callable[..., Any]
    is_class: bool = False  # may be called by NEWOBJ too


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """A global that a pickle may mention and not use, as `torch.Tensor` beside contents."""

    name: str


class PickleMachine:
    """Interprets the pickles in `data`, one after another, from `position` on.

    The methods are what instructions do; pickle_instructions.py says which byte does what.
    """

    instructions: ClassVar[Sequence[Callable[[Any], None]]]  # by opcode

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
        """Returns a Function, a Named or another harmless value; raises BadFileError."""
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
            self.instructions[code](self)
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
        module, name = (converted(bytes.decode, self.take_line()) for _ in range(2))
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


def converted(convert: Callable[[bytes], Any], content: bytes) -> Any:
    """Returns the text or number that an argument is. Raises BadFileError where it is none."""
    try:
        return convert(content)
    except ValueError as error:  # of which wrong encodings are a kind
        raise BadFileError(
            "is damaged: its pickle holds a text or a number that is none: "
            f"{short(repr(content[:40]))}"
        ) from error


def short(value: Any) -> str:
    """Returns the value as one line of at most 120 printable ASCII characters."""
    text = str(value)[:1000].encode("ascii", "replace").decode()
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return text if len(text) <= 120 else text[:117] + "..."
