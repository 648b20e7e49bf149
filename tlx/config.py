"""The config schema: every field, its default and its meaning, in one place.

A config file (`configs/*.py`) starts from `defaults()` and edits fields; the command line overrides
them (`--config.train.epochs=3`); `build` turns the result once into frozen dataclasses. Unknown keys
and wrong types are errors that show the nearest key. Nothing here imports jax.

Conventions: no field is None, unset is 0 or "" or (); a tuple can be given as a comma-separated string;
a duration is "500" (steps), "2ep" (epochs) or "5%" (of the run).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from tlx.errors import InputError, InputFileNotFoundError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = "resnet18"  # tlx.list_models() names them
    weights: str = (
        "none"  # a tag (tv_in1k), a path (.pth, .th, .safetensors), or none: from scratch
    )
    head: str = (
        "auto"  # auto: keep the file's head when its class names are the data's | keep | new
    )
    # a folder of lora, dora or ia3 adapters that are trained on, as peft or --mode=export (export/adapter) wrote them;
    # layers, rank and alpha are theirs, and the head where its classes are the data's
    adapters: str = ""
    missing_ok: tuple[str, ...] = ()  # parameters the file may lack: a stage's name or a regex
    head_init: str = "default"  # how a new head is drawn: default | zero | small (a hundredth)
    in_channels: int = 0  # of the input; 0: as the weights; the first kernel is made to fit
    stem: str = ""  # small: first layers for small pictures (3x3, no pooling); "": the weights' own
    stem_init: str = "crop"  # of a small stem's first kernel: crop (the file's centre) | new
    dropout: float = -1.0  # before the classifier, in training; -1: as the architecture was trained
    drop_path: float = -1.0  # largest rate of stochastic depth; -1: as the architecture was trained
    dtype: str = (
        "auto"  # compute type: auto (float32 on CPU, bfloat16 elsewhere) | float32 | bfloat16
    )
    remat: bool = False  # on accelerators the insides of stages are computed again in the backward pass: less memory, more work


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = (
        "digits"  # digits | folder | table | tfds:NAME | npz; of texts table | tfds:NAME | conll
    )
    root: str = ""  # folder or file of the data; for tfds its data directory
    text_column: str = ""  # of texts in a table or tfds; "": text, sentence, review ...
    pair_column: str = ""  # of the second text of a pair; "": two usual ones, as sentence1 and sentence2, are a pair
    # unless text_column is set
    label_column: str = ""  # of a table, or of texts in tfds; "": label, class, target ...
    train_split: str = "train"  # tfds split expressions, as train[:90%]
    val_split: str = ""  # "": val_fraction of the training split
    test_split: str = "test"
    val_fraction: float = 0.0  # carved from training with the seed, stratified by class
    test_fraction: float = (
        0.0  # likewise, where the source has no test split; 0: a fifth; 1: nothing is trained
    )
    class_subset: tuple[
        str, ...
    ] = ()  # the network's own class for each of the data's: indices, names or WordNet ids in the
    # data's order, or DATACLASS=CLASS, or auto: those of the same name; (): the data's own classes
    labels_per_class: int = 0  # training examples kept for each class, drawn with the seed; 0: all
    image_size: int = 0  # pixels; 0: what the weights were trained with
    resize: int = 0  # pixels, short side before the crop; 0: in the weights' own proportion
    resize_mode: str = ""  # short_side | squash: both sides become `resize`; "": the weights' own
    interpolation: str = ""  # nearest | bilinear | bicubic | lanczos; "": the weights' own
    mean: tuple[float, ...] = ()  # (): the weights' own
    std: tuple[float, ...] = ()
    # pad_crop:4 | random_crop | random_resized_crop:0.08 | flip | rand_augment:2:9 | trivial_augment |
    # color_jitter:0.4 or, with hue, :0.4:0.4:0.4:0.1 | grayscale:0.1 | random_erasing:0.5, in the order in which they
    # are applied
    augment: tuple[str, ...] = ()
    on_bad_image: str = "error"  # error | skip (counted in the summary)
    storage: str = "auto"  # auto | memory (decoded once) | stream (decoded by grain as needed)
    memory_gb: float = 4.0  # GiB; auto keeps the decoded splits in memory if all fit in this
    # GiB of each device for what training reads, if all of it fits; -1: a quarter of what jax may take of an
    # accelerator, none on a CPU or with several processes
    device_gb: float = -1.0
    workers: int = 0  # grain worker processes when streaming; 0: threads only


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    method: str = "full"  # one of METHODS below (tlx/tuning/methods.py says what each does), or
    # auto: it and the other AUTO_FIELDS are decided from data, weights and model (tlx/tuning/auto.py)
    freeze_stages: int = (
        0  # partial, gradual, lpft: how many stages, from the stem, are never trained
    )
    train_stages: tuple[str, ...] = ()  # surgical: neighbouring stages; "head" too where it trains
    unfreeze_every: str = (
        "1ep"  # gradual: a duration; the head alone, then one stage more each time
    )
    head_first: str = "50%"  # lpft: a duration; how long the head alone is trained
    layer_decay: float = 1.0  # a stage's rate is this to the power of its distance from the head
    rank: int = 8  # lora, dora: of the update; bottleneck: its width
    alpha: float = 16.0  # lora, dora: the update is multiplied by alpha / rank
    targets: tuple[
        str, ...
    ] = ()  # lora, dora, ia3, bottleneck: layers, by module path or regex; (): see tlx/tuning/adapters.py
    rules: tuple[
        str, ...
    ] = ()  # rules: REGEX=GROUP, first match wins, no commas in a REGEX; group frozen is not trained
    groups: tuple[
        str, ...
    ] = ()  # GROUP.FIELD=VALUE, as head.lr=10 (a multiplier), head.weight_decay=0, head.optimizer=adamw,
    # head.options=b2=0.95;eps=1e-6
    batchnorm: str = (
        "auto"  # auto: running statistics where frozen | frozen: everywhere | train: nowhere
    )
    # towards the source network: l2sp:ALPHA[:BETA] | init:ALPHA | delta:STRENGTH | bss:STRENGTH[:K]
    regularizers: tuple[str, ...] = ()  # see tlx/tuning/regularizers.py
    keep: tuple[
        str, ...
    ] = ()  # auto: fields that are left as they are, as train.mixup; those that you set are added


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str = "sgd"  # any of optax and optax.contrib: sgd | adamw | lion | lamb | muon ...
    lr: float = 0.01  # the peak learning rate; 1 for those that find it: prodigy, dog, cocob ...
    options: str = ""  # keyword arguments, as b2=0.95,eps=1e-6; sgd has momentum=0.9 unless told
    weight_decay: float = 0.0
    decay_on: str = "kernels"  # kernels: not on biases and normalisation | all
    clip_norm: float = 0.0  # global norm of the trainable gradients; 0: no clipping
    schedule: str = "cosine"  # constant | cosine (to zero) | step
    warmup: str = "0"  # a duration: linear from zero
    milestones: tuple[str, ...] = (
        "50%",
        "75%",
    )  # step: durations at which the rate is multiplied by gamma
    gamma: float = 0.1
    average: str = (
        ""  # of the values, used in evaluation: ema:DECAY | swa:START, a duration; "": none
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    epochs: float = 10.0
    steps: int = 0  # > 0 wins over epochs
    batch_size: int = 128  # over all devices
    loss: str = ""  # cross_entropy | focal:GAMMA | bce (a sigmoid for each class); of a regression mse | mae | huber;
    # "": the first of these, for multilabel bce
    label_smoothing: float = 0.0
    class_weights: tuple[
        str, ...
    ] = ()  # auto: inverse to the classes' training examples | one number for each class | none or ()
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), the shares of two mixed examples; 0: off
    cutmix: float = 0.0  # likewise, of pasted boxes; with mixup too each batch draws one; 0: off
    accumulate: int = 1  # parts of a batch whose gradients are summed, to fit in memory
    # validations in a row without a new best that end the run; 0: it goes on. gradual and lpft: they are counted anew
    # in each phase, and end the run in any, also the first, where the head alone is trained
    patience: int = 0
    # steps in one call of the device, during which Ctrl-C waits; logs, validations and checkpoints come between calls; 0: 10
    # where accelerators hold what training reads, else 1. On a CPU 1 rounds otherwise than more
    steps_per_call: int = 0
    log_every: int = 50  # steps


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: str = (
        "1ep"  # a duration: how often the validation split is evaluated; "0": only at the end
    )
    batch_size: int = 0  # 0: as in training
    metric: str = ""  # the validation metric by which the best checkpoint is chosen, as loss; "":
    # accuracy, for multilabel mAP, for regression spearman
    checkpoint: str = (
        "auto"  # mode=evaluate: auto (best where there is one, else last) | best | last
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: str = "1ep"  # a duration; "0": only at the end and when interrupted
    keep_last: int = 2  # beside the best one


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    use: str = (
        "auto"  # of the frozen first stages' outputs: auto (where it pays) | on | off; tlx/features
    )
    views: int = 0  # augmented pictures that stand for each, drawn once with the seed; 0: with data.augment no cache
    dtype: str = "auto"  # that outputs are kept in: auto (as computed) | float32 | bfloat16
    memory_gb: float = 4.0  # GiB; an output file up to this size is held in memory
    disk_gb: float = 20.0  # GiB; the least recently used go when there would be more
    dir: str = ""  # where outputs are kept for later runs; "": features/ in the folder of downloads


@dataclasses.dataclass(frozen=True)
class SoupConfig:
    runs: tuple[
        str, ...
    ] = ()  # mode=soup: folders of finished runs of one network, or patterns as runs/sweep-*
    kind: str = "greedy"  # greedy: only what validation does not lose by | uniform: all of them
    checkpoints: str = "auto"  # of each run: auto (best where there is one, else last) | best | last | all that were kept


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    # classification | multilabel: any number of labels for an example | regression: a number | tagging: a tag for each
    # word
    task: str = "classification"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tune: TuneConfig = TuneConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cache: CacheConfig = CacheConfig()
    soup: SoupConfig = SoupConfig()


# Of tuning: tlx/tuning/methods.py.
METHODS = (
    *("full", "head", "partial", "surgical", "gradual", "lpft", "bitfit", "norms"),
    *("lora", "dora", "ia3", "bottleneck", "rules"),
)

# Field of tuning -> the methods that read it; with others it is refused, rather than passed over.
FIELDS_OF = {
    "freeze_stages": ("partial", "gradual", "lpft"),
    "train_stages": ("surgical",),
    "unfreeze_every": ("gradual",),
    "head_first": ("lpft",),
    "layer_decay": ("full", "partial", "surgical", "gradual", "lpft"),
    "rank": ("lora", "dora", "bottleneck"),
    "alpha": ("lora", "dora"),
    "targets": ("lora", "dora", "ia3", "bottleneck"),
    "rules": ("rules",),
    "keep": ("auto",),
}

# Optimizers that read the schedule at a count of their own, which begins when they do: methods with phases refuse them.
OWN_STEPS = ("prodigy", "dadapt_adamw", "madgrad")

AUTO = "auto"

# What tune.method=auto decides where it is not set, or takes into account where it is: tlx/tuning/auto.py.
AUTO_FIELDS = (
    *(f"tune.{field}" for field in FIELDS_OF if field != "keep"),
    *("tune.groups", "optimizer.name", "optimizer.lr", "optimizer.options"),
    *("optimizer.weight_decay", "optimizer.schedule", "optimizer.warmup", "optimizer.milestones"),
    *("optimizer.gamma", "train.epochs", "train.steps", "train.batch_size", "train.mixup"),
    *("train.cutmix", "data.image_size", "data.resize", "data.augment", "eval.every"),
    "checkpoint.every",
)

# Task -> what selects the best checkpoint where `eval.metric` is not set.
DEFAULT_METRICS = {
    "classification": "accuracy",
    "multilabel": "mAP",
    "regression": "spearman",
    "tagging": "f1",
}

# Task -> its loss where `train.loss` is not set.
DEFAULT_LOSSES = {
    "classification": "cross_entropy",
    "multilabel": "bce",
    "regression": "mse",
    "tagging": "cross_entropy",
}

_LOWER_IS_BETTER = ("loss", "mse", "mae")

CHOICES = {
    "model.head": ("auto", "keep", "new"),
    "model.head_init": ("default", "zero", "small"),
    "model.stem": ("", "small"),
    "model.stem_init": ("crop", "new"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "data.on_bad_image": ("error", "skip"),
    "data.storage": ("auto", "memory", "stream"),
    "data.resize_mode": ("", "short_side", "squash"),
    "data.interpolation": ("", "nearest", "bilinear", "bicubic", "lanczos"),
    "tune.method": (*METHODS, AUTO),
    "tune.batchnorm": ("auto", "frozen", "train"),
    "optimizer.decay_on": ("kernels", "all"),
    "optimizer.schedule": ("constant", "cosine", "step"),
    "eval.checkpoint": ("auto", "best", "last"),
    "cache.use": ("auto", "on", "off"),
    "cache.dtype": ("auto", "float32", "bfloat16"),
    "soup.kind": ("greedy", "uniform"),
    "soup.checkpoints": ("auto", "best", "last", "all"),
    "task": tuple(DEFAULT_METRICS),
}

# Fields that are one duration each.
DURATIONS = (
    "optimizer.warmup",
    "eval.every",
    "checkpoint.every",
    "tune.unfreeze_every",
    "tune.head_first",
)

# Field -> (smallest, largest) allowed value.
RANGES = {
    "seed": (0, 2**32 - 1),
    "data.val_fraction": (0.0, 0.9),
    "data.test_fraction": (0.0, 1.0),
    "data.labels_per_class": (0, 2**31),
    "data.image_size": (0, 4096),
    "data.resize": (0, 8192),
    "data.workers": (0, 256),
    "model.in_channels": (0, 1024),
    "model.dropout": (-1.0, 0.99),
    "model.drop_path": (-1.0, 0.99),
    "tune.freeze_stages": (0, 10_000),
    "tune.layer_decay": (0.01, 1.0),
    "tune.rank": (1, 65_536),
    "tune.alpha": (1e-6, 1e6),
    "optimizer.lr": (0.0, 1e6),
    "optimizer.weight_decay": (0.0, 1e6),
    "optimizer.clip_norm": (0.0, 1e12),
    "optimizer.gamma": (0.0, 1e6),
    "data.memory_gb": (0.0, 1e6),
    "data.device_gb": (-1.0, 1e6),
    "train.epochs": (0.0, 1e9),
    "train.steps": (0, 2**31),
    "train.batch_size": (1, 2**24),
    "train.label_smoothing": (0.0, 0.999),
    "train.mixup": (0.0, 100.0),
    "train.cutmix": (0.0, 100.0),
    "train.accumulate": (1, 2**16),
    "train.patience": (0, 2**31),
    "train.steps_per_call": (0, 2**16),
    "train.log_every": (1, 2**31),
    "eval.batch_size": (0, 2**24),
    "checkpoint.keep_last": (1, 10_000),
    "cache.views": (0, 10_000),
    "cache.memory_gb": (0.0, 1e6),
    "cache.disk_gb": (0.0, 1e6),
}

# Fields that say where and how often, not what: a resumed run may change them.
NOT_IDENTITY = frozenset(
    "data.root data.storage data.memory_gb data.device_gb data.workers train.steps_per_call train.log_every eval.batch_size eval.checkpoint "
    "checkpoint.keep_last cache.memory_gb cache.disk_gb cache.dir".split()
)

_SOUP = frozenset(f"soup.{field.name}" for field in dataclasses.fields(SoupConfig))

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(ep|epochs?|%|steps?)?\s*")


def duration(text: str, *, steps_per_epoch: float, total_steps: int) -> int:
    """Returns the number of steps that "500", "2ep" or "5%" stands for, rounded to the nearest.

    Raises:
      InputError: it is no duration, or a part of a step.
    """
    if (read := _read_duration(text)) is None:
        raise InputError(f"{text!r} is not a duration: write 500 (whole steps), 2ep (epochs) or 5%")
    value, unit = read
    if unit == "%":
        return round(value / 100 * total_steps)
    return round(value * steps_per_epoch) if unit.startswith("ep") else round(value)


def _read_duration(text: str) -> tuple[float, str] | None:
    """Returns the number and its unit; None where there is none, or it is not of whole steps."""
    if not (match := _DURATION.fullmatch(text)):
        return None
    value, unit = float(match[1]), match[2] or "steps"
    return None if unit.startswith("step") and not value.is_integer() else (value, unit)


def fields(cls: type = Config, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns dotted field name -> (type, default) for every leaf of the schema."""
    hints = typing.get_type_hints(cls)
    leaves: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            leaves |= fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            leaves[prefix + field.name] = (hints[field.name], field.default)
    return leaves


def defaults() -> ml_collections.ConfigDict:
    """Returns every field at its default as a locked ConfigDict, for `get_config` to edit."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config())).lock()


def based_on(path: str | Path) -> ml_collections.ConfigDict:
    """Returns another file's config as a locked ConfigDict, for `get_config` to edit. Raises as `load`."""
    config = defaults()
    config.update_from_flattened_dict(load(path))
    return config


def load(path: str | Path) -> dict[str, Any]:
    """Runs the config file's `get_config()` and returns its leaves as dotted name -> value."""
    path = Path(path)
    if not path.is_file():
        nearby = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; there are: {', '.join(nearby)}" if nearby else ""
        raise InputFileNotFoundError(f"no config file {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"tlx_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except InputError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: {type(error).__name__}: {what}") from error
    return flatten(config)


def flatten(
    config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ""
) -> dict[str, Any]:
    """Returns dotted name -> value for nested mappings."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ml_collections.ConfigDict)):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def build(*layers: Mapping[str, Any] | ml_collections.ConfigDict | Config) -> Config:
    """Returns the frozen config: the defaults, overridden by each layer in turn.

    A layer is nested or dotted; its values have the field's type or are strings to be parsed into it.

    With tune.method=auto the AUTO_FIELDS that are set go into `tune.keep`. A layer sets the fields that it names; one
    that names all of them, as a `defaults()` that was edited, those that differ from the schema's defaults.

    Raises:
      InputError: an unknown key (with the nearest one), a wrong type, or a value out of range.
    """
    schema = fields()
    values = {name: default for name, (_, default) in schema.items()}
    given: set[str] = set()
    for layer in layers:
        own = flatten(dataclasses.asdict(layer) if isinstance(layer, Config) else layer)
        if unknown := [name for name in own if name not in schema]:
            raise InputError(f"unknown config key {unknown[0]!r}{nearest(unknown[0], schema)}")
        own = {name: _coerce(f"config.{name}", own[name], schema[name][0]) for name in own}
        complete = own.keys() == schema.keys()
        given |= {name for name in own if not complete or own[name] != schema[name][1]}
        if complete and own["tune.method"] == AUTO:  # what was set before it was completed
            given |= set(_checked_keep(own.pop("tune.keep")))
        values |= own
    if values["tune.method"] == AUTO:
        given |= set(_checked_keep(values["tune.keep"]))
        values["tune.keep"] = tuple(name for name in AUTO_FIELDS if name in given)
    for name in (*CHOICES, *RANGES):
        _check(name, values[name], f"config.{name}")
    for name in DURATIONS:
        duration_check(name, (values[name],))
    duration_check("optimizer.milestones", values["optimizer.milestones"])
    return _assemble(Config, values, "")


def from_json(values: Mapping[str, Any]) -> Config:
    """Returns the config that `to_json` gave; fields that it did not have yet are at their defaults.

    Raises:
      InputError: as `build`.
    """
    return build(flatten(dataclasses.asdict(Config())) | flatten(values))


def _checked_keep(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if name not in AUTO_FIELDS:
            raise InputError(
                f"config.tune.keep: {name!r} is no field that auto decides{nearest(name, AUTO_FIELDS)} "
                f"(there are: {', '.join(AUTO_FIELDS)})"
            )
    return names


def checked(name: str, value: Any, shown: str) -> Any:
    """Returns a value as the field of that name would hold it; errors call it `shown`.

    Raises:
      InputError: a wrong type, or a value out of range.
    """
    value = _coerce(shown, value, fields()[name][0])
    _check(name, value, shown)
    return value


def _check(name: str, value: Any, shown: str) -> None:
    choices = CHOICES.get(name)
    if choices is not None:
        check_choice(shown, value, choices)
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= value <= high:
            raise InputError(f"{shown} is {value!r}, expected {low} to {high}")


def check_choice(shown: str, value: Any, choices: Sequence[str]) -> None:
    """Raises InputError where `value` is none of the choices; the error calls it `shown`."""
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise InputError(
            f"{shown} is {value!r}, expected one of {expected}{nearest(str(value), choices)}"
        )


def duration_check(name: str, texts: Iterable[str]) -> None:
    """Raises InputError, naming the field, where a text is no duration."""
    for text in texts:
        if _read_duration(text) is None:
            raise InputError(
                f"config.{name} is {text!r}, expected 500 (whole steps), 2ep (epochs) or 5% (of the run)"
            )


def to_json(config: Config) -> dict[str, Any]:
    """Returns the config as nested plain values, as config.json holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: Config, new: Config) -> list[str]:
    """Returns "name: old -> new" for each field that makes these two different runs."""
    before, after = _identity(old), _identity(new)
    missing = "not set"  # of a soup, where the other is none
    return [
        f"{name}: {before.get(name, missing)!r} -> {after.get(name, missing)!r}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def digest(config: Config) -> str:
    """Returns eight hexadecimal digits that identify the run this config describes."""
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()[:8]


def selecting_metric(config: Config) -> str:
    """Returns `eval.metric`, or where that is not set the task's default."""
    return config.eval.metric or DEFAULT_METRICS[config.task]


def loss_of(config: Config) -> str:
    """Returns `train.loss`, or where that is not set the task's default."""
    return config.train.loss or DEFAULT_LOSSES[config.task]


def sign_of(metric: str) -> float:
    """Returns 1.0 for a metric of which a higher value is better, -1.0 for losses and errors."""
    return -1.0 if metric in _LOWER_IS_BETTER else 1.0


def _identity(config: Config) -> dict[str, Any]:
    # A metric or loss that is named is the same as one that is not, if it is the default.
    leaves = flatten(dataclasses.asdict(config))
    leaves |= {"eval.metric": selecting_metric(config), "train.loss": loss_of(config)}
    others = NOT_IDENTITY if config.soup.runs else NOT_IDENTITY | _SOUP
    return {name: value for name, value in leaves.items() if name not in others}


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest of the names, or ""."""
    names = list(names)
    plain = {n.lower(): n for n in names}
    found = [plain[m] for m in difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.5)]
    if not found:  # the right leaf in the wrong section is as likely as a typo
        leaf = name.rsplit(".", 1)[-1]
        by_leaf = {n.rsplit(".", 1)[-1]: n for n in names}
        found = [by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6)]
    return f"; did you mean {found[0]!r}?" if found else ""


def _assemble(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        nested = dataclasses.is_dataclass(hints[field.name])
        arguments[field.name] = (
            _assemble(hints[field.name], values, f"{name}.") if nested else values[name]
        )
    return cls(**arguments)


def _coerce(name: str, value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str):
            text = value.strip()
            text = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
            value = [part.strip() for part in text.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{name} is {value!r}, expected a comma-separated list")
        return tuple(_coerce(name, part, item) for part in value)
    try:
        if kind is bool:
            if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
                return value.lower() in ("true", "1")
            if isinstance(value, bool):
                return value
        elif isinstance(value, bool):
            raise ValueError
        elif kind is int and (isinstance(value, (int, str)) or value == int(value)):
            return int(value)
        elif kind is float and isinstance(value, (int, float, str)):
            return float(value)
        elif kind is str and isinstance(value, (str, int, float)):
            return str(value)
    except (ValueError, TypeError, OverflowError):
        pass
    raise InputError(f"{name} is {value!r}, expected {kind.__name__}")
