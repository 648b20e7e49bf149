"""The names that transformers' files have for the values of BERT and its kin."""

from __future__ import annotations

import functools

from tlx.weights.keymap import Key, KeyTable, linear, same, value

_TABLE = same(2)  # an embedding, [V, D]

# What a file may have of pretraining, or of other tasks: no network here has it.
DROPPED = (
    r"cls\..*",
    r"lm_head\..*",
    r"(generator|discriminator)_predictions\..*",
    r"generator_lm_head\..*",
    r"vocab_(transform|layer_norm|projector)\..*",
    r"qa_outputs\..*",
    r"(summary|sequence_summary)\..*",
)

_PREFIXES = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm_roberta": "roberta.",
    "electra": "electra.",
}


def backbone(bare: tuple[Key, ...], name: str = "transformers") -> KeyTable:
    """Returns the table of an encoder alone, whose names have no prefix."""
    return KeyTable(f"{name}_backbone", bare, dropped=DROPPED)


@functools.cache
def bert_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables for an encoder whose layers are named as BERT's.

    They are those of a network with a head (`bert.` or the like before every name of the encoder), of the encoder alone, and of
    both as the first releases call the values of a LayerNorm, gamma and beta.
    """
    prefix = _PREFIXES[name]
    if name == "bert":
        head = linear("classifier", "head")
    else:
        head = (
            *linear("classifier", "head"),
            *linear("classifier.dense", "head.dense"),
            *linear("classifier.out_proj", "head.out"),
        )
    tables: list[KeyTable] = []
    for table, scale, bias in (
        ("transformers", "weight", "bias"),
        ("transformers_legacy", "gamma", "beta"),
    ):
        rows, bare = (_bert(name, start, scale, bias) for start in (prefix, ""))
        tables += [KeyTable(table, (*rows, *head), dropped=DROPPED), backbone(bare, table)]
    return tuple(tables)


def _bert(name: str, prefix: str, scale: str, bias: str) -> tuple[Key, ...]:
    theirs = f"{prefix}encoder.layer.{{i}}"
    ours = "layer.{i}"
    first = f"{prefix}embeddings"
    parts = ("query", "key", "value")
    rows = [
        value(f"{first}.word_embeddings.weight", "embeddings.word_embedding", _TABLE),
        value(f"{first}.position_embeddings.weight", "embeddings.position_embedding", _TABLE),
        value(f"{first}.token_type_embeddings.weight", "embeddings.type_embedding", _TABLE),
        *norm(f"{first}.LayerNorm", "embeddings.norm", scale, bias),
        Key(f"{first}.position_ids", ()),
        Key(f"{first}.token_type_ids", ()),
        *(
            r
            for p in parts
            for r in linear(f"{theirs}.attention.self.{p}", f"{ours}.attention.{p}")
        ),
        *linear(f"{theirs}.attention.output.dense", f"{ours}.attention.output"),
        *norm(f"{theirs}.attention.output.LayerNorm", f"{ours}.norm1", scale, bias),
        *linear(f"{theirs}.intermediate.dense", f"{ours}.fc1"),
        *linear(f"{theirs}.output.dense", f"{ours}.fc2"),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}.norm2", scale, bias),
    ]
    if name == "electra":
        rows += linear(f"{prefix}embeddings_project", "embeddings.projection")
    if name == "bert":
        rows += linear(f"{prefix}pooler.dense", "pooler.dense")
    else:  # its classifier does not read it
        rows += [Key(f"{prefix}pooler.dense.weight", ()), Key(f"{prefix}pooler.dense.bias", ())]
    return tuple(rows)


def norm(source: str, target: str, scale: str = "weight", bias: str = "bias") -> tuple[Key, ...]:
    """The rows of a LayerNorm whose values are called so."""
    return (
        value(f"{source}.{scale}", f"{target}.scale"),
        value(f"{source}.{bias}", f"{target}.bias"),
    )


@functools.cache
def distilbert_tables() -> tuple[KeyTable, ...]:
    """Returns the key tables for DistilBERT: of a network that classifies texts, or tokens, and of the encoder alone."""
    rows = _distilbert("distilbert.")
    texts = (*linear("pre_classifier", "head.dense"), *linear("classifier", "head.out"))
    return (
        KeyTable(
            "transformers", (*rows, *texts), dropped=DROPPED, required="pre_classifier.weight"
        ),
        KeyTable("transformers_tokens", (*rows, *linear("classifier", "head")), dropped=DROPPED),
        backbone(_distilbert("")),
    )


def _distilbert(prefix: str) -> tuple[Key, ...]:
    theirs, ours, first = f"{prefix}transformer.layer.{{i}}", "layer.{i}", f"{prefix}embeddings"
    parts = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "output"}
    return (
        value(f"{first}.word_embeddings.weight", "embeddings.word_embedding", _TABLE),
        value(f"{first}.position_embeddings.weight", "embeddings.position_embedding", _TABLE),
        *norm(f"{first}.LayerNorm", "embeddings.norm"),
        Key(f"{first}.position_ids", ()),
        *(
            row
            for part, own in parts.items()
            for row in linear(f"{theirs}.attention.{part}", f"{ours}.attention.{own}")
        ),
        *norm(f"{theirs}.sa_layer_norm", f"{ours}.norm1"),
        *linear(f"{theirs}.ffn.lin1", f"{ours}.fc1"),
        *linear(f"{theirs}.ffn.lin2", f"{ours}.fc2"),
        *norm(f"{theirs}.output_layer_norm", f"{ours}.norm2"),
    )
