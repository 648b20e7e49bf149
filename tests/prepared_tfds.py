"""Writes data sets as tfds prepares them, without TensorFlow."""

import json
from pathlib import Path
from typing import Any

import numpy as np

TEXT = {
    "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
    "text": {},
}
NUMBER = {
    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensor": {"dtype": "float32", "encoding": "none", "shape": {}},
}


def label(count: int) -> dict[str, Any]:
    """Returns the description of a class label."""
    return {
        "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(count)},
    }


def record(**values: bytes | str | int | float | np.ndarray) -> bytes:
    """Returns an example as tfds stores it."""
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    features = {}
    for name, value in values.items():
        if isinstance(value, (bytes, str)):
            data = value.encode() if isinstance(value, str) else value
            one = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[data]))
        elif isinstance(value, float):
            one = tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=[value]))
        else:
            numbers = tf_feature_pb2.Int64List(value=np.ravel(value).tolist())
            one = tf_feature_pb2.Feature(int64_list=numbers)
        features[name] = one
    return tf_example_pb2.Example(
        features=tf_feature_pb2.Features(feature=features)
    ).SerializeToString()


def write(
    data_dir: Path,
    place: str,
    splits: dict[str, list[bytes]],
    features: dict[str, Any],
    *,
    names: dict[str, str] | None = None,
    file_format: str = "array_record",
) -> Path:
    """Writes a data set; `names` are the lines of label files. Returns its folder."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = data_dir / place
    folder.mkdir(parents=True)
    name = place.split("/")[0]
    for split, records in splits.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for content in records:
            writer.write(content)
        writer.close()
    info = {
        "name": name,
        "version": place.split("/")[-1],
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "numBytes": str(sum(map(len, records))),
                "shardLengths": [str(len(records))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, records in splits.items()
        ],
    }
    if place.count("/") == 2:
        info["configName"] = place.split("/")[1]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    tree = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(tree))
    for key, lines in (names or {}).items():
        (folder / f"{key}.labels.txt").write_text(lines)
    return folder
