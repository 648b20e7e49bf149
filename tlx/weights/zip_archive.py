"""The stored entries of a zip archive, as views of the file, after checking the archive.

Python's zipfile would do, but believes the archive's own index: it makes an object for each of any
number of entries, and lets entries overlap. The format is that of PKWARE's APPNOTE.TXT 6.3, of
which torch.save uses the part without compression, encryption, several disks and comments.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from tlx.weights.pickle_machine import BadFileError, short

_MAX_ENTRIES = 100_000
_MAX_INDEX = 2**26  # bytes
_MAX_COMMENT = 2**16 - 1  # bytes

_END = struct.Struct("<4s4H2LH")  # signature, disks, entries, the index's size and offset, comment
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # bits of the flags


@dataclasses.dataclass(frozen=True)
class _Entry:
    header: int  # offset in the file
    size: int  # bytes
    packed: int  # bytes in the file
    crc: int
    method: int
    flags: int


class Archive:
    """The entries by name (bytes, as the file has them)."""

    def __init__(self, data: mmap.mmap) -> None:
        """Reads the index. Raises BadFileError where it contradicts itself or the file."""
        self._data = data
        self._entries: dict[bytes, _Entry] = {}
        count, start, stop = _find_index(data)
        if count > _MAX_ENTRIES:
            raise BadFileError(f"is a zip archive of {count} entries, more than any weights have")
        if stop - start > _MAX_INDEX:
            raise BadFileError(
                f"is a zip archive with an index of {(stop - start) >> 20} MB; refused"
            )
        for name, entry in _index_entries(data, count, start, stop):
            if name in self._entries:
                raise BadFileError("is a zip archive with two entries of the same name; refused")
            self._entries[name] = entry
        self._ends = _ends(list(self._entries.values()), start)

    def names(self) -> list[bytes]:
        return list(self._entries)

    def __contains__(self, name: bytes) -> bool:
        return name in self._entries

    def read(self, name: bytes) -> np.ndarray:
        """Returns the entry's bytes, `[n]` uint8, mapped, after checking their CRC."""
        shown = short(name.decode("utf-8", "replace"))
        if name not in self._entries:
            raise BadFileError(f"lacks its entry {shown}")
        entry = self._entries[name]
        if entry.method or entry.flags & _ENCRYPTED:
            raise BadFileError(
                f"has a compressed or encrypted entry {shown}, which torch never writes"
            )
        local = _LOCAL.unpack_from(self._data, entry.header)
        signature, _, flags, method, _, _, crc, packed, size, name_size, extra_size = local
        begin = entry.header + _LOCAL.size
        start = begin + name_size + extra_size
        agrees = (signature, method, flags) == (b"PK\x03\x04", 0, entry.flags)
        # torch writes the numbers behind the contents, and again in the index.
        if not flags & _SIZES_FOLLOW and 2**32 - 1 not in (packed, size):
            agrees &= (crc, packed, size) == (entry.crc, entry.packed, entry.size)
        if (
            not agrees
            or self._data[begin : begin + name_size] != name
            or entry.size != entry.packed
            or start + entry.size > self._ends[entry.header]
        ):
            raise BadFileError(f"is damaged: its entry {shown} is not where the index says")
        raw = np.frombuffer(memoryview(self._data)[start : start + entry.size], np.uint8)
        if zlib.crc32(raw.data) != entry.crc:
            raise BadFileError(f"is damaged: the checksum of its entry {shown} is wrong")
        return raw


def _find_index(data: mmap.mmap) -> tuple[int, int, int]:
    """Returns the number of entries, and where in the file their list begins and ends."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - _MAX_COMMENT))
    if at < 0 or at + _END.size > len(data):
        raise BadFileError("is a truncated or damaged zip archive (it has no index at its end)")
    _, *disks, here, count, size, start, comment = _END.unpack_from(data, at)
    stop = at
    if at + _END.size + comment != len(data):
        raise BadFileError("is a truncated or damaged zip archive (its index is not at its end)")
    locator = at - _END64_LOCATOR.size
    if locator > 0 and data[locator : locator + 4] == b"PK\x06\x07":
        stop = _END64_LOCATOR.unpack_from(data, locator)[2]
        small = (here, count, size, start)
        disks, (here, count, size, start) = _large_end(data, stop, locator)
        # Two readers that believe one or the other must not see two archives.
        for number, limit, large in zip(
            small, (2**16, 2**16, 2**32, 2**32), (here, count, size, start), strict=True
        ):
            if number not in (limit - 1, large):
                raise BadFileError("is a damaged zip archive (its two indexes contradict)")
    if any(disks) or here != count or start + size != stop:
        raise BadFileError("is a damaged zip archive (its index is not where it says)")
    return count, start, stop


def _large_end(data: mmap.mmap, at: int, locator: int) -> tuple[list[int], list[int]]:
    """Returns the disks, and the entries, size and offset of the index, in 64 bits."""
    if at + _END64.size > locator:
        raise BadFileError("is a damaged zip archive (its large index is missing)")
    signature, _, _, _, *numbers = _END64.unpack_from(data, at)
    if signature != b"PK\x06\x06":
        raise BadFileError("is a damaged zip archive (its large index is missing)")
    return numbers[:2], numbers[2:]


def _index_entries(
    data: mmap.mmap, count: int, at: int, stop: int
) -> Iterator[tuple[bytes, _Entry]]:
    for _ in range(count):
        if at + _ENTRY.size > stop:
            raise BadFileError("is a damaged zip archive (its index is too short)")
        fields = _ENTRY.unpack_from(data, at)
        signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        name_size, extra_size, comment_size, _, _, _, header = fields[10:]
        begin = at + _ENTRY.size
        at = begin + name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or at > stop:
            raise BadFileError("is a damaged zip archive (its index is broken)")
        name = data[begin : begin + name_size]
        extra = data[begin + name_size : begin + name_size + extra_size]
        size, packed, header = _large(extra, [size, packed, header])
        _check_name(name)
        yield name, _Entry(header, size, packed, crc, method, flags)
    if at != stop:
        raise BadFileError("is a damaged zip archive (its index is longer than it says)")


def _large(extra: bytes, numbers: list[int]) -> list[int]:
    """Puts in the 64-bit numbers that stand in an extra field where 32 bits are too few."""
    wanted = [i for i, number in enumerate(numbers) if number == 2**32 - 1]
    if not wanted:
        return numbers
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1 and 8 * len(wanted) <= size <= len(extra) - at - 4:
            for place, i in enumerate(wanted):
                (numbers[i],) = struct.unpack_from("<Q", extra, at + 4 + 8 * place)
            return numbers
        at += 4 + size
    raise BadFileError("is a damaged zip archive (a large entry lacks its size)")


def _check_name(name: bytes) -> None:
    """Nothing is ever extracted; a name that leads out is refused as a sign of intent."""
    parts = name.split(b"/")
    if b"\\" in name or b"\0" in name or parts[0] in (b"", b".") or b".." in parts:
        raise BadFileError(
            "is a zip archive with a path that leads out of it: "
            f"{short(name.decode('utf-8', 'replace'))}"
        )


def _ends(entries: list[_Entry], index: int) -> dict[int, int]:
    """Returns, for each entry's offset, the offset that it must not reach over: the next one's."""
    offsets = sorted(entry.header for entry in entries)
    if len(set(offsets)) < len(offsets):
        raise BadFileError("is a zip archive with entries that overlap; refused")
    ends = dict(zip(offsets, [*offsets[1:], index], strict=True))
    for entry in entries:
        if entry.header + _LOCAL.size + entry.packed > ends[entry.header]:
            raise BadFileError("is a zip archive with entries that overlap or lie outside; refused")
    return ends
