"""Small text networks with random values in folders as they are published in, made without torch."""

import dataclasses
import json
from pathlib import Path

from tests.tokenizer_folders import WORDS, folder
from tlx.models import abstract_model
from tlx.models.leaves import initial_values, leaves, with_values
from tlx.pretrained import save_weights
from tlx.weights.text_folder import open_folder

SIZES = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 48,
    "initializer_range": 0.5,  # so that texts differ
}


def text_folder(path: Path, class_names=("bad", "good"), *, per_token=False, seed=0) -> Path:
    """A BERT with a head of these classes."""
    path.mkdir()
    folder(path)
    kind = "BertForTokenClassification" if per_token else "BertForSequenceClassification"
    labels = {str(index): name for index, name in enumerate(class_names)}
    config = SIZES | {"architectures": [kind], "id2label": labels}
    (path / "config.json").write_text(json.dumps(config))
    weights = path / "model.safetensors"
    weights.touch()
    meta = dataclasses.replace(open_folder("bert", str(path)).meta(), per_token=per_token)
    model = abstract_model("bert", num_classes=len(class_names), meta=meta)
    found = leaves(model)
    save_weights(with_values(model, initial_values(found, list(found), seed)), weights)
    return path
