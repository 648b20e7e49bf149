"""Known sets of weights: `architecture.tag` -> WeightsMeta.

Facts of torchvision's and timm's weights are in catalog.json, which tests/weights/make_catalog.py writes from
the two projects' own metadata; those of the CIFAR ones are those of github.com/akamaster/pytorch_resnet_cifar10.
Licences are the ones that the publishers state; ImageNet's own terms (non-commercial research) may bear on
weights trained on it.

The revision of a hub repository is a branch here ("main"): the commit it stood for is recorded when the file is
downloaded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlx import models
from tlx.config import nearest
from tlx.errors import InputError
from tlx.weights.labels import imagenet1k
from tlx.weights.meta import ImagePreprocess, WeightsMeta

BUILTIN = Path(__file__).parent / "builtin"
CATALOG = Path(__file__).parent / "catalog.json"

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def entries() -> Mapping[str, WeightsMeta]:
    """Returns every known set of weights by `architecture.tag`."""
    return _read()[0]


def find(architecture: str, tag: str) -> WeightsMeta:
    """Returns the entry for the tag, or for the full `architecture.tag`.

    The architecture may be another project's name for it (`vit_b_16`), in the full name too.

    Raises:
      InputError: there is none; names those of the architecture.
    """
    if meta := get(architecture, tag):
        return meta
    own = models.ALIASES.get(architecture, architecture)
    tags = [meta.tag for meta in entries().values() if meta.architecture == own]
    raise InputError(
        f"no weights {tag!r} for {architecture}{nearest(tag, tags)} (there are: {', '.join(tags) or 'none'}; "
        "or give the path of a .pth, .bin or .safetensors file)"
    )


def get(architecture: str, tag: str) -> WeightsMeta | None:
    """Returns the entry as `find` does, or None."""
    known = entries()
    own = models.ALIASES.get(architecture, architecture)
    head, dot, rest = tag.partition(".")
    full = f"{models.ALIASES.get(head, head)}{dot}{rest}"
    meta = known.get(full) or known.get(f"{own}.{tag}")
    return meta if meta and meta.architecture == own else None


def has_checksums(architecture: str, *, safetensors: bool) -> bool:
    """Returns whether a file of that format could be identified as weights of the architecture by its content."""
    return any(
        meta.sha256 and (Path(meta.filename).suffix == ".safetensors") == safetensors
        for meta in _read()[1]
        if meta.architecture == architecture
    )


def identify(path: Path, sha256: str) -> WeightsMeta | None:
    """Returns the entry for a file, by its content, else by its name; None where it is not known.

    A name that several sets of weights have in common (the hub's model.safetensors) says nothing. A file that
    has the name of one and another content was made from it, or saved again: the meta is then `derived`. Of weights
    that were released under a name of their own before they moved to the hub, that file is known as well; its
    meta says so in source, filename and sha256.
    """
    files = _read()[1]
    for meta in files:
        if meta.sha256 and sha256.startswith(meta.sha256):
            return meta
    named = [meta for meta in files if meta.filename == path.name]
    if len(named) != 1:
        return None
    return named[0].derived() if named[0].sha256 else named[0]


@functools.cache
def _read() -> tuple[Mapping[str, WeightsMeta], tuple[WeightsMeta, ...]]:
    """Returns the entries by name, and one meta for each file: an entry may have been released as two."""
    published: dict[str, dict[str, Any]] = json.loads(CATALOG.read_text(encoding="utf-8"))[
        "entries"
    ]
    known = [*_builtins(), *_cifar()]
    released = []
    for name, facts in published.items():
        meta = _entry(name, facts)
        known.append(meta)
        if release := facts.get("release"):
            released.append(_released(meta, release))
    by_name = {f"{meta.architecture}.{meta.tag}": meta for meta in known}
    return types.MappingProxyType(by_name), (*known, *released)


def _entry(name: str, facts: Mapping[str, Any]) -> WeightsMeta:
    architecture, tag = name.split(".", 1)
    own = {key: value for key, value in facts.items() if key not in ("labels", "release")}
    if facts.get("labels") == "imagenet-1k":
        own |= {"num_classes": 1000, "class_names": imagenet1k().names}
    return WeightsMeta.from_json({"architecture": architecture, "tag": tag, **own})


def _released(meta: WeightsMeta, url: str) -> WeightsMeta:
    filename = url.rsplit("/", 1)[-1]
    sha256 = Path(filename).stem.rsplit("-", 1)[-1]
    return dataclasses.replace(meta, source=url, revision="", filename=filename, sha256=sha256)


def _builtins() -> list[WeightsMeta]:
    return [
        WeightsMeta.from_json(json.loads(path.read_text()))
        for path in sorted(BUILTIN.glob("*.json"))
    ]


def _cifar() -> list[WeightsMeta]:
    return [
        _cifar_resnet(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
        _cifar_resnet(32, "d509ac18"),
        _cifar_resnet(44, "014dd654"),
        _cifar_resnet(56, "4bfd9763"),
        _cifar_resnet(110, "1d1ed7c2"),
    ]


def _cifar_resnet(depth: int, sha256: str) -> WeightsMeta:
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
