"""Which layers get an adapter: the methods lora, dora, ia3 and bottleneck."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flax import nnx

from tlx.config import TuneConfig, nearest
from tlx.errors import InputError
from tlx.models.adapters import Spec, attached
from tlx.models.base import Model
from tlx.models.layers import Conv, Layer
from tlx.models.leaves import is_within, leaves, matcher, module_of
from tlx.pretrained import Source

METHODS = ("lora", "dora", "ia3", "bottleneck")

# Where the papers put them in transformers; lora and dora in those of texts (Hu et al. 2021, section 7.1). What has none of
# these layers (a convolutional network), and pictures' transformers with lora and dora, get one at every layer of every
# stage but the first, which reads the pixels.
TRANSFORMER_TARGETS = {
    "lora": (r"layer\.\d+\.attention\.(query|value)",),
    "dora": (r"layer\.\d+\.attention\.(query|value)",),
    "ia3": (r".*\.attention\.(key|value)", r"(block|.*\.blocks\.|layer\.)\d+\.fc2:input"),
    "bottleneck": (r".*\.attention\.output", r"(block|.*\.blocks\.|layer\.)\d+\.fc2"),
}


def with_adapters(
    source: Source, tune: TuneConfig, given: Mapping[str, Spec] | None = None
) -> Source:
    """Returns the source of the model with the method's adapters; the same where the method has none.

    Args:
      source: of the plain model.
      tune: the method and its options.
      given: which adapters there are, where that is known already; None: as `tune` says.

    Raises:
      InputError: a target that is no layer, or only layers that cannot have one; names what was available.
    """
    if tune.method not in METHODS:
        return source
    model = attached(source.model, chosen(source.model, tune) if given is None else given)
    loaded = source.loaded and dataclasses.replace(source.loaded, leaves=leaves(model))
    return dataclasses.replace(source, model=model, loaded=loaded)


def chosen(model: Model, tune: TuneConfig) -> dict[str, Spec]:
    """Returns the adapters that `tune` asks for, by the paths of their layers. Raises as `with_adapters`."""
    method, targets = tune.method, _targets(model, candidates(model), tune)
    alpha = tune.alpha if method in ("lora", "dora") else 0.0
    rank = 0 if method == "ia3" else tune.rank
    return {path: Spec(method, rank, alpha, inputs) for path, inputs in targets.items()}


def candidates(model: Model) -> dict[str, Layer]:
    """Returns the layers of the stages that an adapter can sit at, by path: all but grouped convolutions."""
    found = {}
    for path, module in nnx.iter_modules(model):
        grouped = isinstance(module, Conv) and module.groups > 1
        if isinstance(module, Layer) and path and path[0] in model.stages and not grouped:
            found[".".join(map(str, path))] = module
    order = {name: place for place, name in enumerate(model.stages)}
    return dict(sorted(found.items(), key=lambda item: order[module_of(item[0])]))


def _targets(model: Model, layers: dict[str, Layer], tune: TuneConfig) -> dict[str, bool]:
    """Returns the path of each target, and whether its inputs are meant."""
    if tune.targets:
        return _matching(layers, tune.targets, tune.method, strict=True)
    usual = TRANSFORMER_TARGETS.get(tune.method, ())
    if found := _matching(layers, usual, tune.method, strict=False):
        return found
    return {path: False for path in layers if not is_within(path, model.stages[:1])}


def _matching(
    layers: dict[str, Layer], targets: Sequence[str], method: str, *, strict: bool
) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for target in targets:
        pattern, colon, end = target.rpartition(":")
        inputs = method == "ia3" and colon != "" and end == "input"
        pattern = pattern if inputs else target
        matches = matcher(pattern, "tune.targets")
        hits = [path for path in layers if matches(path)]
        if strict and not hits:
            names = dict.fromkeys(path.rsplit(".", 1)[-1] for path in layers)
            raise InputError(
                f"tune.targets: {target!r} is no layer that can have an adapter{nearest(pattern, layers)} "
                f"(a module's path or a regex; the layers are called {', '.join(names)}, as {next(iter(layers))})"
            )
        found |= dict.fromkeys(hits, inputs)
    return found
