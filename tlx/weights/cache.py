"""The folder of downloaded weights: where it is, what may be done there, and by whom at a time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.files import sha256_of

Answer = TypeVar("Answer")

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class TransferError(Exception):
    """The network or the server did not deliver; the text says why."""


def cache_dir() -> Path:
    """Returns the folder of downloaded weights: $TLX_CACHE, $XDG_CACHE_HOME/tlx or ~/.cache/tlx.

    It need not exist.
    """
    if os.environ.get("TLX_CACHE"):
        return Path(os.environ["TLX_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "tlx"
    return Path.home() / ".cache" / "tlx"


def offline() -> bool:
    """Returns whether TLX_OFFLINE forbids the network; unset, empty and 0 do not."""
    return os.environ.get("TLX_OFFLINE", "0") not in ("", "0")


def check(path: Path, sha256: str) -> None:
    """Holds a file of the cache against its checksum, of which the first digits are enough.

    Raises:
      InputError: it is another file.
    """
    found = sha256_of(path)
    if not found.startswith(sha256.lower()):
        raise InputError(
            f"{path} has the wrong checksum: sha256 {found}, expected {sha256}; "
            "remove it, and it will be downloaded again"
        )


def check_digits(sha256: str) -> None:
    """Raises InputError for what is neither a SHA-256 checksum, nor its beginning, nor ""."""
    if not re.fullmatch(r"[0-9a-fA-F]{0,64}", sha256):
        raise InputError(f"{sha256!r} is no SHA-256 checksum: expected up to 64 hexadecimal digits")


def missing(path: Path, origin: str, reason: str) -> InputFileNotFoundError:
    """Returns the error for a file that is not at `path` and does not come from `origin` either."""
    return InputFileNotFoundError(
        f"{path.name} is not at {path} and cannot be downloaded from {origin} "
        f"({one_line(reason)}); put the file there by hand, or go without: "
        "python -m tlx.main --config=configs/digits.py needs no download"
    )


def unwritable(path: Path, error: OSError) -> InputError:
    """Returns the error for a file that the machine does not let us write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space left" if full else error.strerror or one_line(str(error))
    return InputError(f"cannot write {path}: {reason}")


def one_line(text: str) -> str:
    """Returns the text with line breaks and runs of spaces as single spaces."""
    return " ".join(text.split())


def in_time(ask: Callable[[], Answer], timeout: float) -> Answer:
    """Returns what `ask` returns, and raises what it raises.

    It runs in a thread of its own, since a name lookup obeys no timeout and several addresses or redirects would
    each have the whole of it.

    Args:
      ask: asks a server.
      timeout: seconds.

    Raises:
      TransferError: it took longer.
    """
    future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            future.set_exception(error)

    # A daemon: an executor's threads would be waited for when the interpreter ends.
    threading.Thread(target=run, daemon=True).start()
    if not concurrent.futures.wait([future], timeout).done:
        raise TransferError(f"no answer within {timeout:g} s")
    return future.result()


def say(text: str) -> None:
    """Shows a line to whoever waits; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def claim(path: Path, purpose: str) -> Iterator[io.FileIO]:
    """Yields the file at `path`, made if absent, unbuffered, to one process at a time.

    Others wait, and say what for. The lock is the kernel's, on the file itself: a holder that is killed
    leaves none. Whoever holds the file may rename or remove it; those who waited then take the file that has
    its name. Where the file system has no locks, the file is a new one of a name of its own, and is removed
    at the end.

    Args:
      path: in a folder that exists.
      purpose: what the holder does, as in "another process is ...".

    Raises:
      OSError: no permission, no space left.
    """
    while True:
        with _open(path) as file:
            try:
                _lock(file, path, purpose)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                if os.fstat(file.fileno()).st_size == 0:
                    path.unlink(missing_ok=True)
                break
            if _is_at(file, path):
                yield file
                return
    own = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with _open(own) as file:
            yield file
    finally:
        own.unlink(missing_ok=True)


def _open(path: Path) -> io.FileIO:
    def create(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CREAT, 0o666)

    return io.FileIO(str(path), "r+", opener=create)


def _lock(file: io.FileIO, path: Path, purpose: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another process is {purpose} in {path.parent}: waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
