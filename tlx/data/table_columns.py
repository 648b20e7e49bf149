"""Which column of a table, or feature of a data set, is what: by a name in the config, or a usual one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from tlx.config import nearest
from tlx.data.text_file import shown
from tlx.errors import InputError

_LISTED = 10  # columns in an error


@dataclasses.dataclass(frozen=True)
class Role:
    """What a column can be."""

    title: str
    names: tuple[str, ...]  # usual ones, as `plain` writes them
    needed: bool = True
    column: str = ""  # that the config names; "": a usual one
    field: str = ""  # of the config, that names it; "": there is none


def listed(columns: Sequence[str]) -> str:
    """Returns the columns as an error lists them."""
    more = ", ..." if len(columns) > _LISTED else ""
    return (", ".join(map(shown, columns[:_LISTED])) + more) or "none"


def plain(column: str) -> str:
    """Returns a column's name without regard to case, spaces and underscores."""
    return re.sub(r"[\s_]+", "", column).casefold()


def find_roles(columns: Sequence[str], roles: Sequence[Role], header: str) -> dict[str, int]:
    """Returns role -> index of its column, for all roles that have one.

    Args:
      columns: their names.
      roles: those that the config names take their column first.
      header: an example of a header line, for errors.

    Raises:
      InputError: a column that the config names is not there, none or several could be a role, or one is two roles.
    """
    found = named_columns(columns, roles)
    for role in roles:
        if role.column:
            continue
        fits = [
            index
            for index, column in enumerate(columns)
            if index not in found.values() and plain(column) in role.names
        ]
        if len(fits) > 1:
            both = " and ".join(shown(columns[index]) for index in fits)
            way = f"set config.data.{role.field}" if role.field else "rename one"
            raise InputError(f"columns {both} could both be the {role.title}; {way}")
        if fits:
            found[role.title] = fits[0]
        elif role.needed:
            usual = ", ".join(role.names[:_LISTED]) + (", ..." * (len(role.names) > _LISTED))
            way = f"; config.data.{role.field} can name it" if role.field else ""
            raise InputError(
                f"no column for the {role.title} (one of {usual}); the columns are "
                f"{listed(columns)}{way} (a CSV begins with a header line, as {header})"
            )
    return found


def named_columns(columns: Sequence[str], roles: Sequence[Role]) -> dict[str, int]:
    """Returns role -> index of its column, for the roles whose column the config names. Raises as `find_roles`."""
    found: dict[str, int] = {}
    for role in roles:
        if not role.column:
            continue
        index = _index(columns, role)
        taken = [title for title, other in found.items() if other == index]
        if taken:
            raise InputError(
                f"column {shown(columns[index])} is both the {taken[0]} and the {role.title}; "
                f"config.data.{role.field} must name another"
            )
        found[role.title] = index
    return found


def _index(columns: Sequence[str], role: Role) -> int:
    fits = [i for i, column in enumerate(columns) if column.strip() == role.column.strip()]
    fits = fits or [i for i, column in enumerate(columns) if plain(column) == plain(role.column)]
    if len(fits) == 1:
        return fits[0]
    problem = "several columns have that name" if fits else f"the columns are {listed(columns)}"
    hint = "" if fits else nearest(role.column, columns)
    raise InputError(f"config.data.{role.field} is {shown(role.column)}, but {problem}{hint}")
