"""Files of data, and reading them as a run does, for tests of sources."""

from pathlib import Path
from typing import Any

from tlx.config import build
from tlx.data.source import Splits, load_splits


def read(
    root: Path | str,
    *,
    targets: str = "class",
    training: bool = True,
    source: str = "table",
    modality: str = "image",
    **config: Any,
) -> Splits:
    """The splits of a source; further arguments are fields of `data`."""
    fields = {f"data.{key}": value for key, value in config.items()}
    built = build({"data.source": source, "data.root": str(root)}, fields)
    return load_splits(built.data, 0, training=training, targets=targets, modality=modality)


def written(path: Path, text: str | bytes) -> Path:
    """The path, with that in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
