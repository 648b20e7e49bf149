"""What the loop dispatches: several training steps at once, on batches that hold their inputs or say where on the devices they are.

The host has nothing to do between the steps of a call. They are a loop of the compiled program, whose body is the same however many
steps there are, so that a run ends with the same bits wherever it was stopped. On a CPU single steps are called without that loop, which
rounds differently.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tlx.data.pipeline import Batch
from tlx.errors import InputError
from tlx.training.compilation import jit
from tlx.training.mesh import replicated, split_batches
from tlx.training.state import TrainState
from tlx.training.step import StepFunction

Metrics = dict[str, jax.Array]  # of each step, [steps]
Call = Callable[..., tuple[TrainState, Metrics]]
Data = dict[str, jax.Array]  # {} or {"inputs": [views, N, ...]}

Item = TypeVar("Item")


def make_call(step: StepFunction, mesh: Mesh, *, steps: int = 1) -> Call:
    """Returns `call(state, frozen, data, batches, first, count, *source) -> (state, metrics)`, jitted, the state donated.

    Args:
      step: of the phase.
      mesh: of the devices.
      steps: how many a call can have.

    The batches are [steps, B, ...], of which `count` are trained on; with `data` their inputs are int32 [steps, B, 2]: view and
    row of `data["inputs"]`. `first` is the number of the first step.
    """

    def call(
        state: TrainState,
        frozen: Any,
        data: Data,
        batches: Any,
        first: jax.Array,
        count: jax.Array,
        *source: Any,
    ) -> tuple[TrainState, Metrics]:
        def batch_of(place: jax.Array | int) -> Any:
            batch = jax.tree.map(lambda rows: rows[place], batches)
            if data:
                view, row = batch["inputs"][:, 0], batch["inputs"][:, 1]
                batch["inputs"] = data["inputs"][view, row]
            return batch

        if steps == 1 and jax.default_backend() == "cpu":
            state, metrics = step.function(state, frozen, batch_of(0), first, *source)
            return state, jax.tree.map(lambda value: value[None], metrics)
        traced = jax.jit(step.function)  # once, for the shapes and for the loop

        def one(place: jax.Array, state: TrainState) -> tuple[TrainState, Metrics]:
            return traced(state, frozen, batch_of(place), first + place, *source)

        def body(place: jax.Array, carry: Any) -> Any:
            state, kept = carry
            state, metrics = one(place, state)
            return state, jax.tree.map(lambda all_, new: all_.at[place].set(new), kept, metrics)

        _, shapes = jax.eval_shape(one, jnp.int32(0), state)
        kept = jax.tree.map(lambda like: jnp.zeros((steps, *like.shape), like.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, kept))

    whole = replicated(mesh)
    return jit(
        call,
        in_shardings=(
            *(whole, whole, whole, split_batches(mesh), whole, whole),
            *([whole] if step.needs_source else []),
        ),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def grouped(
    batches: Iterator[Batch], counts: Iterable[int], steps: int
) -> Iterator[tuple[int, Batch]]:
    """Yields how many batches a call has, and these as [steps, B, ...], the missing ones being copies of the last.

    Args:
      batches: as they come.
      counts: how many each call should have, at most `steps`.
      steps: how many a call can have.

    Raises:
      InputError: `batches` raised it, once those that came before have been yielded.
    """
    for count in counts:
        group: list[Batch] = []
        broken: InputError | None = None
        try:
            group.extend(itertools.islice(batches, count))
        except InputError as error:
            broken = error
        if group:
            yield len(group), _stacked(group, steps)
        if broken is not None:
            raise broken


def calls_ahead() -> int:
    """Returns for how many calls batches are made and placed before they are asked for: on accelerators of one process.

    With several processes placing is a collective, which must not run beside those of the steps.
    """
    return 2 if jax.default_backend() != "cpu" and jax.process_count() == 1 else 0


def ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yields the items, of which a thread makes up to `depth` before they are asked for; 0: none."""
    if depth == 0:
        yield from items
        return
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def _stacked(group: list[Batch], steps: int) -> Batch:
    if steps == 1:
        return jax.tree.map(lambda rows: rows[None], group[0])
    group = [*group, *[group[-1]] * (steps - len(group))]
    return {name: np.stack([batch[name] for batch in group]) for name in group[0]}
