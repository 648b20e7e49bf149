"""PyTorch reference: ResNet-20 on CIFAR-10, as it is, fine-tuned, and from scratch.

    python experiments/cifar_resnet20/pytorch_reference.py --shared DIR

DIR holds `data/tfds` (CIFAR-10 prepared for tensorflow-datasets) and
`weights/resnet20-12fca82f.th` (the network of github.com/akamaster/pytorch_resnet_cifar10). The
default is the environment variable TLX_SHARED. One record per run goes into
`pytorch_reference.json` beside this file (`--out`), in place of the record of the same recipe and
seed.

Recipes (`--recipes`):

- evaluate: the weights as they are on the test split; 8,103 of 10,000 is what must come out.
- finetune: all parameters from the weights, own head kept, peak learning rate 0.02.
- scratch: the same from random weights, peak learning rate 0.05.

Training is 2 epochs of batch 128, horizontal flips only, SGD with momentum 0.9, cosine to zero per
step without warmup, weight decay 1e-4 on every parameter (PyTorch's default), cross-entropy. Every
epoch is a new permutation of which the incomplete last batch is dropped: 390 steps an epoch.
Accuracy is that of the last step; nothing is selected on the test split. Mean and standard
deviation of the pixels are ImageNet's, as the weights were trained with. From-scratch weights are
drawn as the original does: Kaiming normal (fan in, gain sqrt(2)), convolutions and linear layer.
`seconds` and `images_per_second` are those of the training steps (of the evaluation, where nothing
is trained), without decoding.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
EPOCHS, BATCH, MOMENTUM, WEIGHT_DECAY = 2, 128, 0.9, 1e-4
RECIPES = ("evaluate", "finetune", "scratch")
CACHE = Path(tempfile.gettempdir()) / "tlx_cifar10_decoded.npz"
PEAK_LR = {"finetune": 0.02, "scratch": 0.05}
Split = tuple[Tensor, Tensor]  # uint8 [N, H, W, C], int64 [N]


class Block(nn.Module):
    """Two 3x3 convolutions and the option-A shortcut of He et al. 2015: subsample, pad channels."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if width_in == width else 2
        self.conv1 = nn.Conv2d(width_in, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            pad = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """[B, 3, 32, 32] normalised pixels -> [B, 10] logits; named as in the weights file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_weights(model: nn.Module, path: Path) -> None:
    """Strictly, but for `num_batches_tracked`, which the file predates and nothing here reads."""
    file = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    missing, unexpected = model.load_state_dict(
        {name.removeprefix("module."): value for name, value in file.items()}, strict=False
    )
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise SystemExit(f"{path}: missing {missing}, unexpected {unexpected}")


def load_data(data_dir: Path, cache: Path) -> dict[str, Split]:
    """The splits `train` and `test`, decoded once and kept in `cache` (.npz) between runs."""
    if not cache.exists():
        import tensorflow_datasets as tfds

        arrays = {}
        for split in ("train", "test"):
            source = tfds.data_source("cifar10", split=split, data_dir=str(data_dir))
            examples = [source[i] for i in range(len(source))]
            arrays[f"{split}_images"] = np.stack([e["image"] for e in examples])
            arrays[f"{split}_labels"] = np.array([e["label"] for e in examples], np.int64)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **arrays)
        os.replace(file.name, cache)
    with np.load(cache, allow_pickle=False) as stored:
        return {
            split: tuple(
                torch.from_numpy(stored[f"{split}_{part}"]) for part in ("images", "labels")
            )
            for split in ("train", "test")
        }


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W]; the permutation leaves it channels-last."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.no_grad()
def count_correct(model: nn.Module, split: Split) -> int:
    model.eval()
    batches = zip(split[0].split(500), split[1].split(500), strict=True)
    return sum(int((model(normalise(x)).argmax(1) == y).sum()) for x, y in batches)


def train(model: nn.Module, split: Split, peak_lr: float, seed: int) -> tuple[int, float]:
    """Train in place. Returns the number of steps and the wall seconds they took."""
    images, labels = split
    order = torch.Generator().manual_seed(seed)
    steps_per_epoch = len(labels) // BATCH
    optimizer = torch.optim.SGD(
        model.parameters(), lr=peak_lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    total = EPOCHS * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total))
    )
    model.train()
    start = time.perf_counter()
    for _ in range(EPOCHS):
        permutation = torch.randperm(len(labels), generator=order)
        for index in permutation[: steps_per_epoch * BATCH].view(-1, BATCH):
            flip = torch.rand(BATCH, 1, 1, 1, generator=order) < 0.5
            x = normalise(images[index])
            loss = F.cross_entropy(model(torch.where(flip, x.flip(3), x)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return total, time.perf_counter() - start


def run(recipe: str, seed: int, data: dict[str, Split], weights: Path) -> dict:
    """One run's record."""
    torch.manual_seed(seed)
    model = ResNet20()
    if recipe != "scratch":
        load_weights(model, weights)
    model = model.to(memory_format=torch.channels_last)
    record = {"recipe": recipe, "seed": seed}
    if recipe == "evaluate":
        start = time.perf_counter()
        correct = count_correct(model, data["test"])
        steps, examples, seconds = 0, len(data["test"][1]), time.perf_counter() - start
    else:
        steps, seconds = train(model, data["train"], PEAK_LR[recipe], seed)
        examples = steps * BATCH
        correct = count_correct(model, data["test"])
        record |= {"lr": PEAK_LR[recipe], "schedule": "cosine", "epochs": EPOCHS}
    return record | {
        "steps": steps,
        "correct": correct,
        "total": len(data["test"][1]),
        "accuracy": correct / len(data["test"][1]),
        "seconds": round(seconds, 2),
        "images_per_second": round(examples / seconds, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def save(record: dict, out: Path) -> None:
    """Put the record into the list in `out`, in place of the one of the same recipe and seed."""
    records = json.loads(out.read_text()) if out.exists() else []
    same = [r for r in records if (r["recipe"], r["seed"]) == (record["recipe"], record["seed"])]
    records = [r for r in records if r not in same] + [record]
    temporary = out.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(f"  {json.dumps(r)}" for r in records) + "\n]\n")
    os.replace(temporary, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=os.environ.get("TLX_SHARED"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--cache", type=Path, default=CACHE, help="decoded images, .npz")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.shared is None or not args.shared.is_dir():
        parser.error("--shared (or TLX_SHARED) must name the folder with data/ and weights/")
    torch.set_num_threads(args.threads)
    data = load_data(args.shared / "data/tfds", args.cache)
    for recipe in args.recipes:
        for seed in args.seeds[:1] if recipe == "evaluate" else args.seeds:
            record = run(recipe, seed, data, args.shared / "weights/resnet20-12fca82f.th")
            save(record, args.out)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
