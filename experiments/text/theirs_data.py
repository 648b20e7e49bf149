"""The two data sets as the reference reads them, in tokens of the weights' own tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from recipe import Recipe

FILES = {"sst2": ("data/sst2", "tsv"), "wnut17": ("data/wnut17", "conll")}
IGNORED = -100  # the label of tokens that do not count


@dataclasses.dataclass(frozen=True)
class Split:
    """Tokenized examples."""

    ids: list[list[int]]
    labels: list[Any]  # an int, or one for each token
    tags: list[list[str]]  # WNUT-17's own, one for each word
    starts: list[list[int]]  # the first token of each word; -1 where it has none

    def __len__(self) -> int:
        return len(self.ids)


def read_sst2(path: Path) -> tuple[list[str], list[int]]:
    """Returns sentences and labels."""
    header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if header != "sentence\tlabel":
        raise SystemExit(f"{path}: the header is {header!r}, expected sentence and label")
    rows = [line.split("\t") for line in lines]
    return [sentence for sentence, _ in rows], [int(label) for _, label in rows]


def read_wnut17(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the words and the tags of each sentence; lines with empty fields separate them."""
    words: list[list[str]] = []
    tags: list[list[str]] = []
    inside = False
    for line in path.read_text(encoding="utf-8").split("\n"):
        word, _, tag = line.partition("\t")
        if word and not inside:
            words.append([])
            tags.append([])
        inside = bool(word)
        if inside:
            words[-1].append(word)
            tags[-1].append(tag)
    return words, tags


def class_names(task: str, shared: Path) -> list[str]:
    """Returns the names of the classifier's outputs, in order: WNUT-17's are the tags of its training file."""
    if task == "sst2":
        return ["0", "1"]
    return sorted({tag for tags in read_wnut17(_path(task, shared, "train"))[1] for tag in tags})


def load(task: str, shared: Path, name: str, tokenizer: Any, recipe: Recipe) -> Split:
    """Reads and tokenizes a split."""
    path = _path(task, shared, name)
    cut = {"truncation": True, "max_length": recipe.max_length}
    if task == "sst2":
        sentences, labels = read_sst2(path)
        return Split(tokenizer(sentences, **cut)["input_ids"], labels, [], [])
    words, tags = read_wnut17(path)
    found = tokenizer(words, is_split_into_words=True, **cut)
    numbers = {tag: number for number, tag in enumerate(class_names(task, shared))}
    starts, labels = [], []
    for place, own in enumerate(tags):
        word_of = found.word_ids(place)
        starts.append([word_of.index(w) if w in word_of else -1 for w in range(len(own))])
        row = [IGNORED] * len(word_of)
        for start, tag in zip(starts[-1], own, strict=True):
            if start >= 0:
                row[start] = numbers[tag]
        labels.append(row)
    return Split(found["input_ids"], labels, tags, starts)


def collate(
    split: Split, index: list[int], recipe: Recipe, padding: str, pad_id: int
) -> dict[str, torch.Tensor]:
    """Returns the batch of these examples: input_ids and attention_mask int64 [B, L], labels int64 [B] or [B, L]."""
    length = recipe.padded(max(len(split.ids[i]) for i in index), padding)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])

    ids = [split.ids[i] for i in index]
    labels = [split.labels[i] for i in index]
    return {
        "input_ids": padded(ids, pad_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded(labels, IGNORED) if split.tags else torch.tensor(labels),
    }


def _path(task: str, shared: Path, name: str) -> Path:
    folder, ending = FILES[task]
    return shared / folder / f"{name}.{ending}"
