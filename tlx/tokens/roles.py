"""Which tokens of a `tokenizer.json` begin, end, separate or pad texts: what its library does without, and transformers asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MASKS = ("[MASK]", "<mask>", "<|mask|>")


def special_tokens(content: str, pad_id: int) -> dict[str, str]:
    """Returns role -> token, as `tokenizer_config.json` has them: cls_token, sep_token, unk_token, mask_token, pad_token.

    A role that no special token has is left out: one that was made special by its name would be found in texts too.

    Args:
      content: of a `tokenizer.json` that `Tokenizer.of` has taken.
      pad_id: of the token that fills up shorter texts.
    """
    facts = json.loads(content)
    special = {
        token["content"]: token["id"]
        for token in facts.get("added_tokens") or ()
        if token.get("special")
    }
    around = list(_around(facts.get("post_processor") or {}))
    roles = {
        "cls_token": around[0] if around else None,
        "sep_token": around[-1] if around else None,
        "unk_token": _unknown(facts["model"]),
        "mask_token": next((token for token in _MASKS if token in special), None),
    }
    found = {role: token for role, token in roles.items() if token in special and token is not None}
    padding = _tokens_by_id(facts).get(pad_id)
    return found | ({"pad_token": padding} if padding is not None else {})


def _around(processor: Mapping[str, Any]) -> Iterator[str]:
    """Yields the special tokens that are put around a single text, in their order."""
    match processor.get("type"):
        case "Sequence":
            for part in processor.get("processors") or ():
                yield from _around(part)
        case "TemplateProcessing":
            for part in processor.get("single") or ():
                if "SpecialToken" in part:
                    yield part["SpecialToken"]["id"]
        case "BertProcessing" | "RobertaProcessing":
            yield processor["cls"][0]
            yield processor["sep"][0]


def _unknown(model: Mapping[str, Any]) -> str | None:
    if isinstance(model.get("unk_id"), int) and isinstance(model.get("vocab"), list):
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _tokens_by_id(facts: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = facts["model"].get("vocab") or {}
    if isinstance(vocabulary, list):  # of a Unigram: tokens with their scores
        found = {index: token for index, (token, _) in enumerate(vocabulary)}
    else:
        found = {index: token for token, index in vocabulary.items()}
    return found | {token["id"]: token["content"] for token in facts.get("added_tokens") or ()}
