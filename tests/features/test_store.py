import json
import os

import ml_dtypes
import numpy as np
import pytest

from tlx.features.store import Store


def filled(value):
    def fill(array):
        array[...] = value

    return fill


def test_an_entry_is_read_as_it_was_written(tmp_path):
    store = Store(tmp_path / "entries", 2**20)
    for dtype in ("float32", "bfloat16"):
        written = store.write(dtype, (2, 3), dtype, filled(1.5), {"of": "a test"})
        assert written.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        np.testing.assert_array_equal(np.asarray(store.read(dtype, (2, 3), dtype), float), 1.5)
        assert json.loads((tmp_path / "entries" / f"{dtype}.json").read_text())["of"] == "a test"
    assert store.read("float32", (3, 2), "float32") is None
    assert store.read("float32", (2, 3), "float16") is None
    assert store.read("another", (2, 3), "float32") is None
    assert (tmp_path / "entries").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["shorter", "changed", "no facts", "half facts", "empty"])
def test_what_is_damaged_is_not_there(tmp_path, damage):
    store = Store(tmp_path, 2**20)
    store.write("key", (4, 5), "float32", filled(1), {})
    path = tmp_path / "key.npy"
    data = path.read_bytes()
    if damage == "shorter":
        path.write_bytes(data[:-1])
    elif damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no facts":
        (tmp_path / "key.json").unlink()
    elif damage == "half facts":
        (tmp_path / "key.json").write_text('{"sha256": "12')
    else:
        path.write_bytes(b"")
    assert store.read("key", (4, 5), "float32") is None
    assert store.write("key", (4, 5), "float32", filled(2), {})[0, 0] == 2


def test_the_least_recently_used_entries_make_room(tmp_path):
    store = Store(tmp_path, 3000)
    for age, key in enumerate(("a", "b")):
        store.write(key, (256,), "float32", filled(age), {})
        os.utime(tmp_path / f"{key}.npy", (age, age))
    store.read("a", (256,), "float32")  # used after b
    store.write("c", (256,), "float32", filled(3), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json",
        "a.npy",
        "c.json",
        "c.npy",
    ]
    assert store.write("large", (1000,), "float32", filled(3), {}) is None


def test_what_another_process_is_writing_stays_and_what_a_dead_one_left_goes(tmp_path):
    now, before = tmp_path / ".now.1.npy", tmp_path / ".before.1.npy"
    for path in (now, before):
        path.write_bytes(b"half")
    os.utime(before, (1e9, 1e9))
    Store(tmp_path, 2000).write("key", (256,), "float32", filled(1), {})
    assert now.exists() and not before.exists()


def test_a_folder_that_cannot_be_written_takes_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "entries", 2**20)
    assert store.write("key", (4,), "float32", filled(1), {}) is None


def test_an_interrupted_computation_leaves_nothing(tmp_path):
    def stop(array):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, 2**20).write("key", (4,), "float32", stop, {})
    assert not list(tmp_path.iterdir())
