"""The folder that a text model is published in: config.json, weights and tokenizer, here or in a repository of the hub."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlx import models
from tlx.config import nearest
from tlx.errors import InputError, InputFileNotFoundError
from tlx.models.text import POOLER
from tlx.tokens.files import VOCABULARIES, WHOLE
from tlx.tokens.settings import FILES as SETTINGS
from tlx.tokens.tokenizer import Tokenizer, open_tokenizer
from tlx.weights.meta import TextPreprocess, WeightsMeta
from tlx.weights.stored_meta import is_clean

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there

# Fields of config.json that say what a network was trained for and by which release, not what it is.
_NOT_SIZES = frozenset(
    "id2label label2id architectures problem_type transformers_version _name_or_path torch_dtype dtype num_labels "
    "finetuning_task use_cache _num_labels".split()
)
# How problem_type calls the tasks of whole texts.
PROBLEM_TYPES = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
_MOST = 2**24  # bytes of a config.json
_LONGEST = 2**16  # tokens, of networks that set no limit
_SPARE = 256  # rows of an embedding beyond the vocabulary, as multiples of 64 have them
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class TextFolder:
    """A folder whose config.json and tokenizer were read; the weights were not."""

    name: str  # of the architecture
    path: Path
    config: dict[str, Any]
    weights: Path
    tokenizer: Tokenizer
    source: str  # hub:OWNER/NAME, or ""
    revision: str

    def meta(self, arrays: Mapping[str, np.ndarray] | None = None) -> WeightsMeta:
        """Returns the facts of the network.

        Args:
          arrays: the file's values by their paths here; None: it was not opened.

        Raises:
          InputError: the tokenizer is another model's, or config.json describes no network of this family.
        """
        family = models.family(self.name)
        sizes = sizes_of(self.config)
        per_token = "ForTokenClassification" in str(self.config.get("architectures"))
        problem = str(self.config.get("problem_type"))
        pooler = family.POOLERS.get(self.name)
        if arrays is not None and pooler is not None and pooler not in arrays:
            sizes[POOLER] = False
        try:
            vocabulary, longest, pad_id, segments = family.text_facts(self.name, sizes)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        _check_tokenizer(self, vocabulary, pad_id)
        return WeightsMeta(
            architecture=self.name,
            preprocess=TextPreprocess(
                max_length=longest or _LONGEST,
                tokenizer=self.tokenizer.digest,
                pad_id=pad_id,
                segments=segments,
                content=self.tokenizer.content,
            ),
            class_names=_class_names(self.path, self.config),
            classifier="classifier",
            source=self.source,
            revision=self.revision,
            config=json.dumps(sizes, sort_keys=True),
            per_token=per_token,
            task="tagging" if per_token else PROBLEM_TYPES.get(problem, ""),
        )


def open_folder(name: str, weights: str) -> TextFolder:
    """Returns the folder of a text model's weights: a path of it, of its weights file, or OWNER/NAME on the hub.

    Raises:
      InputFileNotFoundError: there is no such folder, or it lacks a file; what is there is named.
      InputError: config.json is damaged or of another family, or the tokenizer is damaged.
    """
    path, source, revision = _located(name, weights)
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    _check_type(name, folder, config)
    if path.is_dir():
        path = next((path / file for file in WEIGHTS if (path / file).is_file()), path)
        if path == folder:
            raise InputFileNotFoundError(
                f"{folder} has no weights ({' or '.join(WEIGHTS)}); {_there(folder)}"
            )
    return TextFolder(name, folder, config, path, open_tokenizer(folder), source, revision)


def _located(name: str, weights: str) -> tuple[Path, str, str]:
    """Returns the folder or the file of weights, and its place on the hub."""
    try:
        path = Path(weights).expanduser()
        there = path.exists()
    except (OSError, RuntimeError):
        path, there = Path(weights), False
    if there:
        return path, "", ""
    if not _HUB.fullmatch(weights) or weights.startswith("."):
        raise InputFileNotFoundError(
            f"no weights {weights[:200]!r} for {name}: expected a folder with {CONFIG}, or OWNER/NAME of a repository of the hub"
        )
    folder, commit = _fetch(weights)
    return folder, f"hub:{weights}", commit


def _fetch(repository: str) -> tuple[Path, str]:
    """Returns the folder that a repository's files are in, once all that is needed is there, and its commit."""
    from tlx.weights import hub  # its library is needed by nobody else

    config, commit = hub.fetch_from_hub(repository, CONFIG)
    if not commit:  # a folder that was put into the cache by hand is as it is
        return config.parent, ""

    def fetched(file: str) -> bool:
        """Whether the file is there now; it is not where the repository has none, or where nothing may be asked."""
        try:
            hub.fetch_from_hub(repository, file, revision=commit)
        except hub.NotInRepositoryError:
            return False
        except InputFileNotFoundError:
            if hub.is_offline():
                return False
            raise
        return True

    if not any(map(fetched, WEIGHTS)):
        hub.fetch_from_hub(repository, WEIGHTS[0], revision=commit)  # says why
    if not fetched(WHOLE):
        for file in SETTINGS:
            fetched(file)
        if not any(all(map(fetched, files)) for files in VOCABULARIES):
            hub.fetch_from_hub(repository, WHOLE, revision=commit)
    return config.parent, commit


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config.json that say what the network is."""
    return {name: value for name, value in config.items() if name not in _NOT_SIZES}


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's config.json. Raises as `open_folder`."""
    path = folder / CONFIG
    if not path.is_file():
        raise InputFileNotFoundError(
            f"{folder} has no {CONFIG}, which says the sizes of the network; {_there(folder)}"
        )
    if path.stat().st_size > _MOST:
        raise InputError(f"{path} is larger than {_MOST} bytes: it is no model's config")
    try:
        config = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {str(error)[:100]}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged: expected an object")
    return config


def _check_type(name: str, folder: Path, config: Mapping[str, Any]) -> None:
    expected = models.family(name).MODEL_TYPES[name]
    found = str(config.get("model_type", expected))[:80]
    if found == expected:
        return
    known = {
        kind: other
        for other in models.FAMILIES
        if models.is_text(other)
        for kind in (models.family(other).MODEL_TYPES[other],)
    }
    advice = f"; set model.name={known[found]}" if found in known else nearest(found, known)
    raise InputError(f"{folder / CONFIG} is of a {found!r}, but the model is {name}{advice}")


def _check_tokenizer(folder: TextFolder, vocabulary: int, pad_id: int) -> None:
    """Raises InputError where the tokenizer's ids are not those of the embedding."""
    own = folder.tokenizer.vocab_size
    if not vocabulary - max(_SPARE, vocabulary // 64) <= own <= vocabulary:
        raise InputError(
            f"{folder.path}: the tokenizer has {own} tokens, but the network an embedding of {vocabulary}: they are of "
            "different models"
        )
    found = folder.tokenizer.pad_id
    if found is not None and found != pad_id:
        raise InputError(
            f"{folder.path}: the tokenizer pads with token {found}, but config.json says {pad_id}: they are of different models"
        )


def _class_names(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of `id2label`; () where they say nothing (LABEL_0)."""
    table = config.get("id2label")
    if table is None:
        return ()
    if not isinstance(table, dict):
        raise InputError(
            f"{folder / CONFIG}: id2label is no object of numbers and names of classes"
        )
    try:
        numbered = {int(number): label for number, label in table.items()}
        labels = [numbered[index] for index in range(len(table))]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{folder / CONFIG}: id2label does not number its classes 0, 1, ..."
        ) from error
    for index, label in enumerate(labels):
        if not isinstance(label, (str, int, float)) or not is_clean(str(label)):
            raise InputError(
                f"{folder / CONFIG}: id2label calls class {index} {str(label)[:80]!r}, expected a text without control "
                "characters"
            )
    names = tuple(map(str, labels))
    if all(label == f"LABEL_{index}" for index, label in enumerate(names)):
        return ()
    if len(set(names)) != len(names):
        raise InputError(f"{folder / CONFIG}: id2label has a class twice")
    return names


def _there(folder: Path) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        names = []
    return f"it has: {', '.join(names[:12])}" if names else "it is empty"
