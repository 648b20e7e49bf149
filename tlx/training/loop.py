"""The training loop: the only one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from tlx.config import sign_of
from tlx.data.pipeline import Batch
from tlx.errors import InputError
from tlx.models.leaves import Values
from tlx.tasks import Evaluation
from tlx.training import logging
from tlx.training.calls import Call, Data, ahead, calls_ahead, grouped
from tlx.training.checkpoint import ESTIMATE, VALIDATION, Checkpoints, Position
from tlx.training.mesh import place_batches, replicated
from tlx.training.state import TrainState, advance, all_values, inference_values
from tlx.training.statistics import Estimator
from tlx.tuning.phases import Phase, describe


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and the same command goes on from there."""

    def __init__(self, step: int, total_steps: int):
        super().__init__(step, total_steps)
        self.step, self.total_steps = step, total_steps

    def __str__(self) -> str:
        return f"interrupted at step {self.step} of {self.total_steps}"


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When things happen, in steps; 0: only at the end."""

    total_steps: int
    eval_every: int
    save_every: int
    log_every: int
    metric: str  # the validation metric that selects the best checkpoint
    patience: int = 0  # validations without a new best after which training ends; 0: it does not

    def together(self, step: int, end: int, most: int) -> int:
        """Returns how many steps from `step` on, before `end` and at most `most`, have nothing due between them."""
        each = [every for every in (self.log_every, self.save_every, self.eval_every) if every]
        return min(most, end - step, *(every - step % every for every in each))


class Feeds(Protocol):
    """What the loop trains and validates on: `tlx.features.feeds.Feeds`."""

    @property
    def validates(self) -> bool: ...

    def batches(self, phase: int, step: int, values: Values) -> Iterator[Batch]: ...

    @property
    def data(self) -> Data: ...

    def evaluate(self, phase: int, values: Values) -> Evaluation: ...


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
    """Turns SIGINT and SIGTERM into a request that the loop answers between two calls."""
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
    """Wall seconds spent in training steps after the first call, and the examples they processed."""

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
        """Returns examples per second so far; 0 before the second call."""
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        seconds = self.seconds + running
        return self.steps * batch_size / seconds if self.steps and seconds > 0 else 0.0


class Loop:
    """One run: training steps with evaluation, checkpoints and logging between them."""

    def __init__(
        self,
        cadence: Cadence,
        phases: Sequence[Phase],
        *,
        calls: Sequence[Call],
        steps_per_call: int,
        frozen: Values,
        feeds: Feeds,
        batch_size: int,
        mesh: Mesh,
        learning_rate: Callable[[int], Any],
        checkpoints: Checkpoints,
        writer: logging.MetricsWriter,
        screen: logging.Progress,
        source: Values | None = None,
        estimator: Estimator | None = None,
    ):
        self.cadence, self.phases = cadence, phases
        self.calls, self.steps_per_call = calls, steps_per_call  # of the phases
        self.frozen = frozen
        self.source = (source,) if source else ()  # the last argument of calls that need it
        self.feeds, self.batch_size, self.mesh = feeds, batch_size, mesh
        self.learning_rate = learning_rate
        self.checkpoints, self.writer, self.screen = checkpoints, writer, screen
        self.estimator = estimator  # of statistics that evaluation uses in place of training's
        self.ahead = calls_ahead()
        self.watch = Stopwatch()
        self.first_step_done = 0.0  # as time.perf_counter() counts; 0: not yet
        self._window: list[tuple[int, dict[str, jax.Array]]] = []

    def run(self, state: TrainState, position: Position) -> tuple[TrainState, Position]:
        """Trains from `position.step` to the end, or until patience is at an end.

        Raises:
          Interrupted: SIGINT or SIGTERM came; the state is saved, and what takes long, an estimate of statistics and the
            validation that needs it, is left to the next start.
          InputError: the loss is not finite; or a picture is broken, what was reached is saved then.
        """
        total, before, begun = self.cadence.total_steps, position.seconds, time.perf_counter()
        step, compiles = position.step, True
        with stop_on_signals() as stop, contextlib.ExitStack() as feeding:

            def feed() -> Iterator[tuple[int, Any]]:
                feeding.close()  # what was made ahead for the phase before
                fed = self._fed(state, position.phase, step)
                return feeding.enter_context(contextlib.closing(fed))

            fed = feed()
            if position.undone:
                position = self._make_up(state, position, stop)
            while step < total and not self._is_out_of_patience(position):
                while self._begins_next(step, position.phase):
                    state, position = self._next_phase(state, position, step)
                    compiles, fed = True, feed()
                try:
                    state, metrics, count = self._call(state, position.phase, step, *next(fed))
                except InputError:
                    reached = dataclasses.replace(position, step=step)
                    estimated = self._estimated(state, reached, stop, ESTIMATE)
                    if estimated is not None:
                        self._save(state, reached, estimated)
                        self.checkpoints.wait()
                    raise
                self._count(metrics, count, compiled=compiles)
                step, compiles = step + count, False
                validate = self.feeds.validates and self._due(step, self.cadence.eval_every)
                save = self._due(step, self.cadence.save_every) or stop.requested
                if validate or save or step % self.cadence.log_every == 0:
                    self._log(step)
                if not (validate or save):
                    continue
                self.watch.stop()
                seconds = before + time.perf_counter() - begun
                position = dataclasses.replace(position, step=step, seconds=seconds)
                estimated = self._estimated(
                    state, position, stop, VALIDATION if validate else ESTIMATE
                )
                if estimated is None:
                    raise Interrupted(step, total)
                if validate:
                    position = self._validate(state, position, estimated)
                ends = self._is_out_of_patience(position)
                if save or ends or stop.requested or position.best_step == step:
                    self._save(state, position, estimated)
                if stop.requested and step < total and not ends:
                    self.checkpoints.wait()
                    raise Interrupted(step, total)
                self.watch.start()
            self.watch.stop()
            self.checkpoints.wait()
        return state, position

    def metric_value(self, position: Position) -> float:
        """Returns the best validation metric as it was measured."""
        return sign_of(self.cadence.metric) * position.best_value

    def _estimated(
        self, state: TrainState, position: Position, stop: StopRequest, undone: str
    ) -> Values | None:
        """Returns statistics that evaluation uses in place of training's.

        None where the run is asked to stop: the state is saved without them then, `undone` being left to the next start;
        so it is where a picture is broken.
        """
        if self.estimator is None:
            return {}
        estimated = None
        try:
            estimated = self.estimator(
                state,
                self.frozen,
                phase=position.phase,
                done=position.step,
                stopping=lambda: stop.requested,
            )
        finally:
            if estimated is None:
                self._save(state, dataclasses.replace(position, undone=undone), {})
                self.checkpoints.wait()
        return estimated

    def _make_up(self, state: TrainState, position: Position, stop: StopRequest) -> Position:
        """Does what was left undone at the step, and saves it in place of what was saved."""
        undone, position = position.undone, dataclasses.replace(position, undone="")
        estimated = self._estimated(state, position, stop, undone)
        if estimated is None:
            raise Interrupted(position.step, self.cadence.total_steps)
        if undone == VALIDATION:
            position = self._validate(state, position, estimated)
        self.checkpoints.replace(state, position, estimated)
        return position

    def _save(self, state: TrainState, position: Position, estimated: Values) -> None:
        if position.step:
            self.checkpoints.save(state, position, estimated)

    def _due(self, done: int, every: int) -> bool:
        return done == self.cadence.total_steps or (every > 0 and done % every == 0)

    def _is_out_of_patience(self, position: Position) -> bool:
        return 0 < self.cadence.patience <= position.stale

    def _call(
        self, state: TrainState, phase: int, step: int, count: int, batches: Any
    ) -> tuple[TrainState, dict[str, jax.Array], int]:
        """Takes so many steps, and keeps nothing of what they were fed with."""
        arguments = self.feeds.data, batches, np.int32(step), np.int32(count)
        state, metrics = self.calls[phase](state, self.frozen, *arguments, *self.source)
        return state, metrics, count

    def _fed(
        self, state: TrainState, phase: int, step: int
    ) -> Generator[tuple[int, Any], None, None]:
        """Returns what each call from a step on, up to the end of the phase, takes: how many batches, and these."""
        batches = self.feeds.batches(phase, step, all_values(state, self.frozen))
        last = phase + 1 == len(self.phases)
        end = self.cadence.total_steps if last else self.phases[phase + 1].start

        def counts() -> Iterator[int]:
            at = step
            while at < end:
                count = self.cadence.together(at, end, self.steps_per_call)
                yield count
                at += count

        groups = grouped(batches, counts(), self.steps_per_call)
        placed = ((count, place_batches(group, self.mesh)) for count, group in groups)
        return ahead(placed, self.ahead)

    def _begins_next(self, step: int, phase: int) -> bool:
        return phase + 1 < len(self.phases) and self.phases[phase + 1].start <= step

    def _next_phase(
        self, state: TrainState, position: Position, step: int
    ) -> tuple[TrainState, Position]:
        self.watch.stop()
        index = position.phase + 1
        whole = replicated(self.mesh)
        state, self.frozen = advance(state, self.frozen, self.phases[index], step, whole)
        (line,) = describe(self.phases[index - 1 : index + 1])
        self.screen.message(line)
        return state, dataclasses.replace(position, phase=index, stale=0)

    def _count(self, metrics: dict[str, jax.Array], count: int, *, compiled: bool) -> None:
        self._window.append((count, metrics))
        if compiled:  # the clock starts behind it
            jax.block_until_ready(metrics)
            self.first_step_done = self.first_step_done or time.perf_counter()
            self.watch.start()
        else:
            self.watch.steps += count

    def _log(self, done: int) -> None:
        window = [
            {k: v[:count] for k, v in found.items()}
            for count, found in jax.device_get(self._window)
        ]
        self._window = []
        means = {
            f"train/{name}": float(np.mean(np.concatenate([found[name] for found in window])))
            for name in window[0]
        }
        rate = float(self.learning_rate(done - 1))
        speed = self.watch.rate(self.batch_size)
        self.writer.write(done, {**means, "train/lr": rate, "examples_per_second": speed})
        self.screen.update(done, means["train/loss"], rate, speed)
        if not math.isfinite(means["train/loss"]):
            raise InputError(
                f"the loss is not finite at step {done}: lower optimizer.lr, warm up, or set optimizer.clip_norm"
            )

    def _validate(self, state: TrainState, position: Position, estimated: Values) -> Position:
        found = self.feeds.evaluate(
            position.phase, {**inference_values(state, self.frozen), **estimated}
        )
        summary = found.summary()
        self.writer.write(position.step, {f"val/{name}": value for name, value in summary.items()})
        value = sign_of(self.cadence.metric) * float(summary[self.cadence.metric])
        better = value > position.best_value
        self.screen.message(
            f"step {position.step}: val {found.headline()}" + ("  (best so far)" if better else "")
        )
        if better:
            return dataclasses.replace(position, best_step=position.step, best_value=value, stale=0)
        position = dataclasses.replace(position, stale=position.stale + 1)
        if self._is_out_of_patience(position):
            self.screen.message(
                f"step {position.step}: no new best in {position.stale} validations, training ends "
                "(train.patience)"
            )
        return position
