"""What a training step of every tuning method costs, beside full fine-tuning of the same network.

  python experiments/tuning/cost.py --model=resnet18 --size=224 --batch=16

FLOPs and memory are XLA's own counts for the compiled step (arguments, results and temporary buffers, donated ones once); the
optimizer's state is AdamW's. Steps of all methods are timed in turns, round after round, and the median of each one's ratio to
full in the same round is shown. Writes cost_MODEL.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tlx
from tlx import config as config_lib
from tlx.data.pipeline import training_batches
from tlx.errors import InputError
from tlx.files import write_text_atomic
from tlx.setup import prepare, prepare_tuning
from tlx.steps import train_step
from tlx.training.checkpoint import Position
from tlx.training.mesh import place_batch, replicated
from tlx.training.reference import start_reference
from tlx.training.state import create_state
from tlx.tuning.table import count_parameters

HERE = Path(__file__).parent
CLASSES = 10
ROUNDS = 7


@dataclasses.dataclass
class Cost:
    """Of one method's step."""

    trainable: int
    flops: float
    memory: int  # bytes
    state: int  # bytes, of the optimizer
    step: Callable[[], float]  # runs one and returns its seconds


METHODS: dict[str, dict[str, Any]] = {
    "full": {"tune.method": "full"},
    "full, L2-SP": {"tune.method": "full", "tune.regularizers": "l2sp:0.01:0.01"},
    "full, DELTA": {"tune.method": "full", "tune.regularizers": "delta:0.01"},
    "full, BSS": {"tune.method": "full", "tune.regularizers": "bss:0.001"},
    "full, EMA": {"tune.method": "full", "optimizer.average": "ema:0.999"},
    "last stage and head": {"tune.method": "partial"},
    "first stage": {"tune.method": "surgical"},
    "BitFit": {"tune.method": "bitfit"},
    "norms": {"tune.method": "norms"},
    "LoRA": {"tune.method": "lora"},
    "DoRA": {"tune.method": "dora"},
    "IA3": {"tune.method": "ia3"},
    "bottleneck": {"tune.method": "bottleneck"},
    "head": {"tune.method": "head"},
}


def measure(base: dict[str, Any], fields: dict[str, Any]) -> Cost:
    """Compiles the step of one method."""
    setup, _ = prepare(config_lib.build(base, fields))
    tuning = prepare_tuning(setup)
    (phase,) = tuning.phases
    whole = replicated(setup.mesh)
    values = setup.weights.place(0, whole)
    state, frozen = create_state(values, phase.plan, phase.optimizer, whole)
    with tempfile.TemporaryDirectory() as folder:
        position = Position(step=0)
        (Path(folder) / "base").mkdir()
        reference, _ = start_reference(
            Path(folder), setup.weights, tuning.phases, tuning.regularizers, state, frozen, position
        )
    split = setup.open("train")["train"]
    batches = training_batches(split, seed=0, batch_size=base["train.batch_size"], start=0)
    batch = place_batch(next(iter(batches)), setup.mesh)
    source = (reference.values,) if reference.values else ()
    further = (frozen, batch, np.int32(0), *source)
    compiled = train_step(setup, tuning, phase, reference.drawn).lower(state, *further).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

    def step() -> float:
        nonlocal state
        begun = time.perf_counter()
        state, metrics = compiled(state, *further)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - begun

    return Cost(
        count_parameters(setup.leaves, phase.plan.trainable),
        compiled.cost_analysis()["flops"],
        held + memory.temp_size_in_bytes,
        sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer)),
        step,
    )


def table(costs: dict[str, Cost], rounds: list[dict[str, float]]) -> str:
    """Returns a line for each method, relative to full."""
    full = costs["full"]
    lines = [
        "| method | trained parameters | share | FLOPs | step time | peak memory | optimizer state |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        ratios = sorted(times[name] / times["full"] for times in rounds)
        spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if name != "full" else ""
        lines.append(
            f"| {name} | {cost.trainable:,} | {100 * cost.trainable / full.trainable:.2f} % "
            f"| {cost.flops / full.flops:.2f} | {statistics.median(ratios):.2f}{spread} "
            f"| {cost.memory / full.memory:.2f} | {cost.state / 1e6:.2f} MB |"
        )
    seconds = statistics.median(times["full"] for times in rounds)
    lines += [
        "",
        f"Full: {full.flops / 1e9:.1f} GFLOP, {seconds:.2f} s a step, {full.memory / 2**20:.0f} MiB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    model = tlx.create_model(arguments.model)
    METHODS["last stage and head"]["tune.freeze_stages"] = len(model.stages) - 1
    METHODS["first stage"]["tune.train_stages"] = f"{model.stages[0]},head"
    size, count = arguments.size, 2 * arguments.batch
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tlx.save_weights(model, folder / "weights.safetensors")
        images = random.integers(0, 256, (count, size, size, 3), np.uint8)
        labels = np.arange(count) % CLASSES
        np.savez(
            folder / "data.npz",
            train_images=images,
            train_labels=labels,
            test_images=images,
            test_labels=labels,
        )
        base = {
            "model.name": arguments.model,
            "model.weights": str(folder / "weights.safetensors"),
            "data.source": "npz",
            "data.root": str(folder / "data.npz"),
            "data.image_size": size,
            "data.augment": "flip",
            "train.batch_size": arguments.batch,
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-4,
        }
        costs = {}
        for method, fields in METHODS.items():
            try:
                costs[method] = measure(base, fields)
            except InputError as error:  # a network without normalisation, say
                print(f"{method}: {error}", flush=True)
    rounds = [{name: cost.step() for name, cost in costs.items()} for _ in range(ROUNDS + 1)][1:]
    text = table(costs, rounds)
    print(text)
    write_text_atomic(HERE / f"cost_{arguments.model}.md", text)


if __name__ == "__main__":
    main()
