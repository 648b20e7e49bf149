"""What ours.py and theirs.py share: the command line, and the file of records."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe import METHODS, RECIPES

from tlx.files import write_json_atomic


def make_parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser of the options that both sides have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tuple(RECIPES), required=True)
    parser.add_argument("--method", choices=METHODS, default="full")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=os.environ.get("TLX_SHARED"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--time-only", choices=("train", "infer"), default="")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns the command line's settings; `recipe` is the task's."""
    settings = parser.parse_args()
    if settings.shared is None or not settings.shared.is_dir():
        parser.error("--shared (or TLX_SHARED) must name the folder with data/")
    settings.recipe = RECIPES[settings.task]
    return settings


def save(record: dict[str, Any], out: Path, same: Sequence[str]) -> None:
    """Puts the record into the list in the file, in place of one with the same values of these names."""
    records = json.loads(out.read_text()) if out.exists() else []
    kept = [r for r in records if any(r[name] != record[name] for name in same)]
    write_json_atomic(out, [*kept, record])
