"""Sentences of tagged words as examples, and the tags of all files made classes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlx.config import nearest
from tlx.data.split import digest
from tlx.data.tag_scheme import OUTSIDE, TO_IOBES, continues, is_open, sort_key, split_tag
from tlx.data.text_file import at_line, check_text, shown
from tlx.errors import InputError
from tlx.files import printable

MOST_WORDS = 10_000  # of a sentence
_TAG = re.compile(r"O|[BIESLU]-+[^-].*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence as a file has it."""

    file: Path
    lines: tuple[int, ...]  # of each word
    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TaggedTexts:
    """Sentences of tagged words; itself an `Examples`."""

    words: tuple[tuple[str, ...], ...]
    tags: tuple[np.ndarray, ...]  # int32 [words of the sentence], index into class_names
    class_names: tuple[str, ...]  # O, then by type and prefix; the same for all splits
    file: str
    lines: np.ndarray  # int32 [N]: where each sentence begins

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """uint8 [N, tags]: 1 where the tag occurs in the sentence."""
        found = np.zeros((len(self), len(self.class_names)), np.uint8)
        for row, tags in zip(found, self.tags, strict=True):
            row[tags] = 1
        return found

    def name(self, index: int) -> str:
        return f"{self.file} line {self.lines[index]}"

    @functools.cached_property
    def fingerprint(self) -> str:
        parts = ["\0".join(self.class_names)]
        parts += ["\0".join(sentence) for sentence in self.words]
        tags = np.concatenate([np.zeros(0, np.int32), *self.tags]).astype("<i4").tobytes()
        return digest([*(part.encode("utf-8", "surrogatepass") for part in parts), tags])


def as_examples(by_split: Mapping[str, Sequence[Sentence]]) -> dict[str, TaggedTexts]:
    """Returns the sentences of each split, at least one of each, as examples.

    Their classes are the tags of all of them, and O. BILOU tags become those of IOBES. Which scheme
    it is, all splits say together.

    Raises:
      InputError: names the line: what is no tag, is of another scheme, or breaks the rules of
        the scheme, as I- at the beginning of an entity does, which IOB1 allows.
    """
    written = [sentence for part in by_split.values() for sentence in part]
    first = _first_of_each_prefix(written)
    bilou = _is_bilou(first)
    ends = next((first[prefix] for prefix in "ESLU" if prefix in first), "")
    for sentence in written:
        _check(sentence, bilou, ends)
    _check_known(by_split)
    tags = {tag for sentence in written for tag in sentence.tags}
    classes = {tag: _in_iobes(tag) if bilou else tag for tag in tags}
    class_names = tuple(sorted({OUTSIDE, *classes.values()}, key=sort_key))
    number = {tag: class_names.index(name) for tag, name in classes.items()}
    return {
        split: TaggedTexts(
            tuple(sentence.words for sentence in part),
            tuple(np.array([number[tag] for tag in s.tags], np.int32) for s in part),
            class_names,
            printable(part[0].file),
            np.array([sentence.lines[0] for sentence in part], np.int32),
        )
        for split, part in by_split.items()
    }


def _check_known(by_split: Mapping[str, Sequence[Sentence]]) -> None:
    """Raises InputError where a split has entities of a type that training has none of."""
    known = {split_tag(tag)[1] for sentence in by_split.get("train", ()) for tag in sentence.tags}
    if not known:
        return
    for split, part in by_split.items():
        for sentence in part if split != "train" else ():
            for line, tag in zip(sentence.lines, sentence.tags, strict=True):
                kind = split_tag(tag)[1]
                if tag != OUTSIDE and kind not in known:
                    types = ", ".join(sorted(known - {""}))
                    raise InputError(
                        f"{at_line(sentence.file, line)}: {shown(tag)} is of no type that training has, which are "
                        f"{types}{nearest(kind, known)}"
                    )


def _first_of_each_prefix(sentences: Sequence[Sentence]) -> dict[str, str]:
    """Returns prefix -> a tag that has it and where, for errors. Raises InputError for what is no tag."""
    first: dict[str, str] = {}
    for sentence in sentences:
        for line, tag in zip(sentence.lines, sentence.tags, strict=True):
            if not _TAG.fullmatch(tag):
                raise InputError(
                    f"{at_line(sentence.file, line)}: {shown(tag)} is no tag of IOB2 (O, B-TYPE, "
                    "I-TYPE) or BIOES (these, E-TYPE and S-TYPE)"
                )
            if tag[0] not in first:
                first[tag[0]] = f"{shown(tag)} in {at_line(sentence.file, line)}"
    return first


def _is_bilou(first: Mapping[str, str]) -> bool:
    found = [prefix for prefix in TO_IOBES if prefix in first]
    others = [prefix for prefix in TO_IOBES.values() if prefix in first]
    if found and others:
        raise InputError(
            f"{first[found[0]]} is BILOU, but {first[others[0]]} is BIOES; all files need one scheme"
        )
    return bool(found)


def _in_iobes(tag: str) -> str:
    return TO_IOBES.get(tag[0], tag[0]) + tag[1:]


def _check(sentence: Sentence, bilou: bool, ends: str) -> None:
    """Raises InputError where an entity does not begin or end as it must.

    Args:
      sentence: with tags.
      bilou: what they are written in.
      ends: a tag by which the scheme is IOBES, and where; "": it is IOB2.
    """
    if len(sentence.words) > MOST_WORDS:
        raise InputError(
            f"{at_line(sentence.file, sentence.lines[0])}: a sentence of {len(sentence.words):,} words, more than "
            f"{MOST_WORDS:,}: empty lines part sentences"
        )
    for line, word in zip(sentence.lines, sentence.words, strict=True):
        check_text(at_line(sentence.file, line), word)
    before, before_type = OUTSIDE, ""
    for index, tag in enumerate((*sentence.tags, OUTSIDE)):
        prefix, kind = split_tag(_in_iobes(tag) if bilou else tag)
        fits = is_open(before) and before_type == kind
        if continues(prefix) and not fits:
            raise InputError(
                f"{at_line(sentence.file, sentence.lines[index])}: {shown(tag)} continues no entity: "
                "the tags are not IOB2 or BIOES, where an entity begins with B-"
            )
        if ends and is_open(before) and not continues(prefix):
            last = "L" if bilou else "E"
            raise InputError(
                f"{at_line(sentence.file, sentence.lines[index - 1])}: "
                f"{shown(sentence.tags[index - 1])} is followed by no {last}-{before_type}, so the "
                f"tags are not {'BILOU' if bilou else 'BIOES'}; they are not IOB2 because of {ends}"
            )
        before, before_type = prefix, kind
