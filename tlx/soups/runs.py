"""The finished runs that a soup is made of: opened, and held against each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tlx import config as config_lib
from tlx.errors import InputError
from tlx.models.adapters import NAME as ADAPTER
from tlx.setup import Setup, prepare
from tlx.soups.config import MERGED
from tlx.training.resume import StoredModel, drawn_digests, stored_facts, stored_model
from tlx.weights.load import listing
from tlx.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, opened."""

    path: str  # as it was given
    setup: Setup  # of its own config
    stored: StoredModel
    facts: Mapping[str, Any]  # of base.json
    drawn: Mapping[str, str]  # path -> hash of what training began with and no file filled

    @property
    def folder(self) -> Workdir:
        """Its workdir."""
        return Workdir(Path(self.path))

    @property
    def merges(self) -> bool:
        """Whether its adapters are merged before anything is averaged."""
        return self.setup.config.tune.method in MERGED


def open_run(path: str, where: Mapping[str, Any]) -> Run:
    """Opens a finished run.

    Args:
      path: its folder.
      where: fields that say where the data is now; without them it is where the run's own config has it.

    Raises:
      InputError, InputFileNotFoundError: it is a soup or not finished; or as `prepare`.
    """
    folder = Workdir(Path(path))
    own = folder.read_config()
    if own.soup.runs:
        raise InputError(f"{path} is a soup: name the runs that it was made of")
    if folder.read_summary() is None:
        raise InputError(
            f"{path} is not finished: the command that started it goes on; or leave it out"
        )
    own = config_lib.build(folder.read_decided(), where)
    stored = stored_model(folder)
    setup, _ = prepare(own, stored=stored)
    return Run(path, setup, stored, stored_facts(folder)[1], drawn_digests(folder))


def compare(one: Run, two: Run) -> None:
    """Holds two runs against each other.

    Raises:
      InputError: they are not of one network that began with the same weights and trained the same of it, or the pictures
        held out from one may have been trained on in the other; names both and what differs.
    """
    found = [
        f"{what} ({shown(one, two)} and {shown(two, one)})"
        for what, shown in _FACTS.items()
        if shown(one, two) != shown(two, one)
    ]
    if found:
        raise InputError(
            f"{one.path} and {two.path} cannot be averaged, they differ in {'; '.join(found)}"
        )


def describe_drawn(one: Run, two: Run) -> list[str]:
    """Returns a line where two runs of the same weights began with other drawn values, as new heads of other seeds.

    Adapters that are merged change nothing at first, whatever was drawn for them.
    """
    merges = one.merges and two.merges
    other = [
        path
        for path, digest in one.drawn.items()
        if two.drawn.get(path, digest) != digest and not (merges and f".{ADAPTER}." in path)
    ]
    if not other:
        return []
    return [
        f"{one.path} and {two.path} did not begin with the same {listing(other)}: soups are of networks that share their "
        "beginning, and the mean of others can be worse than each (one seed and model.head_init for all: they share it)"
    ]


def _beginning(run: Run, other: Run) -> str:
    if digest := run.facts.get("weights_sha256"):
        adapters = run.facts.get("adapters_sha256")
        return f"sha256 {digest[:16]}" + (f", adapters {adapters[:16]}" if adapters else "")
    return f"drawn from seed {run.setup.config.seed}"


def _shapes(run: Run, other: Run) -> str:
    """Returns the first value that the other has not, or in another shape."""
    if run.merges and other.merges:
        return ""  # without adapters it follows from the architecture, the classes and the input
    mine, yours = run.setup.leaves, other.setup.leaves
    for path in mine | yours:
        shapes = [own[path].shape if path in own else None for own in (mine, yours)]
        if shapes[0] != shapes[1]:
            return f"{path} {shapes[0] or 'absent'}"
    return ""


def _trained(run: Run, other: Run) -> str:
    """Returns what is frozen in one and trained in the other."""
    mine, yours = (set(one.setup.plans[-1].frozen) for one in (run, other))
    if mine == yours or (run.merges and other.merges):
        return ""
    path = min(mine ^ yours)
    return f"tune.method={run.setup.config.tune.method}: {path} {'frozen' if path in mine else 'trained'}"


def _classes(run: Run, other: Run) -> str:
    """Returns the first class that is another."""
    names = (one.setup.model.meta.class_names for one in (run, other))
    pairs = enumerate(itertools.zip_longest(*names))
    return next((f"{i} is {mine}" for i, (mine, yours) in pairs if mine != yours), "")


def _preprocessing(run: Run, other: Run) -> str:
    mine, yours = (dataclasses.asdict(one.setup.model.meta.preprocess) for one in (run, other))
    return ", ".join(f"{name} {mine[name]}" for name in mine if mine[name] != yours[name])


def _examples(split: str) -> Callable[[Run, Run], str]:
    def shown(run: Run, other: Run) -> str:
        examples = run.setup.splits.given().get(split)
        return f"{len(examples)}, {examples.fingerprint[:16]}" if examples is not None else "none"

    return shown


# What must be the same in two runs, and how it is shown of one beside the other.
_FACTS: dict[str, Callable[[Run, Run], str]] = {
    "task": lambda run, other: run.setup.config.task,
    "architecture": lambda run, other: run.setup.model.meta.architecture,
    "number of classes": lambda run, other: str(run.setup.model.meta.num_classes),
    "classes": _classes,
    "preprocessing": _preprocessing,
    "shapes": _shapes,
    "the weights that training began with": _beginning,
    "what is trained": _trained,
    "frozen weights": lambda run, other: f"sha256 {run.facts['frozen_sha256'][:16]}",
    "validation examples (a fraction is drawn with the seed)": _examples("val"),
    "test examples (likewise)": _examples("test"),
}
