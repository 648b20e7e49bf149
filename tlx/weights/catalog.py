"""Known sets of weights: `architecture.tag` -> WeightsMeta.

Facts of the torchvision entries are those of torchvision's own weight enums, of the CIFAR ones those of
github.com/akamaster/pytorch_resnet_cifar10; tests/weights/test_catalog.py checks the former against the installed
torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path

from tlx.config import nearest
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess, WeightsMeta

BUILTIN = Path(__file__).parent / "builtin"

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def _torchvision(
    architecture: str, sha8: str, tag: str = "tv_in1k", resize: int = 256
) -> WeightsMeta:
    filename = f"{architecture}-{sha8}.pth"
    return WeightsMeta(
        architecture=architecture,
        tag=tag,
        preprocess=ImagePreprocess(size=224, resize=resize),
        num_classes=1000,
        classifier="fc",
        license="BSD-3-Clause; trained on ImageNet-1k, non-commercial research terms",
        source=f"https://download.pytorch.org/models/{filename}",
        filename=filename,
        sha256=sha8,
    )


def _cifar(depth: int, sha256: str) -> WeightsMeta:
    filename = f"resnet{depth}-{sha256[:8]}.th"
    repository = "https://github.com/akamaster/pytorch_resnet_cifar10"
    return WeightsMeta(
        architecture=f"resnet{depth}_cifar",
        tag="akamaster_cifar10",
        preprocess=ImagePreprocess(size=32, resize=32),
        num_classes=10,
        class_names=CIFAR10_CLASSES,
        classifier="linear",
        license="BSD-2-Clause",
        source=f"{repository}/raw/master/pretrained_models/{filename}",
        filename=filename,
        sha256=sha256,
    )


def _downloads() -> list[WeightsMeta]:
    return [
        _torchvision("resnet18", "f37072fd"),
        _torchvision("resnet34", "b627a593"),
        _torchvision("resnet50", "0676ba61"),
        _torchvision("resnet50", "11ad3fa6", "tv2_in1k", 232),
        _torchvision("resnet101", "63fe2227"),
        _torchvision("resnet101", "cd907fc2", "tv2_in1k", 232),
        _torchvision("resnet152", "394f9c45"),
        _torchvision("resnet152", "f82ba261", "tv2_in1k", 232),
        _cifar(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
        _cifar(32, "d509ac18"),
        _cifar(44, "014dd654"),
        _cifar(56, "4bfd9763"),
        _cifar(110, "1d1ed7c2"),
    ]


def _builtins() -> list[WeightsMeta]:
    return [
        WeightsMeta.from_json(json.loads(path.read_text()))
        for path in sorted(BUILTIN.glob("*.json"))
    ]


def entries() -> dict[str, WeightsMeta]:
    """Returns every known set of weights by `architecture.tag`."""
    return {f"{meta.architecture}.{meta.tag}": meta for meta in (*_builtins(), *_downloads())}


def find(architecture: str, tag: str) -> WeightsMeta:
    """Returns the entry for the tag, or for the full `architecture.tag`.

    Raises:
      InputError: there is none; names those of the architecture.
    """
    known = entries()
    name = tag if tag in known else f"{architecture}.{tag}"
    if name in known and known[name].architecture == architecture:
        return known[name]
    tags = [meta.tag for meta in known.values() if meta.architecture == architecture]
    raise InputError(
        f"no weights {tag!r} for {architecture}{nearest(tag, tags)} (there are: {', '.join(tags) or 'none'}; "
        "or give the path of a .pth, .th or .safetensors file)"
    )


def identify(path: Path, sha256: str) -> WeightsMeta | None:
    """Returns the entry for a file, by its content, else by its name; None where it is not known."""
    for meta in entries().values():
        if meta.sha256 and sha256.startswith(meta.sha256):
            return meta
    return next((meta for meta in entries().values() if meta.filename == path.name), None)
