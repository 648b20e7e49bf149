"""Downloads of weights: into one cache folder, checked before use, and failing soon without a network."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import queue
import re
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import replacing
from tlx.weights.files import sha256_of

_CHUNK = 2**20  # bytes


def cache_dir() -> Path:
    """Returns the folder of downloaded weights: $TLX_CACHE, $XDG_CACHE_HOME/tlx or ~/.cache/tlx.

    It need not exist.
    """
    if os.environ.get("TLX_CACHE"):
        return Path(os.environ["TLX_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "tlx"
    return Path.home() / ".cache" / "tlx"


def fetch(
    url: str, *, filename: str, sha256: str, cache: Path | None = None, timeout: float = 5.0
) -> Path:
    """Returns the path of `filename` in the cache, downloaded from `url` unless it is there.

    A file that is there, downloaded or put there by hand, is checked as a downloaded one is. With
    TLX_OFFLINE=1 in the environment nothing is downloaded.

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
    if not re.fullmatch(r"[0-9a-fA-F]{0,64}", sha256):
        raise InputError(f"{sha256!r} is no SHA-256 checksum: expected up to 64 hexadecimal digits")
    path = (cache or cache_dir()) / filename
    if path.exists():
        found = sha256_of(path)
        if not found.startswith(sha256.lower()):
            raise InputError(
                f"{path} has the wrong checksum: sha256 {found}, expected {sha256}; "
                "remove it, and it will be downloaded again"
            )
        return path
    if os.environ.get("TLX_OFFLINE", "0") not in ("", "0"):
        raise _missing(path, url, "TLX_OFFLINE is set")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(url, timeout) as response, replacing(path) as temporary:
            _download(response, temporary, filename, sha256)
    except _TransferError as error:
        raise _missing(path, url, str(error)) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space left" if full else error.strerror or error
        raise InputError(f"cannot write {path}: {reason}") from error
    return path


class _TransferError(Exception):
    """The network or the server did not deliver."""


def _missing(path: Path, url: str, reason: str) -> InputFileNotFoundError:
    return InputFileNotFoundError(
        f"{path.name} is not at {path} and cannot be downloaded from {url} ({reason}); put the file there "
        "by hand, or go without: python -m tlx.main --config=configs/digits.py needs no download"
    )


def _open(url: str, timeout: float) -> Any:
    """Returns the response whose body is yet to be read.

    In a thread of its own, since a name lookup obeys no timeout and several addresses or redirects would
    each have the whole of it.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=timeout))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise _TransferError(f"no answer within {timeout:g} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        with answer:
            raise _TransferError(f"the server answers {answer.code} {answer.reason}")
    if isinstance(answer, Exception):
        reason = getattr(answer, "reason", answer)
        raise _TransferError(" ".join(str(reason).split()) or type(answer).__name__)
    return answer


def _download(response: Any, temporary: Path, filename: str, sha256: str) -> None:
    """Copies the body to `temporary`, and checks its length and its checksum."""
    stated = response.headers.get("Content-Length", "")
    total = int(stated) if stated.isdigit() else 0
    with open(temporary, "xb") as file:
        size, found = _copy(response, file, filename, total)
    if total and size != total:
        raise _TransferError(f"it ended after {size} of {total} bytes")
    if not found.startswith(sha256.lower()):
        raise InputError(
            f"the download of {filename} has the wrong checksum: sha256 {found}, expected {sha256}; "
            "it was removed"
        )


def _copy(response: Any, file: BinaryIO, filename: str, total: int) -> tuple[int, str]:
    """Returns the number of bytes copied and their SHA-256."""
    digest, size = hashlib.sha256(), 0
    with _progress(filename, total) as show:
        while chunk := _read(response):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            show(size)
    return size, digest.hexdigest()


def _read(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK)
    except TimeoutError:
        raise _TransferError("the transfer stood still") from None
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(f"the transfer broke off: {error}") from error


@contextlib.contextmanager
def _progress(filename: str, total: int) -> Any:
    """Yields a function that shows the bytes so far, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    of = f" of {total / 1e6:.1f}" if total else ""
    try:
        yield lambda size: print(
            f"\r{filename}: {size / 1e6:.1f}{of} MB", end="", file=sys.stderr, flush=True
        )
    finally:
        print(file=sys.stderr)
