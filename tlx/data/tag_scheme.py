"""How tags mark entities: IOB2 (B- begins, I- continues) or IOBES (and E- ends, S- stands alone).

BIOES and IOBES are two names of one scheme; BILOU is the same with L for E and U for S.
"""

from __future__ import annotations

from collections.abc import Iterable

IOB2, IOBES = "IOB2", "IOBES"
OUTSIDE = "O"
TO_IOBES = {"L": "E", "U": "S"}


def split_tag(tag: str) -> tuple[str, str]:
    """Returns a tag's prefix and the type of its entity: ("B", "person"), or ("O", "").

    Dashes around a type are no part of it, as in seqeval.
    """
    return tag[:1], tag[1:].strip("-")


def scheme_of(tags: Iterable[str]) -> str:
    """Returns IOBES if one of the tags ends an entity or stands alone, else IOB2."""
    return IOBES if any(split_tag(tag)[0] in ("E", "S") for tag in tags) else IOB2


def sort_key(tag: str) -> tuple[bool, str, str]:
    """Returns by what class names are ordered: O first, then by type, then by prefix."""
    prefix, kind = split_tag(tag)
    return tag != OUTSIDE, kind, prefix


def continues(prefix: str) -> bool:
    """Returns whether the tag is of an entity that began at an earlier word."""
    return prefix in ("I", "E")


def is_open(prefix: str) -> bool:
    """Returns whether the entity may go on at the next word; in IOBES it must."""
    return prefix in ("B", "I")
