"""Writes goldens/FAMILY.npz: logits of the originals for weights and images drawn by reference.py.

python -m tests.models.make_goldens [FAMILY ...]      (needs the parity extra)
"""

import sys
from pathlib import Path

import numpy as np

from tests.models.originals import MODULES, cases, module_of
from tests.models.reference import images
from tests.models.zoo import torch_with
from tlx.models import FAMILIES

FOLDER = Path(__file__).parent / "goldens"


def original_logits(name: str) -> np.ndarray:
    """Returns the first original's logits for the case, float32 [B, C]."""
    import torch

    original = module_of(name).originals(name)[0]
    x = torch.from_numpy(images(*cases()[name]).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return original.call(torch_with(original), x).numpy()


if __name__ == "__main__":
    for family in sys.argv[1:] or MODULES:
        names = [name for name in cases() if FAMILIES[name].endswith(f".{family}")]
        np.savez_compressed(
            FOLDER / f"{family}.npz", **{name: original_logits(name) for name in names}
        )
