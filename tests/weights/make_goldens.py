"""Writes goldens/zip.pth and goldens/legacy.pth with torch 2.13: python tests/weights/make_goldens.py"""

from collections import OrderedDict
from pathlib import Path

import torch

GOLDENS = Path(__file__).parent / "goldens"


def tensors() -> OrderedDict[str, torch.Tensor]:
    """What `test_torch_pickle.golden` states in numpy."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    return OrderedDict(
        whole=base,
        transposed=base.t(),
        column=base[1:, 2],
        parameter=torch.nn.Parameter(base[0].clone()),
        half=base[0].half(),
        bfloat16=base[0].bfloat16(),
        double=base[0].double(),
        int64=torch.tensor([-(2**40), 0, 2**40]),
        int32=torch.tensor([-3, 7], dtype=torch.int32),
        int16=torch.tensor([-3, 7], dtype=torch.int16),
        int8=torch.tensor([-3, 7], dtype=torch.int8),
        uint8=torch.tensor([3, 250], dtype=torch.uint8),
        bool=torch.tensor([[True, False], [False, True]]),
        complex64=torch.tensor([1 + 2j, -3j]),
        scalar=torch.tensor(42),
        empty=torch.zeros(0, 3),
        expanded=torch.tensor([[1.5], [2.5]]).expand(2, 3),
    )


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for name, zipped in (("zip", True), ("legacy", False)):
        checkpoint = {
            "epoch": 3,
            "arch": "tiny",
            "state_dict": tensors(),
            "size": torch.Size([2, 3]),
        }
        torch.save(checkpoint, GOLDENS / f"{name}.pth", _use_new_zipfile_serialization=zipped)
