"""Texts as rows of token ids, and their batches, padded to the shortest of a few lengths that all of a batch fit in.

Padding is masked and changes no result. What is longer than `data.max_length` is cut off, or with `data.long_texts=split` becomes
several windows: each pass of training over the data reads a text's next window, evaluation reads all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlx.config import DataConfig
from tlx.data.pipeline import as_targets
from tlx.data.source import Examples
from tlx.data.split import Subset
from tlx.data.tag_scheme import OUTSIDE
from tlx.data.text_preprocess import Inputs, padded, places, tokenizer_of
from tlx.errors import InputError
from tlx.tokens.tokenizer import Encoded, EncodedWords
from tlx.weights.meta import TextPreprocess

LOOKED_AT = 1000  # texts whose lengths stand for those of all
IGNORED = -1  # the target of a token that stands for no word
# Lengths that batches are padded to where `data.length_buckets` gives none.
BUCKETS = tuple(
    map(int, "16 32 48 64 96 128 192 256 384 512 768 1024 1536 2048 3072 4096 6144 8192".split())
)


@dataclasses.dataclass(frozen=True)
class TextSplit:
    """One split, ready to be batched: its texts as rows of token ids. Is one of `pipeline.Rows`."""

    examples: Any  # TextExamples, or TaggedExamples
    preprocess: TextPreprocess
    encoded: Encoded
    buckets: tuple[int, ...]  # ascending; the last one holds every row
    fingerprint: str  # of `text_fingerprint`

    in_memory = None  # there is no array of all inputs, as they differ in length
    held = None

    def __len__(self) -> int:
        return len(self.examples)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64 [rows]: tokens of each row."""
        return np.diff(self.encoded.offsets)

    @functools.cached_property
    def windows(self) -> np.ndarray:
        """int64 [N]: rows of each text."""
        return np.bincount(self.encoded.example, minlength=len(self))

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> Inputs:
        """Maps int [B] twice to int32 [B, T] each: input_ids, attention_mask, and token_type_ids where the network reads them."""
        places, real = self.places(index, epoch)
        return padded(self.encoded, places, real, self.preprocess)

    def targets(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps int [B] twice to the labels of texts, [B], or the tags of tokens, int32 [B, T], IGNORED where there is none."""
        if not isinstance(self.encoded, EncodedWords):
            return as_targets(self.examples.labels[index])
        places, real = self.places(index, epoch)
        return np.where(real, self._token_tags[places], IGNORED).astype(np.int32)

    def places(self, index: np.ndarray, epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps int [B] twice to the places of their tokens among all of the split, int64 [B, T], and which are no padding."""
        row = self._first_row[index] + epoch % np.maximum(self.windows[index], 1)
        lengths = self.lengths[row]
        longest = int(lengths.max(initial=1))
        width = next(bucket for bucket in self.buckets if bucket >= longest)
        return places(self.encoded.offsets[row], lengths, width)

    @property
    def evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """Index and window of every row, int64 [rows] each, the shortest first."""
        row = self._by_length
        example = self.encoded.example[row]
        return example, row - self._first_row[example]

    def by_example(
        self, targets: np.ndarray, outcomes: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns targets and outcomes of the rows, which came in the order of `evaluated`, as those of the texts in theirs.

        Those of several windows of one text are averaged; those of tokens, [rows, T], become those of words, [N, words], where a
        word without a token has the tag O for its prediction, and IGNORED stands behind the last word.
        """
        back = np.argsort(self._by_length, kind="stable")
        outcomes = {name: array[back] for name, array in outcomes.items()}
        targets = targets[back]
        if isinstance(self.encoded, EncodedWords):
            return self._by_word(self.encoded, outcomes)
        if len(self.lengths) == len(self):
            return targets, outcomes
        counts = self.windows[:, None]
        means = {
            name: np.add.reduceat(array.astype(np.float64), self._first_row) / counts
            for name, array in outcomes.items()
        }
        return targets[self._first_row], {
            name: mean.astype(outcomes[name].dtype) for name, mean in means.items()
        }

    def notes(self, name: str) -> list[str]:
        """Returns a line where texts are longer than the network is given."""
        encoded, length = self.encoded, self.preprocess.max_length
        silent = len(encoded.no_token) if isinstance(encoded, EncodedWords) else 0
        lines = [f"{name}: {silent:,} words give no token, and count as O"] if silent else []
        if encoded.split:
            return [
                *lines,
                f"{name}: {encoded.split:,} of {len(self):,} texts are longer than {length} tokens, and read in windows",
            ]
        if not encoded.truncated:
            return lines
        lost = ""
        if isinstance(encoded, EncodedWords):
            lost = f" ({len(encoded.cut_off):,} words)"
        return [
            *lines,
            f"{name}: {encoded.truncated:,} of {len(self):,} texts are longer than {length} tokens, and cut off{lost} "
            "(data.max_length; data.long_texts=split reads all of them)",
        ]

    @functools.cached_property
    def _by_length(self) -> np.ndarray:
        return np.argsort(self.lengths, kind="stable")

    @functools.cached_property
    def _first_row(self) -> np.ndarray:
        return np.cumsum(self.windows) - self.windows

    @functools.cached_property
    def _token_tags(self) -> np.ndarray:
        """int32 [total]: the tag of the word that a token is the first of, else IGNORED."""
        assert isinstance(self.encoded, EncodedWords)
        tags: tuple[np.ndarray, ...] = self.examples.tags
        starts = np.cumsum([0, *map(len, tags)])
        flat = np.concatenate([*tags, np.zeros(1, np.int32)])
        word = self.encoded.word
        sentence = np.repeat(self.encoded.example, self.lengths)
        place = np.where(word >= 0, starts[sentence] + word, len(flat) - 1)
        return np.where(word >= 0, flat[place], IGNORED).astype(np.int32)

    def _by_word(
        self, encoded: EncodedWords, outcomes: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tags: tuple[np.ndarray, ...] = self.examples.tags
        longest = max(map(len, tags))
        targets = np.full((len(self), longest), IGNORED, np.int32)
        for sentence, own in enumerate(tags):
            targets[sentence, : len(own)] = own
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        place = np.arange(len(row)) - encoded.offsets[row]
        first = encoded.word >= 0
        names = self.examples.class_names
        unread = {"prediction": names.index(OUTSIDE) if OUTSIDE in names else 0}
        to = encoded.example[row[first]], encoded.word[first]
        found = {}
        for name, array in outcomes.items():
            if array.ndim == 2:
                words = np.full((len(self), longest), unread.get(name, 0), array.dtype)
                words[to] = array[row[first], place[first]]
                found[name] = words
        read = np.zeros((len(self), longest), bool)
        read[to] = True
        return targets, found | {"read": read}


def make_text_splits(
    wanted: Mapping[str, Examples], preprocess: TextPreprocess, config: DataConfig
) -> dict[str, TextSplit]:
    """Returns the splits with their texts cut into tokens.

    Args:
      wanted: name -> texts, or sentences of tagged words.
      preprocess: of the network.
      config: of the data.

    Raises:
      InputError: `max_length` leaves no room for a token, a text that the tokenizer cannot read, pairs of texts where the network was
        trained on single ones, or the other way round.
    """
    for examples in wanted.values():
        _check_number_of_texts(examples, preprocess)
    return {
        name: TextSplit(
            examples,
            preprocess,
            _encode(examples, preprocess, config),
            _buckets(config, preprocess.max_length),
            text_fingerprint(examples, preprocess, config),
        )
        for name, examples in wanted.items()
    }


def texts_of_an_input(examples: Any) -> int:
    """Returns how many texts an example has: 1, or 2 of a pair; 0 where there is no example."""
    if not len(examples):
        return 0
    return 1 if hasattr(examples, "tags") else len(examples.text(0))


def _check_number_of_texts(examples: Examples, preprocess: TextPreprocess) -> None:
    found = texts_of_an_input(examples)
    if 0 in (found, preprocess.texts) or found == preprocess.texts:
        return
    if found == 2:
        raise InputError(
            f"{examples.name(0)}: a pair of texts, but the network was trained on single ones (data.text_column alone takes one of them)"
        )
    raise InputError(
        f"{examples.name(0)}: one text, but the network was trained on pairs (data.text_column and data.pair_column name them)"
    )


def text_fingerprint(examples: Examples, preprocess: TextPreprocess, config: DataConfig) -> str:
    """Returns what identifies a split's inputs, without cutting its texts into tokens."""
    how = dataclasses.asdict(preprocess) | {
        "content": "",
        "texts": 0,
        "long": [config.long_texts, config.stride],
    }
    what = [examples.fingerprint, how, _buckets(config, preprocess.max_length)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def typical_length(examples: Examples, preprocess: TextPreprocess, config: DataConfig) -> int:
    """Returns how many tokens texts have on average, of up to LOOKED_AT of them, evenly spaced. Raises as `make_text_splits`."""
    chosen = np.unique(np.linspace(0, len(examples) - 1, LOOKED_AT).round().astype(int))
    some = Subset(examples, chosen)
    encoded = _encode(some, preprocess, config)
    return -(-int(encoded.offsets[-1]) // max(len(encoded.offsets) - 1, 1))


def _encode(examples: Any, preprocess: TextPreprocess, config: DataConfig) -> Encoded:
    tokenizer = tokenizer_of(preprocess)
    options: dict[str, Any] = {
        "max_length": preprocess.max_length,
        "stride": config.stride,
        "split_long": config.long_texts == "split",
    }
    if hasattr(examples, "tags"):
        return tokenizer.encode_words(examples.words, **options)
    texts = [examples.text(index) for index in range(len(examples))]
    pairs = [text[1] for text in texts] if texts and len(texts[0]) == 2 else None
    return tokenizer.encode([text[0] for text in texts], pairs, **options)


def _buckets(config: DataConfig, max_length: int) -> tuple[int, ...]:
    given = config.length_buckets
    if wrong := [bucket for bucket in given if not 1 <= bucket <= max_length]:
        raise InputError(
            f"data.length_buckets has {wrong[0]}, expected lengths from 1 to {max_length}, the largest that is read "
            "(data.max_length)"
        )
    shorter = sorted({bucket for bucket in given or BUCKETS if bucket < max_length})
    return (*shorter, max_length)
