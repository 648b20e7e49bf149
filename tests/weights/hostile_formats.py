"""Damaged and lying containers: zip archives, safetensors, metas, and other files.

Every entry is a file's contents and a piece of the message that refuses it.
"""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from tests.weights.hostile import CANARY, OS_SYSTEM
from tests.weights.torch_writer import MAGIC, SIX, archive, dumps, legacy_bytes, tensor, zip_bytes

PROGRAM = dumps({"a": tensor()})
GOOD = zip_bytes(PROGRAM)
MEGABYTE = 2**20


def patched(content: bytes, place: int, layout: str, *numbers: Any) -> bytes:
    """Overwrites numbers at `place` (from the end where it is negative)."""
    changed = bytearray(content)
    struct.pack_into(layout, changed, place % len(content), *numbers)
    return bytes(changed)


def index_entry(content: bytes, name: bytes) -> int:
    """Where the index of the archive describes the entry."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name))


def listed(name: str, place: int, layout: str, *numbers: Any) -> bytes:
    """`GOOD` with an index that says something else about an entry."""
    return patched(GOOD, index_entry(GOOD, name.encode()) + place, layout, *numbers)


def large(entry: str, **numbers: int) -> bytes:
    """`GOOD` with 64-bit numbers for an entry, whose 32-bit ones refer to them."""
    order = {"size": 24, "packed": 20, "header": 42}
    content = bytearray(GOOD)
    at = index_entry(GOOD, entry.encode())
    for name in numbers:
        struct.pack_into("<I", content, at + order[name], 2**32 - 1)
    values = [numbers[name] for name in order if name in numbers]
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
    struct.pack_into("<H", content, at + 30, len(extra))
    behind = at + 46 + len(f"archive/{entry}")
    content[behind:behind] = extra
    end = len(content) - 22
    size = struct.unpack_from("<I", content, end + 12)[0]
    struct.pack_into("<I", content, end + 12, size + len(extra))
    return bytes(content)


def with_large_end(**numbers: int) -> bytes:
    """`GOOD` with a second, 64-bit end of its index."""
    count, size, start = struct.unpack_from("<H2I", GOOD, len(GOOD) - 12)
    found = {"here": count, "count": count, "size": size, "start": start} | numbers
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0,
        *(found[name] for name in ("here", "count", "size", "start")),
    )  # fmt: skip
    at = found.get("at", len(GOOD) - 22)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return GOOD[:-22] + record + locator + GOOD[-22:]


def overlapping() -> bytes:
    """Two entries of the index that are one entry of the file."""
    first, second = (index_entry(GOOD, name) for name in (b"data.pkl", b"data/0"))
    return patched(GOOD, second + 42, "<I", struct.unpack_from("<I", GOOD, first + 42)[0])


def nested_in_entry() -> bytes:
    """An entry whose contents hold other entries: not equal, but overlapping."""
    inner = GOOD[: GOOD.index(b"PK\x01\x02")]
    crc = zlib.crc32(inner)
    name = b"archive/data/9"
    shift = 30 + len(name)
    head = (
        struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, crc, len(inner), len(inner), len(name), 0
        )
        + name
    )
    index = bytearray(GOOD[len(inner) : -22])
    at = 0
    while at >= 0 and at < len(index):
        (offset,) = struct.unpack_from("<I", index, at + 42)
        struct.pack_into("<I", index, at + 42, offset + shift)
        at = index.find(b"PK\x01\x02", at + 4)
    index += (
        struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, crc, len(inner), len(inner),
            len(name), 0, 0, 0, 0, 0, 0,
        )
        + name
    )  # fmt: skip
    count = struct.unpack_from("<H", GOOD, len(GOOD) - 12)[0] + 1
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(index), shift + len(inner), 0
    )
    return head + inner + bytes(index) + end


def many_entries(count: int, name: bytes = b"archive/data.pkl") -> bytes:
    """A 64-bit index of many entries, all of them the same."""
    first = index_entry(GOOD, b"data.pkl")
    body = GOOD[: GOOD.index(b"PK\x01\x02")]
    one = patched(GOOD[first : first + 46], 28, "<H", len(name)) + name
    size, start = count * len(one), len(body)
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start
    )  # fmt: skip
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, size, start, 0)
    return body + one * count + record + locator + end


def squeezed(entries: dict[str, bytes]) -> bytes:
    return archive(entries, compression=zipfile.ZIP_DEFLATED)


START = {"archive/data.pkl": PROGRAM, "archive/data/0": SIX}

ARCHIVES: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "a bomb in the storage": (
        lambda: squeezed({"archive/data.pkl": PROGRAM, "archive/data/0": bytes(64 * MEGABYTE)}),
        "compressed",
    ),
    "a bomb in the pickle": (
        lambda: squeezed({"archive/data.pkl": b"(" + b"N" * 64 * MEGABYTE}),
        "compressed",
    ),
    "a stored pickle of 65 MB": (
        lambda: archive({"archive/data.pkl": b"(" + b"N" * 65 * MEGABYTE}),
        "more than 64 MB",
    ),
    "a byte order of 8 MB": (
        lambda: archive({**START, "archive/byteorder": b"little" * MEGABYTE}),
        "byte order",
    ),
    "an encrypted entry": (listed("data/0", 8, "<H", 1), "compressed or encrypted"),
    "an unknown compression": (listed("data/0", 10, "<H", 99), "compressed or encrypted"),
    "a compression the entry denies": (listed("data/0", 10, "<H", 8), "compressed or encrypted"),
    "flags the entry denies": (listed("data/0", 8, "<H", 2048), "not where the index says"),
    "a wrong CRC of the pickle": (listed("data.pkl", 16, "<I", 7), "not where the index says"),
    "a wrong CRC of a storage": (listed("data/0", 16, "<I", 7), "not where the index says"),
    "a changed byte": (GOOD.replace(SIX, SIX[:-1] + b"\x41"), "checksum"),
    "a size of 4 GB": (listed("data/0", 24, "<I", 2**32 - 2), "not where the index says"),
    "both sizes of 4 GB": (listed("data/0", 20, "<2I", *[2**32 - 2] * 2), "overlap"),
    "a size into the next entry": (listed("byteorder", 20, "<2I", 100, 100), "overlap"),
    "a header beyond the file": (listed("data/0", 42, "<I", 2**31), "overlap"),
    "a header inside another entry": (listed("data/0", 42, "<I", 10), "overlap"),
    "entries that are one": (overlapping(), "overlap"),
    "entries in an entry": (nested_in_entry(), "overlap"),
    "a large size without its number": (listed("data/0", 24, "<I", 2**32 - 1), "lacks its size"),
    "a large size of an exabyte": (large("data/0", size=2**60, packed=2**60), "overlap"),
    "a large size of all bits": (large("data/0", size=2**64 - 1, packed=2**64 - 1), "overlap"),
    "a large header of an exabyte": (large("data/0", header=2**60), "overlap"),
    "a large end of an exabyte": (with_large_end(size=2**60), "contradict"),
    "a large end far away": (with_large_end(at=2**60), "missing"),
    "a large end at the beginning": (with_large_end(at=0), "missing"),
    "a large end of other entries": (with_large_end(count=1, here=1), "contradict"),
    "a large end that starts elsewhere": (with_large_end(start=0), "contradict"),
    "an index of half a million entries": (lambda: many_entries(500_000), "500000 entries"),
    "an index of one entry, 90,000 times": (lambda: many_entries(90_000), "same name"),
    "an index of 69 MB": (lambda: many_entries(1_100, b"n" * 65_500), "index of 68 MB"),
    "an index of more entries than it has": (patched(GOOD, -14, "<2H", 9, 9), "too short"),
    "an index of fewer entries": (patched(GOOD, -14, "<2H", 1, 1), "longer than it says"),
    "an index on two disks": (patched(GOOD, -18, "<H", 1), "not where it says"),
    "an index at the beginning": (patched(GOOD, -6, "<I", 0), "not where it says"),
    "an index with a broken entry": (GOOD.replace(b"PK\x01\x02", b"PK\x01\x03"), "broken"),
    "an index with a name beyond its end": (
        patched(GOOD, GOOD.rindex(b"PK\x01\x02") + 28, "<H", 2**16 - 1),
        "broken",
    ),
    "no index": (GOOD[: GOOD.index(b"PK\x01\x02")], "no index"),
    "something behind the index": (GOOD + b"x", "not at its end"),
    "another archive behind": (GOOD + archive({"a": b"b"}), "not where it says"),
    "another archive as the comment": (patched(GOOD, -2, "<H", 5) + b"PK\x05\x06x", "no index"),
    "two entries of one name": (
        archive(START, [("data/0", SIX)]),
        "same name",
    ),
    "two roots": (archive({**START, "other/data.pkl": PROGRAM}), "not one that torch.save wrote"),
    "no pickle": (archive({"archive/data/0": SIX}), "not one that torch.save wrote"),
    "no storage": (archive({"archive/data.pkl": PROGRAM}), "lacks its entry"),
    "an absolute name": (archive({**START, "/etc/passwd": b""}), "leads out"),
    "a name that climbs": (archive({**START, "archive/../../x": b""}), "leads out"),
    "a name with backslashes": (archive({**START, "archive\\data": b""}), "leads out"),
    "a drive's name": (archive({**START, "C:\\x": b""}), "leads out"),
    "a name the entry denies": (GOOD.replace(b"data/0", b"data/1", 1), "not where the index says"),
    "a program of TorchScript": (
        archive({**START, "archive/constants.pkl": b"N."}),
        "TorchScript",
    ),
    "an unknown byte order": (archive({**START, "archive/byteorder": b"middle"}), "byte order"),
    "numpy's archive": (archive({"a.npy": b"\x93NUMPY"}), "not one that torch.save wrote"),
    "a wheel": (archive({"setup.py": CANARY.encode()}), "not one that torch.save wrote"),
    "an empty archive": (archive({}), "neither"),
    "only the beginning of an archive": (b"PK\x03\x04", "no index"),
    "an archive in an archive": (archive({"archive/data.pkl": GOOD}), "instruction PERSID"),
}


def safetensors(header: Any, content: bytes = b"", *, announced: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + content


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(*arguments: Any, **more: Any) -> bytes:
    return safetensors({"a": entry(*arguments, **more)}, bytes(8))


def two(first: Any, second: Any, size: int = 16) -> bytes:
    return safetensors({"a": entry("F32", *first), "b": entry("F32", *second)}, bytes(size))


def with_metadata(value: Any) -> bytes:
    return safetensors({"__metadata__": value, "a": entry()}, bytes(8))


HUGE = 10 * 2**40

SAFETENSORS: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "a header of 2**63 bytes": (safetensors(b"{}      ", announced=2**63), "announces a header"),
    "a header of all bits": (safetensors(b"{}      ", announced=2**64 - 1), "announces a header"),
    "a header of 100 MB": (
        lambda: safetensors(b'{"a":' + b"[" * (100 * MEGABYTE)),
        "announces a header of 104857605",
    ),
    "a header beyond the file": (safetensors(b"{}      ", announced=100), "cut off"),
    "a header of nothing": (struct.pack("<Q", 0) + b"{}", "no JSON"),
    "8 MB of brackets": (
        lambda: safetensors(b'{"a":' + b"[" * (8 * MEGABYTE - 10)),
        "nested deeply",
    ),
    "8 MB of objects": (
        lambda: safetensors(b'{"a":' * (8 * MEGABYTE // 5 - 2)),
        "nested deeply",
    ),
    "8 MB of empty lists": (
        lambda: safetensors(b'{"a":[' + b"[]," * (8 * MEGABYTE // 3 - 10) + b"[]]}"),
        "unexpected way",
    ),
    "8 MB of empty objects": (
        lambda: safetensors(b'{"a":[' + b"{}," * (8 * MEGABYTE // 3 - 10) + b"{}]}"),
        "unexpected way",
    ),
    "8 MB of small objects": (
        lambda: safetensors(b'{"a":[' + b'{"":1},' * (8 * MEGABYTE // 7 - 10) + b"{}]}"),
        "unexpected way",
    ),
    "8 MB of one key": (
        lambda: safetensors(b"{" + b'"a":0,' * (MEGABYTE) + b'"a":0}'),
        "twice",
    ),
    "8 MB of keys": (
        lambda: safetensors({f"{i}": {} for i in range(600_000)}),
        "unexpected way",
    ),
    "8 MB of digits": (
        lambda: safetensors(b'{"a":' + b"9" * (7 * MEGABYTE) + b"}"),
        "no JSON",
    ),
    "8 MB of one name": (
        lambda: safetensors({"a" * (7 * MEGABYTE): entry()}, bytes(8)),
        "impossible name",
    ),
    "80,000 tensors of nothing": (
        lambda: safetensors(
            {f"{i}" + "\0" * (i == 79_999): entry("U8", [0], [0, 0]) for i in range(80_000)}
        ),
        "impossible name",
    ),
    "a key twice": (
        safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "states a twice",
    ),
    "a field twice": (
        safetensors(
            b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}', bytes(8)
        ),
        "states dtype twice",
    ),
    "NaN": (safetensors(b'{"a":NaN}'), "NaN"),
    "Infinity as an offset": (
        safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}'),
        "Infinity",
    ),
    "half a header": (safetensors(b'{"a":'), "no JSON"),
    "something behind the header": (safetensors(b"{}x"), "no JSON"),
    "no UTF-8": (safetensors(b'{"\xff":1}'), "no JSON"),
    "UTF-16": (safetensors("{}".encode("utf-16-le") * 3), "no JSON"),
    "python in place of JSON": (safetensors(b"{'a': 1}"), "no JSON"),
    "no tensors": (safetensors({}), "no tensors"),
    "only metadata": (safetensors({"__metadata__": {"a": "b"}}), "no tensors"),
    "metadata that are a list": (with_metadata(["a"]), "metadata"),
    "metadata that are no texts": (with_metadata({"a": 1}), "metadata"),
    "metadata that are nested": (with_metadata({"a": {"b": "c"}}), "metadata"),
    "metadata that are null": (with_metadata(None), "metadata"),
    "an entry that is a list": (safetensors({"a": [1]}), "unexpected way"),
    "an entry that is a number": (safetensors({"a": 1}), "unexpected way"),
    "an entry without offsets": (safetensors({"a": {"dtype": "F32", "shape": [2]}}), "unexpected"),
    "an entry with more": (one(strides=[1]), "unexpected way"),
    "three offsets": (one(offsets=[0, 4, 8]), "unexpected way"),
    "offsets that overlap": (two(([2], [0, 8]), ([2], [4, 12]), 12), "overlaps"),
    "offsets that are the same": (two(([2], [0, 8]), ([2], [0, 8]), 8), "overlaps"),
    "offsets with a gap": (two(([2], [0, 8]), ([2], [12, 20]), 20), "gap"),
    "offsets that begin late": (one("F32", [1], [4, 8]), "gap"),
    "offsets out of order": (one("F32", [2], [8, 0]), "disagree"),
    "offsets below zero": (one("F32", [2], [-8, 0]), "impossible"),
    "offsets above 64 bits": (one("F32", [2], [2**64, 2**64 + 8]), "impossible"),
    "offsets that wrap around": (one("F32", [2], [2**63 - 8, 2**63 - 0]), "impossible"),
    "offsets of all bits": (one("F32", [2], [2**63 - 9, 2**63 - 1]), "gap"),
    "offsets that are fractions": (one("F32", [2], [0.0, 8.0]), "impossible"),
    "offsets that are truths": (one("U8", [1], [False, True]), "impossible"),
    "offsets that are texts": (one("F32", [2], ["0", "8"]), "impossible"),
    "offsets beyond the file": (one("F32", [4], [0, 16]), "describes"),
    "bytes that belong to nobody": (safetensors({"a": entry()}, bytes(9)), "describes"),
    "a shape that does not fit": (one("F32", [3]), "disagree"),
    "a shape of the other sign": (one("F32", [-2]), "impossible"),
    "two negative sizes": (one("F32", [-1, -2]), "impossible"),
    "a shape that wraps around": (one("F32", [2**62, 4, 2]), "disagree"),
    "a shape that wraps around to zero": (one("F32", [2**62, 4], [0, 0]), "disagree"),
    "a shape of 10 TB": (one("F32", [HUGE // 4], [0, HUGE]), "describes"),
    "a shape of 10 TB in 8 bytes": (one("F32", [HUGE // 4]), "disagree"),
    "an impossible empty shape": (
        safetensors({"a": entry("F32", [0, 2**62, 2**62], [0, 0])}),
        "impossible",
    ),
    "a size of 400 digits": (one("F32", [10**400]), "impossible"),
    "40 dimensions": (one("F32", [1] * 38 + [2, 1]), "impossible"),
    "half a million dimensions": (one("F32", [1] * 500_000), "impossible"),
    "a fractional shape": (one("F32", [2.0]), "impossible"),
    "a shape that is a number": (one("F32", 2), "unexpected way"),
    "an unknown type": (one("F7"), "not supported"),
    "a type in small letters": (one("f32"), "not supported"),
    "a type that is a number": (one(32), "unexpected way"),
    "a type of python": (one("O8"), "not supported"),
    "a name with NUL": (safetensors({"a\0": entry()}, bytes(8)), "impossible name"),
    "a name with a colour": (safetensors({"\x1b[31m": entry()}, bytes(8)), "impossible name"),
    "a name with a surrogate": (safetensors({"\ud800": entry()}, bytes(8)), "impossible name"),
    "a name that turns the line round": (
        safetensors({"\u202eoma": entry()}, bytes(8)),
        "impossible name",
    ),
}

META = {
    "architecture": "resnet18",
    "preprocess": {
        "size": 224,
        "resize": 256,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "channel_order": "RGB",
    },
}


def meta(text: str) -> bytes:
    return with_metadata({"tlx_meta": text})


def changed(**fields: Any) -> bytes:
    return meta(json.dumps(META | fields))


def prepared(**fields: Any) -> bytes:
    return changed(preprocess=META["preprocess"] | fields)  # type: ignore[operator]


# These are read as weights; it is `stored_meta` that refuses them.
METAS: dict[str, tuple[bytes, str]] = {
    "a meta that is empty": (meta(""), "damaged"),
    "a meta that is no JSON": (meta("__import__('os')"), "damaged"),
    "a meta of brackets": (meta("[" * 100_000), "nested deeply"),
    "a meta that is a list": (meta("[]"), "object"),
    "a meta that is null": (meta("null"), "object"),
    "a meta of nothing": (meta("{}"), "architecture is missing"),
    "a meta with NaN": (meta('{"architecture": NaN}'), "NaN"),
    "a meta of 9,000 digits": (meta('{"num_classes": ' + "9" * 9_000 + "}"), "damaged"),
    "a meta with an unknown field": (changed(__class__="os.system"), "__class__"),
    "a meta with a number as name": (changed(architecture=7), "architecture is 7"),
    "a meta with a list as name": (changed(architecture=["resnet18"]), "architecture is"),
    "a meta with a colour": (changed(architecture="\x1b[31m"), "architecture is"),
    "a meta with a surrogate": (changed(tag="\ud800"), "tag is"),
    "a meta with truth as a number": (changed(num_classes=True), "num_classes is True"),
    "a meta with a negative number": (changed(num_classes=-1), "num_classes is -1"),
    "a meta with a huge number": (changed(num_classes=10**30), "num_classes is"),
    "a meta with a fraction": (changed(num_classes=1.5), "num_classes is 1.5"),
    "a meta with one class name": (changed(class_names="cat"), "class_names is 'cat'"),
    "a meta with numbers as names": (changed(class_names=[1]), "class_names is"),
    "a meta without preprocessing": (meta('{"architecture": "resnet18"}'), "preprocess is missing"),
    "a meta with a text as preprocessing": (changed(preprocess="none"), "preprocess is"),
    "a meta with half a preprocessing": (changed(preprocess={"size": 1}), "resize is missing"),
    "a meta with an unknown preprocessing": (prepared(command="rm"), "command"),
    "a meta of no size": (prepared(size=0), "size and resize"),
    "a meta of a billion pixels": (prepared(resize=10**9), "size and resize"),
    "a meta with an unknown interpolation": (prepared(interpolation="eval"), "interpolation"),
    "a meta with an unknown order": (prepared(channel_order="XYZ"), "channel_order"),
    "a meta with an unknown mode": (prepared(resize_mode="../x"), "resize_mode"),
    "a meta without deviation": (prepared(std=[0, 0, 0]), "std is not positive"),
    "a meta with two deviations": (prepared(std=[1, 1]), "one number for each channel"),
    "a meta without channels": (prepared(mean=[], std=[]), "one number for each channel"),
    "a meta of 100,000 channels": (
        prepared(mean=[0] * 10**5, std=[1] * 10**5),
        "one number for each channel",
    ),
    "a meta with text as mean": (prepared(mean=["0", "0", "0"]), "mean is"),
    "a meta with an endless mean": (prepared(mean=[1e308, 1e308, 1e308]), "mean is"),
}


def tar_of_torch() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("../../canary", "/etc/passwd", "pickle"):
            info = tarfile.TarInfo(name)
            content = dumps(OS_SYSTEM)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


OTHERS: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "nothing.pth": (b"", "is empty"),
    "a byte.pth": (b"\x80", "goes on"),
    "eight bytes.safetensors": (b"\x02" + bytes(7), "neither"),
    "a tar.pth": (tar_of_torch(), "tar archive"),
    "a gzip.pth": (gzip.compress(GOOD), "neither"),
    "an ELF.pth": (b"\x7fELF\x02\x01\x01" + bytes(100), "neither"),
    "a script.pth": (b"#!/bin/sh\ntouch $TLX_TEST_CANARY\n", "neither"),
    "python.pth": (CANARY.encode(), "neither"),
    "compiled python.pth": (b"\xa7\r\r\n" + bytes(12) + b"\xe3" + bytes(40), "neither"),
    "a page.pth": (b"<!DOCTYPE html><script>alert(1)</script>", "web page"),
    "a pointer.bin": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "an HDF5.bin": (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither"),
    "an array.bin": (b"\x93NUMPY\x01\x00" + bytes(100), "neither"),
    "zeros.pth": (lambda: bytes(MEGABYTE), "neither"),
    "ones.pth": (lambda: b"\xff" * MEGABYTE, "neither"),
    "a pickle.safetensors": (dumps(OS_SYSTEM), "os.system"),
    "an old pickle.safetensors": (dumps(OS_SYSTEM, 0), "neither"),
    "an archive.safetensors": (zip_bytes(dumps(OS_SYSTEM)), "os.system"),
    "a header.pth": (one("F32", [3]), "disagree"),
    "only the magic number.pth": (
        dumps(MAGIC),
        "goes on",
    ),
    "another version.pth": (dumps(MAGIC) + dumps(1002), "unknown version"),
    "another magic number.pth": (dumps(MAGIC + 1), "not one that torch.save wrote"),
    "a list as the magic number.pth": (dumps([MAGIC]), "not one that torch.save wrote"),
    "storages of 10 TB.pth": (
        legacy_bytes(dumps({"a": tensor((HUGE // 4,), (1,), numel=HUGE // 4)})),
        "larger than the file",
    ),
    "a hostile list of storages.pth": (
        legacy_bytes(PROGRAM, keys=()).replace(dumps([]), dumps(OS_SYSTEM)),
        "os.system",
    ),
    "hostile sizes.pth": (
        dumps(MAGIC) + dumps(1001) + dumps(OS_SYSTEM) + PROGRAM,
        "os.system",
    ),
    "a storage less.pth": (legacy_bytes(PROGRAM, storages=()), "truncated"),
    "a storage twice.pth": (legacy_bytes(PROGRAM, keys=("0", "0")), "list of storages"),
    "a storage of another size.pth": (
        legacy_bytes(PROGRAM, storages=((7, SIX + b"0000"),)),
        "size its tensors need",
    ),
    "a storage of a negative size.pth": (
        legacy_bytes(PROGRAM, storages=((-1, SIX),)),
        "size its tensors need",
    ),
    "a frame over the storages.pth": (
        legacy_bytes(b"\x80\x04\x95" + struct.pack("<Q", len(PROGRAM) + 40) + PROGRAM[2:]),
        "left over",
    ),
}
