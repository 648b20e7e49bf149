"""PyTorch's side of runs.py: `python theirs_run.py DATA MODEL EPOCHS BATCH head|last`; as theirs.py, with a whole run around the step."""

from __future__ import annotations

import sys

import numpy as np
import torch
from theirs import MEAN, STD, freeze, network

from tlx.memory import keep_freed_memory


def main(data: str, name: str, epochs: str, batch: str, trained: str) -> None:
    """Trains, then evaluates on the test pictures."""
    keep_freed_memory()
    arrays, size = np.load(data), int(batch)
    model = network(name).to(memory_format=torch.channels_last)
    freeze(model, name, trained)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def inputs(rows: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(rows).permute(0, 3, 1, 2).float().div_(255)
        return x.sub_(mean).div_(std)

    images, labels = arrays["train_images"], torch.from_numpy(arrays["train_labels"])
    random = np.random.default_rng(0)
    for _ in range(int(epochs)):
        order = random.permutation(len(images))
        for start in range(0, len(order), size):
            index = order[start : start + size]
            optimizer.zero_grad(set_to_none=True)
            found = model(inputs(images[index]))
            torch.nn.functional.cross_entropy(found, labels[index]).backward()
            optimizer.step()
    model.eval()
    held, right = arrays["test_images"], 0
    with torch.inference_mode():
        for start in range(0, len(held), size):
            found = model(inputs(held[start : start + size])).argmax(1)
            right += int(
                (found == torch.from_numpy(arrays["test_labels"][start : start + size])).sum()
            )
    print(f"{right} of {len(held)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
