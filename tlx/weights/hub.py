"""One file of a repository on the Hugging Face hub, by the hub's own library, checked by what the hub says of it.

The hub gives the SHA-256 of a large file as its ETag (huggingface.co/docs/hub, "Storage backends"); the library
names the file by it but does not compare. A branch is asked for its commit every time, as the file may be another
today; a commit's file that is there needs no network.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import validate_repo_id

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.cache import (
    TransferError,
    cache_dir,
    check,
    check_digits,
    claim,
    in_time,
    missing,
    offline,
    one_line,
    say,
    unwritable,
)
from tlx.weights.files import sha256_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


class NotInRepositoryError(InputFileNotFoundError):
    """The hub says that the repository has no such file."""


@dataclasses.dataclass(frozen=True)
class _Wanted:
    repository: str
    filename: str
    sha256: str
    folder: Path  # the hub library's cache inside ours

    def copy(self, revision: str, folder: Path) -> Path | None:
        """Returns the file of that revision in a cache of the library, whatever its state."""
        found = huggingface_hub.try_to_load_from_cache(
            self.repository, self.filename, cache_dir=folder, revision=revision
        )
        return Path(found) if isinstance(found, str) else None

    def good_copy(self, revision: str, etag: str = "") -> Path | None:
        """Returns the file of that revision from our cache, else from the one that the environment names.

        `etag` is what the hub says of it, where it was asked.
        """
        folders = [self.folder]
        if any(os.environ.get(name) for name in _HUB_CACHE_VARIABLES):
            folders.append(Path(constants.HF_HUB_CACHE))
        for folder in folders:
            path = self.copy(revision, folder)
            if path and not _is_damaged(path, etag, self.sha256):
                return path
        return None

    def commit(self, path: Path) -> str:
        """Returns the commit that a file in a cache of the library is of: the folder that it is under."""
        return path.parts[-1 - len(PurePosixPath(self.filename).parts)]


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What the hub says of a file."""

    commit: str
    etag: str  # a large file's SHA-256


def fetch_from_hub(
    repository: str,
    filename: str,
    *,
    revision: str = "",
    sha256: str = "",
    cache: Path | None = None,
    timeout: float = 5.0,
) -> tuple[Path, str]:
    """Returns the path of a repository's file, downloaded unless it is there, and the commit it is of.

    Looked for, in this order: `OWNER--NAME/FILENAME` in the cache (put there by hand: its commit is not known, ""),
    the library's cache in `hub` inside ours, and the library's usual one where HF_HUB_CACHE or HF_HOME is set. With
    TLX_OFFLINE=1 or HF_HUB_OFFLINE=1 nothing is downloaded. HF_ENDPOINT and HF_TOKEN are respected.

    Args:
      repository: OWNER/NAME.
      filename: a path inside the repository.
      revision: a commit (40 hexadecimal digits), branch or tag; "" for the branch main.
      sha256: the file's checksum, 64 hexadecimal digits or the first few of them; "" where not known.
      cache: the folder to use in place of `cache_dir()`.
      timeout: seconds until the hub must have answered, name lookup included. For how long the transfer may
        stand still is the library's business (HF_HUB_DOWNLOAD_TIMEOUT).

    Raises:
      InputFileNotFoundError: it is not here and cannot be downloaded; NotInRepositoryError: there is none.
      InputError: the checksum is wrong, or the cache cannot be written to.
    """
    _check_names(repository, filename, revision)
    check_digits(sha256)
    root = cache or cache_dir()
    by_hand = root / repository.replace("/", "--") / filename
    if by_hand.exists():
        check(by_hand, sha256)
        return by_hand, ""
    revision = revision or constants.DEFAULT_REVISION
    wanted = _Wanted(repository, filename, sha256.lower(), (root / "hub").resolve())
    if (_COMMIT.fullmatch(revision) or _offline()) and (here := wanted.good_copy(revision)):
        return here, wanted.commit(here)
    origin = f"{constants.ENDPOINT}/{repository}"
    if _offline():
        raise missing(by_hand, origin, f"{_offline()} is set")
    try:
        answer = _ask(wanted, revision, timeout)
    except TransferError as error:
        if isinstance(error.__cause__, errors.RemoteEntryNotFoundError):
            raise NotInRepositoryError(str(missing(by_hand, origin, str(error)))) from error
        here = wanted.good_copy(revision)
        if not here:
            raise missing(by_hand, origin, str(error)) from error
        commit = wanted.commit(here)
        say(f"cannot ask {origin} for {revision} ({error}): taking {here}")
        return here, commit
    if found := wanted.good_copy(answer.commit, answer.etag):
        return found, answer.commit
    try:
        path = _download(wanted, revision, answer, timeout)
    except TransferError as error:
        raise missing(by_hand, origin, str(error)) from error
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise unwritable(wanted.folder, error) from error
    _check_download(wanted, path, answer, origin)
    return path, wanted.commit(path)


def _check_names(repository: str, filename: str, revision: str) -> None:
    try:
        validate_repo_id(repository)
        valid = "/" in repository
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"{repository!r} is no hub repository: expected OWNER/NAME")
    parts = PurePosixPath(filename).parts
    if not parts or ".." in parts or re.search(r"^/|\\|(^|/)[A-Za-z]:", filename):
        raise InputError(
            f"{filename!r} is no path of a file inside the hub repository {repository}"
        )
    if revision.startswith("/") or ".." in revision:  # the library makes it a path
        raise InputError(f"{revision!r} is no revision: expected a commit, branch or tag")


def is_offline() -> bool:
    """Returns whether a setting forbids the network."""
    return bool(_offline())


def _offline() -> str:
    """Returns the variable that forbids the network, or ""."""
    if offline():
        return "TLX_OFFLINE"
    return "HF_HUB_OFFLINE" if huggingface_hub.is_offline_mode() else ""


def _ask(wanted: _Wanted, revision: str, timeout: float) -> _Answer:
    """Returns what the hub says of the file.

    Asked here and not by the download alone, which tries for half a minute before it gives up.

    Raises:
      TransferError: no answer in time, or another one.
    """
    url = huggingface_hub.hf_hub_url(wanted.repository, wanted.filename, revision=revision)
    try:
        answer = in_time(
            lambda: huggingface_hub.get_hf_file_metadata(url, timeout=timeout), timeout
        )
    except (OSError, errors.HTTPError, ValueError, ImportError) as error:
        # ImportError: a SOCKS proxy needs a package more.
        raise TransferError(_reason(error, wanted, revision)) from error
    if not answer.commit_hash or not answer.etag:
        raise TransferError("what answers there is no hub: a proxy, or a page to log in?")
    return _Answer(answer.commit_hash, answer.etag)


def _download(wanted: _Wanted, revision: str, answer: _Answer, timeout: float) -> Path:
    """Returns the file in the library's cache, downloaded by one process at a time.

    Raises:
      TransferError: the network or the hub did not deliver.
      OSError: the cache cannot be written to.
    """
    wanted.folder.mkdir(parents=True, exist_ok=True)
    lock = wanted.folder / f".{wanted.repository.replace('/', '--')}.lock"
    with claim(lock, f"downloading {wanted.filename} of {wanted.repository}") as held:
        if held.name == str(lock):  # else others may be at work
            _remove_leftovers(wanted)
        old = wanted.copy(answer.commit, wanted.folder)
        if old and _is_damaged(old, answer.etag):
            _remove(old, wanted.folder)
        try:
            return _hub_download(wanted, revision, timeout)
        except (errors.HTTPError, ValueError, RuntimeError, OSError) as error:
            # The hub's refusals are OSErrors too; only the machine's own have a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise TransferError(_reason(error, wanted, revision)) from error


def _hub_download(wanted: _Wanted, revision: str, timeout: float) -> Path:
    return Path(
        huggingface_hub.hf_hub_download(
            wanted.repository,
            wanted.filename,
            revision=revision,
            cache_dir=wanted.folder,
            etag_timeout=timeout,
            library_name="tlx",
        )
    )


def _check_download(wanted: _Wanted, path: Path, answer: _Answer, origin: str) -> None:
    """Raises InputError where it is not the file that the hub, or the catalog, says it is."""
    digest, commit = sha256_of(path), wanted.commit(path)
    etag = _linked_etag(path) or (answer.etag if commit == answer.commit else "")
    if _SHA256.fullmatch(etag) and digest != etag:
        _remove(path, wanted.folder)
        raise InputError(
            f"the download of {wanted.filename} from {origin} has the wrong checksum: sha256 {digest}, "
            f"expected {etag}; it was removed"
        )
    if not digest.startswith(wanted.sha256):
        raise InputError(
            f"{wanted.filename} of {origin} is another file at {commit} than expected: sha256 {digest}, "
            f"expected {wanted.sha256}"
        )


def _reason(error: Exception, wanted: _Wanted, revision: str) -> str:
    """Returns why the hub did not deliver, in one line; of the library's own words only where it must be."""
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{wanted.repository}"
        return f"its owner wants to be asked: accept the terms on {page} and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private and needs HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"it has no file {wanted.filename} at revision {revision}"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answers {error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _reason(error.__cause__, wanted, revision)
    return one_line(str(error)) or type(error).__name__


def _linked_etag(path: Path) -> str:
    """Returns the ETag that the library named the file by; "" where its cache has no links."""
    return path.readlink().name if path.is_symlink() else ""


def _is_damaged(path: Path, etag: str, sha256: str = "") -> bool:
    """Whether a file is empty, or not the one of the ETag, where that is a checksum, and of the checksum."""
    if path.stat().st_size == 0:
        return True
    etag = _linked_etag(path) or etag
    expected = [etag] if _SHA256.fullmatch(etag) else []
    expected += [sha256] if sha256 else []
    return bool(expected) and not all(map(sha256_of(path).startswith, expected))


def _remove_leftovers(wanted: _Wanted) -> None:
    """Removes what killed downloads left; the library continues none of them."""
    name = huggingface_hub.file_download.repo_folder_name(
        repo_id=wanted.repository, repo_type=constants.REPO_TYPE_MODEL
    )
    for leftover in (wanted.folder / name / "blobs").glob("*.incomplete"):
        leftover.unlink(missing_ok=True)


def _remove(path: Path, folder: Path) -> None:
    """Removes a file of the library's cache in the folder, and what it links to there."""
    while path.is_symlink():
        target = Path(os.path.normpath(path.parent / path.readlink()))
        path.unlink()
        if not target.is_relative_to(folder):
            return
        path = target
    path.unlink(missing_ok=True)
