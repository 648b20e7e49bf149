"""ResNets: torchvision's, timm's ResNet-D, and the CIFAR ones, written out here."""

import functools

from tests.models.reference import timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params; the CIFAR counts of github.com/akamaster/pytorch_resnet_cifar10.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet18d": 11_708_744,
    "resnet26d": 16_014_408,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
}


# Name -> pictures, height and width of its golden logits.
GOLDENS = {
    "resnet18": (2, 97, 131),
    "resnet50": (1, 97, 131),
    "resnext50_32x4d": (1, 64, 64),
    "resnet18d": (1, 65, 97),
    "resnet20_cifar": (2, 32, 32),
    "resnet56_cifar": (1, 35, 41),
}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    if name.endswith("_cifar"):
        depth = int(name.removeprefix("resnet").removesuffix("_cifar"))
        build = functools.partial(cifar_resnet, depth)
        names = ("layer1", "layer2", "layer3")
        return (Original(build, "pytorch_resnet_cifar10", _outputs(names), _features),)
    deep = name.endswith("d") and "_" not in name
    build = functools.partial(timm_model if deep else torchvision_model, name)
    names = ("layer1", "layer2", "layer3", "layer4")
    return (Original(build, "timm" if deep else "torchvision", _outputs(names), _features),)


def _stem(module, x):
    x = module.bn1(module.conv1(x)).relu()
    return module.maxpool(x) if hasattr(module, "maxpool") else x


def _outputs(names):
    def outputs(module, x):
        found = {"stem": _stem(module, x)}
        for before, name in zip(("stem", *names), names, strict=False):
            found[name] = getattr(module, name)(found[before])
        return {name: y.permute(0, 2, 3, 1) for name, y in found.items()}

    return outputs


def _features(module, x):
    y = _stem(module, x)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        y = getattr(module, name)(y) if hasattr(module, name) else y
    return y.mean((2, 3))


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
