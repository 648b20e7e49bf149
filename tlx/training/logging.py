"""What a run says while it runs: metrics.jsonl, TensorBoard files, lines or a bar on the screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from tlx.errors import InputError
from tlx.files import plain, write_bytes_atomic
from tlx.training.tensorboard import EventWriter

RECORDS = "metrics.jsonl"


class MetricsWriter:
    """Appends metrics to workdir/metrics.jsonl and workdir/tensorboard; a context manager.

    A resumed run's metrics.jsonl is the uninterrupted run's: what the interrupted one wrote after
    the checkpoint it resumes from is dropped first.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int | None = None) -> None:
        """Opens the files.

        Args:
          workdir: the run's folder; made if absent.
          resume_step: records of this step and before are kept; None: a new run, nothing is.

        Raises:
          InputError: metrics.jsonl is damaged elsewhere than at its end.
          OSError: it cannot be written.
        """
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / RECORDS
        kept = [] if resume_step is None else _parse(path)
        lines = [line for line, record in kept if record["step"] <= (resume_step or 0)]
        write_bytes_atomic(path, b"".join(line + b"\n" for line in lines))
        self._events = EventWriter(
            workdir / "tensorboard", first_step=0 if resume_step is None else resume_step + 1
        )
        self._file = open(path, "ab")  # noqa: SIM115 (closed by close)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record and flushes; numbers that are not finite are null in metrics.jsonl.

        Args:
          step: the training step after which the values hold.
          values: name -> number, as `train/loss`; scalars of numpy and jax will do.

        Raises:
          OSError: no space left.
        """
        numbers = {
            name: value.item() if hasattr(value, "item") else value
            for name, value in values.items()
        }
        record = {"step": int(step), **plain(numbers)}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._events.write(int(step), numbers)

    def close(self) -> None:
        """Closes both files. Raises OSError where buffered data no longer fits on the disk."""
        try:
            self._file.close()
        finally:
            self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except OSError:
            # The error that ends the block is the one to report, the same full disk in most cases.
            if error is None:
                raise


def read_records(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the records of workdir/metrics.jsonl: `step` and values, None where not finite.

    They are in the file's order. No file is no records; a last line that was cut short is left out.

    Raises:
      InputError: a line before the last is damaged.
    """
    return [record for _, record in _parse(Path(workdir) / RECORDS)]


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("not a record with a step")
        except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
            if number == len(lines):
                break
            raise InputError(
                f"{path}: line {number} of {len(lines)} is damaged ({error}): remove it"
            ) from error
        records.append((line, record))
    return records


class _Bar(Protocol):
    """The part of tqdm.tqdm that Progress uses."""

    n: float

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None: ...
    def refresh(self) -> Any: ...
    def close(self) -> None: ...


class Progress:
    """How far training is: a bar on a terminal, plain lines elsewhere; a context manager."""

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        unit: str = "examples",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          total: steps of the whole run.
          start: the step that a resumed run starts from.
          unit: what is counted per second.
          stream: where to write; None: standard output.
          clock: returns seconds.
        """
        self._total = total
        self._unit = unit
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._reference = (start, clock())
        self._first = True
        self._bar: _Bar | None = None
        if self._stream.isatty():
            import tqdm

            # disable=False: TQDM_DISABLE in the environment would leave `message` without a bar.
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                file=self._stream,
                bar_format="{percentage:3.0f}% |{bar}| {desc}",
                dynamic_ncols=True,
                disable=False,
            )
            self._bar.set_description_str(f"step {start}/{total}")

    def update(self, step: int, loss: float, lr: float, examples_per_second: float) -> None:
        """Shows where the run is after `step`; `lr` is the learning rate of that step."""
        text = (
            f"step {step}/{self._total}  loss {loss:#.3g}  lr {lr:.3g}  "
            f"{examples_per_second:.0f} {self._unit}/s  eta {self._eta(step)}"
        )
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.n = step
            self._bar.set_description_str(text)

    def message(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            import tqdm

            tqdm.tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Leaves the bar as it stands and ends its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _eta(self, step: int) -> str:
        then, now = self._reference, self._clock()
        rate = (step - then[0]) / max(now - then[1], 1e-9)
        if self._first:
            # The steps until the first report include compilation, which does not happen again.
            self._first, self._reference = False, (step, now)
        return duration_text((self._total - step) / rate) if rate > 0 else "?"


def duration_text(seconds: float) -> str:
    """Returns 0:41, 12:05 or 3:00:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
