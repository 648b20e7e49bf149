"""A worker of bench.py: steps of tlx. `python ours.py JOB` answers each line `N` on its input with the seconds of N steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from worker import Job, Steps, pictures, serve

import tlx
from tlx import config as config_lib
from tlx.memory import keep_freed_memory
from tlx.setup import prepare, prepare_tuning, train_step
from tlx.training.mesh import place_batch, replicated
from tlx.training.state import create_state


def steps(job: Job) -> Steps:
    """Compiles the job's step; each takes a new batch of uint8 from host memory."""
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
    if not job.trained:

        def infer(count: int) -> None:
            for _ in range(count):
                outcome = setup.eval_step(values, place_batch(batch, setup.mesh))
            jax.block_until_ready(outcome)

        return infer
    state, frozen = create_state(values, phase.plan, phase.optimizer, whole)
    step = train_step(setup, tuning, phase)

    def train(count: int) -> None:
        nonlocal state
        metrics: Any = None
        for number in range(count):
            placed = place_batch(batch, setup.mesh)
            state, metrics = step(state, frozen, placed, np.int32(number))
        jax.block_until_ready((state, metrics))

    return train


if __name__ == "__main__":
    serve(steps)
