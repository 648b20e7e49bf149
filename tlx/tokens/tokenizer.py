"""Texts to token ids: a tokenizer is the content of a `tokenizer.json`, run by Hugging Face's Rust library."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlx.errors import InputError
from tlx.tokens import rows as token_rows
from tlx.tokens.files import read_folder
from tlx.tokens.library import Library
from tlx.tokens.settings import parse_json

_PADDING = ("[PAD]", "<pad>", "<|padding|>")


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Texts as rows of token ids, one row after the other (no padding)."""

    ids: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [rows + 1]: row r is ids[offsets[r]:offsets[r + 1]]
    type_ids: np.ndarray  # uint8 [total]: segment of each token
    example: np.ndarray  # int64 [rows]: the text, or pair, that a row is of; ascending
    truncated: int  # texts that lost tokens
    split: int  # texts that became several rows


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedWords(Encoded):
    """Sentences of words as rows of token ids.

    Every word of every sentence is in `word` exactly once, or else in one of `no_token` and
    `cut_off`, in the order of the sentences.
    """

    # int32 [total]: number in its sentence of the word whose first token this is; -1 for special
    # tokens, further tokens of a word, and what another window has the word for
    word: np.ndarray
    no_token: np.ndarray  # int64 [n, 2]: sentence and word of words that gave no token at all
    cut_off: np.ndarray  # int64 [n, 2]: sentence and word of words lost to max_length


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as the content of a `tokenizer.json`.

    Equal and hashed by its digest, so that it can be static metadata of a model. Made by `of` or
    `open_tokenizer`.
    """

    digest: str  # sha256 of content, hexadecimal
    content: str = dataclasses.field(compare=False, repr=False)  # canonical JSON

    @classmethod
    def of(cls, content: str, where: str = "tokenizer.json") -> Tokenizer:
        """Returns the tokenizer that the text of a `tokenizer.json` describes.

        Settings for truncation and padding are dropped, since lengths are the caller's, and so is
        the dropout of byte-pair merges: the same text always gives the same ids.

        Args:
          content: the text of the file.
          where: what errors call it.

        Raises:
          InputError: it is no JSON, describes no tokenizer, or one that the library cannot run.
        """
        facts = parse_json(content, where)
        if not isinstance(facts, dict) or not isinstance(facts.get("model"), dict):
            raise InputError(f"{where} is no tokenizer: expected an object with a model in it")
        facts = {**facts, "truncation": None, "padding": None}
        if "dropout" in facts["model"]:
            facts["model"] = {**facts["model"], "dropout": None}
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        try:
            digest = hashlib.sha256(text.encode()).hexdigest()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} has half of a surrogate pair in it: no text") from error
        tokenizer = cls(digest, text)
        try:
            _library(tokenizer)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The highest id, added tokens included, and one: rows that an embedding must have."""
        return _library(self).vocab_size

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token ([PAD], <pad> or <|padding|>); None where there is none of them."""
        found = (self.token_id(token) for token in _PADDING)
        return next((index for index in found if index is not None), None)

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token of the vocabulary; None if it has no such token."""
        return _library(self).token_id(token)

    def special_tokens(self, *, pair: bool = False) -> int:
        """Returns how many special tokens are added to a text, or to a pair of texts."""
        return token_rows.specials(_library(self).layout(pair=pair))

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int,
        stride: int = 0,
        split_long: bool = False,
    ) -> Encoded:
        """Returns the token ids of texts, or of pairs of texts, with their special tokens.

        Long texts lose their end, long pairs the end of the longer text first. With `split_long`
        they become several rows instead, whose windows overlap; of pairs the longer text is split
        and the shorter one repeated (it still loses what is beyond half of a row: counted).
        An empty text gives only special tokens.

        Args:
          texts: any strings.
          pairs: the second text of each pair; as many as texts.
          max_length: tokens of a row at most, special tokens included.
          stride: tokens by which the windows of a text overlap.
          split_long: several rows for a long text, rather than losing tokens.

        Raises:
          InputError: max_length leaves no room for a token (for a pair: for one of each) beside
            special tokens, stride is as long as a window, a text is not Unicode (its index is named),
            or the tokenizer has no token for what is in a text.
        """
        room = self._room(max_length, stride if split_long else 0, pair=pairs is not None)
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(pairs)} second texts")
        batches = [_library(self).tokens(batch) for batch in (texts, pairs) if batch is not None]
        lengths = [batch.lengths for batch in batches]
        second = lengths[1] if pairs is not None else np.zeros_like(lengths[0])
        rows = token_rows.plan(lengths[0], second, room, stride, split_long)
        layout = _library(self).layout(pair=pairs is not None)
        ids, type_ids, offsets = token_rows.assemble(layout, rows, batches)
        return Encoded(ids, offsets, type_ids, rows.example, rows.truncated, rows.split)

    def encode_words(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        max_length: int,
        stride: int = 0,
        split_long: bool = False,
    ) -> EncodedWords:
        """Returns the token ids of sentences that are split into words, and the words' places.

        Where a long sentence became several windows, a word has its place in the window that shows
        most tokens of the sentence on whichever side of the word shows fewer. Byte-level tokenizers
        that add no space before a text are given one before every word, as for transformers'
        `add_prefix_space`: words would else be encoded as if they were glued together.

        Args and errors are as those of `encode`.
        """
        room = self._room(max_length, stride if split_long else 0, pair=False)
        tokens, words = _library(self).word_tokens(sentences)
        rows = token_rows.plan(
            tokens.lengths, np.zeros_like(tokens.lengths), room, stride, split_long
        )
        layout = _library(self).layout(pair=False)
        ids, type_ids, offsets = token_rows.assemble(layout, rows, [tokens])
        word = token_rows.place_words(layout, rows, tokens, words, offsets)
        counts = np.array([len(sentence) for sentence in sentences], np.int64)
        sentence_of_row = np.repeat(rows.example, np.diff(offsets))
        sentence_of_token = np.repeat(np.arange(len(counts)), tokens.lengths)
        has_token = _present(counts, sentence_of_token, words)
        has_place = _present(counts, sentence_of_row, word)
        return EncodedWords(
            ids,
            offsets,
            type_ids,
            rows.example,
            rows.truncated,
            rows.split,
            word=word,
            no_token=_sentence_and_word(counts, ~has_token),
            cut_off=_sentence_and_word(counts, has_token & ~has_place),
        )

    def _room(self, max_length: int, stride: int, *, pair: bool) -> int:
        added = self.special_tokens(pair=pair)
        room = max_length - added
        if room < 1 + pair:
            raise InputError(
                f"a max_length of {max_length} leaves no room for a text: this tokenizer adds {added} "
                f"special tokens{' to a pair' if pair else ''} (at least {added + 1 + pair})"
            )
        # The shorter text of a pair has up to half of the room.
        window = room - room // 2 if pair else room
        if not 0 <= stride < window:
            raise InputError(
                f"a stride of {stride} does not fit windows of {window} tokens (a max_length of "
                f"{max_length} without special tokens{' and the other text' if pair else ''}); "
                f"expected 0 to {window - 1}"
            )
        return room


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """Returns the tokenizer of a model's folder.

    That is `tokenizer.json`, or else what the files of a vocabulary and the settings in
    `tokenizer_config.json` say; see tlx.tokens.files.

    Raises:
      InputError: names the file: damaged, too large, not of a tokenizer that is known here.
      InputFileNotFoundError: no such folder, or it has no tokenizer.
    """
    content, where = read_folder(Path(folder))
    return Tokenizer.of(content, where)


@functools.lru_cache(maxsize=8)
def _library(tokenizer: Tokenizer) -> Library:
    return Library(tokenizer.content)


def _present(counts: np.ndarray, sentence: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Returns bool [words of all sentences]: which of them occur."""
    present = np.zeros(int(counts.sum()), bool)
    some = word != token_rows.NO_WORD
    present[(np.cumsum(counts) - counts)[sentence[some]] + word[some]] = True
    return present


def _sentence_and_word(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    sentence = np.repeat(np.arange(len(counts)), counts)
    word = token_rows.spans(np.zeros_like(counts), counts)
    return np.stack([sentence, word], axis=1)[chosen]
