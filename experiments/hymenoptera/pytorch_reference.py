"""PyTorch reference: hymenoptera with ResNet-18, ImageNet stem..layer3 frozen, and from scratch.

    python experiments/hymenoptera/pytorch_reference.py --shared DIR

DIR holds `data/hymenoptera/{train,val}/{ants,bees}` (244 / 153 pictures) and
`weights/resnet18_imagenet_layers1to3.pth`. The default is the environment variable TLX_SHARED. One
record per run goes into `pytorch_reference.json` beside this file (`--out`), in place of the record
of the same recipe and seed.

Recipes (`--recipes`):

- partial: stem..layer3 from the file and frozen, their BatchNorm in evaluation mode; all of layer4
  and the head fresh and trained, layer4's BatchNorm in training mode. Cosine to zero per step.
- partial_constant: the same at a constant learning rate.
- partial_file_shortcut: as partial, but layer4's downsampling shortcut, the only part of layer4
  that the file has, starts from it (what `load_state_dict(strict=False)` does).
- scratch, scratch_constant: everything fresh and trained, all BatchNorm in training mode.

Training is 6 epochs of batch 16, horizontal flips only, SGD with momentum 0.9 and learning rate
0.01, no weight decay, no warmup, cross-entropy. Every epoch is a new permutation of which the
incomplete last batch is dropped: 15 steps an epoch. Accuracy is that of the last step on `val`, on
which nothing is selected. Pictures: short side to 256 (bilinear, antialiased), centre crop of 224,
ImageNet mean and standard deviation. Fresh weights are torchvision's own initialisation. `seconds`
and `images_per_second` are those of the training steps, without decoding and evaluation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

try:
    import torchvision
except RuntimeError:
    # torchvision's compiled operators do not load beside some torch builds; the models need none
    # of them, but the import insists that these two exist.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
CLASSES = ("ants", "bees")
EPOCHS, BATCH, LR, MOMENTUM = 6, 16, 0.01, 0.9
FROZEN = ("conv1", "bn1", "layer1", "layer2", "layer3")
RECIPES = ("partial", "partial_constant", "partial_file_shortcut", "scratch", "scratch_constant")
Split = tuple[Tensor, Tensor]  # uint8 [N, 224, 224, 3], int64 [N]


def load_image(path: Path) -> np.ndarray:
    """uint8 [224, 224, 3]: short side to 256, central 224x224, rounded as torchvision does."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    short = min(image.size)
    image = image.resize(tuple(int(256 * side / short) for side in image.size), Image.BILINEAR)
    left, top = (round((side - 224) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def load_split(folder: Path) -> Split:
    files = [(p, label) for label, c in enumerate(CLASSES) for p in sorted((folder / c).iterdir())]
    images = np.stack([load_image(path) for path, _ in files])
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


def build_model(recipe: str, weights: Path) -> nn.Module:
    """A two-class ResNet-18; the frozen stages' parameters do not require gradients."""
    model = torchvision.models.resnet18(weights=None, num_classes=len(CLASSES))
    if recipe.startswith("partial"):
        file = torch.load(weights, map_location="cpu", weights_only=True)
        if recipe != "partial_file_shortcut":
            file = {name: v for name, v in file.items() if not name.startswith("layer4.")}
        missing, unexpected = model.load_state_dict(file, strict=False)
        if unexpected or any(not name.startswith(("layer4.", "fc.")) for name in missing):
            raise SystemExit(f"{weights}: missing {missing}, unexpected {unexpected}")
        for name in FROZEN:
            getattr(model, name).requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W]; the permutation leaves it channels-last."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.no_grad()
def count_correct(model: nn.Module, split: Split) -> int:
    model.eval()
    batches = zip(split[0].split(51), split[1].split(51), strict=True)
    return sum(int((model(normalise(x)).argmax(1) == y).sum()) for x, y in batches)


def train(model: nn.Module, split: Split, recipe: str, seed: int) -> tuple[int, float]:
    """Train in place. Returns the number of steps and the wall seconds they took."""
    images, labels = split
    order = torch.Generator().manual_seed(seed)
    steps_per_epoch = len(labels) // BATCH
    total = EPOCHS * steps_per_epoch
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=LR, momentum=MOMENTUM)
    constant = recipe.endswith("_constant")
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if constant else 0.5 * (1 + math.cos(math.pi * step / total))
    )
    model.train()
    if recipe.startswith("partial"):
        for name in FROZEN:
            getattr(model, name).eval()
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
    model = build_model(recipe, weights)
    frozen = FROZEN if recipe.startswith("partial") else ()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.split(".")[0] in frozen}
    steps, seconds = train(model, data["train"], recipe, seed)
    after = model.state_dict()
    if changed := [name for name, value in before.items() if not torch.equal(value, after[name])]:
        raise RuntimeError(f"frozen, but changed by training: {changed}")
    correct, total = count_correct(model, data["val"]), len(data["val"][1])
    return {
        "recipe": recipe,
        "seed": seed,
        "lr": LR,
        "schedule": "constant" if recipe.endswith("_constant") else "cosine",
        "epochs": EPOCHS,
        "steps": steps,
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "seconds": round(seconds, 2),
        "images_per_second": round(steps * BATCH / seconds, 1),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
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
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.shared is None or not args.shared.is_dir():
        parser.error("--shared (or TLX_SHARED) must name the folder with data/ and weights/")
    torch.set_num_threads(args.threads)
    folder = args.shared / "data/hymenoptera"
    data = {split: load_split(folder / split) for split in ("train", "val")}
    for recipe in args.recipes:
        for seed in args.seeds:
            weights = args.shared / "weights/resnet18_imagenet_layers1to3.pth"
            record = run(recipe, seed, data, weights)
            save(record, args.out)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
