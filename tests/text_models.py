"""Small text networks of drawn values with small tokenizers, for tests."""

import dataclasses
import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tests import tokenizer_folders
from tlx.config import TuneConfig
from tlx.models import family
from tlx.models.leaves import with_values
from tlx.pretrained import save_weights, source
from tlx.tokens.tokenizer import open_tokenizer
from tlx.tuning.adapters import with_adapters
from tlx.weights.meta import TextPreprocess, WeightsMeta

NAMES = ("bert", "roberta", "xlm_roberta", "distilbert", "electra", "deberta_v3", "modernbert")
TEXTS = ["the cats sat , unwanted .", "cat", "the cafe a b c d e f"]
BYTE_TEXTS = ["ab ab a", "b", "a b ab b a"]

_COMMON = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 40, "vocab_size": 40,
}  # fmt: skip
_SIZES = {
    "bert": _COMMON,
    "roberta": _COMMON | {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm_roberta": _COMMON | {"pad_token_id": 1, "type_vocab_size": 1},
    "modernbert": _COMMON | {"pad_token_id": 0},
    "deberta_v3": _COMMON | {
        "relative_attention": True, "position_buckets": 8, "pos_att_type": "p2c|c2p",
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
        "max_relative_positions": -1, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
        "pad_token_id": 0,
    },
    "electra": _COMMON | {"embedding_size": 12},
    "distilbert": {
        "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40,
        "vocab_size": 40,
    },
}  # fmt: skip


def uses_bytes(name):
    return name in ("roberta", "xlm_roberta")


def texts_for(name):
    return BYTE_TEXTS if uses_bytes(name) else TEXTS


def tokenizer(name):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if uses_bytes(name):
            words, merges = tokenizer_folders.BYTE_WORDS, tokenizer_folders.BYTE_MERGES
            kind = {"tokenizer_class": "RobertaTokenizer"}
            return open_tokenizer(tokenizer_folders.byte_folder(folder, words, merges, **kind))
        return open_tokenizer(tokenizer_folders.folder(folder))


def meta(name, *, task="classification", sizes=None, **fields):
    own = _SIZES[name] | {"model_type": family(name).MODEL_TYPES[name]} | (sizes or {})
    _, longest, pad_id, segments = family(name).text_facts(name, own)
    found = tokenizer(name)
    text = TextPreprocess(longest or 2**16, found.digest, pad_id, segments, found.content)
    return WeightsMeta(
        architecture=name, preprocess=text, config=json.dumps(own), classifier="classifier",
        per_token=task == "tagging", task=task, **fields,
    )  # fmt: skip


def network(name, names=("neg", "neu", "pos"), *, seed=0, adapters=None, **facts):
    """A network whose every value is drawn, also those that begin as zeros and ones; and the plain one if it has adapters."""
    made = source(name, class_names=names, meta=meta(name, **facts))
    plain = with_values(made.model, drawn(made.place(seed), seed))
    if adapters is None:
        return plain
    found = with_adapters(made, TuneConfig(**adapters))
    return plain, with_values(found.model, drawn(found.place(seed), seed))


def headless(name, **facts):
    """Without ModernBERT's pooler, too, which transformers counts to its heads."""
    facts |= {"sizes": {"tlx_pooler": False}} if name == "modernbert" else {}
    made = source(name, num_classes=0, meta=dataclasses.replace(meta(name, **facts), task=""))
    return with_values(made.model, drawn(made.place(0), 0))


def drawn(found, seed):
    """The same values for the same paths, whatever others there are."""
    rng = {path: np.random.default_rng([seed, *path.encode()]) for path in found}
    return {
        path: value + jnp.asarray(0.1 * rng[path].standard_normal(value.shape), value.dtype)
        for path, value in found.items()
    }


def text_folder(path, class_names=("bad", "good"), *, task="classification", seed=0):
    """The folder of a BERT with a head of these classes, and values that tell texts apart."""
    path.mkdir()
    own = meta("bert", task=task, sizes={"initializer_range": 0.5})
    made = source("bert", class_names=class_names, meta=own)
    save_weights(with_values(made.model, made.place(seed)), path / "model.safetensors")
    return path
