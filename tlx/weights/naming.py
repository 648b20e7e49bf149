"""Which project's names a model's values are written under."""

from __future__ import annotations

from collections.abc import Mapping

from tlx import models
from tlx.config import check_choice
from tlx.errors import InputError
from tlx.models.adapters import NAME as ADAPTER
from tlx.models.base import Model
from tlx.models.leaves import values
from tlx.weights.keymap import KeyTable
from tlx.weights.load import listing


def tables_of(model: Model) -> dict[str, KeyTable]:
    """Returns the key tables of the model's family, by their names."""
    name = model.meta.architecture
    return {table.name: table for table in models.family(name).key_tables(name)}


def tables_to_write(model: Model, names: str = "") -> list[KeyTable]:
    """Returns the key tables that have names for all values of the model but its adapters'.

    That of the file which the weights came from is the first, where it is one of them: a file of an encoder alone has no
    names for a head that was trained on it.

    Args:
      model: with values or not.
      names: of the only table that is wanted; "": any.

    Raises:
      InputError: there is no such table, or none that has names for all.
    """
    tables = tables_of(model)
    if names:
        check_choice("names", names, tuple(tables))
        tables = {names: tables[names]}
    elif model.origin is not None:
        tables = {model.origin.table: tables[model.origin.table]} | tables
    paths = [path for path in values(model) if f".{ADAPTER}." not in path]
    lost = {name: _lost(table, paths) for name, table in tables.items()}
    found = [table for name, table in tables.items() if not lost[name]]
    if not found:
        (name, *_) = sorted(lost, key=lambda name: len(lost[name]))
        raise InputError(f"the {name} network has no names for {listing(lost[name])}")
    return found


def dtypes_of(model: Model, table: KeyTable, paths: Mapping[str, object]) -> dict[str, str]:
    """Returns the types that the values had in the file which they came from, by their names in a table; float32 is left out."""
    origin = model.origin
    if origin is None or not origin.dtypes:
        return {}
    given, own = dict(origin.dtypes), tables_of(model)[origin.table]
    found = {}
    for path in paths:
        old, new = own.row(path), table.row(path)
        if old is not None and new is not None and old[0] in given:
            found[new[0]] = given[old[0]]
    return found


def _lost(table: KeyTable, paths: list[str]) -> list[str]:
    return [path for path in paths if table.row(path) is None and not table.lacks(path)]
