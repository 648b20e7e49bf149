"""The sequence of training examples: a pure function of (seed, position).

Position p of the endless sequence is entry `p % n` of the permutation of epoch `p // n`; a batch that
reaches over the end of one permutation goes on in the next. In-memory data, streamed data and cached features are sources
behind this one sequence, so a run that resumes at any step sees what it would have seen.
"""

from __future__ import annotations

import functools

import numpy as np

from tlx.data.split import shuffled


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of the epoch's examples, int64 [count]."""
    order = shuffled(count, seed, f"epoch {epoch}")
    order.flags.writeable = False
    return order


def indices(seed: int, start: int, length: int, count: int) -> np.ndarray:
    """Returns the example indices at positions start .. start + length - 1, int64 [length]."""
    positions = np.arange(start, start + length)
    epochs, offsets = np.divmod(positions, count)
    result = np.empty(length, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = permutation(seed, int(epoch), count)[offsets[chosen]]
    return result
