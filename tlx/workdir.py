"""The folder of one run: what is where, and whether it may be used. Imports no jax."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tlx import config as config_lib
from tlx.config import Config
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import write_json_atomic
from tlx.tuning.auto import Choice, decided


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Names of the files in a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def choices(self) -> Path:
        return self.path / "choices.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def base(self) -> Path:
        return self.path / "base" / "base.json"

    @property
    def has_checkpoints(self) -> bool:
        """Whether training has got as far as a checkpoint here."""
        folder = self.path / "checkpoints"
        return folder.is_dir() and any(child.name.isdecimal() for child in folder.iterdir())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other training processes out of it.

        Raises:
          InputError: one is at work there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another process is training in {self.path}") from error
            yield

    def read_config(self) -> Config:
        """Returns the config of the run in this folder.

        Raises:
          InputError, InputFileNotFoundError: there is none, or it is damaged.
        """
        if not self.config.is_file():
            raise InputFileNotFoundError(
                f"{self.path} holds no run: there is no {self.config.name} in it"
            )
        return config_lib.from_json(_read_json(self.config))

    def read_decided(self) -> Config:
        """Returns the same with what tune.method=auto decided in it, once the run is begun. Raises as `read_choices`."""
        config = self.read_config()
        return decided(config, self.read_choices(config))

    def check(self, config: Config) -> None:
        """Raises InputError where the folder holds another run's config (names the fields) or cannot be written."""
        self.check_writable()
        self.check_same(config)

    def check_writable(self) -> None:
        """Raises InputError where nothing can be written here."""
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise InputError(f"workdir {self.path}: {existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"workdir {self.path}: no permission to write in {existing}")

    def check_same(self, config: Config, free: Collection[str] = ()) -> None:
        """Raises InputError where the folder holds the config of another run; fields in `free` may be others."""
        if not self.config.is_file():
            return
        changed = config_lib.differences(self.read_config(), config, free)
        if changed:
            raise InputError(
                f"workdir {self.path} holds another run ({'; '.join(changed)}); "
                "use another --workdir, or delete this one"
            )

    def read_summary(self, mode: str = "train") -> dict[str, Any] | None:
        """Returns summary.json of a completed training run, or of a soup with mode="soup", else None."""
        if not self.summary.is_file():
            return None
        summary = _read_json(self.summary)
        return summary if summary.get("mode") == mode else None

    def write_config(self, config: Config, choices: Sequence[Choice] = ()) -> None:
        """Writes the config as the user gave it, and beside it what tune.method=auto decided."""
        if choices:
            facts = [dataclasses.asdict(choice) for choice in choices]
            write_json_atomic(self.choices, {"choices": facts})
        write_json_atomic(self.config, config_lib.to_json(config))

    def read_choices(self, config: Config) -> tuple[Choice, ...]:
        """Returns what was decided for the run that is trained here; none where its method is not auto.

        Raises:
          InputError, InputFileNotFoundError: it was, and there are none, or they are damaged.
        """
        if config.tune.method != config_lib.AUTO:
            return ()
        if not self.choices.is_file():
            raise InputFileNotFoundError(
                f"{self.path}: tune.method=auto, and what it decided is missing: there is no {self.choices.name} in it"
            )
        try:
            return tuple(
                Choice(
                    field=choice["field"],
                    value=config_lib.checked(choice["field"], choice["value"], choice["field"]),
                    reason=choice["reason"],
                )
                for choice in _read_json(self.choices)["choices"]
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.choices} is damaged: {error!r}") from error


def default_path(config: Config, name: str) -> Path:
    """Returns `runs/<config's name>-<hash>`: another for other data, though moved data is no other run."""
    text = config_lib.digest(config)
    if config.data.root:
        root = str(Path(config.data.root).expanduser().resolve())
        text = hashlib.sha256(f"{text} {root}".encode()).hexdigest()[:8]
    return Path("runs") / f"{name}-{text}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected an object")
    return value
