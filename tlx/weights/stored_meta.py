"""The meta in the header of a safetensors file, which anybody may have written."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
import unicodedata
from pathlib import Path
from typing import Any

from tlx.errors import InputError
from tlx.weights.files import safetensors_metadata
from tlx.weights.meta import (
    PREPROCESS_CHOICES,
    ImagePreprocess,
    Preprocess,
    TextPreprocess,
    WeightsMeta,
    preprocess_kind,
)
from tlx.weights.pickle_machine import short

KEY = "tlx_meta"

_TYPES: dict[type, dict[str, Any]] = {
    kind: typing.get_type_hints(kind) for kind in (WeightsMeta, ImagePreprocess, TextPreprocess)
}
_MAX_PIXELS = 2**14  # of a side; a meta must not make anybody resize pictures to gigabytes
_MAX_CHANNELS = 2**10
_MAX_TEXT = 2**14  # characters of one text
_MAX_NUMBER = 2**53


def stored_meta(path: str | Path) -> WeightsMeta | None:
    """Returns the meta that `tlx.save_weights` put into the file; None where there is none.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is no weights file, or what stands there is no meta, which is then said.
    """
    text = safetensors_metadata(path).get(KEY)
    if text is None:
        return None
    try:
        return _meta(json.loads(text, parse_constant=_no_constant))
    except RecursionError:
        raise InputError(f"{path}: its {KEY} is nested deeply; refused") from None
    except ValueError as error:
        raise InputError(f"{path}: its {KEY} is damaged: {short(error)}") from error


def _meta(values: Any) -> WeightsMeta:
    _check_fields(WeightsMeta, values)
    preprocess = values.get("preprocess")
    if preprocess is None:
        raise ValueError("preprocess is missing")
    if type(preprocess) is not dict:
        raise ValueError("preprocess is no object")
    _check_fields(preprocess_kind(preprocess), preprocess)
    meta = WeightsMeta.from_json(values)
    found = meta.preprocess
    if isinstance(found, TextPreprocess):
        return meta
    if len(found.mean) != len(found.std) or not 1 <= len(found.mean) <= _MAX_CHANNELS:
        raise ValueError("mean and std are not one number for each channel")
    if min(found.std) <= 0:
        raise ValueError("std is not positive")
    if not (1 <= found.size <= _MAX_PIXELS and 1 <= found.resize <= _MAX_PIXELS):
        raise ValueError(f"size and resize are not between 1 and {_MAX_PIXELS} pixels")
    return meta


def _check_fields(kind: type, values: Any) -> None:
    """Holds JSON against the fields of a dataclass. Raises ValueError, which names the field."""
    if type(values) is not dict:
        raise ValueError(f"expected an object with the fields of {kind.__name__}")
    types = _TYPES[kind]
    unknown = [name for name in values if name not in types]
    if unknown:
        raise ValueError(f"unknown field {short(repr(unknown[0]))}; a newer tlx may know it")
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    lacking = [name for name in required if name not in values]
    if lacking:
        raise ValueError(f"{lacking[0]} is missing")
    for name, value in values.items():
        if not _fits(value, types[name]):
            raise ValueError(f"{name} is {short(repr(value)[:100])}")
        choices = PREPROCESS_CHOICES.get(name, (value,))
        if value not in choices:
            raise ValueError(f"{name} is {short(value)}, expected one of {', '.join(choices)}")


def _fits(value: Any, kind: Any) -> bool:
    if kind == Preprocess:
        return type(value) is dict
    if kind is bool:
        return type(value) is bool
    if typing.get_origin(kind) is tuple:  # of any length, of one type
        return type(value) is list and all(_fits(v, typing.get_args(kind)[0]) for v in value)
    if kind is str:
        return type(value) is str and len(value) <= _MAX_TEXT and is_clean(value)
    if kind is int:
        return type(value) is int and 0 <= value <= _MAX_NUMBER
    return type(value) in (int, float) and abs(value) <= _MAX_NUMBER and math.isfinite(value)


def is_clean(text: str) -> bool:
    """Returns whether a text has no controls, which would reach terminals, and no lone surrogates, which no file can hold."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
