"""Small vocabularies in the files of each family, for tests of tokenizers."""

import itertools
import json
from pathlib import Path

import numpy as np

from tlx.tokens.tokenizer import Encoded

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "un", "##want"]
WORDS += ["##ed", ",", ".", "cafe", "日", "Cat", "café", *"abcdefghij"]
UNK, CLS, SEP, THE, CAT, S, SAT, UN, WANT, ED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
A = WORDS.index("a")


def folder(path: Path, words: list[str] = WORDS, **config) -> Path:
    (path / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def rows(encoded: Encoded) -> list[list[int]]:
    ends = encoded.offsets
    return [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(ends)]


def byte_folder(path: Path, words: dict[str, int], merges: list[str], **config) -> Path:
    (path / "vocab.json").write_text(json.dumps(words))
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in merges))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


BYTE_WORDS = {
    "<s>": 0,
    "<pad>": 1,
    "</s>": 2,
    "<unk>": 3,
    "a": 4,
    "b": 5,
    "Ġ": 6,
    "ab": 7,
    "Ġab": 8,
}
BYTE_WORDS |= {"<mask>": 9}
BYTE_MERGES = ["a b", "Ġ ab"]


def piece(text: str, score: float, kind: int = 1) -> bytes:
    """A SentencePiece in protobuf's wire format; the numbers are those of its .proto file."""
    data = text.encode()
    body = b"\x0a" + bytes([len(data)]) + data + b"\x15" + np.float32(score).tobytes()
    body += b"\x18" + bytes([kind]) if kind != 1 else b""
    return b"\x0a" + bytes([len(body)]) + body


DEBERTA = [("[PAD]", 0, 3), ("[CLS]", 0, 3), ("[SEP]", 0, 3), ("[UNK]", 0, 2)]
XLM_ROBERTA = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
PIECES = [("▁a", -1, 1), ("b", -2, 1), ("▁", -3, 1), ("ab", -1.5, 1)]
