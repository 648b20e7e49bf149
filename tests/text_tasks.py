"""Small folders of text models, and texts that they can learn, for tests."""

import json
from pathlib import Path

import numpy as np

from tlx import models
from tlx.models.leaves import initial_values, leaves
from tlx.weights.files import write_safetensors
from tlx.weights.meta import TextPreprocess, WeightsMeta

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = "good fine great lovely superb".split()
BAD = "bad dull poor awful boring".split()
PLAIN = "the a film was plot and very so it acting".split()
NAMES = "anna bob carla dan eve".split()
PLACES = "rome oslo lima paris cairo".split()
VOCABULARY = [*SPECIAL, *GOOD, *BAD, *PLAIN, *NAMES, *PLACES, "in", "met", ".", ",", "##s"]

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}


def folder(path: Path, *, seed: int = 0, **fields) -> Path:
    """A BERT without a head, with random values, as it is published."""
    path.mkdir(parents=True, exist_ok=True)
    config = SIZES | {"model_type": "bert", "architectures": ["BertModel"]} | fields
    (path / "config.json").write_text(json.dumps(config))
    (path / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    meta = WeightsMeta("bert", preprocess=TextPreprocess(40), config=json.dumps(config))
    model = models.abstract_model("bert", num_classes=0, meta=meta)
    found = leaves(model)
    drawn = {p: np.asarray(v) for p, v in initial_values(found, found, seed).items()}
    table = next(
        t for t in models.family("bert").key_tables("bert") if t.name == "transformers_backbone"
    )
    write_safetensors(table.to_source(drawn), path / "model.safetensors", {"format": "pt"})
    return path


def sentence(rng: np.random.Generator, good: bool, length: int) -> str:
    words = list(rng.choice(PLAIN, length))
    words[int(rng.integers(length))] = str(rng.choice(GOOD if good else BAD))
    return " ".join(words)


def reviews(path: Path, *, train: int = 200, test: int = 20, seed: int = 0) -> Path:
    """train.csv and test.csv of texts of 1 to 20 words and whether they are good."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        lines = ["text,label"]
        for number in range(count):
            good = number % 2 == 0
            text = sentence(rng, good, int(rng.integers(1, 20)))
            lines.append(f"{text},{'positive' if good else 'negative'}")
        (path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return path


def entities(path: Path, *, train: int = 200, test: int = 20, seed: int = 0) -> Path:
    """train.conll and test.conll of sentences with persons and places, some of two words."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        lines: list[str] = []
        for _ in range(count):
            for word in rng.choice(PLAIN, int(rng.integers(1, 8))):
                lines.append(f"{word}\tO")
            for index, word in enumerate(rng.choice(NAMES, int(rng.integers(1, 3)), False)):
                lines.append(f"{word}\t{'I' if index else 'B'}-person")
            lines += ["in\tO", f"{rng.choice(PLACES)}\tB-place", ".\tO", ""]
        (path / f"{name}.conll").write_text("\n".join(lines) + "\n")
    return path


def fields(model: Path, data: Path, **more) -> dict:
    """A config for a few steps on the reviews."""
    return {
        "model.name": "bert",
        "model.weights": str(model),
        "data.source": "table",
        "data.root": str(data),
        "data.max_length": 24,
        "data.length_buckets": "24",  # one length: nothing is compiled twice
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-2,
        "train.batch_size": 16,
        "train.steps": 12,
        "checkpoint.every": "0",
    } | more
