"""Writes tlx/weights/catalog.json and tlx/weights/imagenet1k.json from torchvision's and timm's own metadata.

    python tests/weights/make_catalog.py [--results FILE] [--check]

  --results FILE  timm's published ImageNet accuracies, results/results-imagenet.csv of
                  github.com/huggingface/pytorch-image-models (timm's wheel does not carry it); without it the
                  accuracies of timm's entries stay as they are
  --check         writes nothing; names what differs from what would be written, and then exits 1

It needs the parity extra. Every architecture of tlx.models is looked up under all its names: torchvision's weight
enums give the entries tv_in1k (V1), tv2_in1k (V2) and tv_swag_*, timm's pretrained configurations the rest. Where
timm has a copy of torchvision's weights, torchvision's facts are the entry.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.torchvision_import import import_torchvision
from tlx import models
from tlx.files import write_text_atomic
from tlx.weights.catalog import CATALOG
from tlx.weights.meta import ImagePreprocess, WeightsMeta

LABELS = CATALOG.with_name("imagenet1k.json")

# VGG16's IMAGENET1K_FEATURES has NaN in place of a classifier, so it is no network that classifies.
WITHOUT_CLASSIFIER = ("IMAGENET1K_FEATURES",)

# torchvision states licences only for weights of others; the rest are the project's own.
TORCHVISION_LICENSE = "bsd-3-clause"

HALF = (0.5, 0.5, 0.5)

Facts = dict[str, Any]


def catalog(results: Path | None) -> dict[str, Facts]:
    """Returns the facts of each entry by name, in the order of the names."""
    accuracies = published(results) if results else committed_accuracies()
    found: dict[str, Facts] = {}
    for name in models.FAMILIES:
        for other in (name, *(alias for alias, known in models.ALIASES.items() if known == name)):
            for tag, facts in timm_entries(other, accuracies):
                found.setdefault(f"{name}.{tag}", facts)
            for tag, facts in torchvision_entries(other):
                copy = found.get(f"{name}.{tag}", {})
                release = copy.get("release", facts["source"])
                older = {"release": release} if release != facts["source"] else {}
                found[f"{name}.{tag}"] = facts | older
    return dict(sorted(found.items()))


def labels() -> list[list[str]]:
    """Returns [WordNet id, name] of ImageNet-1k's classes, torchvision's names beside timm's ids.

    Raises:
      ValueError: the two are not in the same order.
    """
    import_torchvision()
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    info = ImageNetInfo("imagenet-1k")
    rows = []
    for index, name in enumerate(ResNet18_Weights.DEFAULT.meta["categories"]):
        words = set(re.findall(r"\w+", info.index_to_description(index, detailed=False).lower()))
        if not words & set(re.findall(r"\w+", name.lower())):
            raise ValueError(f"class {index} is {name!r} to torchvision, {words} to timm")
        rows.append([info.index_to_label_name(index), name])
    return rows


def torchvision_entries(name: str) -> Iterator[tuple[str, Facts]]:
    """Yields tag and facts of torchvision's weights of the name; none where it has no such network."""
    zoo = import_torchvision().models
    if name not in zoo.list_models(module=zoo):
        return
    for weights in zoo.get_model_weights(name):
        if weights.name in WITHOUT_CLASSIFIER:
            continue
        match = re.fullmatch(r"IMAGENET1K_(?:(SWAG_\w+)_)?V(\d)", weights.name)
        if match is None:
            raise ValueError(f"torchvision's {weights} has a name that no tag is known for")
        variant, version = match.groups()
        if variant:
            tag = f"tv_{variant.lower()}_in1k"
        else:
            tag = f"tv{'' if version == '1' else version}_in1k"
        yield tag, torchvision_facts(name, weights)


def torchvision_facts(name: str, weights: Any) -> Facts:
    """Returns the facts of one of torchvision's weight enums."""
    from torchvision.models import ResNet18_Weights

    if weights.meta["categories"] != ResNet18_Weights.DEFAULT.meta["categories"]:
        raise ValueError(f"the classes of torchvision's {weights} are not ImageNet's")
    transform = weights.transforms()
    preprocess = ImagePreprocess(
        size=transform.crop_size[0],
        resize=transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    if name == "inception_v3":
        # Its `transform_input`, on with these weights, takes ImageNet's normalisation back and maps to [-1, 1].
        preprocess = dataclasses.replace(preprocess, mean=HALF, std=HALF)
    filename = weights.url.rsplit("/", 1)[-1]
    digits = re.search(r"-([0-9a-f]{8})\.pth$", filename)
    return facts_of(
        preprocess,
        labels="imagenet-1k",
        classifier=torchvision_classifier(name),
        license=weights.meta.get("license", TORCHVISION_LICENSE),
        source=weights.url,
        filename=filename,
        sha256=digits[1] if digits else "",
        parameters=weights.meta["num_params"],
        top1=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        top1_size=preprocess.size,
    )


@functools.cache
def torchvision_classifier(name: str) -> str:
    """Returns the name of the layer of 1000 outputs that comes last."""
    import torch

    zoo = import_torchvision().models
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = zoo.get_model(name)
    return [
        path.removesuffix(".weight")
        for path, value in network.named_parameters()
        if path.endswith(".weight") and value.shape[0] == 1000
    ][-1]


def timm_entries(
    name: str, accuracies: Mapping[tuple[str, int], float]
) -> Iterator[tuple[str, Facts]]:
    """Yields tag and facts of timm's pretrained configurations of the name."""
    import_torchvision()
    import timm

    for full in timm.list_pretrained(f"{name}.*"):
        config = timm.models.get_pretrained_cfg(full)
        yield full.split(".", 1)[1], timm_facts(full, config, accuracies)


def timm_facts(full: str, config: Any, accuracies: Mapping[tuple[str, int], float]) -> Facts:
    """Returns the facts of one of timm's pretrained configurations, at its training size."""
    preprocess = timm_preprocess(config)
    accuracy = accuracies.get((full, preprocess.size), 0.0)
    release = config.url or ""
    return facts_of(
        preprocess,
        **timm_classes(config),
        classifier=config.classifier if config.num_classes else "",
        license=config.license or "",
        source=f"hub:{config.hf_hub_id}",
        revision="main",
        filename=config.hf_hub_filename or "model.safetensors",
        parameters=timm_parameters(full.split(".", 1)[0], config.num_classes),
        top1=accuracy,
        top1_size=preprocess.size if accuracy else 0,
        # The hash in its name is of that file, not of the hub's.
        release=release if re.search(r"-[0-9a-f]{8}\.pth$", release) else "",
    )


def timm_classes(config: Any) -> Facts:
    """Returns the entry's classes: by name for ImageNet-1k, else their number and which they are."""
    from timm.data import infer_imagenet_subset

    if config.num_classes == 1000:
        return {"labels": "imagenet-1k"}
    subset = infer_imagenet_subset(config.to_dict())
    if subset:
        notes = f"classes of {subset}"
    elif ".clip_" in f".{config.tag}":
        notes = "the outputs are CLIP's image embedding, no classes"
    else:
        notes = ""
    return {"num_classes": config.num_classes, "notes": notes}


def timm_preprocess(config: Any) -> ImagePreprocess:
    """Returns what timm's evaluation transform does, read off the transform.

    Raises:
      ValueError: it is not made of a resize, a central crop and a normalisation.
    """
    from timm.data import create_transform, resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=config.to_dict())
    steps = create_transform(**resolved).transforms
    kinds = [type(step).__name__ for step in steps]
    if kinds != ["Resize", "CenterCrop", "MaybeToTensor", "Normalize"]:
        raise ValueError(f"{config.architecture}.{config.tag} is prepared by {kinds}")
    resize, crop = steps[0].size, steps[1].size
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if height != width or crop[0] != crop[1] or steps[0].max_size or not steps[0].antialias:
        raise ValueError(f"{config.architecture}.{config.tag}: resize {resize}, crop {crop}")
    return ImagePreprocess(
        size=crop[0],
        resize=height,
        resize_mode="short_side" if isinstance(resize, int) else "squash",
        interpolation=steps[0].interpolation.value,
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
    )


@functools.cache
def timm_parameters(architecture: str, num_classes: int) -> int:
    """Returns the number of parameters of timm's network as `timm.create_model` builds it."""
    import timm
    import torch

    with torch.device("meta"):
        network = timm.create_model(architecture, pretrained=False, num_classes=num_classes)
    return sum(value.numel() for value in network.parameters())


def published(results: Path) -> dict[tuple[str, int], float]:
    """Returns timm's top-1 accuracies in percent by name and input size, from its table."""
    with open(results, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["model"], int(row["img_size"])): float(row["top1"]) for row in rows}


def committed_accuracies() -> dict[tuple[str, int], float]:
    """Returns the same as `published` from the catalog as it is."""
    return {
        (name, facts["top1_size"]): facts["top1"]
        for name, facts in committed().items()
        if "top1" in facts
    }


def facts_of(preprocess: ImagePreprocess, **facts: Any) -> Facts:
    """Returns the facts with everything left out that is the default."""
    plain = {
        field.name: _plain(getattr(preprocess, field.name))
        for field in dataclasses.fields(preprocess)
        if getattr(preprocess, field.name) != field.default
    }
    defaults = {field.name: field.default for field in dataclasses.fields(WeightsMeta)}
    own = {key: _plain(value) for key, value in facts.items() if value != defaults.get(key, "")}
    return {"preprocess": plain, **own}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def committed() -> dict[str, Facts]:
    """Returns the entries of the catalog as it is; none where there is no catalog yet."""
    if not CATALOG.exists():
        return {}
    return json.loads(CATALOG.read_text(encoding="utf-8"))["entries"]


def rendered(entries: Mapping[str, Facts]) -> str:
    """Returns catalog.json: one entry a line, so that a change shows as one."""
    import timm

    vision = import_torchvision().__version__.split("+")[0]  # the rest is the build's, as +cpu
    versions = {"timm": timm.__version__, "torchvision": vision}
    lines = [
        f"{json.dumps(name)}: {json.dumps(facts, ensure_ascii=False)}"
        for name, facts in entries.items()
    ]
    body = ",\n".join(lines)
    return f'{{"made_with": {json.dumps(versions)},\n"entries": {{\n{body}\n}}}}\n'


def rendered_labels(rows: list[list[str]]) -> str:
    """Returns imagenet1k.json: one class a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def differences(results: Path | None = None) -> list[str]:
    """Returns a line for each fact that is committed otherwise than it would be written."""
    ours, theirs = committed(), catalog(results)
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        mine, their = ours.get(name), theirs.get(name)
        if mine is None or their is None:
            found.append(f"{name}: {'is missing' if mine is None else 'is in neither project'}")
            continue
        found += [
            f"{name}: {key} is {mine.get(key)!r}, published is {their.get(key)!r}"
            for key in sorted(mine.keys() | their.keys())
            if mine.get(key) != their.get(key)
        ]
    if LABELS.read_text(encoding="utf-8") != rendered_labels(labels()):
        found.append(f"{LABELS.name} is not what torchvision's names and timm's WordNet ids make")
    return found


def main(arguments: list[str]) -> int:
    """Writes the files, or with --check compares them; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    if options.check:
        found = differences(options.results)
        print("\n".join(found) if found else "the catalog is as published")
        return 1 if found else 0
    entries = catalog(options.results)
    write_text_atomic(LABELS, rendered_labels(labels()))
    write_text_atomic(CATALOG, rendered(entries))
    print(f"{len(entries)} entries in {CATALOG}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
