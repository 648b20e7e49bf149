"""A worker of bench.py: steps of tlx. `python ours.py JOB` answers each line `N` on its input with the seconds of N steps.

As in a run, accelerators have the pictures in their memory and take several steps in a call; a CPU gets each batch from host memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from worker import Job, Steps, asked, pictures, serve

import tlx
from tlx import config as config_lib
from tlx.features.feeds import STEPS_PER_CALL
from tlx.memory import keep_freed_memory
from tlx.setup import prepare, prepare_tuning
from tlx.steps import step_function
from tlx.training.calls import make_call
from tlx.training.compilation import operations
from tlx.training.mesh import place_batch, place_batches, replicated
from tlx.training.state import create_state

COUNTED: dict[str, float] = {}


def steps(job: Job) -> Steps:
    """Compiles the job's step."""
    keep_freed_memory()
    images, labels = pictures(job)
    stages = tlx.create_model(job.model).stages
    last = {"tune.method": "partial", "tune.freeze_stages": len(stages) - 1}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data.npz"
        named = {"train_images": images, "train_labels": labels}
        np.savez(data, **named, test_images=images, test_labels=labels)
        config = config_lib.build(
            {
                "model.name": job.model,
                "data.source": "npz",
                "data.root": str(data),
                "data.image_size": job.size,
                "train.batch_size": job.batch,
                "eval.batch_size": job.batch,
                "model.dtype": job.dtype,
                "optimizer.name": "sgd",
                "optimizer.options": "momentum=0.9",
                "optimizer.lr": 1e-3,
            },
            last if job.trained == "last" else {"tune.method": job.trained or "full"},
        )
        setup, _ = prepare(config)
    batch = {
        "inputs": images,
        "targets": labels.astype(np.int32),
        "weight": np.ones(job.batch, np.float32),
    }
    tuning = prepare_tuning(setup)
    (phase,) = tuning.phases
    whole = replicated(setup.mesh)
    values = setup.weights.place(0, whole)
    on_device = jax.default_backend() != "cpu"
    if not job.trained:
        placed = place_batch(batch, setup.mesh)

        def infer(count: int) -> None:
            for _ in range(count):
                inputs = placed if on_device else place_batch(batch, setup.mesh)
                outcome = setup.eval_step(values, inputs)
            jax.block_until_ready(outcome)

        return infer
    state, frozen = create_state(values, phase.plan, phase.optimizer, whole)
    function = step_function(setup, tuning, phase)
    COUNTED["flops"] = operations(function.function, state, frozen, batch, np.int32(0))
    most = STEPS_PER_CALL if on_device else 1
    call = make_call(function, setup.mesh, steps=most)
    data = {}
    if on_device:
        data = {"inputs": jax.device_put(images[None], whole)}
        places = np.stack([np.zeros(job.batch), np.arange(job.batch)], -1)
        batch["inputs"] = places.astype(np.int32)
    batches = {name: np.stack([rows] * most) for name, rows in batch.items()}

    def train(count: int) -> None:
        nonlocal state
        metrics: Any = None
        for number in range(0, count, most):
            placed = place_batches(batches, setup.mesh)
            steps = np.int32(min(most, count - number))
            state, metrics = call(state, frozen, data, placed, np.int32(number), steps)
        jax.block_until_ready((state, metrics))

    return train


def found() -> dict[str, float]:
    """Returns the most bytes of an accelerator's memory that have been in use, and a step's operations by XLA's count."""
    facts = jax.local_devices()[0].memory_stats() or {}
    peak = {"peak": facts["peak_bytes_in_use"]} if "peak_bytes_in_use" in facts else {}
    return peak | COUNTED


if __name__ == "__main__":
    serve(lambda: steps(asked()), found)
