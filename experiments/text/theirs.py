"""The reference of the experiments on text: PyTorch, transformers and peft, by the numbers of recipe.py.

  python experiments/text/theirs.py --task=sst2 --method=full --seeds=0,1,2 --model=DIR --shared=DIR --out=FILE.json

The folder of --model has MiniLM-L6 (config.json, model.safetensors, tokenizer.json), that of --shared has data/sst2 and data/wnut17;
its default is the environment variable TLX_SHARED. Needs the `parity` extra, and seqeval for WNUT-17.

Methods: full; head, the classifier alone on the frozen network in evaluation mode; lora, by peft, on query and value, with the
classifier. Sequences are classified from the pooler's output, and the file has the pooler. A word's label is that of its first
sub-token; a word that has none counts as O. Nothing is selected: the last step counts, on the test file or that of --split.

Each run prints one record and puts it into FILE, in place of the one of the same settings and seed. `seconds` are those of the
training's steps with the making of batches, without tokenization and evaluation; inference goes once through the evaluated file, in
its order. With --time-only=train or infer this is a worker of speed.py: a line `N` is answered with the seconds of N steps, in the
faster of --threads and half as many threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from recipe import LORA_ALPHA, LORA_RANK, LORA_TARGETS, PADDINGS, Recipe
from records import make_parser, parsed, save
from theirs_data import Split, class_names, collate, load

from tlx.data.order import indices
from tlx.memory import keep_freed_memory

sys.path += [str(Path(__file__).parents[1] / "bench"), str(Path(__file__).parents[2])]
from torch_threads import faster_threads
from worker import Steps, serve

from tests.torchvision_import import import_torchvision

VERSIONS = ("torch", "transformers", "tokenizers", "peft")
SAME = ("task", "method", "pad", "split", "lr", "epochs", "examples", "threads", "seed")

MakeBatch = Callable[[Split, list[int]], dict[str, torch.Tensor]]


def build(task: str, method: str, folder: Path, names: list[str]) -> torch.nn.Module:
    """Returns the network with a new classifier; what the method does not train does not require gradients."""
    auto = {
        "sst2": transformers.AutoModelForSequenceClassification,
        "wnut17": transformers.AutoModelForTokenClassification,
    }
    model = auto[task].from_pretrained(folder, num_labels=len(names), dtype=torch.float32)
    if method == "head":
        model.base_model.requires_grad_(False)
    if method == "lora":
        import peft

        kind = {"sst2": peft.TaskType.SEQ_CLS, "wnut17": peft.TaskType.TOKEN_CLS}
        adapters = peft.LoraConfig(
            task_type=kind[task],
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=0.0,
            target_modules=list(LORA_TARGETS),
        )
        model = peft.get_peft_model(model, adapters)
    return model


def make_optimizer(model: torch.nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """Returns AdamW as transformers' Trainer takes it: fused, without weight decay of biases and LayerNorm."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in trained if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for _, p in trained if not any(p is other for other in plain)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def training_step(
    model: torch.nn.Module, method: str, recipe: Recipe, lr: float, total: int
) -> Callable[[dict[str, torch.Tensor]], None]:
    """Puts the model into training mode and returns its step."""
    optimizer = make_optimizer(model, recipe, lr)
    warmup = round(recipe.warmup * total)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    if method == "head":
        model.base_model.eval()

    def step(batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step


def predict(
    model: torch.nn.Module, split: Split, size: int, make_batch: MakeBatch
) -> list[torch.Tensor]:
    """Returns the most likely class of each sequence, int64 [], or of each of its tokens, int64 [L]."""
    model.eval()
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(split), size):
            batch = make_batch(split, list(range(start, min(start + size, len(split)))))
            found.extend(most_likely(model, batch))
    return found


def most_likely(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the classes with the largest logits, int64 [B] or [B, L]."""
    inputs = {name: rows for name, rows in batch.items() if name != "labels"}
    return model(**inputs).logits.argmax(-1)


def score(split: Split, found: list[torch.Tensor], names: list[str]) -> dict[str, float]:
    """Returns the accuracy, or what seqeval says of the entities in its strict mode."""
    if not split.tags:
        correct = sum(int(a) == b for a, b in zip(found, split.labels, strict=True))
        return {"accuracy": correct / len(split), "correct": correct, "total": len(split)}
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    tags = [
        [names[row[start]] if start >= 0 else "O" for start in starts]
        for row, starts in zip(found, split.starts, strict=True)
    ]
    precision, recall, f1, support = precision_recall_fscore_support(
        split.tags, tags, scheme=IOB2, average="micro", zero_division=0
    )
    return {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "entities": int(support),
    }


def run(settings: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Returns the record of one training and its evaluation."""
    task, method, recipe = settings.task, settings.method, settings.recipe
    lr = recipe.lr[method]
    names = class_names(task, settings.shared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    train, held = (
        load(task, settings.shared, name, tokenizer, recipe) for name in ("train", settings.split)
    )
    make_batch = batches_of(settings, tokenizer)
    count = min(recipe.examples or len(train), len(train))
    total = recipe.steps(method, count)

    torch.manual_seed(seed)
    model = build(task, method, settings.model, names)
    step = training_step(model, method, recipe, lr, total)
    begun = time.perf_counter()
    for number in range(total):
        index = indices(seed, number * recipe.batch, recipe.batch, count)
        step(make_batch(train, index.tolist()))
    seconds = time.perf_counter() - begun

    begun = time.perf_counter()
    found = predict(model, held, recipe.batch, make_batch)
    inference = time.perf_counter() - begun
    return {
        "task": task,
        "method": method,
        "pad": settings.pad,
        "split": settings.split,
        "seed": seed,
        "lr": lr,
        "epochs": recipe.epochs[method],
        "batch": recipe.batch,
        "examples": count,
        "steps": total,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **score(held, found, names),
        "seconds": round(seconds, 2),
        "sequences_per_second": round(total * recipe.batch / seconds, 1),
        "inference_sequences_per_second": round(len(held) / inference, 1),
        "threads": settings.threads,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def timed(settings: argparse.Namespace) -> Steps:
    """Returns what runs the first N full batches: of training in the order of seed 0, or of the evaluated file."""
    task, method, recipe = settings.task, settings.method, settings.recipe
    training = settings.time_only == "train"
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    name = "train" if training else settings.split
    split = load(task, settings.shared, name, tokenizer, recipe)
    make_batch = batches_of(settings, tokenizer)
    count = min(recipe.examples or len(split), len(split)) if training else len(split)
    order = indices(0, 0, count, count) if training else np.arange(count)
    whole = order[: count // recipe.batch * recipe.batch].reshape(-1, recipe.batch).tolist()
    model = build(task, method, settings.model, class_names(task, settings.shared))
    if training:
        step = training_step(model, method, recipe, recipe.lr[method], recipe.steps(method, count))
    else:
        model.eval()

        @torch.inference_mode()
        def step(batch: dict[str, torch.Tensor]) -> None:
            most_likely(model, batch)

    def steps(number: int) -> None:
        for place in range(number):
            step(make_batch(split, whole[place % len(whole)]))

    torch.set_num_threads(faster_threads(steps))
    return steps


def batches_of(settings: argparse.Namespace, tokenizer: Any) -> MakeBatch:
    """Returns what makes the batch of some of a split's examples."""
    return functools.partial(
        collate, recipe=settings.recipe, padding=settings.pad, pad_id=tokenizer.pad_token_id
    )


def asked() -> argparse.Namespace:
    """Returns the command line's settings; `recipe` is the task's with what they change."""
    parser = make_parser(__doc__)
    parser.add_argument("--pad", choices=PADDINGS, default="buckets")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--examples", type=int, default=0, help="the first of the training file")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.0)
    settings = parsed(parser)
    recipe = settings.recipe
    settings.recipe = dataclasses.replace(
        recipe,
        lr={settings.method: settings.lr or recipe.lr[settings.method]},
        epochs={settings.method: settings.epochs or recipe.epochs[settings.method]},
        examples=settings.examples or recipe.examples,
    )
    return settings


def main() -> None:
    keep_freed_memory()
    import_torchvision()  # transformers and peft do
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = asked()
    torch.set_num_threads(settings.threads)
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
