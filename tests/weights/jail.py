"""Reads hostile files in a process with little memory and time, and reports what happened.

`python -m tests.weights.jail FOLDER` reads every file of the folder, and writes a line of JSON for
each, at once: the rest of a crashed run is missing. The process's audit events, which Python raises
for whatever leaves the interpreter, are part of the report.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.weights.hostile import CANARY
from tlx.errors import InputError
from tlx.weights.files import read_weights
from tlx.weights.stored_meta import stored_meta

GIGABYTE = 2**30
SECONDS = 5  # of this process's own time, so that a busy machine changes nothing

# What no reading of weights does: execute, import, look classes up, write, talk.
FORBIDDEN = tuple(
    "exec compile import marshal. pickle. os.system os.exec os.posix_spawn os.fork os.remove os.rename "
    "os.mkdir os.putenv subprocess. socket. ctypes. shutil. urllib. webbrowser. code. object.__ "
    "sys._getframe builtins.input builtins.breakpoint".split()
)


class OutOfTimeError(BaseException):
    """No Exception, which the readers would turn into a message."""


class Watch:
    """Keeps the forbidden audit events while it is on; an audit hook cannot be removed."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self._heed)

    def _heed(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event.startswith(FORBIDDEN):
            self.events.append(event)


def _ring(*_: object) -> None:
    raise OutOfTimeError


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, resource.RLIM_INFINITY))


def _peak() -> int:
    """Returns the most memory the process ever had, in bytes; getrusage counts its parent's in."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def examine(path: Path, watch: Watch, read: Callable[[Path], Any]) -> dict[str, Any]:
    """Returns the outcome (`read`, or what was raised), its text, seconds and events."""
    watch.events = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watch.on = True
    try:
        read(path)
        outcome, text = "read", ""
    except InputError as error:
        outcome, text = "InputError", str(error).removeprefix(str(path))
    except BaseException as error:  # noqa: BLE001  (the report is about all of them)
        outcome, text = type(error).__name__, str(error)[:500]
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "outcome": outcome,
        "text": text,
        "seconds": resource.getrusage(resource.RUSAGE_SELF).ru_utime - before,
        "events": watch.events,
        "canary": Path(os.environ["TLX_TEST_CANARY"]).exists(),
    }


def main(folder: Path) -> None:
    watch = Watch()
    signal.signal(signal.SIGPROF, _ring)
    for codec in ("raw_unicode_escape", "latin1", "utf-8", "ascii", "utf-16-le"):
        "a".encode(codec)  # what is imported once is imported before the watch
    good, *paths = sorted(folder.iterdir())
    assert examine(good, watch, read_weights)["outcome"] == "read"
    # The watch itself must be able to fail: this harmless program is what hostile files try.
    seen = examine(good, watch, lambda _: exec(CANARY))
    assert "open" in seen["events"] and "exec" in seen["events"] and seen["canary"]
    Path(os.environ["TLX_TEST_CANARY"]).unlink()
    _limit_memory()
    try:
        bytearray(2 * GIGABYTE)
        raise AssertionError("the limit of memory has no effect")
    except MemoryError:
        pass
    for path in paths:
        small = (
            path.stat().st_size < 2**20
        )  # the header is the same for both, and large ones take long
        for read in (read_weights, stored_meta) if small else (read_weights,):
            found = {"file": path.name, "reader": read.__name__, **examine(path, watch, read)}
            print(json.dumps({**found, "memory": _peak()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
