"""Which runs a soup is made of, and the config that follows from theirs. Imports no jax."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlx import config as config_lib
from tlx.config import Config, TuneConfig
from tlx.errors import InputError
from tlx.workdir import Workdir

# Methods whose adapters are merged before they are averaged: the mean of A times the mean of B is not the mean of BA.
MERGED = ("lora", "dora")


def soup_config(fields: Mapping[str, Any], out: Path | None) -> Config:
    """Returns the config of a soup: that of its first run, with the soup's own fields and where the data is now.

    A soup of LoRA or DoRA runs is of the merged networks, a plain network: its `tune.method` is full.

    Args:
      fields: `soup.runs`, other fields of the soup, and fields that do not say what a run is, as data.root.
      out: the soup's folder, which a pattern does not mean.

    Raises:
      InputError, InputFileNotFoundError: no run, a folder that holds none, the soup's own folder, or a field that would
        make the runs others than they were.
    """
    soup = config_lib.build(fields).soup
    runs = _folders(soup.runs, out)
    own = Workdir(Path(runs[0])).read_decided()
    if own.tune.method in MERGED:
        # Norms are frozen beside adapters, and everything is trained where the method is full.
        norms = "train" if own.tune.batchnorm == "train" else "frozen"
        own = dataclasses.replace(own, tune=TuneConfig(method="full", batchnorm=norms))
    own = dataclasses.replace(own, soup=dataclasses.replace(soup, runs=runs))
    config = config_lib.build(own, fields, {"soup.runs": runs})
    if changed := config_lib.differences(own, config):
        raise InputError(
            f"a soup is made of runs as they are: {'; '.join(changed)} would make them others"
        )
    return config


def where(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the fields that say where a run's data is now and how it is read: they are put onto every run."""
    return {
        name: value
        for name, value in config_lib.flatten(fields).items()
        if name in config_lib.NOT_IDENTITY and name.startswith("data.")
    }


def _folders(texts: Sequence[str], out: Path | None) -> tuple[str, ...]:
    """Returns each run's folder once, patterns expanded."""
    found: dict[Path, str] = {}
    own = out.resolve() if out else None
    for text in texts:
        matches = [text]
        if glob.has_magic(text) and not Path(text).exists():
            # Path.glob takes no absolute pattern.
            folders = sorted(glob.glob(text))  # noqa: PTH207
            runs = [path for path in folders if Workdir(Path(path)).config.is_file()]
            matches = [path for path in runs if Path(path).resolve() != own]
            if not matches:
                raise InputError(f"soup.runs: no run matches {text}")
        for path in matches:
            Workdir(Path(path)).read_config()
            if Path(path).resolve() == own:
                raise InputError(f"{path} is one of the runs: a soup needs a folder of its own")
            found.setdefault(Path(path).resolve(), path)
    if not found:
        raise InputError(
            "no runs to make a soup of: set soup.runs to their folders, as runs/one,runs/two or 'runs/sweep-*'"
        )
    return tuple(found.values())
