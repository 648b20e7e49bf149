"""Downloads of hub repositories, by the hub's own library, from a small hub on this machine."""

import contextlib
import errno
import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights import cache as cache_module
from tlx.weights import hub as hub_module
from tlx.weights.fetch import Located, locate
from tlx.weights.hub import fetch_from_hub
from tlx.weights.meta import WeightsMeta

BODY = b"weights" * 1000
OTHER = b"WEIGHTS" * 1000
SHA256, OTHER_SHA256 = (hashlib.sha256(body).hexdigest() for body in (BODY, OTHER))
COMMIT, LATER = "a" * 40, "b" * 40
REPOSITORY, NAME = "owner/name", "w.safetensors"
STORE = "hub/models--owner--name"  # inside the cache


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, unless `server.refusal` (status, headers, body) says otherwise."""

    def do_HEAD(self):
        hub, path = self.server, urllib.parse.unquote(self.path)
        asked = self.headers.get("Range", "")
        hub.requests.append((self.command, path, asked))
        hub.tokens.append(self.headers.get("Authorization"))
        if hub.silent:
            hub.released.wait(60)
            return
        if hub.refusal and (self.command == "GET" or not hub.refuses_bodies_only):
            self.send(*hub.refusal)
            return
        if path.startswith("/cdn/"):
            self.send_body(200, {"ETag": '"of the CDN"'}, hub.blobs[path.removeprefix("/cdn/")])
            return
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision = next((name for name in hub.files if rest.startswith(f"{name}/")), "")
        commit = hub.branches.get(revision, revision)
        body = hub.files[revision].get(rest.removeprefix(f"{revision}/")) if revision else None
        if repository != REPOSITORY:
            self.send(401, {"X-Error-Code": "RepoNotFound"})
        elif not revision:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        elif body is None:
            self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            digest = hashlib.sha256(body).hexdigest()
            facts = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(body))}
            facts["X-Linked-Etag"] = f'"{hub.etag or digest}"'
            if hub.cdn:
                hub.blobs[digest] = body
                self.send(302, facts | {"Location": f"{hub.cdn}/cdn/{digest}"})
            else:
                self.send_body(200, facts | {"ETag": '"of the pointer"'}, body)

    def do_GET(self):
        self.do_HEAD()

    def send_body(self, status, headers, body):
        hub, asked = self.server, self.headers.get("Range")
        start, stop = 0, None
        if asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status = 206
        if self.command == "GET":
            stop = hub.stops.pop(0) if hub.stops else None
            body = hub.sends or body
        self.send(status, headers, body[start:], stop)

    def send(self, status, headers, body=b"", stop=None):
        """Sends the body up to `stop`, the rest when `server.released` is set; never if it is negative."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[: None if stop is None else abs(stop)])
            self.wfile.flush()
            if stop and stop > 0:
                self.server.released.wait(60)
                self.wfile.write(body[stop:])

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True, scope="module")
def session():
    """A session of the library's, which reads the proxies' variables at its first request only."""
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("no_proxy", "*")
    for name in (
        "TLX_OFFLINE TLX_CACHE XDG_CACHE_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HOME HF_TOKEN "
        "HUGGING_FACE_HUB_TOKEN HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_HUB_DISABLE_SYMLINKS"
    ).split():
        monkeypatch.delenv(name, raising=False)
    nowhere = tmp_path_factory.mktemp("nowhere")
    monkeypatch.setenv("HF_TOKEN_PATH", str(nowhere / "token"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")  # it would ask the hub for a list of agents
    # The library has read its variables by now.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(nowhere / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(nowhere / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def point_to(monkeypatch, url):
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_ENDPOINT", url)


@pytest.fixture
def hub(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as hub:
        hub.requests, hub.tokens, hub.released = [], [], threading.Event()
        hub.refusal, hub.refuses_bodies_only, hub.silent = None, False, False
        hub.cdn, hub.blobs, hub.etag, hub.sends, hub.stops = "", {}, "", b"", []
        hub.branches, hub.files = {"main": COMMIT}, {COMMIT: {NAME: BODY}, "main": {NAME: BODY}}
        hub.url = f"http://127.0.0.1:{hub.server_port}"
        point_to(monkeypatch, hub.url)
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.released.set()
        hub.shutdown()
        thread.join()


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def get(cache, revision="", filename=NAME, sha256=SHA256, timeout=60.0):
    return fetch_from_hub(
        REPOSITORY, filename, revision=revision, sha256=sha256, cache=cache, timeout=timeout
    )


def asked(hub):
    """Returns the methods of the requests so far, and forgets them."""
    methods = [method for method, _, _ in hub.requests]
    hub.requests.clear()
    return methods


def move_branch(hub, body):
    hub.branches["main"] = LATER
    hub.files["main"] = hub.files[LATER] = {NAME: body}


def leftovers(cache):
    """Returns what a download must not leave, and files that nothing refers to."""
    linked = {path.resolve() for path in (cache / STORE / "snapshots").rglob("*")}
    return [path for path in (cache / STORE / "blobs").glob("*") if path.resolve() not in linked]


def refused(kind, call, *, match):
    """Returns the text of the error, which is one line."""
    with pytest.raises(kind, match=match) as caught:
        call()
    assert isinstance(caught.value, FileNotFoundError) == (kind is InputFileNotFoundError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# From the hub, and then from the cache


@pytest.mark.parametrize("revision", ["", "main", "refs/pr/1"])
def test_a_branch_is_downloaded_once_and_asked_for_its_commit_every_time(
    hub, tmp_path, capsys, revision
):
    hub.branches["refs/pr/1"], hub.files["refs/pr/1"] = COMMIT, {NAME: BODY}
    path, commit = get(tmp_path / "new" / "cache", revision)
    assert commit == COMMIT and path.read_bytes() == BODY and path.name == NAME
    assert asked(hub).count("GET") == 1
    assert get(tmp_path / "new" / "cache", revision) == (path, commit)
    assert asked(hub) == ["HEAD"]
    assert capsys.readouterr() == ("", "")


def test_a_commit_that_is_there_needs_no_network(hub, tmp_path):
    found = get(tmp_path, COMMIT)
    assert found[1] == COMMIT and asked(hub).count("GET") == 1
    assert get(tmp_path, COMMIT) == found and asked(hub) == []


def test_the_commit_that_a_branch_stood_for_needs_no_network(hub, tmp_path):
    found = get(tmp_path, "main")
    hub.requests.clear()
    assert get(tmp_path, COMMIT) == found and asked(hub) == []


def test_a_branch_that_has_moved_is_downloaded_again_and_the_old_commit_kept(hub, tmp_path):
    old = get(tmp_path)
    move_branch(hub, OTHER)
    path, commit = get(tmp_path, sha256="")
    assert commit == LATER and path.read_bytes() == OTHER
    assert get(tmp_path, COMMIT) == old and old[0].read_bytes() == BODY


def test_the_same_file_at_a_later_commit_is_not_downloaded_again(hub, tmp_path):
    get(tmp_path)
    move_branch(hub, BODY)
    hub.requests.clear()
    path, commit = get(tmp_path)
    assert commit == LATER and path.read_bytes() == BODY and "GET" not in asked(hub)


@pytest.mark.parametrize("sha256", [SHA256[:8], SHA256.upper(), ""])
def test_a_checksum_may_be_short_or_unknown(hub, tmp_path, sha256):
    found = get(tmp_path, sha256=sha256)
    assert found[0].read_bytes() == BODY and get(tmp_path, sha256=sha256) == found


def test_a_file_in_a_folder_of_the_repository(hub, tmp_path):
    hub.files["main"] = hub.files[COMMIT] = {"a/b/w.pth": BODY}
    found = get(tmp_path, filename="a/b/w.pth")
    assert found[0].read_bytes() == BODY and found[1] == COMMIT
    assert get(tmp_path, COMMIT, filename="a/b/w.pth") == found


def test_a_small_file_whose_etag_is_no_checksum(hub, tmp_path):
    hub.etag = "c" * 40  # git's
    assert get(tmp_path, sha256="")[0].read_bytes() == BODY


def test_a_token_goes_to_the_hub_but_not_to_where_the_hub_sends_us(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.cdn = f"http://localhost:{hub.server_port}"  # another host than 127.0.0.1
    path, commit = get(tmp_path)
    assert path.read_bytes() == BODY and commit == COMMIT
    assert set(hub.tokens[:-1]) == {"Bearer hf_secret"} and hub.tokens[-1] is None
    assert hub.requests[-1][:2] == ("GET", f"/cdn/{SHA256}")


def test_locate_goes_to_the_hub_and_says_the_commit(hub, tmp_path):
    meta = WeightsMeta(
        "resnet18", source="hub:owner/name", revision="main", filename=NAME, sha256=SHA256
    )
    found = locate(meta, cache=tmp_path)
    assert found == Located(tmp_path / STORE / "snapshots" / COMMIT / NAME, COMMIT)
    assert found.path.read_bytes() == BODY


def test_tlx_cache_is_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    assert fetch_from_hub(REPOSITORY, NAME)[0].is_relative_to(tmp_path)


@pytest.mark.parametrize("filename", [NAME, "a/w.pth"])
def test_a_file_put_there_by_hand_is_checked_and_taken(hub, tmp_path, filename):
    path = tmp_path / "owner--name" / filename
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    for revision in ("", COMMIT):
        assert get(tmp_path, revision, filename) == (path, "")
    refused(
        InputError,
        lambda: get(tmp_path, filename=filename, sha256=OTHER_SHA256),
        match=f"wrong checksum: sha256 {SHA256}, expected {OTHER_SHA256}",
    )
    assert path.read_bytes() == BODY and asked(hub) == []


def test_the_hubs_usual_cache_is_looked_at_where_the_environment_names_it(
    hub, tmp_path, monkeypatch
):
    usual = tmp_path / "usual"
    huggingface_hub.hf_hub_download(REPOSITORY, NAME, cache_dir=usual)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(usual))
    hub.requests.clear()
    assert get(tmp_path / "one")[0].is_relative_to(tmp_path / "one")  # it is not named
    monkeypatch.setenv("HF_HUB_CACHE", str(usual))
    hub.requests.clear()
    path, commit = get(tmp_path / "two")
    assert path.is_relative_to(usual) and commit == COMMIT and asked(hub) == ["HEAD"]
    assert get(tmp_path / "two", COMMIT) == (path, commit) and asked(hub) == []
    path.resolve().write_bytes(BODY[:3000])
    assert get(tmp_path / "two", COMMIT)[0].is_relative_to(tmp_path / "two")
    assert path.read_bytes() == BODY[:3000]  # it is not ours


# No network


@pytest.mark.parametrize("variable", ["TLX_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_cache_is_all_there_is(hub, tmp_path, monkeypatch, variable):
    found = get(tmp_path / "full")
    hub.requests.clear()
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")
    for revision in ("", "main", COMMIT):
        assert get(tmp_path / "full", revision) == found
    message = refused(
        InputFileNotFoundError, lambda: get(tmp_path / "empty"), match=f"{variable} is set"
    )
    assert f"is not at {tmp_path / 'empty' / 'owner--name' / NAME}" in message
    assert "put the file there by hand" in message and hub.url in message
    assert not (tmp_path / "empty").exists() and asked(hub) == []


def test_an_unreachable_hub_leaves_the_copy_that_is_there(
    hub, nobody, tmp_path, monkeypatch, capsys
):
    found = get(tmp_path)
    point_to(monkeypatch, nobody)
    assert get(tmp_path, COMMIT) == found and capsys.readouterr() == ("", "")
    assert get(tmp_path) == found
    out, line = capsys.readouterr()
    assert out == "" and line.startswith(f"cannot ask {nobody}/owner/name for main (")
    assert "refused" in line and line.endswith(f"): taking {found[0]}\n") and line.count("\n") == 1


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_an_unreachable_hub_and_no_copy_is_one_line_that_says_what_to_do(
    nobody, tmp_path, monkeypatch, revision
):
    point_to(monkeypatch, nobody)
    message = refused(InputFileNotFoundError, lambda: get(tmp_path, revision), match="refused")
    assert f"{nobody}/owner/name" in message
    assert str(tmp_path / "owner--name" / NAME) in message
    assert "python -m tlx.main --config=configs/digits.py needs no download" in message
    assert list(tmp_path.iterdir()) == []


def test_a_silent_hub_is_asked_once(hub, tmp_path):
    hub.silent = True
    refused(
        InputFileNotFoundError,
        lambda: get(tmp_path, timeout=0.3),
        match="no answer within|timed out",
    )
    assert asked(hub) in (["HEAD"], [])  # [] where this machine is too slow


def test_a_name_lookup_that_never_ends(tmp_path, monkeypatch):
    released = threading.Event()

    def look_up(*_, **__):
        released.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    point_to(monkeypatch, "http://example.org")
    refused(
        InputFileNotFoundError,
        lambda: get(tmp_path, timeout=0.2),
        match=r"no answer within 0\.2 s",
    )
    released.set()


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [("nonsense", "scheme for proxy"), ("socks5", "SOCKS|refused")],  # a package more
)
def test_a_proxy_that_the_library_cannot_use(nobody, tmp_path, monkeypatch, scheme, reason):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("ALL_PROXY", nobody.replace("http", scheme))
    point_to(monkeypatch, "http://example.org")
    huggingface_hub.close_session()
    refused(InputFileNotFoundError, lambda: get(tmp_path), match=reason)
    huggingface_hub.close_session()


def test_the_default_timeout_leaves_room_within_ten_seconds():
    assert fetch_from_hub.__kwdefaults__["timeout"] <= 8


# No file


LOG_IN = b"<!DOCTYPE html><title>Log in</title>"
INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ((401, {"X-Error-Code": "RepoNotFound"}), "no such repository, or it is private and needs"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "no such repository"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), r"it has no revision main\)"),
        ((404, {"X-Error-Code": "EntryNotFound"}), f"it has no file {NAME} at revision main"),
        ((401, {"X-Error-Code": "GatedRepo"}), r"terms on http://.*/owner/name and set HF_TOKEN"),
        ((403, {"X-Error-Code": "GatedRepo"}), r"terms on http://.*/owner/name and set HF_TOKEN"),
        ((401, INVALID), "the hub answers 401 Unauthorized"),
        ((404, {}), "the hub answers 404 Not Found"),
        ((429, {}), "the hub answers 429 Too Many Requests"),
        ((503, {}), "the hub answers 503 Service Unavailable"),
        ((302, {"Location": "/owner/name"}), "redirects"),
        ((302, {"Location": "http://login.example.org/"}), "is no hub: a proxy, or a page to log"),
        ((200, {"Content-Type": "text/html"}, LOG_IN), "is no hub: a proxy, or a page to log in"),
        ((200, {"ETag": '"one"'}, LOG_IN), "is no hub: a proxy, or a page to log in"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(hub, tmp_path, refusal, reason):
    hub.refusal = refusal
    message = refused(InputFileNotFoundError, lambda: get(tmp_path), match=reason)
    assert f"{hub.url}/owner/name" in message and str(tmp_path / "owner--name" / NAME) in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"repository": "owner/other"}, "no such repository"),
        ({"filename": "other.pth"}, "it has no file other.pth at revision main"),
        ({"revision": "other"}, "it has no revision other"),
        ({"revision": "c" * 40}, f"it has no revision {'c' * 40}"),
    ],
)
def test_what_the_hub_does_not_have(hub, tmp_path, arguments, reason):
    usual = {"repository": REPOSITORY, "filename": NAME, "cache": tmp_path}
    refused(InputFileNotFoundError, lambda: fetch_from_hub(**usual | arguments), match=reason)


def test_a_refusal_after_the_first_answer_is_one_line_too(hub, tmp_path):
    hub.refusal, hub.refuses_bodies_only = (403, {}, b"no"), True
    refused(InputFileNotFoundError, lambda: get(tmp_path), match="the hub answers 403 Forbidden")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"filename": "../w.pth"},
        {"filename": "a/../../w.pth"},
        {"filename": ".."},
        {"filename": "/etc/passwd"},
        {"filename": "C:w.pth"},
        {"filename": "a\\..\\w.pth"},
        {"filename": ""},
        {"repository": "owner"},
        {"repository": "owner/name/more"},
        {"repository": "../name"},
        {"repository": "owner/.."},
        {"repository": "own--er/name"},
        {"repository": "https://example.org"},
        {"revision": "../../x"},
        {"revision": "/etc/passwd"},
        {"sha256": "xyz"},
    ],
)
def test_arguments_that_are_refused(hub, tmp_path, arguments):
    usual = {"repository": REPOSITORY, "filename": NAME, "cache": tmp_path}
    refused(InputError, lambda: fetch_from_hub(**usual | arguments), match="expected|is no path")
    assert asked(hub) == [] and list(tmp_path.iterdir()) == []


# The wrong file


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_download_that_is_not_what_the_hub_says_is_removed(
    hub, tmp_path, monkeypatch, sha256, links
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    hub.sends = OTHER
    message = refused(
        InputError,
        lambda: get(tmp_path, sha256=sha256),
        match=f"wrong checksum: sha256 {OTHER_SHA256}, expected {SHA256}; it was removed",
    )
    assert hub.url in message
    assert not [path for path in (tmp_path / STORE).rglob("*") if path.name in (NAME, SHA256)]
    hub.sends = b""
    assert get(tmp_path, sha256=sha256)[0].read_bytes() == BODY


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_file_that_is_not_the_catalogs_is_not_taken(hub, tmp_path, revision):
    for _ in range(2):
        refused(
            InputError,
            lambda: get(tmp_path, revision, sha256=OTHER_SHA256),
            match=f"another file at {COMMIT} than expected: sha256 {SHA256}, expected {OTHER_SHA256}",
        )
    assert asked(hub).count("GET") == 1


# Broken transfers and damaged copies


def truncate(path):
    path.resolve().write_bytes(BODY[:3000])


def empty(path):
    path.resolve().write_bytes(b"")


def alter(path):
    path.resolve().write_bytes(OTHER)


def remove_what_it_links_to(path):
    path.resolve().unlink()


@pytest.mark.parametrize("revision", ["main", COMMIT])
@pytest.mark.parametrize("damage", [truncate, empty, alter, remove_what_it_links_to])
def test_a_damaged_copy_is_downloaded_again(hub, tmp_path, revision, damage):
    path, commit = get(tmp_path, revision, sha256="")
    damage(path)
    hub.requests.clear()
    assert get(tmp_path, revision, sha256="") == (path, commit)
    assert path.read_bytes() == BODY and asked(hub).count("GET") == 1
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_damaged_copy_without_links_is_known_by_what_the_hub_says(
    hub, tmp_path, monkeypatch, sha256
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    path, commit = get(tmp_path, sha256=sha256)
    assert not path.is_symlink() and commit == COMMIT
    truncate(path)
    assert get(tmp_path, sha256=sha256) == (path, COMMIT) and path.read_bytes() == BODY


def test_a_damaged_copy_is_not_taken_offline(hub, tmp_path, monkeypatch):
    truncate(get(tmp_path)[0])
    monkeypatch.setenv("TLX_OFFLINE", "1")
    refused(InputFileNotFoundError, lambda: get(tmp_path), match="TLX_OFFLINE is set")


@pytest.fixture
def hasty(monkeypatch):
    """The library waits a second before it continues, and forgets what is less than a piece."""
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)


def test_a_transfer_that_breaks_off_is_continued_at_once(hub, tmp_path, hasty):
    hub.stops = [-3000, -2000]
    assert get(tmp_path)[0].read_bytes() == BODY
    ranges = [asked for method, _, asked in hub.requests if method == "GET"]
    assert ranges == ["", "bytes=3000-", "bytes=5000-"]


def test_a_transfer_broken_off_for_good_ends_whole_when_repeated(hub, tmp_path, hasty):
    hub.stops = [-3000] + [-1] * 5
    refused(InputFileNotFoundError, lambda: get(tmp_path), match="peer closed|incomplete")
    assert leftovers(tmp_path) == [] and not list((tmp_path / STORE / "blobs").iterdir())
    assert get(tmp_path)[0].read_bytes() == BODY


def test_pieces_of_two_files_are_removed(hub, tmp_path, hasty):
    hub.stops, hub.sends = [-3000], OTHER[:3000] + BODY[3000:]
    refused(InputError, lambda: get(tmp_path), match="wrong checksum")
    hub.sends = b""
    assert get(tmp_path)[0].read_bytes() == BODY


def test_no_space_left(hub, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module, "_hub_download", full)
    refused(InputError, lambda: get(tmp_path), match="cannot write .*: no space left")


def test_a_cache_that_cannot_be_made(hub, tmp_path):
    (tmp_path / "file").write_text("")
    refused(InputError, lambda: get(tmp_path / "file"), match="cannot write")


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks(hub, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(cache_module.fcntl, "flock", refuse)
    assert get(tmp_path)[0].read_bytes() == BODY


# Processes of their own


def start(cache):
    code = (
        "import sys; from pathlib import Path; from tlx.weights.hub import fetch_from_hub\n"
        "print(*fetch_from_hub('owner/name', sys.argv[1], sha256=sys.argv[2], cache=Path(sys.argv[3]), timeout=60))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, NAME, SHA256, cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"},
    )


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_the_second_process_waits_and_then_finds_the_file(hub, tmp_path):
    hub.stops = [3000]
    answer = f"{tmp_path / STORE / 'snapshots' / COMMIT / NAME} {COMMIT}\n"
    with start(tmp_path) as first:
        wait_for(lambda: "GET" in [method for method, _, _ in hub.requests])
        with start(tmp_path) as second:
            assert second.stderr.readline() == (
                f"another process is downloading {NAME} of {REPOSITORY} in {tmp_path / 'hub'}: "
                "waiting for it\n"
            )
            hub.released.set()  # the rest of the file comes
            for process in (first, second):
                assert process.communicate(timeout=60) == (answer, "")
    assert Path(answer.split()[0]).read_bytes() == BODY and leftovers(tmp_path) == []
    assert asked(hub).count("GET") == 1


def test_a_killed_process_leaves_no_lock_and_its_beginning_is_removed(hub, tmp_path):
    hub.stops = [3000]
    with start(tmp_path) as first:
        wait_for(lambda: "GET" in [method for method, _, _ in hub.requests])
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
    assert len(leftovers(tmp_path)) == 1
    path, _ = get(tmp_path)
    assert path.read_bytes() == BODY and leftovers(tmp_path) == []


def test_the_librarys_own_variables_are_read_in_a_process_of_its_own(hub, tmp_path, monkeypatch):
    found = huggingface_hub.hf_hub_download(REPOSITORY, NAME, cache_dir=tmp_path / "home" / "hub")
    hub.requests.clear()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with start(tmp_path / "cache") as process:
        assert process.communicate(timeout=60) == (f"{found} {COMMIT}\n", "")
    assert asked(hub) == ["HEAD"]
