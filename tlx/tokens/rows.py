"""Token ids of texts to rows of limited length: windows, special tokens, and one place for each word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

NO_WORD = -1


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a row: a special token, or the place of a text."""

    type_id: int  # segment
    token: int = -1  # id of the special token; -1: a text stands here
    text: int = -1  # 0 the first, 1 the second text of a pair; -1: a special token


Layout = tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of many texts, one text after the other, without special tokens."""

    ids: np.ndarray  # int32 [total]
    lengths: np.ndarray  # int64 [texts]

    @property
    def starts(self) -> np.ndarray:
        """int64 [texts]: where each text begins."""
        return np.cumsum(self.lengths) - self.lengths


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which tokens of which text each row holds."""

    example: np.ndarray  # int64 [rows]
    starts: tuple[np.ndarray, np.ndarray]  # int64 [rows] each: first token of each text of the pair
    lengths: tuple[np.ndarray, np.ndarray]  # int64 [rows] each: tokens of each text of the pair
    truncated: int  # examples that lost tokens
    split: int  # examples that became several rows


def plan(first: np.ndarray, second: np.ndarray, room: int, stride: int, split: bool) -> Plan:
    """Returns rows of at most `room` tokens for texts, or pairs of texts, of the given lengths.

    A pair that is too long loses tokens from the end of the longer text, until both are equally long
    (of an odd room the second has one more), as transformers' `longest_first` does. With `split`
    the longer text (the second of two that are equally long) loses none: it becomes windows beside
    the shorter one, each of which begins with the last `stride` tokens of the one before.

    Args:
      first: int64 [N], tokens of the first texts.
      second: int64 [N], tokens of the second texts; 0 where there are none.
      room: tokens of a row without special tokens; more than stride, for pairs twice as many.
      stride: tokens by which windows overlap.
      split: windows, rather than losing tokens.
    """
    first_is_longer = first > second
    longer, shorter = np.maximum(first, second), np.minimum(first, second)
    kept = np.minimum(shorter, room // 2)
    window = room - kept
    step = window - stride if split else window
    too_long = longer > window
    count = np.where(too_long & split, 1 - (window - longer) // step, 1)
    example = np.repeat(np.arange(len(first)), count)
    start = (np.arange(len(example)) - np.repeat(np.cumsum(count) - count, count)) * step[example]
    length = np.minimum(window[example], longer[example] - start)
    side, zero = first_is_longer[example], np.zeros_like(start)
    return Plan(
        example,
        (np.where(side, start, zero), np.where(side, zero, start)),
        (np.where(side, length, kept[example]), np.where(side, kept[example], length)),
        truncated=int(np.count_nonzero((kept < shorter) | (too_long & (not split)))),
        split=int(np.count_nonzero(count > 1)),
    )


def assemble(
    layout: Layout, rows: Plan, texts: Sequence[Tokens]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows, one after the other: ids int32 [total], type ids uint8 [total], offsets int64 [rows + 1]."""
    lengths = specials(layout) + sum(rows.lengths[piece.text] for piece in layout if is_text(piece))
    offsets = np.concatenate([[0], np.cumsum(np.broadcast_to(lengths, rows.example.shape))])
    offsets = offsets.astype(np.int64)
    ids = np.empty(offsets[-1], np.int32)
    type_ids = np.empty(offsets[-1], np.uint8)
    cursor = offsets[:-1].copy()
    for piece in layout:
        if is_text(piece):
            to = spans(cursor, rows.lengths[piece.text])
            ids[to] = texts[piece.text].ids[_taken(rows, texts[piece.text], piece.text)]
            cursor += rows.lengths[piece.text]
        else:
            to = cursor.copy()
            ids[to] = piece.token
            cursor += 1
        type_ids[to] = piece.type_id
    return ids, type_ids, offsets


def place_words(
    layout: Layout, rows: Plan, tokens: Tokens, words: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Returns int32 [total]: of each token of the rows the word that it is the first token of, or -1.

    A word that several windows hold has its place in the one that shows most tokens of the text on
    whichever side of the word shows fewer (the earlier of two that show as many).

    Args:
      layout: of a single text.
      rows: the plan.
      tokens: of all sentences.
      words: int64 [tokens], the number of the word of its sentence that a token begins, or -1.
      offsets: int64 [rows + 1], as from `assemble`.
    """
    lengths = rows.lengths[0]
    before = next(index for index, piece in enumerate(layout) if is_text(piece))
    place = spans(offsets[:-1] + before, lengths)
    source = _taken(rows, tokens, 0)
    inside = spans(np.zeros_like(lengths), lengths)
    context = np.minimum(inside, np.repeat(lengths, lengths) - 1 - inside)
    begins = np.flatnonzero(words[source] != NO_WORD)
    # Each first token is one word of one sentence, so its position names the word.
    order = begins[np.lexsort((-context[begins], source[begins]))]
    _, best = np.unique(source[order], return_index=True)
    result = np.full(offsets[-1], NO_WORD, np.int32)
    result[place[order[best]]] = words[source[order[best]]]
    return result


def is_text(piece: Piece) -> bool:
    return piece.text >= 0


def specials(layout: Layout) -> int:
    """Returns how many special tokens each row has."""
    return sum(not is_text(piece) for piece in layout)


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns int64 [sum of lengths]: starts[0], starts[0] + 1, ..., then the same from starts[1]."""
    shift = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shift, lengths) + np.arange(int(lengths.sum()))


def _taken(rows: Plan, tokens: Tokens, text: int) -> np.ndarray:
    return spans(tokens.starts[rows.example] + rows.starts[text], rows.lengths[text])
