"""From texts to a network's inputs: a function of `TextPreprocess`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tlx.config import DataConfig
from tlx.errors import InputError
from tlx.tokens.tokenizer import Encoded, Tokenizer
from tlx.weights.meta import TextPreprocess

MOST = 512  # tokens of a text, where neither the config nor the network says less

Texts = str | Sequence[str]
Inputs = dict[str, np.ndarray]


def resolve_text(preprocess: TextPreprocess, config: DataConfig) -> TextPreprocess:
    """Returns the network's own preprocessing with the overrides that the config names.

    Raises:
      InputError: texts longer than the network has positions for, or fields that are for pictures.
    """
    default = DataConfig()
    for field in PICTURE_FIELDS:
        if getattr(config, field) != getattr(default, field):
            raise InputError(
                f"config.data.{field} is {getattr(config, field)!r}, but the network takes texts, not pictures"
            )
    if config.max_length > preprocess.max_length:
        raise InputError(
            f"config.data.max_length is {config.max_length}, but the network takes {preprocess.max_length} tokens at most"
        )
    length = config.max_length or min(preprocess.max_length, MOST)
    if config.long_texts != "split" and config.stride:
        raise InputError(
            f"config.data.stride is {config.stride}, by which windows overlap, but data.long_texts is {config.long_texts!r}: "
            "set data.long_texts=split"
        )
    return dataclasses.replace(preprocess, max_length=length)


# Of `data`, which say something of pictures alone, and of texts alone.
PICTURE_FIELDS = (
    *("image_size", "resize", "resize_mode", "interpolation", "mean", "std", "augment"),
    *("storage", "workers"),
)
TEXT_FIELDS = ("max_length", "long_texts", "stride", "length_buckets")


def text_preprocess_fn(preprocess: TextPreprocess) -> Callable[..., Inputs]:
    """Returns the function that turns texts into a network's input.

    It takes one text or a sequence of B of them, and for pairs as many second texts, and returns int32 [B, T] each of input_ids,
    attention_mask and, where the network reads them, token_type_ids; T is the longest text's number of tokens, at most
    `preprocess.max_length`.

    Raises:
      InputError: the weights came without a tokenizer.
    """
    tokenizer = tokenizer_of(preprocess)

    def apply(texts: Texts, pairs: Texts | None = None) -> Inputs:
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else pairs
        encoded = tokenizer.encode(texts, pairs, max_length=preprocess.max_length)
        lengths = np.diff(encoded.offsets)
        width = int(lengths.max(initial=1))
        return padded(encoded, *places(encoded.offsets[:-1], lengths, width), preprocess)

    return apply


def tokenizer_of(preprocess: TextPreprocess) -> Tokenizer:
    """Returns the network's tokenizer. Raises InputError where its weights came without one."""
    if not preprocess.content:
        raise InputError("the network has no tokenizer: load weights that come with one")
    return Tokenizer(preprocess.tokenizer, preprocess.content)


def places(starts: np.ndarray, lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the tokens of rows stand, int64 [B, width], and which of them are no padding, bool [B, width].

    Args:
      starts: int [B], where each row begins.
      lengths: int [B], tokens of each.
      width: of the longest, or more.
    """
    steps = np.arange(width)
    real = steps < lengths[:, None]
    return np.where(real, starts[:, None] + steps, 0), real


def padded(
    encoded: Encoded, places: np.ndarray, real: np.ndarray, preprocess: TextPreprocess
) -> Inputs:
    """Returns rows of tokens as a network reads them, int32 [B, T] each.

    Args:
      encoded: the tokens.
      places: of the rows' tokens among them, int [B, T].
      real: bool [B, T], which are no padding.
      preprocess: of the network.
    """
    found = {
        "input_ids": np.where(real, encoded.ids[places], preprocess.pad_id),
        "attention_mask": real,
    }
    if preprocess.segments:
        found["token_type_ids"] = np.where(real, encoded.type_ids[places], 0)
    return {name: array.astype(np.int32) for name, array in found.items()}
