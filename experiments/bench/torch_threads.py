"""How many threads PyTorch's side of a comparison computes with."""

from __future__ import annotations

import time

import torch
from worker import Steps


def faster_threads(run: Steps) -> int:
    """Returns the number of threads of the quicker step: all, or half of them."""
    times = {}
    every = torch.get_num_threads()
    for threads in {every, max(every // 2, 1)}:
        torch.set_num_threads(threads)
        run(1)
        begun = time.perf_counter()
        run(2)
        times[threads] = time.perf_counter() - begun
    return min(times, key=times.__getitem__)
