"""The part of a SentencePiece model file (protobuf) that a tokenizer needs: pieces and the map of characters.

Field numbers are those of `sentencepiece_model.proto` (Kudo and Richardson 2018), the encoding is protobuf's wire format.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator

from tlx.errors import InputError

NORMAL, UNKNOWN, USER_DEFINED = 1, 2, 4  # kinds of pieces
_UNIGRAM = 1
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the file
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_ALGORITHM = 3  # of the trainer's settings
_CHARSMAP = 2  # of the normalizer's settings
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A unigram model."""

    pieces: tuple[tuple[str, float, int], ...]  # text, logarithm of its probability, kind
    charsmap: bytes  # normalization of characters, in SentencePiece's own form; b"": none


def parse_sentencepiece(data: bytes, where: str) -> SentencePiece:
    """Returns what a model file holds.

    Raises:
      InputError: it is damaged or no SentencePiece file, or its model is not a unigram model.
    """
    pieces: list[tuple[str, float, int]] = []
    charsmap = b""
    algorithm: int | bytes = _UNIGRAM
    try:
        for field, value in _fields(data):
            if field == _PIECES:
                pieces.append(_piece(_bytes(value)))
            elif field == _TRAINER:
                settings = dict(_fields(_bytes(value)))
                algorithm = settings.get(_ALGORITHM, _UNIGRAM)
            elif field == _NORMALIZER:
                charsmap = _bytes(dict(_fields(_bytes(value))).get(_CHARSMAP, b""))
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(f"{where} is damaged, or no SentencePiece model: {error}") from error
    if algorithm != _UNIGRAM:
        raise InputError(f"{where}: not a unigram model; save the tokenizer as tokenizer.json")
    if not pieces:
        raise InputError(f"{where} is no SentencePiece model: it has no pieces")
    return SentencePiece(tuple(pieces), charsmap)


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(data):
        if field == _TEXT:
            text = _bytes(value).decode()
        elif field == _SCORE:
            (score,) = struct.unpack("<f", _bytes(value))
        elif field == _KIND and isinstance(value, int):
            kind = value
    if not math.isfinite(score):
        raise ValueError(f"the score of {text!r} is {score}")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the number and the value of each field: an integer, or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield field, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire} in byte {position}")
        if size > len(data) - position:
            raise ValueError(f"it ends within a field of {size} bytes")
        yield field, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits in byte {position}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value
