"""From a tag or a path to a parameter tree: catalog -> fetch -> read -> key table -> checked arrays.

Strict by default. Every source key is used, carried, or named as dropped; every target leaf is filled, or
named as initialised. Exceptions are made by name only (`missing_ok`, and the head when it is replaced).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from tlx import models
from tlx.errors import InputError, InputFileNotFoundError
from tlx.models.base import Model
from tlx.models.leaves import Leaf, is_within, leaves, matcher, module_of
from tlx.weights import catalog
from tlx.weights.fetch import locate
from tlx.weights.files import content_hash, hashing, is_safetensors, read_weights
from tlx.weights.keymap import Conversion, KeyTable, Origin
from tlx.weights.meta import WeightsMeta
from tlx.weights.stored_meta import stored_meta
from tlx.weights.surgery import centre_crop, input_channels, select_classes
from tlx.weights.text_folder import TextFolder, open_folder

STORED = "stored in the file"  # how a meta was found

# Of a head that is one layer, and of one with a layer before it.
CLASSIFIER_KERNELS = ("head.kernel", "head.out.kernel")

# How a file of weights may be called, to tell a path from a tag.
SUFFIXES = (".pth", ".th", ".pt", ".bin", ".ckpt", ".safetensors")


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A file that was read and renamed, but not yet held against a model."""

    path: Path
    meta: WeightsMeta
    meta_origin: str  # how the meta was found, for the log
    table: KeyTable
    conversion: Conversion
    arrays: Mapping[str, np.ndarray]  # as they are in the file

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over the tensors, whatever the file's format."""
        return content_hash(self.arrays)

    @property
    def num_classes(self) -> int:
        """The width of the file's classifier; 0 where it has none."""
        kernels = (self.conversion.arrays.get(path) for path in CLASSIFIER_KERNELS)
        return next((kernel.shape[-1] for kernel in kernels if kernel is not None), 0)

    @functools.cached_property
    def origin(self) -> Origin:
        """What is needed beside the network's values to write the file again."""
        carried = self.conversion.carried
        dtypes = {
            name: array.dtype.name
            for name, array in self.arrays.items()
            if name not in carried and array.dtype != np.float32
        }
        return Origin.of(self.table.name, dtypes, carried)


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How values that depend on the input or on the classes are made to fit."""

    stem_init: str = "crop"  # of a smaller first kernel: crop the file's, or new
    classes: tuple[int, ...] = ()  # the file's classes that the model's are; (): the same ones


AS_IN_FILE = Fitting()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a file fills of a model, and what it does not."""

    leaves: dict[str, Leaf]  # the model's, all of them
    arrays: dict[str, np.ndarray]  # path -> array
    fresh: tuple[str, ...]  # paths that no file fills
    dropped: tuple[str, ...]  # source keys that were not used, by name
    fitted: tuple[str, ...] = ()  # what was made to fit, and how


def open_weights(name: str, weights: str) -> WeightsFile:
    """Reads the weights file for the model: a tag of the catalog, or a path.

    Raises:
      InputError: unknown tag, damaged file, checksum mismatch, or weights of another architecture.
      InputFileNotFoundError: no such file, or it is not here and cannot be downloaded.
    """
    name = models.resolve(name)
    if models.is_text(name):
        return read_folder(open_folder(name, weights))
    path, meta, origin = _locate(name, weights)
    if meta is None and (meta := stored_meta(path)):
        origin = STORED
    with contextlib.ExitStack() as stack:
        sha256 = None
        if meta is None and catalog.has_checksums(name, safetensors=is_safetensors(path)):
            sha256 = stack.enter_context(hashing(path))
        arrays = read_weights(path)
        (table, conversion), *others = _convert(name, arrays)
        if meta is None:
            meta, origin = _identify(name, path, sha256() if sha256 else "")
    if meta is not None and meta.architecture != name:
        raise InputError(
            f"{path} holds {meta.architecture} weights ({origin}), but the model is {name}"
        )
    if meta is None:
        default = models.default_meta(name)
        meta = dataclasses.replace(default, norm_epsilon=table.norm_epsilon)
    file = WeightsFile(path, meta, origin, table, conversion, arrays)
    _check_choice(name, file, others)
    if meta.class_names and file.num_classes not in (0, len(meta.class_names)):
        if origin == STORED:
            raise InputError(
                f"{path} names {len(meta.class_names)} classes, but its head has {file.num_classes}"
            )
        # Another head on a known network, under that one's file name: its classes are not known.
        meta = dataclasses.replace(meta, class_names=(), num_classes=file.num_classes)
        file = dataclasses.replace(file, meta=meta)
    return file


def read_folder(folder: TextFolder) -> WeightsFile:
    """Reads the weights of a text model's folder. Raises as `open_weights`, and where its tokenizer does not fit the network."""
    arrays = read_weights(folder.weights)
    (table, conversion), *others = _convert(folder.name, arrays)
    meta = folder.meta(conversion.arrays)
    file = WeightsFile(folder.weights, meta, STORED, table, conversion, arrays)
    _check_choice(folder.name, file, others)
    if meta.class_names and file.num_classes not in (0, len(meta.class_names)):
        raise InputError(
            f"{folder.path}: config.json names {len(meta.class_names)} classes (id2label), but the head has "
            f"{file.num_classes}"
        )
    meta = dataclasses.replace(meta, num_classes=file.num_classes)
    if not file.num_classes:  # of an encoder alone, whatever its config.json says of a head
        meta = dataclasses.replace(meta, class_names=(), task="")
    return dataclasses.replace(file, meta=meta)


def fill(
    model: Model,
    file: WeightsFile,
    *,
    missing_ok: Sequence[str] = (),
    new_head: bool = False,
    fitting: Fitting = AS_IN_FILE,
) -> Loaded:
    """Holds a file against a model.

    A pattern of `missing_ok` is a module's path (its whole subtree) or a regex. Where the file lacks a
    part of what a pattern names in a stage, all that it names there is initialised afresh: half a stage is no
    pretrained stage.

    Args:
      model: abstract or not.
      file: from `open_weights`.
      missing_ok: what the file may lack.
      new_head: whether the classifiers are drawn afresh whatever the file has, and of the rest of the head what it lacks.
      fitting: of what depends on the input's channels and size, and on the classes.

    Raises:
      InputError: keys missing or unknown, shapes that differ, a pattern that names nothing.
    """
    found = leaves(model)
    allowed = []
    for pattern in missing_ok:
        matches = matcher(pattern, "model.missing_ok")
        allowed.append((pattern, {path for path in found if matches(path)}))
    for pattern, paths in allowed:
        if not paths:
            tops = ", ".join(dict.fromkeys(map(module_of, found)))
            raise InputError(f"model.missing_ok: {pattern!r} names no parameter (modules: {tops})")
    arrays = file.conversion.arrays
    fresh = {path for path in found if file.table.lacks(path)}
    if new_head:
        fresh |= {path for path in found if is_within(path, model.classifiers)}
        fresh |= {path for path in found if is_within(path, ("head",)) and path not in arrays}
    if fitting.stem_init == "new" and _differs(model.input_kernel, found, arrays):
        fresh.add(model.input_kernel)
    missing = [path for path in found if path not in arrays and path not in fresh]
    for _, paths in allowed:
        lacking = {module_of(path) for path in missing if path in paths}
        fresh |= {path for path in paths if module_of(path) in lacking}
    missing = [path for path in missing if path not in fresh]
    if missing:
        raise InputError(_missing_message(file, missing, len(found)))
    removed = [*model.unused, *(("head",) if new_head or model.head is None else ())]
    removed += model.auxiliary_modules if model.head is None else ()
    _refuse_unknown(file, found, removed)
    wanted = {path: array for path, array in arrays.items() if path in found and path not in fresh}
    used, fitted = _fit(model, found, wanted, fitting)
    _check_arrays(found, file, used)
    dropped = tuple(name for path, name in file.conversion.names.items() if path not in used)
    fresh_paths = tuple(path for path in found if path in fresh)
    dropped = (*dict.fromkeys(dropped), *file.conversion.dropped)
    return Loaded(found, used, fresh_paths, dropped, tuple(fitted))


def _fit(
    model: Model, found: Mapping[str, Leaf], arrays: dict[str, np.ndarray], fitting: Fitting
) -> tuple[dict[str, np.ndarray], list[str]]:
    fitted, lines = dict(arrays), []
    for path, array in arrays.items():
        shape = found[path].shape
        new = array
        if fitting.classes and is_within(path, model.classifiers):
            if array.shape[-1] > max(fitting.classes):
                new = select_classes(array, fitting.classes)
        elif path == model.input_kernel and new.ndim == len(shape) == 4:
            if shape[0] < new.shape[0]:
                new = centre_crop(new, shape[:2])
            if shape[2] != new.shape[2]:
                new = input_channels(new, shape[2])
        elif array.shape != shape:
            made = model.fit_value(path, np.asarray(array), shape)
            new = array if made is None else made
        if new is not array:
            fitted[path] = new
            lines.append(f"{path} {list(array.shape)} made to fit {list(shape)}")
    return fitted, lines


def _differs(path: str, found: Mapping[str, Leaf], arrays: Mapping[str, np.ndarray]) -> bool:
    return path in found and path in arrays and arrays[path].shape[:2] != found[path].shape[:2]


def _refuse_unknown(file: WeightsFile, found: Mapping[str, Leaf], removed: Sequence[str]) -> None:
    unknown = [
        file.conversion.names[path]
        for path in file.conversion.arrays
        if path not in found and not is_within(path, removed)
    ]
    unknown += file.conversion.unknown
    if unknown:
        raise InputError(
            f"{file.path} has {len(unknown)} keys that {file.meta.architecture} has no place for: "
            f"{listing(unknown)}"
        )


def listing(names: Iterable[str], limit: int = 24) -> str:
    """Returns the names in one line, those past the limit counted by their parent module."""
    names = list(names)
    if len(names) <= limit:
        return ", ".join(names)
    parents: dict[str, list[str]] = {}
    for name in names:
        parents.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return ", ".join(
        f"{parent}.* ({len(found)})" if len(found) > 1 else found[0]
        for parent, found in parents.items()
    )


def _missing_message(file: WeightsFile, missing: list[str], total: int) -> str:
    tops = ",".join(dict.fromkeys(map(module_of, missing)))
    advice = f"To initialise them afresh, name them: --config.model.missing_ok={tops}"
    if 4 * len(missing) > total:
        advice = "They may be the weights of another architecture"
    return (
        f"{file.path} lacks {len(missing)} of the {total} values of {file.meta.architecture}: {listing(missing)}. "
        f"{advice}"
    )


def _check_arrays(
    found: Mapping[str, Leaf], file: WeightsFile, used: Mapping[str, np.ndarray]
) -> None:
    for path, array in used.items():
        if not jax.dtypes.issubdtype(array.dtype, np.floating):
            raise InputError(
                f"{file.path}: {file.conversion.names[path]} ({path}) holds {array.dtype} values; weights are "
                "real numbers (a quantised network must be converted back first)"
            )
        if tuple(array.shape) != found[path].shape:
            raise InputError(
                f"{file.path}: {file.conversion.names[path]} ({path}) has shape {tuple(array.shape)}, "
                f"the model expects {found[path].shape}"
            )


def _locate(name: str, weights: str) -> tuple[Path, WeightsMeta | None, str]:
    """Returns the file, and its meta and how that was found where the weights are named by their tag.

    A known tag is that, whatever else has its name in the folder one happens to be in (./TAG is a path).
    """
    is_path = "/" in weights or Path(weights).suffix in SUFFIXES
    if is_path or (catalog.get(name, weights) is None and _exists(weights)):
        path = _expanded(weights)
        if not _exists(weights):
            raise InputFileNotFoundError(f"no weights file {path}")
        return path, None, ""
    meta = catalog.find(name, weights)
    found = locate(meta)
    if found.revision:
        meta = dataclasses.replace(meta, revision=found.revision)
    return found.path, meta, "built in" if meta.source == "builtin" else "catalog"


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of a user who does not exist
        return Path(text)


def _exists(text: str) -> bool:
    try:
        return _expanded(text).exists()
    except OSError:  # too long to be a name
        return False


def _identify(name: str, path: Path, sha256: str) -> tuple[WeightsMeta | None, str]:
    known = catalog.identify(path, sha256)
    if known is None:
        return None, f"default of {name}: the file is not in the catalog"
    if known.tag:
        return known, f"recognised as {known.architecture}.{known.tag}"
    return known, f"named as {known.base}, but of another content"


def _convert(name: str, arrays: Mapping[str, np.ndarray]) -> list[tuple[KeyTable, Conversion]]:
    """Returns what each of the model's tables makes of a file; that which covers most of its keys comes first.

    Of equal ones, that which says what else its files lack.
    """
    tables = models.family(name).key_tables(name)
    ranked = sorted(tables, key=lambda table: _rank(table, arrays), reverse=True)
    return [(table, table.to_target(arrays)) for table in ranked]


def _rank(table: KeyTable, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    return table.coverage(arrays), len(table.absent)


def _check_choice(
    name: str, file: WeightsFile, others: Sequence[tuple[KeyTable, Conversion]]
) -> None:
    rank = _rank(file.table, file.arrays)
    if 2 * rank[0] < len(file.arrays):
        raise InputError(
            f"{file.path} does not look like {name}: only {rank[0]} of its {len(file.arrays)} keys "
            f"are known to it (the first are {', '.join(list(file.arrays)[:3])})"
        )
    for table, other in others:
        if _rank(table, file.arrays) == rank and not _same(other, file.conversion):
            raise InputError(
                f"{file.path}: its keys fit {file.table.name} and {table.name} equally well"
            )


def _same(one: Conversion, other: Conversion) -> bool:
    """Returns whether two tables made the same of a file, as of one that has only what both have."""

    def made(of: Conversion) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
        return {path: (of.names[path], a.shape, a.strides) for path, a in of.arrays.items()}

    return made(one) == made(other)
