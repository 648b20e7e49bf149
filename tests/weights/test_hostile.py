"""Hostile files execute nothing, and end in a readable line within bounds of time and memory.

All are read in one child process under limits (tests/weights/jail.py), which every test here looks
at.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.weights import hostile, hostile_formats
from tests.weights.jail import GIGABYTE, SECONDS
from tests.weights.torch_writer import dumps, legacy_bytes, tensor, zip_bytes
from tlx.errors import InputError
from tlx.weights import catalog
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.meta import ImagePreprocess, WeightsMeta
from tlx.weights.stored_meta import stored_meta

GOLDENS = Path(__file__).parent / "goldens"
ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    contents: bytes | Callable[[], bytes]
    reader: str = "read_weights"
    named: str = ""  # a part of the message
    may_be_read: bool = False


def hostile_cases() -> dict[str, Case]:
    """Every one of these must be refused, for the reason it was made for."""
    cases = {}
    for name, (instructions, named) in hostile.PICKLES.items():
        cases[f"zip, {name}"] = Case(zip_bytes(instructions), named=named)
        if len(instructions) < 2**18:  # the interpreter's limits are those of the zip archive
            cases[f"legacy, {name}"] = Case(legacy_bytes(instructions))
    for name, (value, named) in hostile.TENSORS.items():
        cases[f"tensor, {name}"] = Case(zip_bytes(dumps({"a": value})), named=named)
    for name, (contents, named) in hostile_formats.ARCHIVES.items():
        cases[f"archive, {name}"] = Case(contents, named=named)
    for name, (contents, named) in hostile_formats.SAFETENSORS.items():
        cases[f"safetensors, {name}"] = Case(contents, named=named)
    for name, (contents, named) in hostile_formats.METAS.items():
        cases[name] = Case(contents, "stored_meta", named)
    for name, (contents, named) in hostile_formats.OTHERS.items():
        cases[name] = Case(contents, named=named)
    return cases


def good_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        arrays = {f"layer{i}.weight": np.full((3, i + 1), i, np.float32) for i in range(8)}
        write_safetensors(arrays, path, {"tlx_meta": json.dumps(hostile_formats.META)})
        safetensors = path.read_bytes()
    return {
        "zip": (GOLDENS / "zip.pth").read_bytes(),
        "legacy": (GOLDENS / "legacy.pth").read_bytes(),
        "safetensors": safetensors,
    }


def damaged_cases() -> dict[str, Case]:
    """Each good file truncated at 100 places, and with 150 of its bits flipped one at a time.

    The bits are those of headers and of the pickle: a flipped bit of a tensor in safetensors or in
    a legacy file is another number, which nobody can tell.
    """
    cases = {}
    for kind, whole in good_files().items():
        for i in range(100):
            length = len(whole) * i // 100
            cases[f"{kind} truncated at {length}"] = Case(whole[:length])
        for i in range(150):
            place = (len(whole) - 1 if kind == "zip" else 600) * i // 150
            damaged = bytearray(whole)
            damaged[place] ^= 1 << i % 8
            cases[f"{kind} with bit {i % 8} of byte {place} flipped"] = Case(
                bytes(damaged), may_be_read=True
            )
    return cases


HOSTILE, DAMAGED = hostile_cases(), damaged_cases()


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[tuple[str, str], dict[str, Any]]]:
    """What the child saw of each file, by case and reader; and its own fate."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        files.mkdir()
        (files / "00000").write_bytes(good_files()["zip"])
        cases = HOSTILE | DAMAGED
        names = {f"{i + 1:05}": name for i, name in enumerate(cases)}
        for file, name in names.items():
            contents = cases[name].contents
            (files / file).write_bytes(contents() if callable(contents) else contents)
        canary = Path(folder) / "canary"
        child = subprocess.run(
            [sys.executable, "-m", "tests.weights.jail", str(files)],
            cwd=ROOT,
            env=os.environ | {"TLX_TEST_CANARY": str(canary), "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        fate = {"code": child.returncode, "stderr": child.stderr, "canary": canary.exists()}
        yield {(names[line["file"]], line["reader"]): line for line in lines} | {("", ""): fate}


def test_the_child_survives_all_files(reports):
    assert reports["", ""] == {"code": 0, "stderr": "", "canary": False}
    assert {name for name, reader in reports if reader == "read_weights"} == {*HOSTILE, *DAMAGED}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(reports, name):
    case = HOSTILE[name]
    found = reports[name, case.reader]
    assert found["outcome"] == "InputError"
    assert case.named in found["text"]
    # One line of moderate length, in our own words: an exception's name is not what was wrong.
    assert "\n" not in found["text"] and len(found["text"]) < 2000
    assert found["text"].isprintable() and "Error" not in found["text"]


@pytest.mark.parametrize("kind", good_files())
def test_damaged_files_are_refused_or_harmless(reports, kind):
    cases = {name: case for name, case in DAMAGED.items() if name.startswith(kind)}
    assert len(cases) == 250
    outcomes = [reports[name, "read_weights"]["outcome"] for name in cases]
    assert set(outcomes) <= {"InputError", "read"}
    read = [name for name in cases if reports[name, "read_weights"]["outcome"] == "read"]
    assert all(cases[name].may_be_read for name in read)


def test_nothing_is_executed(reports):
    done = {key: line for key, line in reports.items() if key != ("", "")}
    assert [key for key, line in done.items() if line["canary"] or line["events"]] == []


def test_every_reader_ends_in_an_input_error_or_reads(reports):
    found = {line["outcome"] for key, line in reports.items() if key != ("", "")}
    assert found == {"InputError", "read"}


def test_no_file_takes_5_seconds_or_a_gigabyte(reports):
    done = {key: line for key, line in reports.items() if key != ("", "")}
    assert max(line["seconds"] for line in done.values()) < SECONDS
    assert max(line["memory"] for line in done.values()) < GIGABYTE


READABLE = {
    "an archive": hostile_formats.GOOD,
    "an archive with a 64-bit entry": hostile_formats.large("data/0", size=24, packed=24),
    "an archive with a 64-bit offset": hostile_formats.large("data.pkl", header=0),
    "an archive with a 64-bit end": hostile_formats.with_large_end(),
    "an archive with a comment": hostile_formats.patched(hostile_formats.GOOD, -2, "<H", 3)
    + b"abc",
    "a legacy file": legacy_bytes(dumps({"a": tensor()})),
    "a legacy file of protocol 1": legacy_bytes(dumps({"a": tensor()}, 1), protocol=1),
    "a legacy file of protocol 5": legacy_bytes(dumps({"a": tensor()}, 5), protocol=5),
    "safetensors": hostile_formats.one(),
    "safetensors with spaces": hostile_formats.safetensors(
        json.dumps({"a": hostile_formats.entry()}).encode() + b"   ", bytes(8)
    ),
    "safetensors with a meta": hostile_formats.changed(),
    "two neighbours": hostile_formats.two(([2], [8, 16]), ([2], [0, 8])),
    "an array": zip_bytes(dumps({"a": hostile.numpy_array("f4", (1,), b"1234")})),
    "a name of 500 letters": zip_bytes(b"\x80\x02" + hostile.tensor_called("a" * 500) + b"."),
}


@pytest.mark.parametrize("name", READABLE)
def test_what_makes_the_hostile_files_makes_good_ones_too(tmp_path, name):
    """Else they would be refused for a reason that nobody meant."""
    path = tmp_path / "a"
    path.write_bytes(READABLE[name])
    assert next(iter(read_weights(path).values())).size


def test_files_that_would_never_end(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        for read in (read_weights, stored_meta):
            with pytest.raises(InputError, match="no regular file"):
                read(path)


def test_a_meta_that_was_stored_is_read(tmp_path):
    meta = WeightsMeta(
        "resnet18",
        preprocess=ImagePreprocess(32, 36, mean=(0.5,), std=(0.25,), channel_order="L"),
        num_classes=2,
        class_names=("Bär", "日\u00a0本"),
        top1=69.76,
    )
    metadata = {"tlx_meta": json.dumps(meta.to_json())}
    write_safetensors({"a": np.ones(2)}, tmp_path / "a.safetensors", metadata)
    assert stored_meta(tmp_path / "a.safetensors") == meta
    write_safetensors({"a": np.ones(2)}, tmp_path / "b.safetensors")
    assert stored_meta(tmp_path / "b.safetensors") is None
    assert stored_meta(GOLDENS / "zip.pth") is None


def test_every_known_meta_could_be_stored(tmp_path):
    for name, meta in catalog.entries().items():
        metadata = {"tlx_meta": json.dumps(meta.to_json())}
        write_safetensors({"a": np.ones(2)}, tmp_path / "a.safetensors", metadata)
        assert stored_meta(tmp_path / "a.safetensors") == meta, name


def test_there_are_more_than_60_kinds_of_hostile_files():
    groups = (
        hostile.PICKLES, hostile.TENSORS, hostile_formats.ARCHIVES, hostile_formats.SAFETENSORS,
        hostile_formats.METAS, hostile_formats.OTHERS,
    )  # fmt: skip
    assert sum(map(len, groups)) >= 400
