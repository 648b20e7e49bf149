"""What the two workers share: the job, its data, and the answers on standard output."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

CLASSES = 10

Steps = Callable[[int], None]  # runs so many, and waits for the last


@dataclasses.dataclass(frozen=True)
class Job:
    """A step to be timed."""

    model: str  # by tlx's name
    size: int  # pixels
    batch: int
    trained: str = "full"  # last: the last stage and the head; head; "": inference
    dtype: str = "float32"


def pictures(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch of uint8 [B, H, W, 3], and labels."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (job.batch, job.size, job.size, 3), np.uint8)
    return images, np.arange(job.batch) % CLASSES


def asked() -> Job:
    """Returns the job of the command line."""
    return Job(**json.loads(sys.argv[1]))


def serve(prepare: Callable[[], Steps], found: Callable[[], dict[str, float]]) -> None:
    """Answers on what was standard output, which is standard error from now on.

    Args:
      prepare: returns what is to be timed.
      found: returns what else there is to be said in the end; `peak` is the most bytes that were in use of an accelerator's memory,
        or those of the process on the host.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    begun = time.perf_counter()
    run = prepare()
    built = time.perf_counter()
    run(1)
    first = time.perf_counter()

    def answer(**values: float) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(build=built - begun, first=first - built)
    for line in sys.stdin:
        begun = time.perf_counter()
        run(int(line))
        answer(seconds=time.perf_counter() - begun)
    answer(**{"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024} | found())
