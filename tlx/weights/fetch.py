"""Where the file of a set of weights is: built in, in the cache, or brought there from the network.

A file that was put into the cache by hand is as good as a downloaded one, and is checked as one:

- from a URL: `$TLX_CACHE/FILENAME`;
- from a Hugging Face repository: `$TLX_CACHE/OWNER--NAME/FILENAME`.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from tlx.errors import InputError
from tlx.weights.cache import (
    TransferError,
    cache_dir,
    check,
    check_digits,
    missing,
    offline,
    unwritable,
)
from tlx.weights.catalog import BUILTIN
from tlx.weights.download import download
from tlx.weights.meta import WeightsMeta

__all__ = ["Located", "cache_dir", "fetch", "locate"]


@dataclasses.dataclass(frozen=True)
class Located:
    """A file on this machine that was held against its checksum."""

    path: Path
    revision: str = (
        ""  # the hub repository's commit that the file is of; "" where there is none, or unknown
    )


def locate(meta: WeightsMeta, *, cache: Path | None = None, timeout: float = 5.0) -> Located:
    """Returns where the weights' file is, downloaded by what `meta.source` says unless it is there.

    With TLX_OFFLINE=1 in the environment nothing is downloaded.

    Args:
      meta: `source` is a URL, hub:OWNER/NAME or builtin; `filename`, `sha256` and `revision` go with it.
      cache: the folder to use in place of `cache_dir()`.
      timeout: seconds, as for `fetch`.

    Raises:
      InputFileNotFoundError: it is not in the cache and cannot be downloaded.
      InputError: the checksum is wrong, the cache cannot be written to, or the source is of no known kind.
    """
    if meta.source == "builtin":
        return Located(BUILTIN / meta.filename)
    if meta.source.startswith("hub:"):
        from tlx.weights.hub import fetch_from_hub  # its library is needed by nobody else

        path, commit = fetch_from_hub(
            meta.source.removeprefix("hub:"),
            meta.filename,
            revision=meta.revision,
            sha256=meta.sha256,
            cache=cache,
            timeout=timeout,
        )
        return Located(path, commit)
    path = fetch(
        meta.source, filename=meta.filename, sha256=meta.sha256, cache=cache, timeout=timeout
    )
    return Located(path)


def fetch(
    url: str, *, filename: str, sha256: str, cache: Path | None = None, timeout: float = 5.0
) -> Path:
    """Returns the path of `filename` in the cache, downloaded from `url` unless it is there.

    A file that is there, downloaded or put there by hand, is checked as a downloaded one is. With
    TLX_OFFLINE=1 in the environment nothing is downloaded. What a broken download left is continued. Of several
    processes that want the file one downloads it, and the others wait.

    Args:
      url: http or https.
      filename: its name in the cache, no path.
      sha256: the file's checksum, 64 hexadecimal digits or the first few of them; "" where not known.
      cache: the folder to use in place of `cache_dir()`.
      timeout: seconds until the server must have answered (name lookup included), and for which the
        transfer may then stand still.

    Raises:
      InputFileNotFoundError: it is not in the cache and cannot be downloaded.
      InputError: the checksum is wrong, or the cache cannot be written to.
    """
    if not re.fullmatch(r"https?://.+", url) or Path(filename).name != filename:
        raise InputError(
            f"cannot download {url!r} as {filename!r}: expected http(s) and a bare file name"
        )
    check_digits(sha256)
    path = (cache or cache_dir()) / filename
    if path.exists():
        check(path, sha256)
        return path
    if offline():
        raise missing(path, url, "TLX_OFFLINE is set")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(url, path, sha256=sha256, timeout=timeout)
    except TransferError as error:
        raise missing(path, url, str(error)) from error
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise unwritable(path, error) from error
    return path
