"""PyTorch originals of the ResNets, and random weights that need no torch to be drawn again."""

import zlib

import numpy as np


def random_arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns float32 arrays that depend on each key's name and shape alone.

    Convolutions keep the activations' scale; BatchNorm's statistics and scales are near 0 and 1 but not equal to them.
    """
    arrays = {}
    for name, shape in shapes.items():
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        draw = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(7, np.int64)
        elif len(shape) > 1:
            arrays[name] = draw * np.float32((2.0 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            arrays[name] = 1 + np.float32(0.2) * np.tanh(draw)
        else:
            arrays[name] = np.float32(0.1) * draw
    return arrays


def images(count: int, height: int, width: int) -> np.ndarray:
    """Returns float32 [B, H, W, 3], the same for the same arguments."""
    rng = np.random.Generator(np.random.PCG64(count * height + width))
    return rng.standard_normal((count, height, width, 3)).astype(np.float32)


def torch_model(name: str):
    """Returns the original, in inference mode: torchvision's, or the CIFAR one below."""
    if name.endswith("_cifar"):
        return cifar_resnet(int(name.removeprefix("resnet").removesuffix("_cifar"))).eval()
    from tests.torchvision_import import import_torchvision

    return import_torchvision().models.get_model(name, weights=None).eval()


def cifar_resnet(depth: int, num_classes: int = 10):
    """The ResNet of He et al. 2015, section 4.2, with option-A shortcuts, keys as in the public weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outer)
            self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outer)
            self.pad = outer // 4 if inner != outer else 0

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            if self.pad:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return torch.relu(x + y)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = (depth - 2) // 6
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            widths = (16, 16, 32, 64)
            for i in (1, 2, 3):
                layers = [Block(widths[i - 1], widths[i], 1 if i == 1 else 2)]
                layers += [Block(widths[i], widths[i], 1) for _ in range(blocks - 1)]
                setattr(self, f"layer{i}", nn.Sequential(*layers))
            self.linear = nn.Linear(64, num_classes)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    return Network()
