"""Vocabularies to the content of a `tokenizer.json`: one function for each family of text models.

The forms of the parts are those of Hugging Face's `tokenizers` library; what each family does to a text is
taken from its paper's code, as transformers' tokenizers have it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from tlx.errors import InputError
from tlx.tokens.sentencepiece import UNKNOWN, USER_DEFINED, SentencePiece
from tlx.tokens.settings import Settings, required, with_ids

_CLS, _SEP, _MARK = "[CLS]", "[SEP]", "▁"
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")


def word_piece(vocabulary: Mapping[str, int], settings: Settings, where: str) -> dict[str, Any]:
    """Returns the tokenizer of BERT (Devlin et al. 2018), DistilBERT and ELECTRA.

    Raises:
      InputError: the vocabulary lacks a special token, or the settings do not fit it.
    """
    unknown, cls, sep, *others = _tokens(settings, "[UNK]", _CLS, _SEP, "[PAD]", "[MASK]")
    required(vocabulary, unknown["content"], "unk_token", where)
    there = [token for token in others if token["content"] in vocabulary]
    return {
        "version": "1.0",
        "added_tokens": with_ids(vocabulary, [unknown, cls, sep, *there], settings, where),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.flag("tokenize_chinese_chars", True),
            "strip_accents": settings.flag("strip_accents", None),
            "lowercase": settings.flag("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _bert_template(vocabulary, cls["content"], sep["content"], where),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown["content"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": dict(vocabulary),
        },
    }


def byte_pairs(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    settings: Settings,
    where: str,
) -> dict[str, Any]:
    """Returns the tokenizer of RoBERTa (Liu et al. 2019): GPT-2's byte-level pairs, other special tokens.

    Raises:
      InputError: as `word_piece`.
    """
    unknown, cls, sep, *others = _tokens(settings, "<unk>", "<s>", "</s>", "<pad>", "<mask>")
    there = [token for token in (unknown, *others) if token["content"] in vocabulary]
    space = settings.flag("add_prefix_space", False)
    ends = {
        name: [token["content"], required(vocabulary, token["content"], f"{name}_token", where)]
        for name, token in (("sep", sep), ("cls", cls))
    }
    return {
        "version": "1.0",
        "added_tokens": with_ids(vocabulary, [cls, sep, *there], settings, where),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": space,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "RobertaProcessing",
            **ends,
            "trim_offsets": True,
            "add_prefix_space": space,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def deberta(model: SentencePiece, settings: Settings, where: str) -> dict[str, Any]:
    """Returns the tokenizer of DeBERTa-v2 and -v3 (He et al. 2021): pieces as they are, then the mask.

    Raises:
      InputError: as `word_piece`.
    """
    pieces = [(text, score) for text, score, _ in model.pieces]
    vocabulary = _vocabulary(pieces, where)
    unknown, cls, sep, *others = _tokens(settings, "[UNK]", _CLS, _SEP, "[PAD]", "[MASK]")
    index = next((i for i, piece in enumerate(model.pieces) if piece[2] == UNKNOWN), None)
    if index is None:
        index = required(vocabulary, unknown["content"], "unk_token", where)
    lower = [{"type": "Lowercase"}] if settings.flag("do_lower_case", False) else []
    splits = {"type": "Punctuation", "behavior": "Isolated"}
    return {
        "version": "1.0",
        "added_tokens": with_ids(
            vocabulary,
            [unknown, cls, sep, *others, *_user_defined(model, vocabulary)],
            settings,
            where,
        ),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *lower,
                {"type": "Strip", "strip_left": True, "strip_right": True},
                *_charsmap(model),
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *([splits] if settings.flag("split_by_punct", False) else []),
                _metaspace(),
            ],
        },
        "post_processor": _bert_template(vocabulary, cls["content"], sep["content"], where),
        "decoder": _metaspace(),
        "model": _unigram(pieces, index),
    }


def xlm_roberta(model: SentencePiece, settings: Settings, where: str) -> dict[str, Any]:
    """Returns the tokenizer of XLM-RoBERTa (Conneau et al. 2019).

    Its ids are fairseq's: four special tokens in place of the file's first three pieces (<unk>, <s>,
    </s>), so that every other piece is one higher than in the file, and the mask last.

    Raises:
      InputError: the first three pieces are others, or as `word_piece`.
    """
    first = tuple(text for text, _, _ in model.pieces[:3])
    if first != ("<unk>", "<s>", "</s>"):
        raise InputError(f"{where}: begins with {first}, but XLM-RoBERTa's with <unk>, <s>, </s>")
    pieces = [*((text, 0.0) for text in _FAIRSEQ), *((t, s) for t, s, _ in model.pieces[3:])]
    mask = settings.token("mask_token", "<mask>")
    pieces.append((mask["content"], 0.0))
    vocabulary = _vocabulary(pieces, where)
    special = [settings.token("", text) for text in _FAIRSEQ]
    normalizer = _charsmap(model)
    return {
        "version": "1.0",
        "added_tokens": with_ids(
            vocabulary, [*special, mask, *_user_defined(model, vocabulary)], settings, where
        ),
        "normalizer": normalizer[0] if normalizer else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, _metaspace()],
        },
        "post_processor": _template(
            {"<s>": 0, "</s>": 2},
            [("<s>", 0), ("A", 0), ("</s>", 0)],
            [("<s>", 0), ("A", 0), ("</s>", 0), ("</s>", 0), ("B", 0), ("</s>", 0)],
        ),
        "decoder": _metaspace(),
        "model": _unigram(pieces, _FAIRSEQ.index("<unk>")),
    }


def _tokens(settings: Settings, *defaults: str) -> list[dict[str, Any]]:
    roles = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    return [settings.token(role, text) for role, text in zip(roles, defaults, strict=True)]


def _vocabulary(pieces: Sequence[tuple[str, float]], where: str) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, (text, _) in enumerate(pieces):
        if vocabulary.setdefault(text, index) != index:
            raise InputError(f"{where}: {text!r} is both token {vocabulary[text]} and {index}")
    return vocabulary


def _user_defined(model: SentencePiece, vocabulary: Mapping[str, int]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    texts = (text for text, _, kind in model.pieces if kind == USER_DEFINED and text in vocabulary)
    return [{"content": text, **flags} for text in texts]


def _bert_template(vocabulary: Mapping[str, int], cls: str, sep: str, where: str) -> dict[str, Any]:
    ids = {
        cls: required(vocabulary, cls, "cls_token", where),
        sep: required(vocabulary, sep, "sep_token", where),
    }
    single = [(cls, 0), ("A", 0), (sep, 0)]
    return _template(ids, single, [*single, ("B", 1), (sep, 1)])


def _template(
    ids: Mapping[str, int], single: Sequence[tuple[str, int]], pair: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    def parts(layout: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        return [
            {"SpecialToken" if name in ids else "Sequence": {"id": name, "type_id": type_id}}
            for name, type_id in layout
        ]

    return {
        "type": "TemplateProcessing",
        "single": parts(single),
        "pair": parts(pair),
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()},
    }


def _unigram(pieces: Sequence[tuple[str, float]], unknown: int) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [list(piece) for piece in pieces],
        "byte_fallback": False,
    }


def _metaspace() -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": _MARK, "prepend_scheme": "always", "split": True}


def _charsmap(model: SentencePiece) -> list[dict[str, Any]]:
    if not model.charsmap:
        return []
    text = base64.b64encode(model.charsmap).decode()
    return [{"type": "Precompiled", "precompiled_charsmap": text}]
