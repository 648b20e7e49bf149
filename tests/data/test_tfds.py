import io
import json
import pickle
import socket
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import prepared_tfds
import pytest
from PIL import Image

from tlx.config import build
from tlx.data import tfds_prepare
from tlx.data.source import Splits, load_splits
from tlx.data.tfds_prepare import find_prepared, parse, unreachable
from tlx.errors import InputError, InputFileNotFoundError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)
IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {
        "dtype": "uint8",
        "encodingFormat": "png",
        "shape": {"dimensions": ["-1", "-1", "3"]},
    },
}
TENSOR = {
    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensor": {
        "dtype": "uint8",
        "encoding": "none",
        "shape": {"dimensions": ["6", "5", "1"]},
    },
}
LABEL = prepared_tfds.label(3)


def read(data_dir: Path, name: str = "toy", **config: Any) -> Splits:
    fields = {f"data.{key}": value for key, value in config.items()}
    base = {"data.source": f"tfds:{name}", "data.root": str(data_dir)}
    return load_splits(build(base, fields).data, 0)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(image: bytes | np.ndarray, label: int) -> bytes:
    return prepared_tfds.record(image=image, label=label)


def prepared(
    data_dir: Path,
    place: str = "toy/1.0.0",
    splits: dict[str, list[bytes]] | None = None,
    features: dict[str, Any] | None = None,
    file_format: str = "array_record",
) -> Path:
    """Writes a data set as tfds prepares it: 8 training and 4 test examples, unless given."""
    if splits is None:
        records = [record(png(PIXELS[i]), i % 3) for i in range(12)]
        splits = {"train": records[:8], "test": records[8:]}
    return prepared_tfds.write(
        data_dir,
        place,
        splits,
        features or {"image": IMAGE, "label": LABEL},
        names={"label": "ape\nbear\ncat\n"},
        file_format=file_format,
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes every attempt to reach another machine fail, and returns the list of attempts."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return attempts


@pytest.fixture
def tensorflow_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_prepare.importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def no_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_prepare.importlib.util, "find_spec", lambda name: None)


def test_reads_a_prepared_set_without_network(tmp_path: Path, no_network: list[Any]) -> None:
    prepared(tmp_path)
    splits = read(tmp_path, val_fraction=0.25)
    assert splits.val is not None and splits.test is not None
    assert [len(part) for part in splits.given().values()] == [6, 2, 4]
    assert splits.train.class_names == ("ape", "bear", "cat")
    assert splits.test.labels.tolist() == [2, 0, 1, 2] and splits.test.labels.dtype == np.int32
    np.testing.assert_array_equal(np.asarray(splits.test.image(1)), PIXELS[9])
    assert splits.test.name(1) == "toy/test[1]"
    assert not no_network


def test_split_expressions(tmp_path: Path) -> None:
    prepared(tmp_path)
    splits = read(tmp_path, train_split="train[:5]", val_split="train[5:]", test_split="test[50%:]")
    assert splits.val is not None and splits.test is not None
    assert [len(part) for part in splits.given().values()] == [5, 3, 2]
    np.testing.assert_array_equal(np.asarray(splits.val.image(0)), PIXELS[5])
    for train, test in (("train", "train[75%:]"), ("train+test", "test"), ("train[:6]", "train")):
        with pytest.raises(InputError, match="share examples"):
            read(tmp_path, train_split=train, test_split=test)
    for wrong in ("validation", "train[:many]", "train[90%"):
        with pytest.raises(InputError, match=r"test_split is .*the splits are: train, test"):
            read(tmp_path, test_split=wrong)
    with pytest.raises(InputError, match="no examples"):
        read(tmp_path, train_split="train[:0]")


def test_a_set_without_test_split(tmp_path: Path) -> None:
    records = [record(png(PIXELS[i]), i % 3) for i in range(12)]
    prepared(tmp_path, splits={"train": records})
    with pytest.raises(InputError, match=r"splits are: train; data\.test_fraction=0\.2 holds out"):
        read(tmp_path)
    splits = read(tmp_path, test_fraction=0.25)
    assert splits.test is not None and np.bincount(splits.test.labels).tolist() == [1, 1, 1]


def test_grey_files_and_plain_arrays(tmp_path: Path) -> None:
    grey = PIXELS[..., :1]
    files = [record(png(grey[i, ..., 0]), i % 3) for i in range(4)]
    prepared(tmp_path, "toy/1.0.0", {"train": files, "test": files})
    arrays = [record(grey[i], i % 3) for i in range(4)]
    prepared(
        tmp_path, "raw/1.0.0", {"train": arrays, "test": arrays}, {"image": TENSOR, "label": LABEL}
    )
    for name in ("toy", "raw"):
        train = read(tmp_path, name).train
        np.testing.assert_array_equal(np.asarray(train.image(3)), grey[3].repeat(3, -1))
        assert train.labels.tolist() == [0, 1, 2, 0]


def test_examples_can_be_pickled(tmp_path: Path) -> None:
    prepared(tmp_path)
    train = read(tmp_path).train
    train.image(0)
    copy = pickle.loads(pickle.dumps(train))
    assert copy.fingerprint == train.fingerprint
    np.testing.assert_array_equal(np.asarray(copy.image(7)), PIXELS[7])


def test_fingerprint(tmp_path: Path) -> None:
    prepared(tmp_path / "a")
    prepared(tmp_path / "b")
    records = [record(png(PIXELS[i]), (i + 1) % 3) for i in range(12)]
    prepared(tmp_path / "c", splits={"train": records[:8], "test": records[8:]})
    a, b, c = (read(tmp_path / folder).train.fingerprint for folder in "abc")
    assert a == b != c


def test_labels_out_of_range_and_damage_are_named(tmp_path: Path) -> None:
    good = [record(png(PIXELS[i]), i % 3) for i in range(4)]
    prepared(tmp_path, "one/1.0.0", {"train": [*good, record(b"", 3)], "test": good})
    with pytest.raises(InputError, match=r"one/train\[4\]: label 3 is outside 0\.\.2"):
        read(tmp_path, "one")
    prepared(tmp_path, "two/1.0.0", {"train": [*good, b"\xff garbage"], "test": good})
    with pytest.raises(InputError, match=r"two/train\[4\]: damaged record"):
        read(tmp_path, "two")
    prepared(tmp_path, "three/1.0.0", {"train": [*good, record(b"no png", 1)], "test": good})
    with pytest.raises(InputError, match=r"three/train\[4\]: not a picture"):
        read(tmp_path, "three").train.image(4)
    kept = read(tmp_path, "three", on_bad_image="skip")
    assert len(kept.train) == 4 and len(kept.skipped) == 1
    file = next(prepared(tmp_path, "four/1.0.0").glob("*train*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"four/train\[0\]: damaged record"):
        read(tmp_path, "four")
    file.unlink()
    with pytest.raises(InputFileNotFoundError, match=r"incomplete, 1 of 1 files"):
        read(tmp_path, "four")


def test_other_features_and_formats(tmp_path: Path) -> None:
    prepared(tmp_path, "a/1.0.0", features={"image": IMAGE, "answer": LABEL})
    with pytest.raises(InputError, match=r"image \(Image\), answer \(ClassLabel\)|answer .*image"):
        read(tmp_path, "a")
    prepared(tmp_path, "b/1.0.0", features={"image": LABEL, "label": LABEL})
    with pytest.raises(InputError, match="its image is ClassLabel"):
        read(tmp_path, "b")
    prepared(tmp_path, "c/1.0.0", features={"image": IMAGE, "label": IMAGE})
    with pytest.raises(InputError, match="its label is not a class label"):
        read(tmp_path, "c")
    prepared(tmp_path, "d/1.0.0", file_format="tfrecord")
    with pytest.raises(InputError, match=r"is prepared as tfrecord, but only array_record"):
        read(tmp_path, "d")
    (prepared(tmp_path, "e/1.0.0") / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="damaged tfds data set"):
        read(tmp_path, "e")


def test_which_version_and_config(tmp_path: Path) -> None:
    for place in ("toy/1.9.0", "toy/1.10.0", "many/small/1.0.0", "many/large/2.0.0", "one/x/1.0.0"):
        prepared(tmp_path, place)

    def found(name: str) -> str:
        directory = find_prepared(parse(name, str(tmp_path)))
        return "" if directory is None else directory.relative_to(tmp_path).as_posix()

    assert found("toy") == "toy/1.10.0" and found("toy:1.9.0") == "toy/1.9.0"
    assert found("toy:3.0.0") == found("other") == found("many/none") == ""
    assert found("many/large") == "many/large/2.0.0" and found("one") == "one/x/1.0.0"
    with pytest.raises(InputError, match=r"several configs .*: large, small; name one"):
        found("many")
    (tmp_path / "many" / ".config").mkdir()
    note = tmp_path / "many" / ".config" / "metadata.json"
    note.write_text(json.dumps({"default_config_name": "small"}))
    assert found("many") == "many/small/1.0.0"
    assert read(tmp_path, "many/large").notes[0].startswith("tfds:many/large: many/large/2.0.0")


@pytest.mark.parametrize("name", ["", "a b", "../up", "x/", "x:1", "x:latest", "a/b/c"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(InputError, match=r"expected tfds:NAME\[/CONFIG\]\[:VERSION\]"):
        parse(name, "")


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    prepared(tmp_path)
    assert find_prepared(parse("toy", "")) == tmp_path / "toy" / "1.0.0"
    assert find_prepared(parse("toy", str(tmp_path / "elsewhere"))) is None
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parse("toy", "").data_dir == tmp_path / "home" / "tensorflow_datasets"


def test_unprepared_without_tensorflow(
    tmp_path: Path, no_tensorflow: None, no_network: list[Any]
) -> None:
    with pytest.raises(InputFileNotFoundError) as error:
        read(tmp_path, "cifar10")
    for part in ("cifar10 is not prepared", str(tmp_path), "'.[prepare]'", "configs/digits.py"):
        assert part in str(error.value)
    assert "\n" not in str(error.value) and not no_network
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no data set 'cifar1o'; did you mean 'cifar10'"):
        read(tmp_path, "cifar1o")


def test_unprepared_without_network(
    tmp_path: Path, tensorflow_is_there: None, no_network: list[Any]
) -> None:
    with pytest.raises(
        InputFileNotFoundError, match=r"no answer from www\.cs\.toronto\.edu"
    ) as error:
        read(tmp_path, "cifar10")
    assert no_network and "configs/digits.py" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_name_resolution_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(tfds_prepare, "_ask", lambda *_: release.wait(600))
    assert unreachable(["https://a.example/x", "https://b.example/"], seconds=-0.9) == "a.example"
    release.set()


def test_one_host_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(url: str, seconds: float, future: Any) -> None:
        future.set_result("b.example" in url)

    monkeypatch.setattr(tfds_prepare, "_ask", answer)
    assert unreachable(["https://a.example/x", "https://b.example/"]) == ""
    assert unreachable(["https://a.example/x"]) == "a.example"
    assert unreachable([]) == unreachable(["file:///x"]) == ""


class FakeBuilder:
    """Stands for tfds's builder where preparing is possible."""

    url_infos: Any = None

    def __init__(self, name: str, data_dir: Path, **options: Any):
        self.data_dir = data_dir / name / "1.0.0"
        self.options = options
        self.fails = name == "mnist"

    def download_and_prepare(self, **options: Any) -> None:
        if options != {"file_format": "array_record"} or self.fails:
            raise RuntimeError("checksum\n  differs")
        prepared(self.data_dir.parent.parent, f"{self.data_dir.parent.name}/1.0.0")


def test_prepares_where_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorflow_is_there: None
) -> None:
    real = tfds_prepare.tfds_module()
    fake = types.SimpleNamespace(list_builders=real.list_builders, builder=FakeBuilder)
    monkeypatch.setattr(tfds_prepare, "tfds_module", lambda: fake)
    assert len(read(tmp_path, "cifar10").train) == 8
    assert len(read(tmp_path, "cifar10").train) == 8  # the second time it is found
    with pytest.raises(InputError, match=r"preparing in .* failed: RuntimeError: checksum differs"):
        read(tmp_path, "mnist")


@pytest.mark.shared
def test_cifar10(shared: Path, no_network: list[Any]) -> None:
    splits = read(shared / "data" / "tfds", "cifar10")
    assert splits.test is not None
    assert np.bincount(splits.train.labels).tolist() == [5000] * 10
    assert np.bincount(splits.test.labels).tolist() == [1000] * 10
    assert splits.train.class_names[:3] == ("airplane", "automobile", "bird")
    for part in (splits.train, splits.test):
        image = part.image(0)
        assert image.mode == "RGB" and image.size == (32, 32)
        assert np.asarray(image).std() > 10
    assert not no_network
