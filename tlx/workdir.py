"""The folder of one run: what is where, and whether it may be used. Imports no jax."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tlx import config as config_lib
from tlx.config import Config
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import write_json_atomic


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Names of the files in a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def base(self) -> Path:
        return self.path / "base" / "base.json"

    def read_config(self) -> Config:
        """Returns the config of the run in this folder.

        Raises:
          InputError, InputFileNotFoundError: there is none, or it is damaged.
        """
        if not self.config.is_file():
            raise InputFileNotFoundError(
                f"{self.path} holds no run: there is no {self.config.name} in it"
            )
        return config_lib.build(_read_json(self.config))

    def check(self, config: Config) -> None:
        """Raises InputError where the folder holds another run's config, naming the fields."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"workdir {self.path} is a file")
        if not self.config.is_file():
            return
        changed = config_lib.differences(self.read_config(), config)
        if changed:
            raise InputError(
                f"workdir {self.path} holds another run ({'; '.join(changed)}); "
                "use another --workdir, or delete this one"
            )

    def read_summary(self) -> dict[str, Any] | None:
        """Returns summary.json of a completed training run, else None."""
        if not self.summary.is_file():
            return None
        summary = _read_json(self.summary)
        return summary if summary.get("mode") == "train" else None

    def write_config(self, config: Config) -> None:
        """Makes the folder and writes the config into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.config, config_lib.to_json(config))


def default_path(config: Config, name: str) -> Path:
    """Returns `runs/<config's name>-<hash>`."""
    return Path("runs") / f"{name}-{config_lib.digest(config)}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected an object")
    return value
