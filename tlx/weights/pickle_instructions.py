"""Which byte of a pickle does what: instructions for plain data; others are refused by name.

What each one does in CPython is said in its Lib/pickletools.py.
"""

from __future__ import annotations

import codecs
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from tlx.weights.pickle_machine import BadFileError, PickleMachine, checked_key, converted

_MAX_INTEGER = 256  # bytes; hashing a long one takes long, and a pickle can have it hashed often

Instruction = Callable[[PickleMachine], None]


def _constant(value: Any) -> Instruction:
    return lambda machine: machine.push(value)


def _number(layout: str) -> Instruction:
    unpack, size = struct.Struct(layout).unpack, struct.calcsize(layout)
    return lambda machine: machine.push(unpack(machine.take(size))[0])


def _sized(layout: str, convert: Callable[[bytes], Any]) -> Instruction:
    """An argument that follows its own length."""
    unpack, size = struct.Struct(layout).unpack, struct.calcsize(layout)
    return lambda machine: machine.push(
        converted(convert, machine.take(unpack(machine.take(size))[0]))
    )


def _line(convert: Callable[[bytes], Any]) -> Instruction:
    return lambda machine: machine.push(converted(convert, machine.take_line()))


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
    pickle.PUT: lambda machine: machine.remember(converted(_integer_line, machine.take_line())),
    pickle.BINPUT: _memo("<B", PickleMachine.remember),
    pickle.LONG_BINPUT: _memo("<I", PickleMachine.remember),
    pickle.MEMOIZE: PickleMachine.memoize,
    pickle.GET: lambda machine: machine.recall(converted(_integer_line, machine.take_line())),
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

INSTRUCTIONS: list[Instruction] = [_unknown] * 256
for _opcode in pickletools.opcodes:
    INSTRUCTIONS[ord(_opcode.code)] = _refused(_opcode.name)
for _code, _action in _ADMITTED.items():
    INSTRUCTIONS[_code[0]] = _action
