"""Downloads from a server on this machine: right, wrong, broken off, continued, silent, by several at once."""

import contextlib
import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights import cache as cache_module
from tlx.weights import catalog, download
from tlx.weights.fetch import cache_dir, fetch, locate
from tlx.weights.meta import WeightsMeta

BODY = b"weights" * 1000
OTHER = b"WEIGHTS" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
PARTIAL = [".w.pth.part", ".w.pth.part.json"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the next of `server.answers` says; the last one counts from then on."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked, self.headers.get("If-Range")))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer.get("silent"):
            self.server.released.wait(60)
            return
        body, start = answer.get("body", BODY), 0
        etag, modified = answer.get("etag", '"one"'), answer.get("modified")
        status = answer.get("status", 200)
        same = self.headers.get("If-Range") in (None, etag, modified)
        headers = {"ETag": etag, "Last-Modified": modified} | answer.get("headers", {})
        if asked and same and answer.get("ranges", True) and status == 200:
            status, start = 206, int(asked.removeprefix("bytes=").removesuffix("-"))
            headers.setdefault("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if answer.get("length", True):
            headers.setdefault("Content-Length", str(len(body) - start))
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        stop = answer.get("stop", len(body))
        self.wfile.write(body[start:stop])
        self.wfile.flush()
        if answer.get("stalls"):
            self.server.released.wait(60)

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
        server.requests, server.answers, server.released = [], [{}], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/w"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def get(server, cache, sha256=SHA256, timeout=60.0):
    return fetch(server.url, filename="w.pth", sha256=sha256, cache=cache, timeout=timeout)


def ranges(server):
    return [asked for _, asked, _ in server.requests]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(server, cache, sha256=SHA256, **answer):
    """Leaves the first 3000 bytes in the cache."""
    server.answers = [{"stop": 3000} | answer, {"status": 503}]
    with pytest.raises(InputFileNotFoundError, match="503"):
        get(server, cache, sha256)
    assert left(cache) == PARTIAL
    assert (cache / PARTIAL[0]).read_bytes() == answer.get("body", BODY)[:3000]
    server.requests.clear()


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], SHA256.upper(), ""])
@pytest.mark.parametrize(
    "answers", [[{}], [{"length": False}], [{"status": 302, "headers": {"Location": "/x"}}, {}]]
)
def test_a_download_and_then_the_cache(server, tmp_path, sha256, answers):
    server.answers, cache = list(answers), tmp_path / "new" / "cache"
    for _ in range(2):
        path = get(server, cache, sha256)
        assert path == cache / "w.pth" and path.read_bytes() == BODY
    assert len(server.requests) == len(answers)
    assert left(cache) == ["w.pth"]


def test_a_downloaded_file_is_for_all_whom_the_umask_allows(server, tmp_path):
    umask = os.umask(0o027)
    try:
        assert get(server, tmp_path).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)


def test_the_default_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    assert fetch(server.url, filename="w.pth", sha256=SHA256) == tmp_path / "w.pth"


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


def test_locate_goes_by_the_source(server, tmp_path):
    meta = WeightsMeta("resnet18", source=server.url, filename="w.pth", sha256=SHA256)
    found = locate(meta, cache=tmp_path)
    assert (found.path, found.revision) == (tmp_path / "w.pth", "")
    builtin = next(meta for meta in catalog.entries().values() if meta.source == "builtin")
    assert locate(builtin).path.is_file()
    with pytest.raises(InputError, match="cannot download 'elsewhere'"):
        locate(WeightsMeta("resnet18", source="elsewhere", filename="w.pth"), cache=tmp_path)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match=f"sha256 {SHA256}, expected 00000000") as caught:
        get(server, tmp_path, "00000000")
    assert not isinstance(caught.value, FileNotFoundError) and server.url in str(caught.value)
    assert left(tmp_path) == [] and len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 404}, "answers 404 Not Found"),
        ({"status": 204, "body": b""}, "answers 204"),
        ({"status": 206}, "answers 206"),
        ({"status": 302, "headers": {"Location": "/w"}}, "answers 302 in a circle of redirects"),
        ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "answers 302"),
        ({"status": 302, "headers": {"Location": "ftp://h/w"}}, "with a redirect to ftp://h/w"),
        ({"body": b""}, "an empty file"),
        ({"body": b"<!DOCTYPE html><title>Log in</title>"}, "sends a web page"),
        ({"body": b"\xef\xbb\xbf\r\n <HTML>\n" + BODY}, "sends a web page"),
        ({"headers": {"Content-Encoding": "gzip"}}, "encoded as gzip"),
        ({"silent": True}, "no answer within|timed out"),
    ],
)
def test_no_file_is_one_line_that_says_what_to_do(server, tmp_path, answer, reason):
    server.answers = [answer]
    with pytest.raises(InputFileNotFoundError, match=reason) as caught:
        get(server, tmp_path, "", timeout=0.5 if answer.get("silent") else 60)
    message = str(caught.value)
    assert server.url in message and str(tmp_path / "w.pth") in message and "\n" not in message
    assert "python -m tlx.main --config=configs/digits.py needs no download" in message
    assert left(tmp_path) == []


def test_an_encrypted_connection_is_not_left_for_a_plain_one():
    request = urllib.request.Request("https://example.org/w")
    follow = download._Redirects().redirect_request
    with pytest.raises(urllib.error.HTTPError, match=r"redirect to http://example\.org/w"):
        follow(request, None, 302, "Found", {}, "http://example.org/w")
    assert follow(request, None, 302, "Found", {}, "https://example.com/w").host == "example.com"


def test_nobody_listens(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/whole"
        with pytest.raises(InputFileNotFoundError, match="refused"):
            fetch(url, filename="w.pth", sha256=SHA256, cache=tmp_path)
    assert left(tmp_path) == []


def test_a_name_lookup_that_never_ends(tmp_path, monkeypatch):
    released = threading.Event()

    def look_up(*_, **__):
        released.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(InputFileNotFoundError, match=r"no answer within 0\.2 s"):
        fetch("https://example.org/w", filename="w", sha256="", cache=tmp_path, timeout=0.2)
    released.set()


def test_the_default_timeout_leaves_room_within_ten_seconds():
    assert fetch.__kwdefaults__["timeout"] <= 8
    assert locate.__kwdefaults__["timeout"] <= 8


# Broken transfers


def test_a_transfer_that_breaks_off_is_continued_at_once(server, tmp_path):
    server.answers = [{"stop": 3000}, {"stop": 5000}, {}]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.requests == [
        ("/w", None, None),
        ("/w", "bytes=3000-", '"one"'),
        ("/w", "bytes=5000-", '"one"'),
    ]
    assert left(tmp_path) == ["w.pth"]


def test_a_transfer_that_breaks_off_again_and_again_is_given_up(server, tmp_path):
    server.answers = [{"stop": n} for n in range(100, 2000, 100)]
    with pytest.raises(InputFileNotFoundError, match="it ended after 400 of 7000 bytes"):
        get(server, tmp_path)
    assert len(server.requests) == 4 and left(tmp_path) == PARTIAL


@pytest.mark.parametrize("sha256", [SHA256, ""])
@pytest.mark.parametrize(
    ("answer", "validator"),
    [
        ({}, '"one"'),
        ({"etag": 'W/"one"', "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
    ],
)  # fmt: skip
def test_the_next_call_continues(server, tmp_path, sha256, answer, validator):
    break_off(server, tmp_path, sha256, **answer)
    server.answers = [answer]
    assert get(server, tmp_path, sha256).read_bytes() == BODY
    assert server.requests == [("/w", "bytes=3000-", validator)]
    assert left(tmp_path) == ["w.pth"]


def test_a_stalled_transfer_is_kept_and_continued(server, tmp_path):
    server.answers = [{"stop": 3000, "stalls": True}, {"silent": True}]
    # A machine too busy to connect in time gives up one step earlier.
    with pytest.raises(InputFileNotFoundError, match=r"stood still|no answer within|timed out"):
        get(server, tmp_path, timeout=0.5)
    server.answers = [{}]
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("sha256", [hashlib.sha256(OTHER).hexdigest(), ""])
@pytest.mark.parametrize("length", [7000, 6993])
def test_another_file_there_by_now_is_fetched_whole(server, tmp_path, sha256, length):
    break_off(server, tmp_path, sha256)
    body = OTHER[:length]
    server.answers = [{"body": body, "etag": '"two"'}]
    sha256 = sha256 and hashlib.sha256(body).hexdigest()
    assert get(server, tmp_path, sha256).read_bytes() == body
    assert ranges(server) == ["bytes=3000-"]  # and the server sent all of it


@pytest.mark.parametrize(
    "answer",
    [
        {"body": OTHER, "etag": None},  # answered in spite of If-Range
        {"body": OTHER, "etag": '"two"'},
        {"body": OTHER + b"x"},
        {"headers": {"Content-Range": "bytes 2999-6999/7000"}},
        {"headers": {"Content-Range": "bytes 3000-6000/7000"}},
        {"headers": {"Content-Range": "nonsense"}},
        {"status": 416, "headers": {"Content-Range": "bytes */7000"}, "body": b""},
    ],
)
def test_a_continuation_that_does_not_fit_is_not_taken(server, tmp_path, answer):
    break_off(server, tmp_path)
    headers = {"Content-Range": "bytes 3000-6999/7000"} | answer.get("headers", {})
    if len(answer.get("body", BODY)) == 7001:
        headers = {"Content-Range": "bytes 3000-7000/7001"}
    server.answers = [{"status": 206} | answer | {"headers": headers}, {}]
    assert get(server, tmp_path).read_bytes() == BODY
    assert ranges(server) == ["bytes=3000-", None]
    assert left(tmp_path) == ["w.pth"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    break_off(server, tmp_path)
    server.answers = [{"ranges": False}]
    assert get(server, tmp_path).read_bytes() == BODY


def test_what_nobody_can_vouch_for_is_not_continued(server, tmp_path):
    break_off(server, tmp_path, "", etag=None)
    server.answers = [{"etag": None}]
    assert get(server, tmp_path, "").read_bytes() == BODY
    assert ranges(server) == [None]


def test_a_checksum_can_vouch(server, tmp_path):
    break_off(server, tmp_path, etag=None)
    server.answers = [{"etag": None}]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.requests == [("/w", "bytes=3000-", None)]


def test_pieces_of_two_files_are_fetched_again(server, tmp_path):
    break_off(server, tmp_path, etag=None, body=OTHER)
    server.answers = [{"etag": None}]
    assert get(server, tmp_path).read_bytes() == BODY
    assert ranges(server) == ["bytes=3000-", None]


@pytest.mark.parametrize("facts", ["{", "[]", "{}", json.dumps({"url": "http://elsewhere"})])
def test_a_beginning_of_unknown_origin_is_not_continued(server, tmp_path, facts):
    break_off(server, tmp_path)
    (tmp_path / PARTIAL[1]).write_text(facts)
    server.answers = [{}]
    assert get(server, tmp_path).read_bytes() == BODY
    assert ranges(server) == [None] and left(tmp_path) == ["w.pth"]


def test_the_beginning_from_another_url_is_not_continued(server, tmp_path):
    break_off(server, tmp_path)
    server.answers, server.url = [{}], f"{server.url}2"
    assert get(server, tmp_path).read_bytes() == BODY
    assert ranges(server) == [None]


def test_an_interruption_keeps_the_beginning(server, tmp_path, monkeypatch):
    write = download._write

    def interrupted(file, data):
        write(file, data[:3000])
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path)
    monkeypatch.setattr(download, "_write", write)
    assert get(server, tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=3000-"]


# No network, no space, no permission


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_no_network_is_touched(server, tmp_path, monkeypatch, value):
    monkeypatch.setenv("TLX_OFFLINE", value)
    with pytest.raises(InputFileNotFoundError, match="TLX_OFFLINE is set"):
        get(server, tmp_path / "c")
    assert server.requests == [] and not (tmp_path / "c").exists()
    (tmp_path / "w.pth").write_bytes(BODY)
    assert get(server, tmp_path)


def test_offline_0_is_online(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TLX_OFFLINE", "0")
    assert get(server, tmp_path)


def test_no_space_left(server, tmp_path, monkeypatch):
    def full(file, data):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_write", full)
    with pytest.raises(InputError, match=r"cannot write .*w\.pth: no space left") as caught:
        get(server, tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)
    assert left(tmp_path) == []


def test_too_little_space_is_noticed_before(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=6999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"no space left: 0\.0 MB to download"):
        get(server, tmp_path)
    assert left(tmp_path) == []


def test_a_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        get(server, tmp_path / "file")


def test_a_folder_in_place_of_the_file(server, tmp_path):
    (tmp_path / "w.pth").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        get(server, tmp_path)


# Several at once


def test_threads_download_once(server, tmp_path):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(get(server, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "w.pth"] * 4 and found[0].read_bytes() == BODY
    assert len(server.requests) == 1 and left(tmp_path) == ["w.pth"]


def start(server, cache):
    code = (
        "import sys; from pathlib import Path; from tlx.weights.fetch import fetch\n"
        "print(fetch(sys.argv[1], filename='w.pth', sha256=sys.argv[2], cache=Path(sys.argv[3]), timeout=60))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, server.url, SHA256, cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_the_second_process_waits_and_then_finds_the_file(server, tmp_path):
    server.answers = [{"stop": 3000, "stalls": True}, {}]
    with start(server, tmp_path) as first:
        wait_for(lambda: server.requests)
        with start(server, tmp_path) as second:
            line = second.stderr.readline()
            assert line == (f"another process is downloading w.pth in {tmp_path}: waiting for it\n")
            server.released.set()  # the first one's transfer breaks off, and it continues
            for process in (first, second):
                assert process.communicate(timeout=60) == (f"{tmp_path / 'w.pth'}\n", "")
    assert (tmp_path / "w.pth").read_bytes() == BODY and left(tmp_path) == ["w.pth"]
    assert ranges(server) == [None, "bytes=3000-"]


def test_a_killed_process_leaves_no_lock_but_its_beginning(server, tmp_path):
    server.answers = [{"stop": 3000, "stalls": True}, {}]
    with start(server, tmp_path) as first:
        partial = tmp_path / PARTIAL[0]
        wait_for(lambda: partial.exists() and partial.stat().st_size == 3000)
        with start(server, tmp_path) as second:
            assert "waiting for it" in second.stderr.readline()
            first.send_signal(signal.SIGKILL)
            assert second.communicate(timeout=60) == (f"{tmp_path / 'w.pth'}\n", "")
        first.communicate(timeout=60)
    assert (tmp_path / "w.pth").read_bytes() == BODY and left(tmp_path) == ["w.pth"]
    assert ranges(server) == [None, "bytes=3000-"]


def test_a_file_system_without_locks(server, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache_module.fcntl, "flock", refuse)
    server.answers = [{"stop": 3000}, {"status": 503}]
    with pytest.raises(InputFileNotFoundError, match="503"):
        get(server, tmp_path)
    assert left(tmp_path) == []
    server.answers = [{}]
    assert get(server, tmp_path).read_bytes() == BODY
    assert left(tmp_path) == ["w.pth"]


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


def test_progress_is_for_terminals(server, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        with contextlib.redirect_stderr(stream):
            fetch(server.url, filename=f"{shown}.pth", sha256=SHA256, cache=tmp_path)
        assert stream.getvalue().endswith("True.pth: 0.0 of 0.0 MB\n") == shown
        assert bool(stream.getvalue()) == shown
