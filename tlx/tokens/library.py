"""Hugging Face's Rust library behind one door: texts to ids in batches, and its errors as ours."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers

from tlx.errors import InputError
from tlx.tokens import rows as token_rows
from tlx.tokens.rows import Layout, Piece, Tokens

_BATCH = 1024  # texts encoded at a time: what the library keeps of a token is large
_SHOWN = 200  # characters of the library's own message in an error
_LARGEST_ID = 2**31 - 1


class Library:
    """A tokenizer that is ready to run."""

    def __init__(self, content: str) -> None:
        """Reads the text of a `tokenizer.json`.

        Raises:
          InputError: it describes no tokenizer, or one that gives ids which its vocabulary lacks.
        """
        _run_in_parallel()
        with _explained("no tokenizer that can be used"):
            self._rust = tokenizers.Tokenizer.from_str(content)
            self._layouts = tuple(_layout(self._rust, pair) for pair in (False, True))
        self.vocab_size = 1 + max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1)
        self._check()
        added = self._rust.get_added_tokens_decoder().values()
        self._never_spaced = {"", *(token.content for token in added)}
        self._spaced = _lacks_prefix_space(content)

    def token_id(self, token: str) -> int | None:
        return self._rust.token_to_id(token)

    def layout(self, *, pair: bool) -> Layout:
        """Returns where special tokens go in a row."""
        return self._layouts[pair]

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Returns the tokens of texts. Raises InputError: a text is not Unicode, or has no token."""
        ids: list[np.ndarray] = []
        lengths: list[int] = []
        encode = functools.partial(self._rust.encode_batch_fast, add_special_tokens=False)
        for start in range(0, len(texts), _BATCH):
            batch = _encode(encode, list(texts[start : start + _BATCH]), start)
            found = [text.ids for text in batch]
            lengths.extend(map(len, found))
            ids.append(np.fromiter(itertools.chain.from_iterable(found), np.int32))
        return _joined(ids, lengths)

    def word_tokens(self, sentences: Sequence[Sequence[str]]) -> tuple[Tokens, np.ndarray]:
        """Returns the tokens of sentences, and int64 [tokens]: the word each is the first of, or -1.

        Raises as `tokens`.
        """
        ids: list[np.ndarray] = []
        firsts: list[np.ndarray] = []
        lengths: list[int] = []
        # The fast variant does not say which word a token is of.
        encode = functools.partial(
            self._rust.encode_batch, is_pretokenized=True, add_special_tokens=False
        )
        for start in range(0, len(sentences), _BATCH):
            batch = [self._words(words) for words in sentences[start : start + _BATCH]]
            for sentence in _encode(encode, batch, start):
                word = np.array(sentence.word_ids, np.int64)
                first = np.append(True, word[1:] != word[:-1])[: len(word)]
                firsts.append(np.where(first, word, token_rows.NO_WORD))
                ids.append(np.array(sentence.ids, np.int32))
                lengths.append(len(word))
        return _joined(ids, lengths), np.concatenate([np.zeros(0, np.int64), *firsts])

    def _words(self, words: Sequence[str]) -> list[str]:
        if not self._spaced:
            return list(words)
        return [w if w in self._never_spaced or w[0] == " " else f" {w}" for w in words]

    def _check(self) -> None:
        if not 0 < self.vocab_size <= _LARGEST_ID:
            raise InputError(
                "the vocabulary is empty"
                if not self.vocab_size
                else f"a token has the id {self.vocab_size - 1}, which is too large"
            )
        for layout, texts in zip(self._layouts, ([0], [0, 1]), strict=True):
            if sorted(piece.text for piece in layout if token_rows.is_text(piece)) != texts:
                raise InputError("the post-processor must use every text exactly once")
            for piece in layout:
                if not token_rows.is_text(piece) and self._rust.id_to_token(piece.token) is None:
                    raise InputError(
                        f"the post-processor adds token {piece.token}, which is not in "
                        "the vocabulary"
                    )


@functools.cache
def _run_in_parallel() -> None:
    """Lets the library use all cores, but not in forks of this process, whose threads are missing."""
    if "TOKENIZERS_PARALLELISM" in os.environ:
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.register_at_fork(
        after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false")
    )


def _layout(rust: tokenizers.Tokenizer, pair: bool) -> Layout:
    """Returns where special tokens go, from what the post-processor makes of texts of one token."""
    whole = rust.post_process(_one_token(0), _one_token(1) if pair else None)
    return tuple(
        Piece(type_id, token=token) if text is None else Piece(type_id, text=text)
        for token, type_id, text in zip(whole.ids, whole.type_ids, whole.sequence_ids, strict=True)
    )


def _one_token(type_id: int) -> tokenizers.Encoding:
    text = tokenizers.PreTokenizedString("a")
    text.tokenize(lambda _: [tokenizers.Token(0, "a", (0, 1))])
    return text.to_encoding(type_id, 0)


def _lacks_prefix_space(content: str) -> bool:
    """Whether a byte-level tokenizer takes the first word of a text for the rest of a word."""
    splitter = json.loads(content).get("pre_tokenizer") or {}
    parts = [splitter, *splitter.get("pretokenizers", ())]
    byte_level = [part for part in parts if part.get("type") == "ByteLevel"]
    return bool(byte_level) and not any(part.get("add_prefix_space") for part in byte_level)


def _encode(
    encode: Callable[[list[Any]], list[tokenizers.Encoding]], batch: list[Any], start: int
) -> list[tokenizers.Encoding]:
    last = start + len(batch) - 1
    with _explained(f"texts {start} to {last} cannot be encoded with this tokenizer"):
        try:
            return encode(batch)
        except TypeError:
            for index, text in enumerate(batch, start):
                _check_unicode(text, index)
            raise


def _check_unicode(text: str | list[str], index: int) -> None:
    for part in [text] if isinstance(text, str) else text:
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {index} (the first is 0) is no Unicode: half of a surrogate pair at "
                f"character {error.start}"
            ) from error


def _joined(ids: list[np.ndarray], lengths: list[int]) -> Tokens:
    return Tokens(np.concatenate([np.zeros(0, np.int32), *ids]), np.array(lengths, np.int64))


@contextlib.contextmanager
def _explained(message: str) -> Iterator[None]:
    """Makes what the Rust library raises an InputError that begins with the message."""
    try:
        yield
    except BaseException as error:
        # It raises `Exception` itself; a panic is a BaseException that no module exports.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:_SHOWN]
        raise InputError(f"{message}: {reason}") from error
