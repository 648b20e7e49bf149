"""TensorBoard event files, written directly.

The format is a few bytes of protocol buffer (tensorflow/core/util/event.proto) in TFRecord framing
(tensorflow/core/lib/io/record_writer.h). tensorboardX imports torch where it is installed, which
costs seconds at every start, and writes from a thread: a full disk hangs instead of raising.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


class EventWriter:
    """Scalars in a new event file of `folder`.

    Raises:
      OSError: from every method, when the file cannot be written.
    """

    def __init__(self, folder: str | Path, *, first_step: int) -> None:
        """Creates the file; TensorBoard hides what older files hold from `first_step` on."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names: two of one second must not swap.
        stamps = (path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*"))
        stamp = max([int(time.time()), *(int(text) + 1 for text in stamps if text.isdecimal())])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "xb")  # noqa: SIM115 (closed by close)
        self._event(_bytes(3, b"brain.Event:2"))
        self._event(_varint(2, first_step) + _bytes(7, _varint(1, 1)))  # session_log.status = START
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one scalar per name at `step` and flushes."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _tag(2, 5) + struct.pack("<f", _float32(value)))
            for name, value in values.items()
        )
        self._event(_varint(2, step) + _bytes(5, summary))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _event(self, fields: bytes) -> None:
        data = _tag(1, 1) + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked_crc(length) + data + _masked_crc(data))


def _float32(value: float) -> float:
    # struct refuses what overflows float32; a diverged loss must not end the run.
    return max(-3.4028234e38, min(3.4028234e38, value)) if value == value else value


def _tag(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _varint(field: int, value: int) -> bytes:
    return _tag(field, 0) + _number(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _tag(field, 2) + _number(len(data)) + data


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 if byte & 1 else byte >> 1  # CRC-32C, RFC 3720 B.4
        table.append(byte)
    return tuple(table)


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
