"""What is written beside a text model's weights, so that transformers and tlx open the folder: config.json and the tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tlx import models
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import write_json_atomic, write_text_atomic
from tlx.models.text import POOLER
from tlx.tokens.files import WHOLE
from tlx.tokens.roles import special_tokens
from tlx.tokens.settings import CONFIG as TOKENIZER_CONFIG
from tlx.tokens.tokenizer import open_tokenizer
from tlx.weights.meta import WeightsMeta
from tlx.weights.text_folder import (
    CONFIG,
    PROBLEM_TYPES,
    WEIGHTS,
    read_config,
    sizes_of,
)

# Model type in config.json -> what the names of its classes in transformers begin with.
_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "deberta-v2": "DebertaV2",
    "modernbert": "ModernBert",
}


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """The contents of the files; without a tokenizer only config.json."""

    config: Mapping[str, Any]
    tokenizer: str  # content of tokenizer.json
    digest: str  # of that
    tokenizer_config: Mapping[str, Any]

    @classmethod
    def of(cls, meta: WeightsMeta, dtypes: Collection[str]) -> TextFiles:
        """Returns the files for a network.

        Args:
          meta: of the network.
          dtypes: the types of the weights as they are written.
        """
        text = meta.text
        inputs = ["input_ids", *(["token_type_ids"] if text.segments else []), "attention_mask"]
        tokenizer_config = {
            # The class that takes tokenizer.json as it is; a family's own is built anew from its vocabulary.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": text.max_length,
            "model_input_names": inputs,
            **(special_tokens(text.content, text.pad_id) if text.content else {}),
        }
        return cls(_config(meta, dtypes), text.content, text.tokenizer, tokenizer_config)

    def for_weights(self, path: Path) -> TextFiles | None:
        """Returns these files if they may be written beside the weights; None if what they say is there already.

        Args:
          path: of the weights; the folder may have other files.

        Raises:
          InputError: the folder's config.json is that of other weights in it, or no network's.
        """
        folder = path.parent
        if not os.path.lexists(folder / CONFIG):
            return self
        advice = "save the weights into a folder of their own"
        config = read_config(folder)
        if "model_type" not in config:
            raise InputError(f"{folder / CONFIG} is not the config of a network: {advice}")
        others = sorted(
            file.name
            for file in folder.iterdir()
            if (file.suffix == ".safetensors" or file.name in WEIGHTS) and file.name != path.name
        )
        if not others:
            return self
        if self._are_in(folder, config):
            return None
        raise InputError(
            f"{folder} has the {CONFIG} and the tokenizer of other weights ({', '.join(others[:4])}): {advice}"
        )

    def write(self, folder: Path) -> None:
        """Writes the files, each at once; others that the folder has stay as they are.

        Raises:
          InputError: they cannot be written.
        """
        try:
            if self.tokenizer:
                write_text_atomic(folder / WHOLE, self.tokenizer)
                write_json_atomic(folder / TOKENIZER_CONFIG, self.tokenizer_config)
            write_json_atomic(folder / CONFIG, self.config)
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror or error}") from error

    def _are_in(self, folder: Path, config: Mapping[str, Any]) -> bool:
        if "id2label" in self.config:
            for field in ("id2label", "architectures", "problem_type"):
                if config.get(field) != self.config.get(field):
                    return False
        if sizes_of(config) != sizes_of(self.config):
            return False
        try:
            return not self.tokenizer or open_tokenizer(folder).digest == self.digest
        except (InputError, InputFileNotFoundError):
            return False


def _config(meta: WeightsMeta, dtypes: Collection[str]) -> dict[str, Any]:
    name = meta.architecture
    config = _theirs(meta)
    config.setdefault("model_type", models.family(name).MODEL_TYPES[name])
    kind = class_of(meta)
    found: dict[str, Any] = {"architectures": [kind]} if kind else {}
    found |= config
    # transformers computes in the type that is named here, else in that of the first value.
    found["dtype"] = next(iter(dtypes)) if len(dtypes) == 1 else "float32"
    if not meta.num_classes:
        return found
    labels = meta.class_names or [f"LABEL_{index}" for index in range(meta.num_classes)]
    found["id2label"] = {str(index): label for index, label in enumerate(labels)}
    found["label2id"] = {label: index for index, label in enumerate(labels)}
    problems = {task: problem for problem, task in PROBLEM_TYPES.items()}
    if not meta.per_token and meta.task in problems:
        found["problem_type"] = problems[meta.task]
    return found


def class_of(meta: WeightsMeta) -> str:
    """Returns the class of transformers that is the same network; "": there is none.

    Its classifiers read the output of the family's pooler, which weights of an encoder may lack: a classifier that was
    trained on them here reads the hidden state.
    """
    kind = _CLASSES[models.family(meta.architecture).MODEL_TYPES[meta.architecture]]
    if not meta.num_classes:
        return f"{kind}Model"
    theirs = dataclasses.replace(meta, config=json.dumps(_theirs(meta)))
    own, other = (
        models.abstract_model(meta.architecture, num_classes=meta.num_classes, meta=each)
        for each in (meta, theirs)
    )
    if own.stages != other.stages:
        return ""
    return f"{kind}For{'Token' if meta.per_token else 'Sequence'}Classification"


def _theirs(meta: WeightsMeta) -> dict[str, Any]:
    """Returns what config.json says of the network, without the fields that are only known here."""
    sizes: dict[str, Any] = json.loads(meta.config) if meta.config else {}
    return {field: value for field, value in sizes.items() if field != POOLER}
