"""Every tuning method on real data: accuracy over three seeds, each at a learning rate that its own training data chose.

  python experiments/tuning/study.py --shared=DIR --task=cifar10_10 [--methods="head;LP-FT"]

1. Each learning rate of a method's grid is tried on training examples alone: by cross-validation in three folds (ants and bees)
   or on training pictures that no run is trained on (CIFAR-10, 10 a class); the best is kept, of equals the smaller.
2. With it, seeds 0, 1 and 2 are trained on the training examples and judged on the test pictures: the values of the last step.

Cells that are in TASK.json already are not run again; `--table` writes TASK.md from them. DIR has data/ and weights/ as TLX_SHARED.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import multiprocessing
import statistics
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tlx
from tlx import config as config_lib
from tlx.errors import InputError
from tlx.files import write_json_atomic, write_text_atomic
from tlx.memory import keep_freed_memory

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
SELECTION_SEED = 100
FOLDS = 3

Fields = Mapping[str, Any]

SMALL_RATES = (1e-4, 3e-4, 1e-3)  # of methods that move pretrained kernels
LARGE_RATES = (1e-3, 3e-3, 1e-2)  # of methods that do not
# Where the head is new, it learns ten times as fast as the pretrained kernels that are trained with it.
NEW_HEAD: Fields = {"tune.groups": ("head.lr=10",)}
NEW_HEAD_RATES = (3e-5, 1e-4)
# What the frozen network makes of each picture is computed once, so that epochs cost next to nothing; no flips then.
KEPT_FEATURES: Fields = {
    "tune.method": "head",
    "data.augment": (),
    "cache.use": "on",
    "train.epochs": 40.0,
}
HEAD_RATES = (3e-4, 1e-3, 3e-3)

RECIPE: Fields = {
    "optimizer.name": "adamw",
    "optimizer.schedule": "cosine",
    "optimizer.warmup": "5%",
    "data.augment": ("flip",),
    "checkpoint.every": "0",
    "eval.every": "0",
    "train.log_every": 1000,
    "model.dtype": "float32",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, its data, and how long it is trained."""

    fields: Fields
    early: str  # the first stages, for surgical
    first: int  # partial: stages that stay frozen
    only: tuple[str, ...] = ()  # the methods that make sense; (): all
    new_head: bool = False


FULL = (
    "full",
    "full, layer decay 0.7",
    "full, BatchNorm frozen",
    "full, L2-SP",
    "full, DELTA",
    "full, BSS",
)
AUTO = "auto"  # decides all but the data and the network

CIFAR: Fields = {
    "model.name": "resnet20_cifar",
    "model.weights": "weights/resnet20-12fca82f.th",
    "data.source": "tfds:cifar10",
    "data.root": "data/tfds",
    "eval.batch_size": 500,
}
ANTS: Fields = {
    "data.source": "folder",
    "data.root": "data/hymenoptera",
    "train.batch_size": 16,
    "eval.batch_size": 51,
}

TASKS = {
    "cifar10_10": Task(
        {**CIFAR, "data.labels_per_class": 10, "train.batch_size": 20, "train.steps": 100},
        "stem,layer1",
        2,
    ),
    "cifar10_100": Task(
        {**CIFAR, "data.labels_per_class": 100, "train.batch_size": 64, "train.steps": 200},
        "stem,layer1",
        2,
    ),
    "cifar10_all": Task({**CIFAR, "train.batch_size": 128, "train.epochs": 1.0}, "stem,layer1", 2),
    "ants_squeezenet": Task(
        {
            **ANTS,
            "model.name": "squeezenet1_0",
            "model.weights": "weights/squeezenet1_0_imagenet.pth",
            "train.epochs": 5.0,
        },
        "stem,stage1",
        2,
        new_head=True,
    ),
    "ants_resnet18": Task(
        {
            **ANTS,
            "model.name": "resnet18",
            "model.weights": "weights/resnet18_imagenet_layers1to3.pth",
            "model.missing_ok": "layer4",
            "train.epochs": 5.0,
        },
        "layer3,layer4,head",
        4,
        # Others would leave layer4, which the file lacks, as it is drawn.
        ("from scratch", *FULL, "partial", "surgical", AUTO),
        new_head=True,
    ),
}
# Where the rates were chosen, if not in the task itself.
RATES_FROM = {"cifar10_100": "cifar10_10", "cifar10_all": "cifar10_10"}


def methods(task: Task) -> dict[str, tuple[Fields, tuple[float, ...]]]:
    """Returns method -> (fields, learning rates to choose from)."""
    full = {"tune.method": "full"}
    known: dict[str, tuple[Fields, tuple[float, ...]]] = {
        "from scratch": ({**full, "model.weights": "none", "model.missing_ok": ""}, LARGE_RATES),
        "full": (full, SMALL_RATES),
        "full, layer decay 0.7": ({**full, "tune.layer_decay": 0.7}, SMALL_RATES),
        "full, BatchNorm frozen": ({**full, "tune.batchnorm": "frozen"}, SMALL_RATES),
        "full, L2-SP": ({**full, "tune.regularizers": "l2sp:0.01:0.01"}, SMALL_RATES),
        "full, DELTA": ({**full, "tune.regularizers": "delta:0.01"}, SMALL_RATES),
        "full, BSS": ({**full, "tune.regularizers": "bss:0.001"}, SMALL_RATES),
        "head": ({"tune.method": "head"}, LARGE_RATES),
        "partial": ({"tune.method": "partial", "tune.freeze_stages": task.first}, SMALL_RATES),
        "surgical": ({"tune.method": "surgical", "tune.train_stages": task.early}, SMALL_RATES),
        "gradual": ({"tune.method": "gradual", "tune.unfreeze_every": "15%"}, SMALL_RATES),
        "LP-FT": ({"tune.method": "lpft"}, SMALL_RATES),
        "BitFit": ({"tune.method": "bitfit"}, LARGE_RATES),
        "norms": ({"tune.method": "norms"}, LARGE_RATES),
        "LoRA": ({"tune.method": "lora"}, LARGE_RATES),
        "DoRA": ({"tune.method": "dora"}, LARGE_RATES),
        "IA3": ({"tune.method": "ia3"}, LARGE_RATES),
        "bottleneck": ({"tune.method": "bottleneck"}, LARGE_RATES),
        AUTO: ({"tune.method": "auto"}, ()),
    }
    if task.new_head:
        for name, (fields, rates) in known.items():
            if rates == SMALL_RATES:
                known[name] = ({**NEW_HEAD, **fields}, NEW_HEAD_RATES)
        known["head, 40 epochs of kept features"] = (KEPT_FEATURES, HEAD_RATES)
    return {name: how for name, how in known.items() if not task.only or name in task.only}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method at a learning rate with a seed, judged on training examples (selection) or on the test pictures (test)."""

    task: str
    part: str
    method: str
    lr: float
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What its row in TASK.json is found by."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "task"}


def run_cell(cell: Cell, shared: Path) -> dict[str, Any] | str:
    """Trains, and returns the cell's row; or why it cannot be, as where there is no normalisation to train."""
    task = TASKS[cell.task]
    fields, _ = methods(task)[cell.method]
    where = {k: str(shared / task.fields[k]) for k in ("model.weights", "data.root")}
    every = {**RECIPE, **task.fields, **where, **fields, "optimizer.lr": cell.lr, "seed": cell.seed}
    if cell.method == AUTO:
        own = "model. data.root data.source data.labels eval.batch tune. seed".split()
        every = {name: value for name, value in every.items() if name.startswith(tuple(own))}
    results = []
    try:
        with _splits(task, cell.part, shared) as splits:
            for split in splits:
                jax.clear_caches()
                config = config_lib.build(every, split)
                with (
                    tempfile.TemporaryDirectory() as folder,
                    contextlib.redirect_stdout(io.StringIO()),
                ):
                    results.append(tlx.finetune(config, Path(folder) / "run"))
    except InputError as error:
        return str(error)
    first = results[0]
    return {
        **cell.key,
        "accuracy": statistics.mean(r["test/accuracy"] for r in results),
        "trainable": first["params/trainable"],
        "total": first["params/total"],
        "steps": first["steps"],
        "device": first["device"],
        "versions": first["versions"],
    }


def _start_worker() -> None:
    keep_freed_memory()
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU's own is less than float32


class Study:
    """The cells of one task, kept in a file."""

    def __init__(self, name: str):
        self.name, self.task = name, TASKS[name]
        self.file = HERE / f"{name}.json"
        self.rows: list[dict[str, Any]] = (
            json.loads(self.file.read_text()) if self.file.exists() else []
        )

    def run(self, wanted: list[str], shared: Path, workers: int) -> bool:
        """Runs the cells of these methods that are not there yet, so many at a time; returns whether none broke down."""
        context, sound = multiprocessing.get_context("spawn"), True
        begun: set[Cell] = set()
        running: dict[Future[dict[str, Any] | str], Cell] = {}
        pool = ProcessPoolExecutor(workers, context, _start_worker)

        def submit(cells: Iterable[Cell]) -> None:
            for cell in cells:
                if cell not in begun and not self._row(cell):
                    begun.add(cell)
                    running[pool.submit(run_cell, cell, shared)] = cell

        try:
            for method in wanted or methods(self.task):
                submit(self._next(method))
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = running.pop(future)
                    if error := future.exception():
                        traceback.print_exception(error)
                        sound = False
                        continue
                    row = future.result()
                    if isinstance(row, str):
                        print(f"{cell.method}: {row}", flush=True)
                        continue
                    print({k: v for k, v in row.items() if k != "versions"}, flush=True)
                    self.rows.append(row)
                    write_json_atomic(self.file, self.rows)
                    if cell.part == "selection":
                        submit(self._next(cell.method))
        finally:
            pool.shutdown(cancel_futures=True)
        return sound

    def chosen(self, method: str) -> float | None:
        """Returns the method's learning rate (0: its own), or None where the selection has not been run."""
        if method == AUTO:
            return 0.0
        name = RATES_FROM.get(self.name, self.name)
        rows = self.rows if name == self.name else Study(name).rows
        found = [r for r in rows if r["part"] == "selection" and r["method"] == method]
        best = min(found, key=lambda row: (-row["accuracy"], row["lr"]), default=None)
        return best["lr"] if best else None

    def _next(self, method: str) -> list[Cell]:
        """Returns the selection's cells until all of them are there, then those of the test."""
        _, rates = methods(self.task)[method]
        if self.name not in RATES_FROM:
            cells = [Cell(self.name, "selection", method, rate, SELECTION_SEED) for rate in rates]
            if not all(map(self._row, cells)):
                return cells
        rate = self.chosen(method)
        return [] if rate is None else [Cell(self.name, "test", method, rate, s) for s in SEEDS]

    def _row(self, cell: Cell) -> dict[str, Any] | None:
        return next((row for row in self.rows if cell.key.items() <= row.items()), None)


@contextlib.contextmanager
def _splits(task: Task, part: str, shared: Path) -> Iterator[list[Fields]]:
    """Yields the fields that say what is trained on and what is judged."""
    if part == "test":
        yield [{}]
    elif task.fields["data.source"] == "folder":
        with tempfile.TemporaryDirectory() as folder:
            tables = list(_folds(shared / task.fields["data.root"] / "train", Path(folder)))
            yield [{"data.source": "table", "data.root": str(table)} for table in tables]
    else:  # no run is trained on the last 5,000 pictures of training unless it is on all
        yield [{"data.train_split": "train[:45000]", "data.test_split": "train[45000:47500]"}]


def _folds(pictures: Path, folder: Path) -> Iterator[Path]:
    """Writes a table for each fold: a third of each class as test, the rest as train."""
    files = sorted(pictures.glob("*/*"))
    fold = np.zeros(len(files), int)
    random = np.random.default_rng(SELECTION_SEED)
    for name in {file.parent.name for file in files}:
        own = [i for i, file in enumerate(files) if file.parent.name == name]
        fold[random.permutation(own)] = np.arange(len(own)) % FOLDS
    (folder / "pictures").symlink_to(pictures)
    for number in range(FOLDS):
        table = folder / f"fold{number}.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "split"))
            for path, own in zip(files, fold, strict=True):
                place = Path("pictures") / path.relative_to(pictures)
                writer.writerow((place, path.parent.name, "test" if own == number else "train"))
        yield table


def table(study: Study) -> str:
    """Returns a line for each method: learning rate, what is trained, the selection's accuracy and the test's."""
    lines = [
        "| method | learning rate | trained | selection | test |",
        "|---|---|---|---|---|",
    ]
    for method in methods(study.task):
        rows = [r for r in study.rows if r["method"] == method]
        tested = [r for r in rows if r["part"] == "test" and r["lr"] == study.chosen(method)]
        if not tested:
            continue
        selected = [r["accuracy"] for r in rows if r["part"] == "selection"]
        accuracies = [100 * row["accuracy"] for row in tested]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        few = "" if len(accuracies) == len(SEEDS) else f" ({len(accuracies)} seeds)"
        chosen = f"{100 * max(selected):.1f}" if selected else ""
        lines.append(
            f"| {method} | {tested[0]['lr'] or 'its own'} | {tested[0]['trainable']:,} | {chosen} "
            f"| {statistics.mean(accuracies):.1f}{spread}{few} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--methods", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="cells at a time; on one GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false",
    )
    arguments = parser.parse_args()
    study, sound = Study(arguments.task), True
    if not arguments.table:
        wanted = [method for method in arguments.methods.split(";") if method]
        sound = study.run(wanted, arguments.shared.resolve(), arguments.workers)
    write_text_atomic(HERE / f"{arguments.task}.md", table(study))
    if not sound:
        raise SystemExit("some cells broke down")


if __name__ == "__main__":
    main()
