"""python -m tlx.models [PATTERN]: the known sets of weights as a table, the models that have none, other names.

The shell pattern is matched against `model.tag`, the model's name and other projects' names for it. Exit codes:
0 done; 2 the input is wrong (one line says what).
"""

from __future__ import annotations

import fnmatch
import os
import sys
import urllib.parse
from collections.abc import Sequence

from tlx import models
from tlx.columns import aligned
from tlx.config import nearest
from tlx.errors import InputError
from tlx.weights import catalog
from tlx.weights.meta import WeightsMeta

DONE, WRONG_INPUT = 0, 2

HELP = """usage: python -m tlx.models [PATTERN]

  PATTERN  a shell pattern in quotes, as "resnet50*" or "*.tv_in1k"; a model's name shows all its weights

Columns: name (for create_model), parameters in millions, input size in pixels, crop (the part of the resized
picture's side that is used), interpolation, published ImageNet-1k top-1 accuracy in percent at that size,
where the weights come from, and their licence as the publisher states it. "-": not published.
"""

HEADER = ("weights", "params/M", "input", "crop", "interpolation", "top-1", "from", "licence")
NUMBERS = ("params/M", "input", "crop", "top-1")  # the columns that are set flush right


def main(arguments: Sequence[str]) -> int:
    """Prints the table and returns the exit code."""
    if any(word in ("--help", "-h", "--h") for word in arguments):
        print(HELP, end="")
        return DONE
    try:
        if arguments and arguments[0].startswith("-"):
            raise InputError(f"unknown option {arguments[0]}: there is only --help")
        if len(arguments) > 1:
            raise InputError(
                f"one pattern at most, not {len(arguments)} ({' '.join(arguments)}): put it in quotes, "
                "or the shell replaces it with the names of files"
            )
        print("\n".join(report(arguments[0] if arguments else "*")))
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:  # as with `| head`; the interpreter would complain again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def report(pattern: str) -> list[str]:
    """Returns the lines: a table of the weights that match, then models without any, then other names.

    Raises:
      InputError: nothing matches.
    """
    known = catalog.entries()
    rows: list[tuple[str, ...]] = []
    without: list[str] = []
    others: list[str] = []
    for name in models.FAMILIES:
        whole = any(fnmatch.fnmatchcase(each, pattern) for each in (name, *aliases(name)))
        own = {full: meta for full, meta in known.items() if meta.architecture == name}
        shown = [full for full in own if whole or _matches(own[full], pattern)]
        rows += [row(full, own[full]) for full in shown]
        if whole and not own:
            without.append(name)
        if whole or shown:
            others += [f"{alias} = {name}" for alias in aliases(name)]
    if not rows and not without:
        names = [*models.FAMILIES, *models.ALIASES, *known]
        raise InputError(f"no model and no weights match {pattern!r}{nearest(pattern, names)}")
    parts = [table([HEADER, *rows])] if rows else []
    if without:
        parts.append([f"without known weights: {', '.join(without)}"])
    if others:
        parts.append([f"other names: {', '.join(others)}"])
    return [line for part in parts for line in ("", *part)][1:]


def aliases(name: str) -> list[str]:
    """Returns other projects' names for the model."""
    return [alias for alias, known in models.ALIASES.items() if known == name]


def row(name: str, meta: WeightsMeta) -> tuple[str, ...]:
    """Returns the columns of HEADER; "-" for what is not published."""
    return (
        name,
        f"{meta.parameters / 1e6:.2f}" if meta.parameters else "-",
        str(meta.image.size),
        f"{meta.image.crop_fraction:.3f}",
        meta.image.interpolation,
        f"{meta.top1:.2f}" if meta.top1 else "-",
        urllib.parse.urlsplit(meta.source).hostname or meta.source.removesuffix(f"/{name}"),
        meta.license or "-",
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows as lines of aligned columns; the first row is the header."""
    return aligned(rows, right=[i for i, title in enumerate(rows[0]) if title in NUMBERS])


def _matches(meta: WeightsMeta, pattern: str) -> bool:
    names = (meta.architecture, *aliases(meta.architecture))
    return any(fnmatch.fnmatchcase(f"{name}.{meta.tag}", pattern) for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
