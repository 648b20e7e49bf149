"""A worker of bench.py: steps of PyTorch. `python theirs.py JOB` answers each line `N` on its input with the seconds of N steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch_threads import faster_threads
from worker import CLASSES, Job, Steps, asked, pictures, serve

from tlx.memory import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.torchvision_import import import_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(name: str) -> torch.nn.Module:
    """Returns torchvision's network of tlx's name, or timm's."""
    if name.startswith("vit"):
        import timm

        return timm.create_model(name, num_classes=CLASSES)
    models = import_torchvision().models
    own = {"init_weights": False} if name == "inception_v3" else {}
    return getattr(models, name)(num_classes=CLASSES, **own)


def stages(model: torch.nn.Module, name: str) -> list[torch.nn.Module]:
    """Returns what is trained by "last": the last stage and the head."""
    if name.startswith("vit"):
        return [model.norm, model.head]  # tlx's last stage is the normalisation
    return [model.layer4, model.fc]


def freeze(model: torch.nn.Module, name: str, trained: str) -> None:
    """Freezes all but the head, or the last stage and the head; frozen BatchNorm keeps its statistics, as tlx's."""
    model.requires_grad_(False)
    head = [list(model.children())[-1]]
    for part in head if trained == "head" else stages(model, name):
        part.requires_grad_(True)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not own[0].requires_grad:
            module.eval()


def steps(job: Job) -> Steps:
    """Builds the job; frozen parts run without a tape, in channels_last, in the faster number of threads.

    The allocator is set as tlx's own is, compiled it is on a GPU alone.
    """
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network(job.model).to(device, memory_format=torch.channels_last)
    images, labels = pictures(job)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    half = torch.autocast(device, torch.bfloat16, enabled=job.dtype == "bfloat16")
    model.train(bool(job.trained))
    if job.trained in ("head", "last"):
        freeze(model, job.model, job.trained)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    network_ = torch.compile(model) if device == "cuda" else model
    data, targets = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    rows = torch.arange(len(images), device=device)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        taken = data[rows] if device == "cuda" else data
        x = taken.permute(0, 3, 1, 2).float().div_(255)
        return x.sub_(mean).div_(std), targets[rows]

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def infer(count: int) -> None:
        with torch.inference_mode(), half:
            for _ in range(count):
                x, y = batch()
                torch.nn.functional.cross_entropy(network_(x), y)
        wait()

    def train(count: int) -> None:
        for _ in range(count):
            x, y = batch()
            optimizer.zero_grad(set_to_none=True)
            with half:
                loss = loss_of(network_(x), y)
            loss.backward()
            optimizer.step()
        wait()

    run = train if job.trained else infer
    if device == "cpu":
        torch.set_num_threads(faster_threads(run))
    return run


def loss_of(found: Any, targets: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy, with that of Inception's auxiliary classifier."""
    cross_entropy = torch.nn.functional.cross_entropy
    if isinstance(found, torch.Tensor):
        return cross_entropy(found, targets)
    return cross_entropy(found.logits, targets) + 0.4 * cross_entropy(found.aux_logits, targets)


def found() -> dict[str, float]:
    """Returns the most bytes of a GPU's memory that have been in use."""
    return {"peak": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}


if __name__ == "__main__":
    serve(lambda: steps(asked()), found)
