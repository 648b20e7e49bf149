"""The training loop: the only one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tlx.data.pipeline import Batch
from tlx.errors import InputError
from tlx.evaluation.metrics import Evaluation
from tlx.models.leaves import Values
from tlx.training import checkpoint, logging
from tlx.training.mesh import place_batch
from tlx.training.state import TrainState, all_values
from tlx.training.step import TrainStep


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and the same command goes on from there."""

    def __init__(self, step: int, total_steps: int):
        super().__init__(f"interrupted at step {step} of {total_steps}")
        self.step, self.total_steps = step, total_steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """When things happen, in steps; 0: only at the end."""

    total_steps: int
    eval_every: int
    save_every: int
    log_every: int
    metric: str  # the validation metric that selects the best checkpoint


class StopRequest:
    """Set by Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request that the loop answers between two steps."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Stopwatch:
    """Wall seconds spent in training steps after the first one, and the examples they processed."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._since: float | None = None

    def start(self) -> None:
        """Goes on counting."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stops counting; the caller has waited for the last step."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def rate(self, batch_size: int) -> float:
        """Returns examples per second so far; 0 before the second step."""
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        seconds = self.seconds + running
        return self.steps * batch_size / seconds if self.steps and seconds > 0 else 0.0


class Loop:
    """One run: training steps with evaluation, checkpoints and logging between them."""

    def __init__(
        self,
        plan: Plan,
        *,
        train_step: TrainStep,
        frozen: Values,
        batches: Iterator[Batch],
        batch_size: int,
        mesh: Mesh,
        learning_rate: Callable[[int], Any],
        evaluate: Callable[[Values], Evaluation] | None,
        checkpoints: checkpoint.Checkpoints,
        writer: logging.MetricsWriter,
        screen: logging.Progress,
    ):
        self.plan, self.train_step, self.frozen = plan, train_step, frozen
        self.batches, self.batch_size, self.mesh = batches, batch_size, mesh
        self.learning_rate, self.evaluate = learning_rate, evaluate
        self.checkpoints, self.writer, self.screen = checkpoints, writer, screen
        self.watch = Stopwatch()
        self.first_step_seconds = 0.0
        self._window: list[dict[str, jax.Array]] = []

    def run(
        self, state: TrainState, progress: checkpoint.Progress
    ) -> tuple[TrainState, checkpoint.Progress]:
        """Trains from `progress.step` to the end.

        Raises:
          Interrupted: SIGINT or SIGTERM came; the state is saved.
          InputError: the loss is not finite.
        """
        total, begun = self.plan.total_steps, time.perf_counter()
        before = progress.seconds
        with stop_on_signals() as stop:
            for step in range(progress.step, total):
                batch = place_batch(next(self.batches), self.mesh)
                state, metrics = self.train_step(state, self.frozen, batch, np.int32(step))
                self._count(metrics, first=step == progress.step)
                done = step + 1
                due = self._due(done, self.plan.eval_every) and self.evaluate is not None
                save = self._due(done, self.plan.save_every) or stop.requested
                if due or save or done % self.plan.log_every == 0 or done == total:
                    self._log(done)
                if not (due or save):
                    continue
                self.watch.stop()
                progress = dataclasses.replace(
                    progress, step=done, seconds=before + time.perf_counter() - begun
                )
                if due:
                    progress = self._validate(state, progress)
                if save or progress.best_step == done:
                    self.checkpoints.save(state, progress)
                if stop.requested and done < total:
                    self.checkpoints.wait()
                    raise Interrupted(done, total)
                self.watch.start()
            self.watch.stop()
            self.checkpoints.wait()
        return state, progress

    def _due(self, done: int, every: int) -> bool:
        return done == self.plan.total_steps or (every > 0 and done % every == 0)

    def _count(self, metrics: dict[str, jax.Array], *, first: bool) -> None:
        self._window.append(metrics)
        if first:  # it compiled; the clock starts behind it
            begun = time.perf_counter()
            jax.block_until_ready(metrics)
            self.first_step_seconds = time.perf_counter() - begun
            self.watch.start()
        else:
            self.watch.steps += 1

    def _log(self, done: int) -> None:
        window = jax.device_get(self._window)
        self._window = []
        means = {f"train/{name}": float(np.mean([m[name] for m in window])) for name in window[0]}
        rate = float(self.learning_rate(done - 1))
        speed = self.watch.rate(self.batch_size)
        self.writer.write(done, {**means, "train/lr": rate, "examples_per_second": speed})
        self.screen.update(done, means["train/loss"], rate, speed)
        if not math.isfinite(means["train/loss"]):
            raise InputError(
                f"the loss is not finite at step {done}: lower optimizer.lr, warm up, or set optimizer.clip_norm"
            )

    def _validate(self, state: TrainState, progress: checkpoint.Progress) -> checkpoint.Progress:
        assert self.evaluate is not None
        found = self.evaluate(all_values(state, self.frozen)).summary()
        if self.plan.metric not in found:
            raise InputError(f"eval.metric is {self.plan.metric!r}, there are: {', '.join(found)}")
        self.writer.write(progress.step, {f"val/{name}": value for name, value in found.items()})
        value = -found["loss"] if self.plan.metric == "loss" else found[self.plan.metric]
        better = value > progress.best_value
        self.screen.message(
            f"step {progress.step}: val loss {found['loss']:.4f}  accuracy {found['accuracy']:.4f}"
            + ("  (best so far)" if better else "")
        )
        if not better:
            return progress
        return dataclasses.replace(progress, best_step=progress.step, best_value=float(value))
