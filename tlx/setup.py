"""Everything that is decided before the first array is placed: user errors surface here.

config -> data source -> weights, preprocessing and model (tlx/network.py) -> plan, schedule, optimizer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tlx import network, pretrained
from tlx.config import AUTO, Config, duration, nearest, selecting_metric
from tlx.data import augment, pipeline
from tlx.data.class_subset import in_network_order
from tlx.data.mixing import Mixing, make_mixing
from tlx.data.source import Splits, load_splits
from tlx.data.text_batches import make_text_splits, text_fingerprint, texts_of_an_input
from tlx.errors import InputError
from tlx.evaluation.collect import collect_split
from tlx.models import is_text
from tlx.models.base import Model
from tlx.models.leaves import Leaf, Values, is_within
from tlx.tasks import Evaluation, LossOptions, Task, get_task
from tlx.training.loop import Cadence
from tlx.training.mesh import check_batch_size, make_mesh, place_batch
from tlx.training.resume import StoredModel
from tlx.training.step import EvalStep, make_eval_step
from tlx.tuning import auto
from tlx.tuning.adapters import with_adapters
from tlx.tuning.average import Average, parse_average
from tlx.tuning.facts import facts
from tlx.tuning.optax_optimizers import is_schedule_free
from tlx.tuning.phases import Phase, make_phases
from tlx.tuning.plan import TuningPlan, make_plans
from tlx.tuning.regularizers import Regularizer, check, parse
from tlx.tuning.schedule import Schedule, make_schedule
from tlx.weights.meta import TextPreprocess


@dataclasses.dataclass(frozen=True)
class Setup:
    """Data, weights, model and mesh of a run."""

    config: Config
    task: Task
    splits: Splits
    weights: pretrained.Source
    augmentation: augment.Augmentation
    mesh: Mesh
    dtype: str
    choices: tuple[auto.Choice, ...] = ()  # of tune.method=auto; they are in `config`

    @property
    def model(self) -> Model:
        """The abstract model: shapes in place of values."""
        return self.weights.model

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Every parameter and statistic of the model."""
        return self.weights.leaves

    @functools.cached_property
    def plans(self) -> tuple[TuningPlan, ...]:
        """The plan of each phase of the method. Raises as `make_plans` does."""
        model = self.model
        return make_plans(self.leaves, model.stages, self.config.tune, model.auxiliary)

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        """The jitted evaluation step on pictures or texts; one for all splits."""
        return self.eval_step_from(0)

    def eval_step_from(self, start: int) -> EvalStep:
        """Returns the jitted evaluation step on what `Model.prefix` makes of them."""
        return self._eval_step(start, self.task)

    def _eval_step(self, start: int, task: Task | None) -> EvalStep:
        """Returns the step that gives a task's outcomes, or without one the logits."""
        key = start, task is None
        if key not in self._eval_steps:
            self._eval_steps[key] = make_eval_step(
                self.model, task, self.mesh, dtype=self.dtype, start=start
            )
        return self._eval_steps[key]

    @property
    def eval_compilations(self) -> int:
        """How often the evaluation step that was compiled most often has been."""
        counts = (step._cache_size() for step in self._eval_steps.values())  # type: ignore[attr-defined]
        return max(counts, default=0)

    @functools.cached_property
    def _eval_steps(self) -> dict[tuple[int, bool], EvalStep]:
        return {}

    def evaluate(self, split: pipeline.Rows, values: Values, start: int = 0) -> Evaluation:
        """Evaluates the values on the whole split, whose rows have been through `start` stages."""
        config, task = self.config, self.task
        # A text that is read in several windows has the mean of their logits; words are each in one.
        windows = task.TARGETS != "tags" and len(split.evaluated[0]) > len(split)
        step = self._eval_step(start, None if windows else task)
        targets, outcomes = collect_split(
            split,
            lambda batch: step(values, place_batch(batch, self.mesh)),
            config.eval.batch_size or config.train.batch_size,
        )
        if windows:
            outcomes = jax.device_get(
                jax.jit(task.outcomes)(outcomes["logits"], {"targets": targets})
            )
        return task.evaluation(targets, outcomes, self.model.meta.class_names)

    def open(self, *names: str) -> dict[str, pipeline.Whole]:
        """Returns those of the named splits that exist, as the network reads them: decoded where they fit, cut into tokens."""
        preprocess, config = self.model.meta.preprocess, self.config.data
        if isinstance(preprocess, TextPreprocess):
            chosen = {name: own for name, own in self.splits.given().items() if name in names}
            return dict(make_text_splits(chosen, preprocess, config))
        size = preprocess.size
        wanted = {
            name: (examples, self.augmentation.canvas if name == "train" else size)
            for name, examples in self.splits.given().items()
            if name in names
        }
        return dict(pipeline.make_splits(wanted, preprocess, config))

    @property
    def fingerprint(self) -> str:
        """Identifies what a run is trained on, in which order, and what its best checkpoint is chosen on."""
        config, preprocess = self.config, self.model.meta.preprocess
        given = {n: own for n, own in self.splits.given().items() if n in ("train", "val")}
        if isinstance(preprocess, TextPreprocess):
            prints = [text_fingerprint(own, preprocess, config.data) for own in given.values()]
        else:
            sizes = {"train": self.augmentation.canvas, "val": preprocess.size}
            prints = [
                pipeline.Split(own, preprocess, sizes[name], None).fingerprint
                for name, own in given.items()
            ]
        return f"{' '.join(prints)} seed={config.seed} batch={config.train.batch_size}"

    @property
    def held_out(self) -> str:
        """The split that results are reported on."""
        return "test" if self.splits.test is not None else "val"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What training adds to a setup."""

    phases: tuple[Phase, ...]
    schedule: Schedule
    average: Average | None
    loss_options: LossOptions
    mixing: Mixing
    regularizers: tuple[Regularizer, ...]
    steps_per_epoch: float
    cadence: Cadence
    estimated_after: (
        int | None
    )  # steps; from then on evaluation's statistics are estimated; None: never


def prepare(
    config: Config,
    *,
    stored: StoredModel | None = None,
    choices: Sequence[auto.Choice] = (),
    training: bool = True,
) -> tuple[Setup, list[str]]:
    """Opens the data and the weights and decides everything that follows from them.

    Args:
      config: of the run. With tune.method=auto the setup's has what was decided in its place.
      stored: the model of a run whose values are in its workdir: no weights file is read then, and the
        data must have that run's classes.
      choices: likewise what tune.method=auto decided when it was begun.
      training: False: only the held-out split is opened, and nothing is decided.

    Returns:
      The setup, and lines that tell the user what was found.

    Raises:
      InputError: anything the user can put right.
    """
    mesh, given = make_mesh(), config
    config = auto.decided(given, choices)
    deciding = training and config.tune.method == AUTO
    if not deciding or "train.batch_size" in config.tune.keep:
        _check_batches(config, mesh)
    name, tag = pretrained.name_and_weights(config.model.name, config.model.weights)
    task = get_task(config.task)
    modality = "text" if is_text(name) else "image"
    if modality == "text":
        _refuse_for_texts(config)
    splits = load_splits(
        config.data, config.seed, training=training, targets=task.TARGETS, modality=modality
    )
    count = len(splits.class_names)
    metrics = task.metrics(count)
    metric = selecting_metric(config)
    if metric not in metrics:
        raise InputError(
            f"eval.metric is {metric!r}{nearest(metric, metrics)}; with {count} classes there "
            f"are: {', '.join(metrics)}"
        )
    lines = [f"data: {config.data.source} {config.data.root}".rstrip() + f": {_counts(splits)}"]
    lines += [*splits.notes, *(f"skipped: {reason}" for reason in splits.skipped)]
    if stored is not None:
        splits = in_network_order(splits, stored.meta)
        weights = network.of_run(stored, config, outputs(splits))
    else:
        opened = network.open_network(name, tag, config, outputs(splits), training=training)
        if not opened.classes:
            splits = in_network_order(splits, opened.meta)
        texts = texts_of_an_input(splits.train) if modality == "text" and splits.train else 0
        fitted = functools.partial(opened.fitted, training=training, texts=texts)
        weights = fitted(config, outputs(splits))
        if deciding:
            multiple = mesh.size * config.train.accumulate
            choices = auto.choose(facts(splits, weights, multiple=multiple), given)
            config = auto.decided(given, choices)
            _check_batches(config, mesh)
            if config.data != given.data:
                weights = fitted(config, outputs(splits))
        if not opened.adapters:
            weights = with_adapters(weights, config.tune)
        lines += opened.describe(weights)
    augmentation = augment.parse(config.data.augment, weights.model.meta.preprocess)
    if training and choices:
        lines += ["", auto.choices_table(choices, given)]
    setup = Setup(
        config, task, splits, weights, augmentation, mesh, compute_dtype(config), tuple(choices)
    )
    return setup, lines


def outputs(splits: Splits) -> tuple[str, ...]:
    """Returns the names of the network's outputs: the classes, or of a regression its one number."""
    return splits.class_names or ("value",)


def prepare_tuning(setup: Setup) -> Tuning:
    """Makes the plan, the schedule and the optimizer.

    Raises:
      InputError: a rule, stage, option or duration that does not fit; a new head that is not trained; nothing to do.
    """
    config = setup.config
    assert setup.splits.train is not None  # `prepare` was told that this is training
    fresh_head = {path for path in setup.weights.fresh if is_within(path, setup.model.classifiers)}
    if fresh_head & set(setup.plans[-1].frozen):
        raise InputError(
            "the head is new, and would stay as it is drawn: train it too (tune.train_stages=...,head, or a rule "
            "for head), or keep the file's (model.head=keep)"
        )
    train: Any = setup.splits.train
    names = setup.splits.class_names
    labels = np.concatenate(train.tags) if setup.task.TARGETS == "tags" else train.labels
    loss_options = setup.task.loss_options(config.train, labels, names)
    mixing = make_mixing(config.train, len(names))
    steps_per_epoch = len(setup.splits.train) / config.train.batch_size
    total = config.train.steps or int(np.ceil(config.train.epochs * steps_per_epoch))
    if total < 1:
        raise InputError(
            "nothing to do: train.epochs and train.steps are both 0 (--mode=evaluate evaluates)"
        )
    schedule = make_schedule(config.optimizer, total_steps=total, steps_per_epoch=steps_per_epoch)
    average = parse_average(
        config.optimizer.average,
        functools.partial(duration, steps_per_epoch=steps_per_epoch, total_steps=total),
    )
    phases = make_phases(
        setup.plans,
        config,
        schedule,
        average,
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
    )

    regularizers = parse(config.tune.regularizers)
    check(
        regularizers,
        [phase.plan for phase in phases],
        setup.model,
        method=config.tune.method,
        pretrained=pretrained.name_and_weights(config.model.name, config.model.weights)[1]
        != "none",
        loaded=setup.weights.loaded.arrays if setup.weights.loaded else None,
        batch_size=config.train.batch_size // config.train.accumulate,
    )

    def every(text: str) -> int:
        off = float(text.strip().rstrip("%epochst ") or 0) == 0
        steps = duration(text, steps_per_epoch=steps_per_epoch, total_steps=total)
        return 0 if off else max(steps, 1)

    cadence = Cadence(
        total_steps=total,
        eval_every=every(config.eval.every),
        save_every=every(config.checkpoint.every),
        log_every=config.train.log_every,
        metric=selecting_metric(config),
        patience=config.train.patience,
    )
    if config.train.patience and setup.splits.val is None:
        raise InputError(
            "train.patience counts validations, and there is no validation split: set data.val_fraction"
        )
    return Tuning(
        phases,
        schedule,
        average,
        loss_options,
        mixing,
        regularizers,
        steps_per_epoch,
        cadence,
        _estimated_after(phases, average, config, setup.model),
    )


def _estimated_after(
    phases: Sequence[Phase], average: Average | None, config: Config, model: Model
) -> int | None:
    """Returns after how many steps the statistics of training are not those of what is evaluated; None: they always are.

    A schedule-free optimizer's averages are evaluated, and training's statistics are those of the points between which it
    steps (facebookresearch/schedule_free estimates others too). The head alone changes no statistics.
    """
    moving = [phase.plan for phase in phases if phase.plan.statistics]
    if average is not None:
        return average.estimated_after if moving else None
    free = any(
        is_schedule_free(plan.groups[plan.labels[path]].optimizer or config.optimizer.name)
        for plan in moving
        for path in plan.trainable
        if not is_within(path, model.classifiers)
    )
    return 0 if free else None


def _refuse_for_texts(config: Config) -> None:
    """Raises InputError for what is set and has no meaning for a network that reads texts."""
    if config.tune.method == AUTO:
        raise InputError(
            "tune.method=auto decides for networks that read pictures; choose a method for texts: full, lora, head"
        )
    if config.cache.views:
        raise InputError("cache.views counts augmented pictures, and the network reads texts")
    for field in ("mixup", "cutmix"):
        if getattr(config.train, field):
            raise InputError(f"train.{field} mixes pictures, and the network reads texts")


def _check_batches(config: Config, mesh: Mesh) -> None:
    check_batch_size("train.batch_size", config.train.batch_size, mesh, config.train.accumulate)
    check_batch_size("eval.batch_size", config.eval.batch_size or config.train.batch_size, mesh)


def _counts(splits: Splits) -> str:
    counts = ", ".join(f"{name} {len(examples)}" for name, examples in splits.given().items())
    return f"{counts}; {len(splits.class_names)} classes" if splits.class_names else counts


def compute_dtype(config: Config) -> str:
    """Returns the type that the network computes in here."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
