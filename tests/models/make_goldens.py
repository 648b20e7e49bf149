"""Writes goldens/resnet.npz: logits of the PyTorch originals for weights and images drawn by reference.py.

python -m tests.models.make_goldens          (needs torch 2.13 and torchvision 0.28)
"""

from pathlib import Path

import numpy as np

from tests.models.reference import images, random_arrays, torch_model

CASES = {
    "resnet18": (2, 97, 131),
    "resnet34": (1, 64, 64),
    "resnet50": (1, 97, 131),
    "resnet101": (1, 64, 64),
    "resnet152": (1, 64, 64),
    "resnet20_cifar": (2, 32, 32),
    "resnet56_cifar": (1, 35, 41),
}
PATH = Path(__file__).parent / "goldens" / "resnet.npz"


def original_logits(name: str) -> np.ndarray:
    """Returns the original's logits for the case, float32 [B, C]."""
    import torch

    model = torch_model(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in random_arrays(shapes).items()}
    )
    x = torch.from_numpy(images(*CASES[name]).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return model(x).numpy()


if __name__ == "__main__":
    np.savez_compressed(PATH, **{name: original_logits(name) for name in CASES})
