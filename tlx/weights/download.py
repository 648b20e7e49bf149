"""One file from a web server: in one piece or in several, whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tlx.errors import InputError
from tlx.files import write_json_atomic
from tlx.weights.cache import TransferError, check, claim, in_time, one_line

_CHUNK = 2**20  # bytes
_CONNECTIONS = 4  # that may be broken off in one download, as long as each brought something
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def download(url: str, path: Path, *, sha256: str, timeout: float) -> None:
    """Downloads `url` to `path`, unless another process did while this one waited for its turn.

    What a broken transfer left is kept beside `path` and continued by the next call, by HTTP range requests
    (RFC 9110, section 14): as long as the server says that the file is the same (If-Range with its ETag or date),
    or the checksum will tell; else from the start.

    Args:
      url: http or https.
      path: in a folder that exists.
      sha256: the file's checksum, 64 hexadecimal digits or the first few of them; "" where not known.
      timeout: seconds until the server must have answered, and for which the transfer may then stand still.

    Raises:
      TransferError: the network or the server did not deliver; the text says why.
      InputError: the checksum is wrong, or there is not enough space.
      OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    with claim(partial, f"downloading {path.name}") as file:
        if path.exists():
            _discard(file)
            check(path, sha256)
            return
        try:
            _fill(file, url, path, sha256, timeout)
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                file.truncate(0)  # the beginning of a file is no reason to leave the disk full
            raise
        finally:
            if _size(file) == 0:
                _discard(file)
            elif file.name != str(partial):  # a name that no other call will find
                _facts_path(file).unlink(missing_ok=True)
        os.replace(file.name, path)
        _facts_path(file).unlink(missing_ok=True)


def connect(url: str, headers: dict[str, str], timeout: float) -> Any:
    """Returns the server's response, whose body is yet to be read; 416 is one, other refusals are not.

    Raises:
      TransferError: no answer in time, or not the file.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "tlx", **headers})
    opener = urllib.request.build_opener(_Redirects)
    try:
        return in_time(lambda: opener.open(request, timeout=timeout), timeout)
    except urllib.error.HTTPError as answer:
        if answer.code == 416:
            return answer
        with answer:
            circle = " in a circle of redirects" if "infinite loop" in str(answer.reason) else ""
            reason = "" if circle else f" {one_line(str(answer.reason))}"
            raise TransferError(f"the server answers {answer.code}{reason}{circle}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = one_line(str(getattr(error, "reason", error)))
        raise TransferError(reason or type(error).__name__) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects on the web only, and none from an encrypted connection to a plain one."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        allowed = ("https:",) if req.full_url.startswith("https:") else ("https:", "http:")
        if not newurl.lower().startswith(allowed):
            raise urllib.error.HTTPError(newurl, code, f"with a redirect to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fill(file: io.FileIO, url: str, path: Path, sha256: str, timeout: float) -> None:
    """Completes the file and holds it against its checksum."""
    pieced = False
    for left in reversed(range(_CONNECTIONS)):
        begin = _size(file)
        pieced |= begin > 0
        try:
            _transfer(file, url, path, sha256, timeout)
            break
        except TransferError:
            if left == 0 or _size(file) <= begin:
                raise
    if _size(file) == 0:
        raise TransferError("the server sends an empty file")
    found = _sha256(file)
    if not found.startswith(sha256.lower()) and pieced:  # perhaps of two different files
        file.truncate(0)
        _transfer(file, url, path, sha256, timeout)
        found = _sha256(file)
    if not found.startswith(sha256.lower()):
        file.truncate(0)
        raise InputError(
            f"the download of {path.name} has the wrong checksum: sha256 {found}, expected {sha256}; "
            f"it was removed. It came from {url}"
        )


def _transfer(file: io.FileIO, url: str, path: Path, sha256: str, timeout: float) -> None:
    """Continues the file, or begins it, over one connection."""
    have = _size(file)
    known = _known(file) if have else {}
    headers = _range_headers(known, have, url, sha256)
    with connect(url, headers, timeout) as response:
        if headers and response.status in (206, 416) and not _continues(response, have, known):
            file.truncate(0)
            return _transfer(file, url, path, sha256, timeout)
        if not headers or response.status != 206:
            if response.status != 200:
                raise TransferError(f"the server answers {response.status} {response.reason}")
            have = 0
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise TransferError(f"the server sends it encoded as {encoding}")
        stated = response.headers.get("Content-Length", "")
        total = have + int(stated) if stated.isdigit() else 0
        _check_space(path, total - have)
        file.seek(have)
        file.truncate()
        if have == 0:
            _remember(file, url, response.headers, total)
        size = _copy(response, file, path.name, have, total)
    if total and size != total:
        raise TransferError(f"it ended after {size} of {total} bytes")
    return None


def _copy(response: Any, file: io.FileIO, name: str, have: int, total: int) -> int:
    """Returns the file's size, in bytes, when the server has no more."""
    size = have
    with _progress(name, total) as show:
        while chunk := _read(response):
            if size == 0 and chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower().startswith(_PAGES):
                raise TransferError("the server sends a web page in its place")
            _write(file, chunk)
            size += len(chunk)
            show(size)
    return size


def _write(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _read(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK)
    except TimeoutError:
        raise TransferError("the transfer stood still") from None
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(f"the transfer broke off: {one_line(str(error))}") from error


def _range_headers(known: dict[str, Any], have: int, url: str, sha256: str) -> dict[str, str]:
    """Returns the headers that ask for the rest of the file; {} where it must be had from the start."""
    etag, modified = known.get("etag") or "", known.get("modified") or ""
    # A weak ETag says that two files mean the same, not that they have the same bytes.
    validator = etag if etag.startswith('"') else modified
    if not have or known.get("url") != url or not (validator or sha256):
        return {}
    return {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})


def _continues(response: Any, have: int, known: dict[str, Any]) -> bool:
    """Returns whether the body goes on where the file ends, and the file is still as long as it was."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status != 206 or not found or int(found[1]) != have:
        return False
    total = 0 if found[3] == "*" else int(found[3])
    same_length = not total or not known["length"] or total == known["length"]
    etag = response.headers.get("ETag")
    return (
        same_length and (not total or int(found[2]) == total - 1) and etag in (None, known["etag"])
    )


def _size(file: io.FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _facts_path(file: io.FileIO) -> Path:
    return Path(f"{file.name}.json")


def _remember(file: io.FileIO, url: str, headers: Any, total: int) -> None:
    """Notes which file it is the beginning of, before there is a beginning."""
    facts = {"url": url, "etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
    write_json_atomic(_facts_path(file), facts | {"length": total})


def _known(file: io.FileIO) -> dict[str, Any]:
    try:
        facts = json.loads(_facts_path(file).read_text())
    except (OSError, ValueError):
        return {}
    wanted = {"url", "etag", "modified", "length"}
    return facts if isinstance(facts, dict) and set(facts) == wanted else {}


def _discard(file: io.FileIO) -> None:
    Path(file.name).unlink(missing_ok=True)
    _facts_path(file).unlink(missing_ok=True)


def _sha256(file: io.FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"cannot write {path}: no space left: {needed / 1e6:.1f} MB to download, {free / 1e6:.1f} MB free"
        )


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows the number of bytes so far, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    of = f" of {total / 1e6:.1f}" if total else ""
    size, shown = 0, -1.0

    def write() -> None:
        print(f"\r{name}: {size / 1e6:.1f}{of} MB", end="", file=sys.stderr, flush=True)

    def show(now: int) -> None:
        nonlocal size, shown
        size = now
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            write()

    try:
        yield show
    finally:
        write()
        print(file=sys.stderr)
