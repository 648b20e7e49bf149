"""Downloads from a server on this machine: right, wrong, broken off, silent."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import socket
import threading
import urllib.request
from pathlib import Path

import pytest

from tlx import files
from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights import fetch as module
from tlx.weights.fetch import cache_dir, fetch

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            return self.end_headers()
        if self.path == "/silent":
            return self.server.released.wait(60)
        self.send_response(200)
        if self.path != "/no-length":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:100] if self.path in ("/truncated", "/stalled") else BODY)
        self.wfile.flush()
        if self.path == "/stalled":
            self.server.released.wait(60)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    for name in ("TLX_OFFLINE", "TLX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.released = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], SHA256.upper(), ""])
@pytest.mark.parametrize("where", ["whole", "no-length", "moved"])
def test_a_download_and_then_the_cache(server, tmp_path, sha256, where):
    cache = tmp_path / "new" / "cache"
    for _ in range(2):
        path = fetch(f"{server.url}/{where}", filename="w.pth", sha256=sha256, cache=cache)
        assert path == cache / "w.pth" and path.read_bytes() == BODY
    assert server.requests.count(f"/{where}") == 1
    assert left(cache) == ["w.pth"]


def test_the_default_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    assert fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256) == tmp_path / "w.pth"


def test_cache_dir(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/tlx")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/tlx")
    monkeypatch.setenv("TLX_CACHE", "~/weights")
    assert cache_dir() == Path("/home/someone/weights")
    monkeypatch.setenv("TLX_CACHE", "")
    assert cache_dir() == Path("/xdg/tlx")


def test_a_file_put_there_by_hand(tmp_path):
    (tmp_path / "w.pth").write_bytes(BODY)
    url = "http://127.0.0.1:9/w.pth"
    assert fetch(url, filename="w.pth", sha256=SHA256, cache=tmp_path) == tmp_path / "w.pth"
    (tmp_path / "w.pth").write_bytes(BODY + b"x")
    with pytest.raises(
        InputError, match=f"wrong checksum: sha256 [0-9a-f]{{64}}, expected {SHA256}"
    ):
        fetch(url, filename="w.pth", sha256=SHA256, cache=tmp_path)
    assert (tmp_path / "w.pth").read_bytes() == BODY + b"x"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match=f"sha256 {SHA256}, expected 00000000") as caught:
        fetch(f"{server.url}/whole", filename="w.pth", sha256="00000000", cache=tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("where", "timeout", "reason"),
    [
        ("missing", 60, "404"),
        ("truncated", 60, "100 of 7000 bytes"),
        # A machine too busy to connect in time gives up one step earlier.
        ("stalled", 0.5, "stood still|no answer within|timed out"),
        ("silent", 0.5, "no answer within|timed out"),
    ],
)
def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    server, tmp_path, where, timeout, reason
):
    url = f"{server.url}/{where}"
    with pytest.raises(InputFileNotFoundError, match=reason) as caught:
        fetch(url, filename="w.pth", sha256=SHA256, cache=tmp_path, timeout=timeout)
    message = str(caught.value)
    assert url in message and str(tmp_path / "w.pth") in message and "\n" not in message
    assert "python -m tlx.main --config=configs/digits.py needs no download" in message
    assert left(tmp_path) == []


def test_nobody_listens(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/whole"
        with pytest.raises(InputFileNotFoundError, match="refused"):
            fetch(url, filename="w.pth", sha256=SHA256, cache=tmp_path)


def test_a_name_lookup_that_never_ends(tmp_path, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: released.wait(60))
    with pytest.raises(InputFileNotFoundError, match=r"no answer within 0\.2 s"):
        fetch("https://example.org/w", filename="w", sha256="", cache=tmp_path, timeout=0.2)
    released.set()


def test_the_default_timeout_leaves_room_within_ten_seconds():
    assert fetch.__kwdefaults__["timeout"] <= 8


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_no_network_is_touched(server, tmp_path, monkeypatch, value):
    monkeypatch.setenv("TLX_OFFLINE", value)
    with pytest.raises(InputFileNotFoundError, match="TLX_OFFLINE is set"):
        fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path / "c")
    assert server.requests == [] and not (tmp_path / "c").exists()
    (tmp_path / "w.pth").write_bytes(BODY)
    assert fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path)


def test_offline_0_is_online(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TLX_OFFLINE", "0")
    assert fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path)


def test_no_space_left(server, tmp_path, monkeypatch):
    def full(response, file, filename, total):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(InputError, match=r"cannot write .*w\.pth: no space left"):
        fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path)
    assert left(tmp_path) == []


def test_a_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path / "file")


def test_an_interruption_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(response, file, filename, total):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path)
    assert left(tmp_path) == []


def test_two_at_once(server, tmp_path, monkeypatch):
    both = threading.Barrier(2)
    rename = os.replace

    def replace(source, target):
        both.wait(60)
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    found: list[Path] = []

    def download() -> None:
        found.append(fetch(f"{server.url}/whole", filename="w.pth", sha256=SHA256, cache=tmp_path))

    threads = [threading.Thread(target=download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "w.pth"] * 2
    assert left(tmp_path) == ["w.pth"] and found[0].read_bytes() == BODY


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "file:///etc/passwd"},
        {"url": "ftp://example.org/w"},
        {"url": ""},
        {"filename": "../w.pth"},
        {"filename": "a/w.pth"},
        {"filename": ".."},
        {"filename": ""},
        {"sha256": "xyz"},
        {"sha256": SHA256 + "0"},
    ],
)
def test_arguments_that_are_refused(tmp_path, arguments):
    usual = {"url": "https://example.org/w", "filename": "w.pth", "sha256": SHA256}
    with pytest.raises(InputError) as caught:
        fetch(**(usual | arguments), cache=tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)


def test_progress_is_for_terminals(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        with contextlib.redirect_stderr(stream):
            fetch(f"{server.url}/whole", filename=f"{shown}.pth", sha256=SHA256, cache=tmp_path)
        assert stream.getvalue().endswith("True.pth: 0.0 of 0.0 MB\n") == shown
        assert bool(stream.getvalue()) == shown
