"""Small text networks with heads and values that tell texts apart, in folders as they are published in."""

from pathlib import Path

from tests.text_models import meta
from tlx.models.leaves import with_values
from tlx.pretrained import save_weights, source


def text_folder(path: Path, class_names=("bad", "good"), *, task="classification", seed=0) -> Path:
    """A BERT with a head of these classes."""
    path.mkdir()
    own = meta("bert", task=task, sizes={"initializer_range": 0.5})
    made = source("bert", class_names=class_names, meta=own)
    save_weights(with_values(made.model, made.place(seed)), path / "model.safetensors")
    return path
