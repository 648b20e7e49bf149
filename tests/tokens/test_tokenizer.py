import dataclasses
import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizer_folders import (
    BYTE_MERGES,
    BYTE_WORDS,
    CAT,
    CLS,
    ED,
    SAT,
    SEP,
    THE,
    UN,
    UNK,
    WANT,
    WORDS,
    A,
    S,
    byte_folder,
    folder,
    rows,
)

from tlx.errors import InputError
from tlx.tokens.tokenizer import Tokenizer, open_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return open_tokenizer(folder(tmp_path))


def test_word_pieces_special_tokens_and_segments(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["The cats sat, unwanted.", ""], max_length=20)
    assert rows(encoded) == [[CLS, THE, CAT, S, SAT, 12, UN, WANT, ED, 13, SEP], [CLS, SEP]]
    assert not encoded.type_ids.any() and encoded.example.tolist() == [0, 1]
    pair = tokenizer.encode(["the cat", ""], ["sat", "cat"], max_length=20)
    assert rows(pair) == [[CLS, THE, CAT, SEP, SAT, SEP], [CLS, SEP, CAT, SEP]]
    assert pair.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert (pair.truncated, pair.split) == (0, 0)
    kinds = {f.name: getattr(pair, f.name) for f in dataclasses.fields(pair)}
    assert kinds["ids"].dtype == np.int32 and kinds["type_ids"].dtype == np.uint8
    assert kinds["offsets"].dtype == np.int64 and kinds["example"].dtype == np.int64
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (len(WORDS), 0)
    assert tokenizer.token_id("cat") == CAT and tokenizer.token_id("dog") is None
    assert tokenizer.special_tokens() == 2 and tokenizer.special_tokens(pair=True) == 3


def test_no_texts(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode([], max_length=4)
    assert encoded.offsets.tolist() == [0] and len(encoded.ids) == len(encoded.example) == 0
    words = tokenizer.encode_words([], max_length=4, split_long=True)
    assert words.offsets.tolist() == [0] and words.no_token.shape == (0, 2)


def test_characters_of_no_meaning_do_no_harm(tokenizer: Tokenizer) -> None:
    texts = ["\0the\x01 cat\ufeff", "日日", "🙂", "x" * 300, " \t\n"]
    expected = [[THE, CAT], [WORDS.index("日")] * 2, [UNK], [UNK], []]
    assert rows(tokenizer.encode(texts, max_length=9)) == [[CLS, *e, SEP] for e in expected]


def test_long_texts_lose_their_end(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a b c d", "a b", "a b c"], max_length=5)
    assert rows(encoded) == [
        [CLS, A, A + 1, A + 2, SEP],
        [CLS, A, A + 1, SEP],
        [CLS, A, A + 1, A + 2, SEP],
    ]
    assert (encoded.truncated, encoded.split) == (1, 0)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("a b c d e f", "g h", (4, 2)),
        ("g h", "a b c d e f", (2, 4)),
        ("a b c d", "e f g h", (3, 3)),
        ("a b c d e f", "g", (5, 1)),
        ("a b c", "d e f", (3, 3)),
    ],
)
def test_of_long_pairs_the_longer_text_loses_first(
    tokenizer: Tokenizer, first: str, second: str, kept: tuple[int, int]
) -> None:
    encoded = tokenizer.encode([first], [second], max_length=9)
    ids = [[A + "abcdefghij".index(c) for c in t.split()] for t in (first, second)]
    assert rows(encoded) == [[CLS, *ids[0][: kept[0]], SEP, *ids[1][: kept[1]], SEP]]
    assert encoded.truncated == (len(ids[0]) + len(ids[1]) > 6)


def test_the_second_text_has_what_an_odd_room_leaves(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a b c d"], ["e f g h"], max_length=8)
    assert rows(encoded) == [[CLS, A, A + 1, SEP, A + 4, A + 5, A + 6, SEP]]


def test_long_texts_become_overlapping_rows(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(
        ["a b c d e f g h", "a b", "a b c d e"], max_length=6, stride=1, split_long=True
    )
    letters = ["abcd", "defg", "gh", "ab", "abcd", "de"]
    assert rows(encoded) == [[CLS, *(WORDS.index(c) for c in part), SEP] for part in letters]
    assert encoded.example.tolist() == [0, 0, 0, 1, 2, 2]
    assert (encoded.truncated, encoded.split) == (0, 2)


def test_of_long_pairs_the_longer_text_is_split_beside_the_shorter_one(
    tokenizer: Tokenizer,
) -> None:
    encoded = tokenizer.encode(
        ["a b", "a b c d e"], ["c d e f g", "f"], max_length=8, stride=1, split_long=True
    )
    a, b, c, d, e, f, g = range(A, A + 7)
    assert rows(encoded) == [
        [CLS, a, b, SEP, c, d, e, SEP],
        [CLS, a, b, SEP, e, f, g, SEP],
        [CLS, a, b, c, d, SEP, f, SEP],
        [CLS, d, e, SEP, f, SEP],
    ]
    assert (encoded.truncated, encoded.split) == (0, 2)
    both = tokenizer.encode(["a b c"], ["d e f g"], max_length=7, split_long=True)
    assert rows(both) == [[CLS, a, b, SEP, d, e, SEP], [CLS, a, b, SEP, f, g, SEP]]
    assert (both.truncated, both.split) == (1, 1)  # c has no row


def test_words_are_placed_at_their_first_token(tokenizer: Tokenizer) -> None:
    sentences = [["The", "cats", "\x01", "unwanted", ""], [], ["cat"] * 9]
    words = tokenizer.encode_words(sentences, max_length=8)
    assert rows(words)[:2] == [[CLS, THE, CAT, S, UN, WANT, ED, SEP], [CLS, SEP]]
    assert words.word[:10].tolist() == [-1, 0, 1, -1, 3, -1, -1, -1, -1, -1]
    assert words.word[10:].tolist() == [-1, 0, 1, 2, 3, 4, 5, -1]
    assert words.word.dtype == np.int32
    assert words.no_token.tolist() == [[0, 2], [0, 4]]
    assert words.cut_off.tolist() == [[2, 6], [2, 7], [2, 8]]
    assert words.truncated == 1


def test_every_word_has_one_place_in_the_window_that_shows_most_around_it(
    tokenizer: Tokenizer,
) -> None:
    rng = random.Random(0)
    choices = ["the", "cats", "unwanted", "a", "\x01", "Café", "xyz"]
    sentences = [rng.choices(choices, k=rng.randrange(40)) for _ in range(60)]
    words = tokenizer.encode_words(sentences, max_length=11, stride=5, split_long=True)
    assert words.split > 20 and words.truncated == 0 and len(words.cut_off) == 0
    whole = tokenizer.encode_words(sentences, max_length=200)
    for sentence in range(len(sentences)):
        (row,) = np.flatnonzero(whole.example == sentence)
        text = whole.word[whole.offsets[row] + 1 : whole.offsets[row + 1] - 1]
        found = []
        for number, row in enumerate(np.flatnonzero(words.example == sentence)):
            body = words.word[words.offsets[row] + 1 : words.offsets[row + 1] - 1]
            start = number * (9 - 5)
            found += [(start + at, number) for at in np.flatnonzero(body >= 0)]
            assert all(body[at] in (-1, text[start + at]) for at in range(len(body)))
        windows = range(np.count_nonzero(words.example == sentence))
        spans = [(n * 4, min(n * 4 + 9, len(text))) for n in windows]
        expected = []
        for at in np.flatnonzero(text >= 0):
            shown = [min(at - a, b - 1 - at) if a <= at < b else -1 for a, b in spans]
            expected.append((at, int(np.argmax(shown))))
        assert sorted(found) == expected
        silent = words.no_token[words.no_token[:, 0] == sentence][:, 1].tolist()
        assert silent == [i for i, word in enumerate(sentences[sentence]) if word == "\x01"]


def test_lengths_that_leave_no_room_are_refused(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(["the cat"], max_length=3).ids) == 3
    with pytest.raises(InputError, match=r"max_length of 2 .* adds 2 .*at least 3"):
        tokenizer.encode(["the"], max_length=2)
    with pytest.raises(InputError, match=r"max_length of 4 .* adds 3 .*at least 5"):
        tokenizer.encode(["the"], ["cat"], max_length=4)
    with pytest.raises(InputError, match=r"stride of 4 .* windows of 4 .* expected 0 to 3"):
        tokenizer.encode(["the"], max_length=6, stride=4, split_long=True)
    with pytest.raises(InputError, match=r"stride of 2 .* windows of 2"):
        tokenizer.encode(["the"], ["cat"], max_length=7, stride=2, split_long=True)
    with pytest.raises(InputError, match="stride of -1"):
        tokenizer.encode_words([["the"]], max_length=7, stride=-1, split_long=True)


def test_texts_that_are_not_unicode_are_named(tokenizer: Tokenizer) -> None:
    texts = ["the"] * 1500 + ["cat \ud800"]
    with pytest.raises(InputError, match=r"text 1500 .* character 4"):
        tokenizer.encode(texts, max_length=9)
    with pytest.raises(InputError, match=r"text 1500 .* character 4"):
        tokenizer.encode_words([[text] for text in texts], max_length=9)
    with pytest.raises(TypeError):
        tokenizer.encode([3], max_length=9)  # type: ignore[list-item]


def test_a_text_of_100_000_words(tokenizer: Tokenizer) -> None:
    text = "the unwanted cats " * 33334
    tokens = 33334 * 6
    start = time.perf_counter()
    assert len(tokenizer.encode([text], max_length=512).ids) == 512
    split = tokenizer.encode([text], max_length=512, stride=10, split_long=True)
    assert len(split.example) == -(-(tokens - 510) // 500) + 1
    words = tokenizer.encode_words([text.split()], max_length=512, stride=10, split_long=True)
    assert np.array_equal(np.sort(words.word[words.word >= 0]), np.arange(3 * 33334))
    assert time.perf_counter() - start < 30


def test_equal_by_content_without_truncation_and_padding(tokenizer: Tokenizer) -> None:
    facts = json.loads(tokenizer.content)
    assert facts["truncation"] is None and facts["padding"] is None
    padding = {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None}
    facts["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    facts["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0}
    other = Tokenizer.of(json.dumps(facts, indent=1))
    assert other == tokenizer and hash(other) == hash(tokenizer)
    assert other.content == tokenizer.content and pickle.loads(pickle.dumps(other)) == tokenizer
    assert len(other.encode(["the cat sat, the cat"], max_length=20).ids) == 8
    facts["normalizer"]["lowercase"] = False
    assert Tokenizer.of(json.dumps(facts)) != tokenizer
    assert "the" not in repr(tokenizer)


def test_dropout_of_merges_is_off(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(byte_folder(tmp_path, BYTE_WORDS, BYTE_MERGES))
    facts = json.loads(tokenizer.content)
    facts["model"]["dropout"] = 1.0
    assert Tokenizer.of(json.dumps(facts)) == tokenizer


def test_a_vocabulary_that_cannot_say_unknown(tmp_path: Path) -> None:
    facts = {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}}
    tokenizer = Tokenizer.of(json.dumps(facts))
    with pytest.raises(InputError, match="texts 0 to 1 cannot be encoded"):
        tokenizer.encode(["a", "b"], max_length=4)


def test_forks_encode_without_warnings(tmp_path: Path) -> None:
    program = """
import os, sys
from tlx.tokens.tokenizer import open_tokenizer
tokenizer = open_tokenizer(sys.argv[1])
texts = ["the cat sat"] * 5000
expected = tokenizer.encode(texts, max_length=9).ids.tolist()
child = os.fork()
if not child:
    os._exit(tokenizer.encode(texts, max_length=9).ids.tolist() != expected)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    # Python itself warns of every fork with threads; what matters here is the library's own warning.
    quiet = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", quiet, "-c", program, str(folder(tmp_path))]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
