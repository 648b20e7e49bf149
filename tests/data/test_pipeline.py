import itertools

import numpy as np
import pytest
from PIL import Image

from tlx.config import build
from tlx.data import pipeline
from tlx.data.order import indices
from tlx.weights.meta import ImagePreprocess

PREPROCESS = ImagePreprocess(size=6, resize=6)


class Numbered:
    """Example i is a flat picture of grey level i."""

    class_names = ("even", "odd")
    fingerprint = "f" * 16

    def __init__(self, count):
        self.labels = (np.arange(count) % 2).astype(np.int32)

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        return Image.new("RGB", (9, 7), (index,) * 3)

    def name(self, index):
        return f"test[{index}]"


def split_of(count, **fields):
    config = build({f"data.{name}": value for name, value in fields.items()}).data
    return pipeline.make_splits({"train": (Numbered(count), 6)}, PREPROCESS, config)["train"]


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_training_batches_follow_the_sequence_from_any_step(storage):
    split = split_of(10, storage=storage)
    assert (split.in_memory is None) == (storage == "stream")
    for start in (0, 3):
        batches = pipeline.training_batches(split, seed=5, batch_size=4, start=start)
        for step, batch in zip(range(start, start + 4), batches, strict=False):
            expected = indices(5, 4 * step, 4, 10)
            np.testing.assert_array_equal(batch["index"], expected)
            np.testing.assert_array_equal(
                batch["inputs"], expected[:, None, None, None] * np.ones((1, 6, 6, 3))
            )
            np.testing.assert_array_equal(batch["targets"], expected % 2)
            assert batch["inputs"].dtype == np.uint8 and batch["weight"].tolist() == [1.0] * 4
        batches.close()


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("count", [8, 10, 3])
def test_evaluation_visits_each_example_once_and_pads_with_weight_zero(storage, count):
    batches = list(pipeline.evaluation_batches(split_of(count, storage=storage), batch_size=4))
    assert all(len(value) == 4 for batch in batches for value in batch.values())
    real = np.concatenate([batch["index"][batch["weight"] > 0] for batch in batches])
    np.testing.assert_array_equal(real, np.arange(count))
    assert sum(batch["weight"].sum() for batch in batches) == count


def test_auto_keeps_in_memory_what_fits_together():
    assert split_of(9, memory_gb=1e-6).in_memory is not None  # 972 bytes of 1,073
    assert split_of(10, memory_gb=1e-6).in_memory is None  # 1,080 bytes
    config = build({"data.memory_gb": 1e-6}).data
    both = {"train": (Numbered(5), 6), "test": (Numbered(5), 6)}
    assert all(s.in_memory is None for s in pipeline.make_splits(both, PREPROCESS, config).values())


def test_fingerprint_follows_data_and_preprocessing():
    config = build().data
    prints = {
        pipeline.make_splits({"": (Numbered(4), size)}, preprocess, config)[""].fingerprint
        for preprocess, size in itertools.product(
            (PREPROCESS, ImagePreprocess(size=6, resize=8)), (6, 8)
        )
    }
    assert len(prints) == 4


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    threads, workers = (split_of(10, storage="stream", workers=count) for count in (0, 2))
    found = []
    for split in (threads, workers):
        batches = pipeline.training_batches(split, seed=5, batch_size=4, start=1)
        found.append([next(batches) for _ in range(3)])
        batches.close()
    for ours, theirs in zip(*found, strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
