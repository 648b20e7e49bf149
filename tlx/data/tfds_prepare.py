"""Where a TensorFlow Datasets set is prepared, and preparing one that is not.

Looking one up needs neither TensorFlow nor network; preparing needs both.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tlx.config import nearest
from tlx.errors import InputError, InputFileNotFoundError

NETWORK_SECONDS = 5.0  # longest wait for an answer before a download is started

_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.\-+]+))?(?::(?P<version>\d+\.\d+\.\d+))?")
_OFFLINE = "python -m tlx.main --config=configs/digits.py needs neither download nor network"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the source names, and the data directory it is looked for in."""

    name: str
    config: str  # "" is the data set's default
    version: str  # "" is the newest one prepared
    data_dir: Path

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        version = f":{self.version}" if self.version else ""
        return f"tfds:{self.name}{config}{version}"


def parse(name: str, root: str) -> Wanted:
    """Returns what `NAME[/CONFIG][:VERSION]` names and where it is looked for; else InputError."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(
            f"config.data.source is 'tfds:{name}', expected tfds:NAME[/CONFIG][:VERSION], as "
            "tfds:cifar10"
        )
    data_dir = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Wanted(
        match["name"],
        match["config"] or "",
        match["version"] or "",
        Path(data_dir).expanduser(),
    )


def find_prepared(wanted: Wanted) -> Path | None:
    """Returns the folder of the newest prepared version that fits, or None.

    Raises:
      InputError: several configs are prepared, and neither the source nor tfds's own note of the
        default says which one is meant.
    """
    base = wanted.data_dir / wanted.name
    if wanted.config:
        return _newest(base / wanted.config, wanted.version)
    plain = _newest(base, wanted.version)
    if plain is not None or not base.is_dir():
        return plain
    configs = {
        folder.name: version
        for folder in sorted(base.iterdir())
        if folder.is_dir() and (version := _newest(folder, wanted.version)) is not None
    }
    default = _default_config(base)
    if default in configs:
        return configs[default]
    if len(configs) > 1:
        raise InputError(
            f"{wanted}: several configs are prepared in {base}: {', '.join(configs)}; name one, as "
            f"tfds:{wanted.name}/{next(iter(configs))}"
        )
    return next(iter(configs.values()), None)


def prepare(wanted: Wanted) -> Path:
    """Downloads and prepares a data set as array_record; returns its folder.

    Raises:
      InputError: unknown name (with the nearest), or the download or the preparation failed.
      InputFileNotFoundError: TensorFlow or the network is missing; said within 10 s.
    """
    by_hand = (
        f"or put a prepared copy (array_record) at {wanted.data_dir / wanted.name}/"
        f"{wanted.config + '/' if wanted.config else ''}{wanted.version or 'VERSION'}/, "
        f"or name its data directory with config.data.root or TFDS_DATA_DIR; {_OFFLINE}"
    )
    known = tfds_module().list_builders(with_community_datasets=False)
    if wanted.name not in known:
        raise InputError(
            f"{wanted}: tfds has no data set {wanted.name!r}{nearest(wanted.name, known)}, and "
            "none is "
            f"prepared in {wanted.data_dir}"
        )
    where = f"{wanted} is not prepared in {wanted.data_dir}"
    if importlib.util.find_spec("tensorflow") is None:
        raise InputFileNotFoundError(
            f"{where}, and preparing it needs TensorFlow: pip install -e '.[prepare]', {by_hand}"
        )
    try:
        full = str(wanted).removeprefix("tfds:")
        builder = tfds_module().builder(full, data_dir=wanted.data_dir, file_format="array_record")
        urls = list(builder.url_infos or {})
    except Exception as error:  # the builders are third-party code, each with its own errors
        raise InputError(f"{wanted}: {one_line(error)}") from error
    silent = unreachable(urls)
    if silent:
        raise InputFileNotFoundError(
            f"{where}, and it cannot be downloaded: no answer from {silent}; check the network, "
            f"{by_hand}"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise InputError(
            f"{wanted}: preparing in {wanted.data_dir} failed: {one_line(error)}"
        ) from error
    return Path(builder.data_dir)


def unreachable(urls: Iterable[str], *, seconds: float = NETWORK_SECONDS) -> str:
    """Returns a host if none of the URLs' hosts answers, else "" (also where there is none to ask).

    Returns within `seconds` plus 1 whatever the name resolution does: it runs in daemon threads.
    """
    hosts = {url.split("/")[2]: url for url in urls if url.startswith(("http://", "https://"))}
    answers = [concurrent.futures.Future[bool]() for _ in list(hosts)[:8]]
    for url, answer in zip(hosts.values(), answers, strict=False):
        threading.Thread(target=_ask, args=(url, seconds, answer), daemon=True).start()
    with contextlib.suppress(TimeoutError):
        for answer in concurrent.futures.as_completed(answers, timeout=seconds + 1):
            if answer.result():
                return ""
    return next(iter(hosts), "")


@functools.cache
def tfds_module() -> Any:
    """Returns the module tensorflow_datasets, imported when first asked for."""
    import tensorflow_datasets  # 0.6 s; needed only for this source

    return tensorflow_datasets


def one_line(error: BaseException) -> str:
    """Returns the error's type and message on one line, for a message to the user."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _ask(url: str, seconds: float, answer: concurrent.futures.Future[bool]) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
        answer.set_result(True)
    except urllib.error.HTTPError:  # a server that refuses HEAD is there
        answer.set_result(True)
    except Exception:  # noqa: BLE001 - no route, no name, no proxy, bad certificate
        answer.set_result(False)


def _newest(folder: Path, version: str) -> Path | None:
    if not folder.is_dir():
        return None
    versions = {
        tuple(map(int, path.name.split("."))): path
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
        and (path / "dataset_info.json").is_file()
        and version in ("", path.name)
    }
    return versions[max(versions)] if versions else None


def _default_config(base: Path) -> str:
    try:
        text = (base / ".config" / "metadata.json").read_text()
        return str(json.loads(text).get("default_config_name", ""))
    except (OSError, ValueError, AttributeError):
        return ""
