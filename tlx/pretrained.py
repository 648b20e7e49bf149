"""A model with its values: from a file, from the seed, or both; and back to a file."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tlx import models
from tlx.config import check_choice, checked
from tlx.errors import InputError
from tlx.models.adapters import NAME as ADAPTER
from tlx.models.adapters import adapted_layers, initial_magnitudes, merged, specs_of
from tlx.models.base import Model
from tlx.models.layers import Initializer, zeros
from tlx.models.leaves import (
    Leaf,
    Values,
    initial_values,
    is_within,
    leaves,
    module_of,
    values,
    with_values,
)
from tlx.weights.copying import in_groups, own_copy
from tlx.weights.files import write_safetensors
from tlx.weights.keymap import Origin
from tlx.weights.load import (
    AS_IN_FILE,
    Fitting,
    Loaded,
    WeightsFile,
    fill,
    listing,
    open_weights,
)
from tlx.weights.meta import TextPreprocess, WeightsMeta
from tlx.weights.naming import dtypes_of, tables_to_write
from tlx.weights.peft_read import AdapterFiles
from tlx.weights.text_write import TextFiles


@functools.cache
def _small(init: Initializer) -> Initializer:
    """Returns a hundredth of what the initializer draws."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return 0.01 * init(key, shape, dtype)

    return draw


# How a new head is drawn: from its layer's own initializer to the one that is used.
HEAD_INITS: dict[str, Callable[[Initializer], Initializer]] = {
    "default": lambda init: init,
    "zero": lambda init: zeros,
    "small": _small,
}


class Trained(NamedTuple):
    """The folder of adapters that a run begins with, and what of it is used."""

    files: AdapterFiles
    beside: tuple[str, ...]  # what it fills but its adapters
    no_head: str = ""  # why its head is not used, where there is one

    def facts(self) -> dict[str, Any]:
        """Returns where the adapters come from."""
        folder, sha256 = str(self.files.folder), self.files.content_hash
        return {"adapters": folder, "adapters_sha256": sha256}

    def describe(self, model: Model) -> list[str]:
        """Returns lines for the log; the model is that which has the adapters."""
        files, specs = self.files, specs_of(model)
        lines = [
            f"adapters: {files.folder} ({files.method}, content sha256 {files.content_hash[:16]}) at {_layers(specs)}"
        ]
        for name in ("rank", "alpha"):
            if found := sorted({getattr(spec, name) for spec in specs.values()} - {0}):
                lines[0] += f"; {name} {', '.join(f'{number:g}' for number in found)}"
        if self.beside:
            lines.append(f"from there too: {listing(self.beside)}")
        if self.no_head:
            lines.append(f"the head that is there is not used: {self.no_head}")
        own, theirs = model.meta.base, files.meta.base if files.meta else ""
        theirs = theirs or str(files.config.get("base_model_name_or_path") or "")
        if theirs and theirs != own:
            lines.append(f"they were trained on {theirs!r}, these weights are {own or 'not named'}")
        return lines


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model's values come from, decided and checked, before anything is placed on a device."""

    model: Model  # abstract: shapes in place of values
    file: WeightsFile | None
    loaded: Loaded | None

    head_init: str = "default"
    overridden: tuple[str, ...] = ()  # what of the weights' own preprocessing was changed
    trained: Trained | None = None  # the adapters, where they are not new

    @property
    def fresh(self) -> tuple[str, ...]:
        """What the weights file lacks, and comes from the seed; nothing where no file is read."""
        return self.loaded.fresh if self.loaded else ()

    @property
    def drawn(self) -> tuple[str, ...]:
        """What inference uses and no file fills: it would be drawn from the seed."""
        missing = self.loaded.fresh if self.loaded else tuple(self.leaves)
        unused = self.model.auxiliary_modules  # but in training
        return tuple(path for path in missing if not is_within(path, unused))

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Every parameter and statistic of the model."""
        found = self.loaded.leaves.copy() if self.loaded else leaves(self.model)
        for path, leaf in found.items():
            if is_within(path, self.model.classifiers):
                found[path] = leaf._replace(init=HEAD_INITS[self.head_init](leaf.init))
        return found

    def place(self, seed: int, sharding: Any = None) -> Values:
        """Returns all values on the devices: the file's, and the rest drawn from the seed."""
        found = self.leaves
        loaded = self.loaded.arrays if self.loaded else {}
        placed: Values = {}

        def copies(paths: Sequence[str]) -> list[np.ndarray]:
            return [own_copy(loaded[path], found[path].dtype) for path in paths]

        groups = in_groups(loaded)
        with concurrent.futures.ThreadPoolExecutor() as pool:  # numpy copies without Python's lock
            for paths, arrays in zip(groups, pool.map(copies, groups), strict=True):
                placed |= zip(paths, jax.device_put(arrays, sharding), strict=True)
        missing = [path for path in found if path not in placed]
        placed |= initial_values(found, missing, seed, sharding)
        magnitudes = initial_magnitudes(placed)
        placed |= {path: magnitudes[path] for path in missing if path in magnitudes}
        return {path: placed[path] for path in found}

    def facts(self) -> dict[str, Any]:
        """Returns where the values come from, and what was changed of their preprocessing."""
        changed = {"preprocessing_overridden": list(self.overridden)} if self.overridden else {}
        if self.file is None:
            return {"weights": "none"} | changed
        meta = self.file.meta
        published = {
            "weights_tag": f"{meta.architecture}.{meta.tag}" if meta.tag else "",
            "weights_base": meta.base,
            "weights_revision": meta.revision,
            "weights_top1": meta.top1,  # of ImageNet-1k, in percent, as its authors measured it
        }
        return {
            "weights": str(self.file.path),
            "weights_sha256": self.file.content_hash,
            **{name: fact for name, fact in published.items() if fact},
            **(self.trained.facts() if self.trained else {}),
            **changed,
        }

    def describe(self) -> list[str]:
        """Returns lines for the log: what was loaded, dropped and initialised, by name."""
        if self.file is None or self.loaded is None:
            return [
                f"{self.model.meta.architecture}: all {len(self.leaves)} values drawn from the seed"
            ]
        lines = [
            f"weights: {self.file.path} ({self.file.meta_origin}; {self.file.table.name} names, "
            f"content sha256 {self.file.content_hash[:16]}): {self._from_file()} values loaded"
        ]
        if self.loaded.dropped:
            lines.append(f"dropped from the file: {listing(self.loaded.dropped)}")
        if self.loaded.fresh:
            lines.append(f"initialised afresh: {listing(self.loaded.fresh)}")
        if self.trained:
            lines += self.trained.describe(self.model)
        elif layers := dict(adapted_layers(self.model)):
            (kind,) = {type(layer.adapter).__name__ for layer in layers.values()}
            lines.append(
                f"initialised afresh, so that they change nothing at first: {kind} adapters at {_layers(layers)}"
            )
        lines += self.loaded.fitted
        return lines

    def _from_file(self) -> int:
        """Returns how many values are those of the weights file."""
        assert self.loaded is not None
        beside = self.trained.beside if self.trained else ()
        return sum(f".{ADAPTER}." not in p and p not in beside for p in self.loaded.arrays)


def _layers(paths: Collection[str]) -> str:
    """Returns how many layers there are, and their paths; those of more than eight counted by stage."""
    stages = Counter(module_of(path) for path in paths)
    named = paths if len(paths) <= 8 else (f"{name} ({n})" for name, n in stages.items())
    return f"{len(paths)} layers: {', '.join(named)}"


def source(
    name: str,
    weights: str = "none",
    *,
    file: WeightsFile | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str = "auto",
    head_init: str = "default",
    missing_ok: Sequence[str] = (),
    meta: WeightsMeta | None = None,
    origin: Origin | None = None,
    fitting: Fitting = AS_IN_FILE,
    dropout: float = -1.0,
    drop_path: float = -1.0,
    overridden: tuple[str, ...] = (),
) -> Source:
    """Decides the head and holds the weights against the model.

    Args:
      name: the model's name.
      weights: a tag, a path, or "none".
      file: the weights where they were opened already; `weights` is then not read.
      class_names: of the data. With head="auto" the file's head is kept if its names are these.
      num_classes: None: as the file or the architecture has it; 0: no head.
      head: auto, keep or new.
      head_init: how a new head is drawn: default, zero or small.
      missing_ok: what the file may lack.
      meta: put on the model in place of the weights' own (as with overridden preprocessing).
      origin: likewise in place of the file's.
      fitting: how values that depend on the input are made to fit; with `classes` set, `class_names` are
        those of the file's classes that it names, and the head is kept.
      dropout, drop_path: rates in training; below 0: the architecture's own.
      overridden: what of the weights' preprocessing `meta` changes, for `Source.facts`.

    Raises:
      InputError: as `tlx.weights.load.fill`, and where head="keep" does not fit the data.
    """
    name = models.resolve(name)
    if file is None and weights != "none":
        file = open_weights(name, weights)
    base = meta or (file.meta if file else models.default_meta(name))
    own_classes = (file.num_classes if file else 0) or base.num_classes
    if num_classes is None:
        num_classes = len(class_names) if class_names is not None else own_classes
    new_head = not fitting.classes and _new_head(head, file, class_names, num_classes)
    names = tuple(class_names) if class_names is not None else ()
    if not names and num_classes == own_classes and not new_head:
        names = base.class_names
    base = dataclasses.replace(base, num_classes=num_classes, class_names=names)
    model = models.abstract_model(
        name, num_classes=num_classes, meta=base, dropout=dropout, drop_path=drop_path
    )
    model.origin = origin or (file.origin if file else None)
    if file is None:
        return Source(model, None, None, head_init, overridden)
    loaded = fill(model, file, missing_ok=missing_ok, new_head=new_head, fitting=fitting)
    if loaded.fitted or not all(is_within(path, model.auxiliary_modules) for path in loaded.fresh):
        model.meta = base.derived()
    return Source(model, file, loaded, head_init, overridden)


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    missing_ok: Sequence[str] = (),
    dtype: str = "float32",
    in_channels: int = 0,
    image_size: int = 0,
    stem: str = "",
    stem_init: str = "crop",
    head_init: str = "default",
    dropout: float = -1.0,
    drop_path: float = -1.0,
) -> Model:
    """Returns a model in inference mode: `model(x) -> logits`, `model.features(x)`, `model.stages`.

    Args:
      name: as `tlx.list_models()` shows it, with or without the tag of a known set of weights.
      weights: a tag (`tv_in1k`), a path (`.pth`, `.th`, `.bin`, `.safetensors`), or None: drawn from the seed. Of a text model the
        folder that has config.json, weights and tokenizer, or OWNER/NAME of one on the hub.
      num_classes: None: as in the weights; 0: no head, logits are the features; else a new head where
        the weights have another number of classes.
      seed: of the values that no file fills.
      missing_ok: modules or regexes of values that the file may lack.
      dtype: compute type, "float32" or "bfloat16".
      in_channels: of the input; 0: as the weights. The first kernel is summed for 1, else repeated and rescaled.
      image_size: pixels, the input's side; 0: as the weights. Position embeddings are resized.
      stem: "small": the first layers for small pictures (3x3, no pooling); "": the architecture's own.
      stem_init: of the smaller first kernel: "crop" the file's, or "new".
      head_init: of a new head: "default" as PyTorch's layer, "zero", or "small" (a hundredth of it).
      dropout, drop_path: rates in training; below 0: the architecture's own.

    Raises:
      InputError, InputFileNotFoundError: see `tlx.weights.load`.
    """
    name, chosen = name_and_weights(name, "none" if weights is None else str(weights))
    if num_classes is not None and not (
        isinstance(num_classes, (int, np.integer)) and num_classes >= 0
    ):
        raise InputError(f"num_classes is {num_classes!r}, expected how many, or 0 for no head")
    missing_ok = checked("model.missing_ok", missing_ok, "missing_ok")
    check_choice("dtype", dtype, ("float32", "bfloat16"))
    in_channels = checked("model.in_channels", in_channels, "in_channels")
    image_size = checked("data.image_size", image_size, "image_size")
    stem = checked("model.stem", stem, "stem")
    stem_init = checked("model.stem_init", stem_init, "stem_init")
    head_init = checked("model.head_init", head_init, "head_init")
    dropout = checked("model.dropout", dropout, "dropout")
    drop_path = checked("model.drop_path", drop_path, "drop_path")
    file = open_weights(name, chosen) if chosen != "none" else None
    new = num_classes is not None and file is not None and num_classes not in (0, file.num_classes)
    meta = file.meta if file else models.default_meta(name)
    if new:
        meta = dataclasses.replace(meta, task="")
    found = source(
        name,
        file=file,
        num_classes=num_classes,
        head="new" if new else "auto",
        head_init=head_init,
        missing_ok=missing_ok,
        meta=shaped(
            meta,
            in_channels=in_channels,
            image_size=image_size,
            stem=stem,
        ),
        fitting=Fitting(stem_init),
        dropout=dropout,
        drop_path=drop_path,
    )
    model = with_values(found.model, found.place(seed))
    model.dtype = dtype
    return model


def name_and_weights(name: str, weights: str) -> tuple[str, str]:
    """Returns the model's name here, and its weights: `resnet50.tv_in1k` names both at once.

    Raises:
      InputError: there is no such model, or two sets of weights are named.
    """
    full = str(name)
    name, dot, tag = full.partition(".")
    if not weights or (dot and not tag):
        raise InputError(
            f"model {full!r}, weights {weights!r}: no set of weights is named; leave them out, or give none"
        )
    if tag and weights not in ("none", tag, full):
        raise InputError(f"two sets of weights: {full} and {weights}; name one of them")
    return models.resolve(name), tag or weights


def shaped(
    meta: WeightsMeta, *, in_channels: int = 0, image_size: int = 0, stem: str = ""
) -> WeightsMeta:
    """Returns the meta for another input; 0 and "" leave what it says."""
    preprocess = meta.preprocess
    if isinstance(preprocess, TextPreprocess):
        if in_channels or image_size or stem:
            raise InputError(
                f"{meta.architecture} takes texts: it has no channels, image size or stem (in_channels, image_size, stem)"
            )
        return meta
    if image_size:
        preprocess = preprocess.at_size(image_size)
    if in_channels:
        preprocess = preprocess.with_channels(in_channels)
    return dataclasses.replace(meta, preprocess=preprocess, stem=stem or meta.stem)


def save_weights(model: Model, path: str | Path, *, names: str = "") -> None:
    """Writes `.safetensors` with the source's own names and layouts, and the (derived) meta in its header.

    Adapters are merged into the layers that they belong to. Values that were not changed are written in the type
    they had in the file they came from; buffers that the network does not use are written as they were there.

    Of a text model config.json and the tokenizer are written beside it: transformers opens the folder, and so does
    `create_model`. Call the file model.safetensors.

    Args:
      model: with values.
      path: of the file, which ends in .safetensors.
      names: the project whose names are used ("torchvision", "timm", ...); "": that of the file which
        the weights came from, or the first of the family's that has names for all values. Another project's network may
        normalise with another epsilon (`WeightsMeta.norm_epsilon`), which no weights file says.

    Raises:
      InputError: no such names for this model, it has no values or bottleneck adapters, a file cannot be
        written, or the folder of a text model is another's.
    """
    meta, origin, path = model.meta.derived(), model.origin, Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{str(path)!r}: what is written is safetensors: call it NAME.safetensors")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is there and is no file")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    table, *_ = tables_to_write(model, names)
    own = origin if origin and origin.table == table.name else None
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in values(model).values()):
        raise InputError("the model has shapes and no values: make it with create_model or load")
    arrays = {name: np.asarray(value) for name, value in values(merged(model)).items()}
    stored = table.to_source(arrays, own.carried if own else None)
    for name, dtype in dtypes_of(model, table, arrays).items():
        stored[name] = _narrowed(stored[name], dtype)
    dtypes = {array.dtype.name for name, array in stored.items() if array.dtype.kind != "i"}
    beside = TextFiles.of(meta, dtypes) if models.is_text(meta.architecture) else None
    if beside is not None:
        beside = beside.for_weights(path)
    write_safetensors(stored, path, {"tlx_meta": json.dumps(meta.to_json()), "format": "pt"})
    if beside is not None:
        beside.write(path.parent)


def _narrowed(array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the array in the file's type where that loses nothing."""
    narrow = array.astype(np.dtype(dtype))
    same = np.array_equal(narrow.astype(array.dtype), array, equal_nan=True)
    return narrow if same else array


def parameter_count(model: Model) -> int:
    """Returns the number of parameters (running statistics are none)."""
    return sum(int(np.prod(leaf.shape)) for leaf in leaves(model).values() if leaf.is_parameter)


def _new_head(
    head: str, file: WeightsFile | None, class_names: Sequence[str] | None, num_classes: int
) -> bool:
    if head == "new" or file is None:
        return True
    own = file.num_classes
    if head == "keep":
        if own != num_classes:
            raise InputError(
                f"model.head=keep, but {file.path} has a head of {own} classes and the data has {num_classes}"
            )
        return False
    if class_names is None:
        return False
    return own != num_classes or tuple(class_names) != file.meta.class_names
