"""tlx in the experiments on text, by the numbers of recipe.py.

  python experiments/text/ours.py --task=sst2 --method=full --seeds=0,1,2 --model=DIR --shared=DIR --out=FILE.json

Methods: full; head, the classifier alone on the cached outputs of the frozen network; lora, on query and value, with the classifier.
Each run is `tlx.finetune`; nothing is selected: the last step counts, on the test file. It prints one record and puts it into FILE, in
place of the one of the same settings and seed. `seconds` are those of the steps behind the first call; that of the first, with
compiling, is in `first_step`. Inference goes once through the evaluated file, a second time, so that nothing is compiled.

With --time-only=train or infer this is a worker of speed.py: a line `N` is answered with the seconds of N steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from recipe import LORA_ALPHA, LORA_RANK, LORA_TARGETS, Recipe
from records import make_parser, parsed, save

import tlx
from tlx import config as config_lib
from tlx.config import Config
from tlx.data import pipeline
from tlx.memory import keep_freed_memory
from tlx.setup import prepare, prepare_tuning
from tlx.steps import step_function
from tlx.training.calls import make_call
from tlx.training.mesh import place_batch, place_batches, replicated
from tlx.training.state import create_state

sys.path += [str(Path(__file__).parents[1] / "bench")]
from worker import Steps, serve

VERSIONS = ("jax", "jaxlib", "flax", "optax", "tokenizers")
WARM = 12  # steps before those that are timed: among so many batches every length occurs
SAME = ("task", "method", "split", "lr", "epochs", "examples", "seed")


def data_folder(task: str, shared: Path, examples: int, split: str, folder: Path) -> Path:
    """Makes a folder of the training rows that the recipe takes, and the file that is evaluated as test."""
    suffix, source = (("tsv", "sst2"), ("conll", "wnut17"))[task == "wnut17"]
    source_folder = shared / "data" / source
    with open(source_folder / f"train.{suffix}", encoding="utf-8") as file:
        wanted = itertools.islice(file, examples + 1 if examples else None)
        (folder / f"train.{suffix}").write_text("".join(wanted), encoding="utf-8")
    shutil.copy(source_folder / f"{split}.{suffix}", folder / f"test.{suffix}")
    return folder


def config_of(task: str, method: str, recipe: Recipe, model: Path, data: Path, seed: int) -> Config:
    """Returns the recipe as a config."""
    fields: dict[str, Any] = {
        "seed": seed,
        "task": {"sst2": "classification", "wnut17": "tagging"}[task],
        "model.name": "bert",
        "model.weights": str(model),
        "data.source": {"sst2": "table", "wnut17": "conll"}[task],
        "data.root": str(data),
        "data.max_length": recipe.max_length,
        "data.length_buckets": recipe.buckets,
        "tune.method": method,
        "optimizer.name": "adamw",
        "optimizer.lr": recipe.lr[method],
        "optimizer.weight_decay": recipe.weight_decay,
        "optimizer.schedule": "linear",
        "optimizer.warmup": f"{100 * recipe.warmup:g}%",
        "optimizer.clip_norm": recipe.clip,
        "train.epochs": recipe.epochs[method],
        "train.batch_size": recipe.batch,
        "checkpoint.every": "0",
    }
    if method == "lora":
        places = [rf".*\.attention\.{name}" for name in LORA_TARGETS]
        fields |= {"tune.rank": LORA_RANK, "tune.alpha": LORA_ALPHA, "tune.targets": places}
    return config_lib.build(fields)


def run(settings: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Returns the record of one training and its evaluation."""
    task, method, recipe = settings.task, settings.method, settings.recipe
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = data_folder(task, settings.shared, recipe.examples, settings.split, folder)
        config = config_of(task, method, recipe, settings.model, data, seed)
        summary = tlx.finetune(config, folder / "run")
        steps = summary["steps"]
        tlx.evaluate(config, folder / "run")
        begun = time.perf_counter()
        evaluated = tlx.evaluate(config, folder / "run")
        whole = time.perf_counter() - begun
    metrics = ("accuracy", "correct", "f1", "precision", "recall", "entities", "examples")
    found = {key: summary[f"test/{key}"] for key in metrics if f"test/{key}" in summary}
    speed = summary["examples_per_second"]
    return {
        "task": task,
        "method": method,
        "split": settings.split,
        "seed": seed,
        "lr": recipe.lr[method],
        "epochs": recipe.epochs[method],
        "batch": recipe.batch,
        "examples": recipe.examples,
        "steps": steps,
        "trained": summary["params/trainable"],
        **found,
        "evaluated_again": {key: evaluated[f"test/{key}"] for key in found},
        "seconds": round(steps * recipe.batch / speed, 2),
        "sequences_per_second": round(speed, 1),
        "first_step": round(summary["seconds_to_first_step"], 1),
        "evaluation_seconds_with_start": round(whole, 2),
        "compilations": [summary["compilations/train_step"], summary["compilations/eval_step"]],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def timed(settings: argparse.Namespace) -> Steps:
    """Returns what runs the first N full batches: of training in the order of seed 0, or of the evaluated file."""
    task, method, recipe = settings.task, settings.method, settings.recipe
    with tempfile.TemporaryDirectory() as name:
        data = data_folder(task, settings.shared, recipe.examples, settings.split, Path(name))
        config = config_of(task, method, recipe, settings.model, data, 0)
        setup, _ = prepare(config)
        split = setup.open("train" if settings.time_only == "train" else "test")
    (rows,) = split.values()
    whole, count = replicated(setup.mesh), len(rows) // recipe.batch
    values = setup.weights.place(0, whole)
    order = np.arange(count * recipe.batch)
    if settings.time_only == "infer":

        def batch_of(number: int) -> Mapping[str, Any]:
            index = order.reshape(count, -1)[number % count]
            zeros = np.zeros_like(index)
            targets = rows.targets(index, zeros)
            weight = np.ones(len(index), np.float32)
            return {"inputs": rows.rows(index, zeros), "targets": targets, "weight": weight}

        def infer(steps: int) -> None:
            for number in range(steps):
                outcome = setup.eval_step(values, place_batch(dict(batch_of(number)), setup.mesh))
            jax.block_until_ready(outcome)

        infer(min(count, WARM))
        return infer
    tuning = prepare_tuning(setup)
    (phase,) = tuning.phases
    state, frozen = create_state(values, phase.plan, phase.optimizer, whole)
    call = make_call(step_function(setup, tuning, phase), setup.mesh)

    def train(steps: int) -> None:
        nonlocal state
        batches = pipeline.training_batches(rows, seed=0, batch_size=recipe.batch, start=0)
        metrics: Any = None
        for number, batch in enumerate(itertools.islice(batches, steps)):
            placed = place_batches(jax.tree.map(lambda array: array[None], batch), setup.mesh)
            state, metrics = call(state, frozen, {}, placed, np.int32(number), np.int32(1))
        jax.block_until_ready((state, metrics))

    train(WARM)
    return train


def asked() -> argparse.Namespace:
    """Returns the command line's settings; `recipe` is the task's."""
    parser = make_parser(__doc__)
    parser.add_argument("--pad", choices=("buckets",), default="buckets")
    return parsed(parser)


def main() -> None:
    keep_freed_memory()
    settings = asked()
    if settings.time_only:
        serve(lambda: timed(settings), dict)
        return
    for seed in map(int, settings.seeds.split(",")):
        record = run(settings, seed)
        print(json.dumps(record), flush=True)
        if settings.out is not None:
            save(record, settings.out, SAME)


if __name__ == "__main__":
    main()
