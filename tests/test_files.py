"""A file is the old one or the new one."""

import json
import pathlib

import numpy as np
import pytest

from tlx.files import plain, replacing, write_json_atomic, write_text_atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_text_atomic(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_is_beside_and_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "picture.png") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert not (tmp_path / "picture.png").exists()
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_json_has_only_what_json_knows(tmp_path):
    value = {
        "b": np.float32(0.5),
        "a": (1, np.int64(2)),
        "nan": float("nan"),
        3: [True, None, -np.inf],
    }
    value |= {"array": np.arange(3), "path": pathlib.PurePosixPath("x/y"), "name": "ü"}
    write_json_atomic(tmp_path / "s.json", value)
    text = (tmp_path / "s.json").read_text()
    assert "NaN" not in text and "ü" in text
    assert list(json.loads(text)) == ["b", "a", "nan", "3", "array", "path", "name"]
    assert json.loads(text) == plain(value)
    assert plain(value)["3"] == [True, None, None]
