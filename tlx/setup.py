"""Everything that is decided before the first array is placed: user errors surface here.

config -> data source -> weights and their meta -> preprocessing -> model -> plan, schedule, optimizer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from tlx import pretrained
from tlx.config import AUTO, Config, duration, nearest, selecting_metric
from tlx.data import augment, pipeline, preprocess
from tlx.data.class_subset import in_network_order, resolve_subset
from tlx.data.mixing import Mixing, make_mixing
from tlx.data.source import Splits, load_splits
from tlx.errors import InputError
from tlx.evaluation.collect import collect
from tlx.models import default_meta
from tlx.models.base import Model
from tlx.models.leaves import Leaf, Values, is_within, leaves
from tlx.tasks import Evaluation, LossOptions, Task, get_task
from tlx.training.loop import Cadence
from tlx.training.mesh import check_batch_size, make_mesh, place_batch
from tlx.training.resume import StoredModel
from tlx.training.statistics import Estimator, batches_of_estimate
from tlx.training.step import (
    EvalStep,
    StatisticsStep,
    TrainStep,
    make_eval_step,
    make_statistics_step,
    make_train_step,
)
from tlx.tuning import auto
from tlx.tuning.adapters import with_adapters
from tlx.tuning.average import Average, parse_average
from tlx.tuning.facts import facts
from tlx.tuning.optax_optimizers import is_schedule_free
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.phases import Phase, make_phases
from tlx.tuning.plan import TuningPlan, make_plans
from tlx.tuning.regularizers import Regularizer, check, parse
from tlx.tuning.schedule import Schedule, make_schedule
from tlx.tuning.trained_adapters import check_method, with_trained_adapters
from tlx.weights.load import Fitting, WeightsFile, open_weights
from tlx.weights.meta import WeightsMeta
from tlx.weights.peft_read import AdapterFiles, open_adapters


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

    @property
    def drawn(self) -> tuple[str, ...]:
        """What the weights file lacks, and comes from the seed; nothing where no file is read."""
        return self.weights.loaded.fresh if self.weights.loaded else ()

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        """The jitted evaluation step; one for all splits."""
        return make_eval_step(self.model, self.task, self.mesh, dtype=self.dtype)

    def evaluate(self, split: pipeline.Split, values: Values) -> Evaluation:
        """Evaluates the values on the whole split."""
        config, step = self.config, self.eval_step
        batches = pipeline.evaluation_batches(
            split, batch_size=config.eval.batch_size or config.train.batch_size
        )
        found = collect(
            batches, lambda batch: jax.device_get(step(values, place_batch(batch, self.mesh)))
        )
        return self.task.evaluation(*found, self.model.num_classes)

    def open(self, *names: str) -> dict[str, pipeline.Split]:
        """Returns those of the named splits that exist, as the network reads them, decoded where they fit."""
        size = self.model.meta.preprocess.size
        wanted = {
            name: (examples, self.augmentation.canvas if name == "train" else size)
            for name, examples in self.splits.given().items()
            if name in names
        }
        return pipeline.make_splits(wanted, self.model.meta.preprocess, self.config.data)

    @property
    def fingerprint(self) -> str:
        """Identifies what a run is trained on, in which order, and what its best checkpoint is chosen on."""
        preprocess = self.model.meta.preprocess
        sizes = {"train": self.augmentation.canvas, "val": preprocess.size}
        prints = [
            pipeline.Split(examples, preprocess, sizes[name], None).fingerprint
            for name, examples in self.splits.given().items()
            if name in sizes
        ]
        config = self.config
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
    own_name, own_weights = pretrained.name_and_weights(config.model.name, config.model.weights)
    task = get_task(config.task)
    splits = load_splits(config.data, config.seed, training=training, multi_hot=task.MULTI_HOT)
    names = splits.class_names
    metrics = task.metrics(len(names))
    metric = selecting_metric(config)
    if metric not in metrics:
        raise InputError(
            f"eval.metric is {metric!r}{nearest(metric, metrics)}; with {len(names)} classes there "
            f"are: {', '.join(metrics)}"
        )
    lines = [f"data: {config.data.source} {config.data.root}".rstrip() + f": {_counts(splits)}"]
    lines += [*splits.notes, *(f"skipped: {reason}" for reason in splits.skipped)]
    if stored is not None:
        splits = in_network_order(splits, stored.meta)
        names = splits.class_names
        _check_classes(stored.meta, names)
        weights = pretrained.source(
            stored.meta.architecture,
            class_names=names,
            meta=stored.meta,
            origin=stored.origin,
            dropout=config.model.dropout,
            drop_path=config.model.drop_path,
        )
        weights = with_adapters(weights, config.tune, stored.adapters)
    else:
        files = open_adapters(config.model.adapters) if config.model.adapters else None
        if files and own_weights == "none":
            raise InputError(
                "model.adapters were trained on weights that stay as they are, but model.weights is none"
            )
        if training:
            _check_tuning(own_name, len(names), config, files)  # before anything is fetched
        file = None if own_weights == "none" else open_weights(own_name, own_weights)
        own = file.meta if file else default_meta(own_name)
        classes = resolve_subset(config.data.class_subset, names, own)
        if classes and (file is None or config.model.head == "new"):
            raise InputError(
                "data.class_subset says which of the weights' classes the data's are, but "
                + ("model.weights is none" if file is None else "model.head=new draws a new head")
            )
        if not classes:
            splits = in_network_order(splits, own)
            names = splits.class_names
        weights, changes = _fit(config, own_name, own, file, names, classes, training, files)
        if deciding:
            multiple = mesh.size * config.train.accumulate
            found = facts(splits, weights, multiple=multiple)
            choices = auto.choose(found, given)
            config = auto.decided(given, choices)
            _check_batches(config, mesh)
            if config.data != given.data:
                weights, changes = _fit(
                    config, own_name, own, file, names, classes, training, files
                )
        if files is None:
            weights = with_adapters(weights, config.tune)
        lines += weights.describe()
        lines += [f"preprocessing overridden by the config: {change}" for change in changes]
        if files and files.meta:
            other = preprocess.overrides(files.meta.preprocess, weights.model.meta.preprocess)
            lines += [f"the adapters were trained with other preprocessing: {x}" for x in other]
    augmentation = augment.parse(config.data.augment, weights.model.meta.preprocess)
    if training and choices:
        lines += ["", auto.choices_table(choices, given)]
    setup = Setup(config, task, splits, weights, augmentation, mesh, _dtype(config), tuple(choices))
    return setup, lines


def prepare_tuning(setup: Setup) -> Tuning:
    """Makes the plan, the schedule and the optimizer.

    Raises:
      InputError: a rule, stage, option or duration that does not fit; a new head that is not trained; nothing to do.
    """
    config = setup.config
    assert setup.splits.train is not None  # `prepare` was told that this is training
    fresh_head = {path for path in setup.drawn if is_within(path, setup.model.classifiers)}
    if fresh_head & set(setup.plans[-1].frozen):
        raise InputError(
            "the head is new, and would stay as it is drawn: train it too (tune.train_stages=...,head, or a rule "
            "for head), or keep the file's (model.head=keep)"
        )
    labels, names = setup.splits.train.labels, setup.splits.class_names
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


def train_step(
    setup: Setup, tuning: Tuning, phase: Phase, drawn: frozenset[str] = frozenset()
) -> TrainStep:
    """Returns the jitted training step of one phase; `drawn` are the values that came from no weights file."""
    config = setup.config
    return make_train_step(
        setup.model,
        setup.task,
        phase.plan,
        phase.optimizer,
        setup.augmentation,
        setup.mesh,
        dtype=setup.dtype,
        loss_options=tuning.loss_options,
        mixing=tuning.mixing,
        parts=config.train.accumulate,
        regularizers=tuning.regularizers,
        drawn=drawn,
        seed=config.seed,
    )


def describe_drawn(setup: Setup) -> list[str]:
    """Returns a warning of stages that the weights lack something of, which stays as it is drawn.

    It is none where all values are drawn (model.weights=none): features of a random network are asked for.
    """
    frozen = [path for path in setup.drawn if path in set(setup.plans[-1].frozen)]
    kernels = [path for path in frozen if setup.leaves[path].is_parameter]
    stages = [s for s in setup.model.stages if any(is_within(path, (s,)) for path in kernels)]
    if not stages:
        return []
    norms = any(is_within(path, stages) for path in frozen if path not in kernels)
    return [
        f"warning: the weights lack values of {', '.join(stages)}, and tune.method={setup.config.tune.method} trains the "
        f"network on random ones there{', with BatchNorm statistics of 0 and 1' if norms else ''}: tune.method=partial with "
        f"tune.freeze_stages={setup.model.stages.index(stages[0])} trains what is drawn"
    ]


def describe_parts(parts: int, tuning: Tuning) -> list[str]:
    """Returns a line for each way in which training with parts of a batch differs from that with whole batches."""
    lines = []
    if parts > 1 and any(phase.plan.statistics for phase in tuning.phases):
        lines.append(
            f"train.accumulate={parts}: BatchNorm uses the statistics of each part of a batch, "
            "so that training differs from that with whole batches (tune.batchnorm=frozen: it does not)"
        )
    if parts > 1 and any(one.name == "bss" for one in tuning.regularizers):
        lines.append(
            f"train.accumulate={parts}: bss shrinks the smallest singular values of the features of each part of a batch, "
            "which are not those of the whole batch"
        )
    return lines


def statistics_step(setup: Setup, tuning: Tuning, plan: TuningPlan) -> StatisticsStep:
    """Returns the jitted step that estimates the statistics which move in that plan."""
    config = setup.config
    return make_statistics_step(
        setup.model,
        plan,
        setup.augmentation,
        setup.mesh,
        dtype=setup.dtype,
        seed=config.seed,
        mixing=tuning.mixing,
        parts=config.train.accumulate,
    )


def estimator(setup: Setup, tuning: Tuning, split: pipeline.Split) -> Estimator | None:
    """Returns what estimates the statistics of the average; None where none are estimated."""
    if tuning.estimated_after is None:
        return None
    plans = [phase.plan for phase in tuning.phases]
    return Estimator(
        tuning.estimated_after,
        plans,
        [statistics_step(setup, tuning, plan) for plan in plans],
        split=split,
        seed=setup.config.seed,
        batch_size=setup.config.train.batch_size,
        mesh=setup.mesh,
    )


def describe_average(setup: Setup, tuning: Tuning) -> list[str]:
    """Returns a line on the statistics of the average, where they are estimated."""
    after = tuning.estimated_after
    if after is None or setup.splits.train is None:
        return []
    optimizer = setup.config.optimizer
    count = batches_of_estimate(len(setup.splits.train), setup.config.train.batch_size)
    what = f"optimizer.average={optimizer.average}" if optimizer.average else "schedule-free"
    return [
        f"{what}: after step {after} BatchNorm statistics of the average are estimated before each validation and "
        f"checkpoint, from the last {count} training batches"
    ]


def describe_weights(options: LossOptions, names: tuple[str, ...]) -> list[str]:
    """Returns a line with the classes' weights, where they have any."""
    pairs = [f"{name} {w:.3g}" for name, w in zip(names, options.class_weights, strict=False)]
    more = f" ... ({len(pairs)} classes)" if len(pairs) > 10 else ""
    return [f"class weights: {', '.join(pairs[:10])}{more}"] if pairs else []


def _fit(
    config: Config,
    name: str,
    own: WeightsMeta,
    file: WeightsFile | None,
    class_names: tuple[str, ...],
    classes: tuple[int, ...],
    training: bool,
    files: AdapterFiles | None,
) -> tuple[pretrained.Source, list[str]]:
    """Returns the model with its values, fitted to the config's input, and what of the weights' preprocessing it changes.

    With `files` it has their adapters.
    """
    shaped = pretrained.shaped(own, in_channels=config.model.in_channels, stem=config.model.stem)
    resolved = preprocess.resolve(shaped.preprocess, config.data)
    changes = preprocess.overrides(own.preprocess, resolved)
    source = functools.partial(
        pretrained.source,
        name,
        file=file,
        class_names=class_names,
        head_init=config.model.head_init,
        missing_ok=config.model.missing_ok,
        meta=dataclasses.replace(shaped.derived() if training else shaped, preprocess=resolved),
        fitting=Fitting(config.model.stem_init, classes),
        dropout=config.model.dropout,
        drop_path=config.model.drop_path,
        overridden=tuple(changes),
    )
    if files:
        tune = config.tune
        if tune.method == AUTO:  # which has no other
            tune = dataclasses.replace(tune, method=files.method, keep=())
        head = config.model.head
        return with_trained_adapters(source, files, tune, head, class_names), changes
    return source(head=config.model.head), changes


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


def _check_batches(config: Config, mesh: Mesh) -> None:
    check_batch_size("train.batch_size", config.train.batch_size, mesh, config.train.accumulate)
    check_batch_size("eval.batch_size", config.eval.batch_size or config.train.batch_size, mesh)


def _check_tuning(name: str, num_classes: int, config: Config, files: AdapterFiles | None) -> None:
    """Raises what a method, its targets, its rules or an optimizer have wrong, from the model's structure alone."""
    given, deciding = config, config.tune.method == AUTO
    if deciding:  # what can be said of it: one that goes with what is set
        method = auto.methods_for(config, files.method if files else "")[0]
        tune = dataclasses.replace(config.tune, method=method, groups=(), keep=())  # its own groups
        schedule = config.optimizer.schedule
        if "optimizer.schedule" not in config.tune.keep:
            schedule = "constant"  # which every optimizer takes
        optimizer = dataclasses.replace(config.optimizer, schedule=schedule)
        if "optimizer.name" not in config.tune.keep:
            taking = auto.optimizers_taking(optimizer.options)
            optimizer = dataclasses.replace(optimizer, name=taking[0])
        config = dataclasses.replace(config, tune=tune, optimizer=optimizer)
    if files:
        check_method(files, config.tune)
    plain = pretrained.source(name, num_classes=num_classes)
    model = with_adapters(plain, config.tune).model
    plans = make_plans(leaves(model), model.stages, config.tune, model.auxiliary)
    make_optimizer(plans[-1], config.optimizer, lambda step: 0.0)
    if deciding:
        auto.check_rate(given)


def _check_classes(stored: WeightsMeta, names: tuple[str, ...]) -> None:
    if stored.class_names != names:
        raise InputError(
            f"the run was trained on {len(stored.class_names)} classes "
            f"({', '.join(stored.class_names[:5])}...), the data has {len(names)} "
            f"({', '.join(names[:5])}...)"
        )


def _counts(splits: Splits) -> str:
    counts = ", ".join(f"{name} {len(examples)}" for name, examples in splits.given().items())
    return f"{counts}; {len(splits.class_names)} classes"


def _dtype(config: Config) -> str:
    if config.model.dtype != "auto":
        return config.model.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
