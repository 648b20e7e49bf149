"""Which columns are a text, the second one of a pair, and the label: in tables and tfds alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tlx.config import DataConfig
from tlx.data.table_columns import Role, find_roles, listed, named_columns, plain
from tlx.data.table_files import SPLIT
from tlx.data.table_labels import label_role
from tlx.errors import InputError

# Both there, they are a pair: as MRPC, STS-B and RTE; QQP; MNLI; QNLI; BoolQ; SQuAD; MRPC's own file name them.
_PAIRS = (
    *(("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2")),
    *(("premise", "hypothesis"), ("question", "sentence"), ("question", "answer")),
    *(("question", "passage"), ("question", "context"), ("query", "passage")),
    *(("text", "textpair"), ("text", "text2"), ("sentence", "sentence2")),
    ("#1string", "#2string"),
)
_TEXTS = (
    *("text", "sentence", "review", "comment", "content", "tweet", "document", "message"),
    *("headline", "utterance", "body", "question", "query", "premise", "sentence1"),
)
_SECONDS = tuple(dict.fromkeys(second for _, second in _PAIRS))
_LABELS = {
    "class": (
        *("label", "labels", "class", "target", "sentiment", "category"),
        *("goldlabel", "isduplicate", "quality"),  # of MNLI, QQP and MRPC in their own files
    ),
    "number": ("label", "labels", "target", "score", "rating", "similarity"),
}

Find = Callable[[tuple[str, ...]], dict[str, int]]


def text_finder(config: DataConfig, targets: str | None) -> Find:
    """Returns what finds the columns: columns -> role (text, pair, label, split) -> index.

    Columns are those that the config names, else those of usual names. Two usual ones of a pair
    are a pair, unless `text_column` or `pair_column` is set: `text_column` alone is one text.

    Args:
      config: `text_column`, `pair_column` and `label_column`.
      targets: what labels are, class, multi_hot or number; None: there may be none.

    The function raises InputError where a column is not there, or several could be it.
    """
    return functools.partial(_find, config=config, targets=targets)


def header_of(config: DataConfig, targets: str | None) -> str:
    """Returns an example of a header line, for errors."""
    columns = [config.text_column or "text"]
    columns += [config.pair_column] if config.pair_column else []
    columns += [config.label_column or "label"] if targets else []
    return ",".join(columns)


def _find(columns: Sequence[str], *, config: DataConfig, targets: str | None) -> dict[str, int]:
    text = Role("text", _TEXTS, column=config.text_column, field="text_column")
    pair = Role("pair", _SECONDS, column=config.pair_column, field="pair_column")
    label = label_role(_LABELS.get(targets or "class", _LABELS["class"]), config.label_column)
    if targets is None:
        label = Role("label", (), needed=False)
    roles = [text, *([pair] if pair.column else []), label, SPLIT]
    if not text.column and not pair.column:
        taken = named_columns(columns, roles).values()
        free = [plain(column) for index, column in enumerate(columns) if index not in taken]
        if found := _pair(free, columns):
            first, second = found
            roles[:1] = [Role("text", (first,)), Role("pair", (second,))]
    return find_roles(columns, roles, header_of(config, targets))


def _pair(free: Sequence[str], columns: Sequence[str]) -> tuple[str, str] | None:
    """Returns the usual names of the pair that is there, None where there is none."""
    pairs = [pair for pair in _PAIRS if set(pair) <= set(free)]
    if not pairs:
        return None
    others = {name for pair in pairs for name in pair} | {name for name in free if name in _TEXTS}
    if len(pairs) > 1 or others > set(pairs[0]):
        raise InputError(
            f"several of the columns {listed(columns)} could be the text or its pair; set "
            "config.data.text_column, and config.data.pair_column for pairs"
        )
    return pairs[0]
