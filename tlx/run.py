"""What the command line does, as calls: fine-tune, evaluate, load. Reads as DESIGN's picture does:

config -> data source -> weights and their meta -> preprocessing -> model -> plan -> state -> loop -> evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from tlx import config as config_lib
from tlx import pretrained
from tlx.config import Config, duration
from tlx.data import augment, pipeline, preprocess
from tlx.data.source import Splits, load_splits
from tlx.errors import InputError
from tlx.evaluation.metrics import Evaluation, collect
from tlx.evaluation.report import Mistake, Report, write_report
from tlx.files import write_json_atomic
from tlx.models import family
from tlx.models.base import Model
from tlx.models.leaves import Values, leaves, with_values
from tlx.training import checkpoint, logging
from tlx.training.loop import Loop, Plan
from tlx.training.mesh import check_batch_size, make_mesh, place_batch, replicated
from tlx.training.state import TrainState, all_values, create_state
from tlx.training.step import EvalStep, make_eval_step, make_train_step
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.plan import TuningPlan, audit, digests, make_plan
from tlx.tuning.schedule import Schedule, make_schedule
from tlx.tuning.table import count_parameters, plan_table
from tlx.weights.load import open_weights
from tlx.weights.meta import WeightsMeta
from tlx.workdir import Workdir

WORST_KEPT = 24  # mistakes shown in the report
PACKAGES = ("tlx", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that is decided before the first array is placed; user errors surface here."""

    config: Config
    splits: Splits
    source: pretrained.Source
    augmentation: augment.Augmentation
    mesh: Mesh
    dtype: str

    @property
    def model(self) -> Model:
        """The abstract model."""
        return self.source.model

    @property
    def eval_batch_size(self) -> int:
        return self.config.eval.batch_size or self.config.train.batch_size

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        return make_eval_step(self.model, self.mesh, dtype=self.dtype)

    def evaluate(self, split: pipeline.Split, values: Values) -> Evaluation:
        """Evaluates the values on the whole split."""
        batches = pipeline.evaluation_batches(split, batch_size=self.eval_batch_size)
        step = self.eval_step
        return collect(
            batches,
            lambda batch: jax.device_get(step(values, place_batch(batch, self.mesh))),
            self.model.num_classes,
        )

    def split(self, name: str) -> pipeline.Split | None:
        """Returns a split as the network reads it, decoded where that is allowed."""
        examples = self.splits.given().get(name)
        if examples is None:
            return None
        size = self.augmentation.canvas if name == "train" else None
        return pipeline.make_split(
            examples, self.model.meta.preprocess, self.config.data, size=size
        )


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What training adds to a setup."""

    plan: TuningPlan
    schedule: Schedule
    optimizer: optax.GradientTransformation
    steps_per_epoch: float
    total_steps: int


def finetune(
    config: Config | Mapping[str, Any], workdir: str | Path, *, command: str = ""
) -> dict[str, Any]:
    """Fits a network to a task and returns the summary; called again, it resumes or says it is done.

    Args:
      config: from a `get_config()`, a (nested or dotted) dict of fields, or a `Config`.
      workdir: gets config.json, metrics.jsonl, summary.json, checkpoints/, report.md.
      command: shown in the report.

    Raises:
      InputError: anything the user can put right; nothing was written then.
      tlx.training.loop.Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    config = config if isinstance(config, Config) else config_lib.build(config)
    folder = Workdir(Path(workdir))
    folder.check(config)
    if summary := folder.read_summary():
        _say(
            f"{folder.path}: this run is complete ({summary['steps']} steps); see {folder.path}/report.md"
        )
        return summary
    setup = prepare(config)
    tuning = prepare_tuning(setup)
    table = plan_table(tuning.plan, setup.source.leaves, config.optimizer)
    _say(f"\n{table}\n")
    data = {name: setup.split(name) for name in ("train", "val", "test")}
    folder.write_config(config)
    checkpoints = checkpoint.Checkpoints(folder.path, keep_last=config.checkpoint.keep_last)
    try:
        return _train(setup, tuning, data, folder, checkpoints, table, command)
    finally:
        checkpoints.close()


def evaluate(config: Config | Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
    """Evaluates the workdir's checkpoint, or the pretrained network as it is, without training.

    Returns `test/*` metrics (of the validation split where there is no test split) and writes them
    to evaluation.json, with a report.

    Raises:
      InputError: as `finetune`; also a head that no file fills, or other classes than the checkpoint's.
    """
    config = config if isinstance(config, Config) else config_lib.build(config)
    folder = Workdir(Path(workdir))
    trained = folder.base.is_file()
    if trained:
        folder.check(config)
    begun = time.perf_counter()
    setup = prepare(config)
    if trained:
        meta = _stored_meta(folder)
        if meta.class_names != setup.model.meta.class_names:
            raise InputError(
                f"{folder.path} was trained on {len(meta.class_names)} classes ({', '.join(meta.class_names[:5])}...), "
                f"the data has {len(setup.model.meta.class_names)} "
                f"({', '.join(setup.model.meta.class_names[:5])}...)"
            )
        values, step = _restore_values(folder, config, setup.model)
    else:
        _refuse_random_values(setup)
        values, step = setup.source.place(config.seed, replicated(setup.mesh)), 0
    name = "test" if setup.splits.test is not None else "val"
    split = setup.split(name)
    if split is None:
        raise InputError(
            "the data has neither a test nor a validation split: set data.test_fraction"
        )
    found = setup.evaluate(split, values)
    summary = _facts(setup, "evaluate") | {
        "steps": step,
        "seconds": time.perf_counter() - begun,
        "compilations/eval_step": setup.eval_step._cache_size(),  # type: ignore[attr-defined]
        **{f"{name}/{key}": value for key, value in found.summary().items()},
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder.evaluation, summary)
    if folder.read_summary() is None:
        write_json_atomic(folder.summary, summary)
        _report(setup, folder, summary, found, split, name, table="", command="")
    _say_result(summary, name)
    return summary


def load(workdir: str | Path) -> Model:
    """Returns the trained model of a workdir, in inference mode, with its meta, ready for new inputs.

    The best checkpoint where there was validation, else the last. The workdir alone is enough: the weights
    it was trained from are not read.

    Raises:
      InputError, InputFileNotFoundError: the folder holds no run, or its checkpoints are damaged.
    """
    folder = Workdir(Path(workdir))
    config = folder.read_config()
    meta = _stored_meta(folder)
    source = pretrained.source(meta.architecture, class_names=meta.class_names, meta=meta)
    values, _ = _restore_values(folder, config, source.model)
    return with_values(source.model, values)


def prepare(config: Config) -> Setup:
    """Opens the data and the weights and decides everything that follows from them."""
    module = family(config.model.name)
    mesh = make_mesh()
    check_batch_size("train.batch_size", config.train.batch_size, mesh)
    check_batch_size("eval.batch_size", config.eval.batch_size or config.train.batch_size, mesh)
    splits = load_splits(config.data, config.seed)
    file = (
        open_weights(config.model.name, config.model.weights)
        if config.model.weights != "none"
        else None
    )
    own = file.meta if file else module.default_meta(config.model.name)
    resolved = preprocess.resolve(own.preprocess, config.data)
    source = pretrained.source(
        config.model.name,
        file=file,
        class_names=splits.train.class_names,
        head=config.model.head,
        missing_ok=config.model.missing_ok,
        meta=dataclasses.replace(own, preprocess=resolved),
    )
    counts = ", ".join(f"{name} {len(examples)}" for name, examples in splits.given().items())
    _say(f"data: {config.data.source}: {counts}; {len(splits.train.class_names)} classes")
    for line in (*splits.notes, *(f"skipped: {reason}" for reason in splits.skipped)):
        _say(line)
    for line in source.describe():
        _say(line)
    for line in preprocess.overrides(own.preprocess, resolved):
        _say(f"preprocessing overridden by the config: {line}")
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Setup(config, splits, source, augment.parse(config.data.augment, resolved), mesh, dtype)


def prepare_tuning(setup: Setup) -> Tuning:
    """Makes the plan, the schedule and the optimizer."""
    config = setup.config
    plan = make_plan(setup.source.leaves, setup.model.stages, config.tune)
    steps_per_epoch = len(setup.splits.train) / config.train.batch_size
    total = config.train.steps or int(np.ceil(config.train.epochs * steps_per_epoch))
    if total < 1:
        raise InputError(
            "nothing to do: train.epochs and train.steps are both 0 (--mode=evaluate evaluates)"
        )
    schedule = make_schedule(config.optimizer, total_steps=total, steps_per_epoch=steps_per_epoch)
    optimizer = make_optimizer(plan, config.optimizer, schedule)
    return Tuning(plan, schedule, optimizer, steps_per_epoch, total)


def _train(
    setup: Setup,
    tuning: Tuning,
    data: dict[str, pipeline.Split | None],
    folder: Workdir,
    checkpoints: checkpoint.Checkpoints,
    table: str,
    command: str,
) -> dict[str, Any]:
    config, plan = setup.config, tuning.plan
    train = data["train"]
    assert train is not None
    state, frozen, progress = _start(setup, tuning, folder, checkpoints, train)
    before = digests(frozen, plan.frozen)
    val = data["val"]
    train_step = make_train_step(
        setup.model,
        plan,
        tuning.optimizer,
        setup.augmentation,
        setup.mesh,
        dtype=setup.dtype,
        label_smoothing=config.train.label_smoothing,
        seed=config.seed,
    )
    resumed = progress.step if progress.step else None
    batches = pipeline.training_batches(
        train, seed=config.seed, batch_size=config.train.batch_size, start=progress.step
    )
    with (
        logging.MetricsWriter(folder.path, resume_step=resumed) as writer,
        logging.Progress(tuning.total_steps, start=progress.step) as screen,
    ):
        loop = Loop(
            _loop_plan(config, tuning),
            train_step=train_step,
            frozen=frozen,
            batches=batches,
            batch_size=config.train.batch_size,
            mesh=setup.mesh,
            learning_rate=tuning.schedule,
            evaluate=functools.partial(setup.evaluate, val) if val is not None else None,
            checkpoints=checkpoints,
            writer=writer,
            screen=screen,
        )
        state, progress = loop.run(state, progress)
    values = all_values(state, frozen)
    audit(before, digests(values, plan.frozen))
    _say(f"audit: {len(plan.frozen)} frozen values are bit-identical to what was loaded")
    if progress.best_step not in (-1, progress.step):
        best = checkpoints.restore(state, step=progress.best_step)
        assert best is not None
        values = all_values(best[0], frozen)
    chosen = "best" if progress.best_step >= 0 else "last"
    summary = _facts(setup, "train") | {
        "steps": progress.step,
        "epochs": progress.step / tuning.steps_per_epoch,
        "checkpoint": chosen,
        "best_step": progress.best_step if progress.best_step >= 0 else progress.step,
        "params/trainable": count_parameters(setup.source.leaves, plan.trainable),
        "frozen_values_audited": len(plan.frozen),
        "seconds": progress.seconds,
        "examples_per_second": loop.watch.rate(config.train.batch_size),
        "compilations/train_step": train_step._cache_size(),  # type: ignore[attr-defined]
    }
    test = data["test"]
    name, split = ("test", test) if test is not None else ("val", val)
    if split is not None:
        found = setup.evaluate(split, values)
        summary |= {f"{name}/{key}": value for key, value in found.summary().items()}
        if name == "test" and val is not None:
            summary |= {f"val/{config.eval.metric}": abs(progress.best_value)}
        summary["compilations/eval_step"] = setup.eval_step._cache_size()  # type: ignore[attr-defined]
        _report(setup, folder, summary, found, split, name, table=table, command=command)
    write_json_atomic(folder.summary, summary)
    _say_result(summary, name)
    _say(f"report: {folder.path}/report.md")
    return summary


def _start(
    setup: Setup,
    tuning: Tuning,
    folder: Workdir,
    checkpoints: checkpoint.Checkpoints,
    train: pipeline.Split,
) -> tuple[TrainState, Values, checkpoint.Progress]:
    """The start order, once: resume the own workdir, else pretrained weights, else from scratch."""
    config, plan = setup.config, tuning.plan
    sharding = replicated(setup.mesh)
    fingerprint = f"{train.fingerprint} seed={config.seed} batch={config.train.batch_size}"
    if folder.base.is_file():
        shapes = _abstract_state(setup.model, tuning.plan, tuning.optimizer, sharding)
        restored = checkpoints.restore(shapes)
        if restored is not None:
            state, progress, problems = restored
            for problem in problems:
                _say(f"{problem}: going on from the one before it")
            if progress.fingerprint != fingerprint:
                raise InputError(
                    f"{folder.path} was trained on other data than {config.data.source} holds now "
                    f"(fingerprint {progress.fingerprint!r}, now {fingerprint!r}): use another --workdir"
                )
            checkpoints.drop_after(progress.step)
            frozen, digest = checkpoint.load_base(folder.path, plan.frozen, sharding)
            if digest != progress.base:
                raise InputError(
                    f"{folder.path}: the checkpoint was made on frozen weights {progress.base[:16]}, "
                    f"base/ holds {digest[:16]}"
                )
            _say(f"resuming at step {progress.step} of {tuning.total_steps}")
            return state, frozen, progress
    values = setup.source.place(config.seed, sharding)
    state, frozen = create_state(values, plan, tuning.optimizer, sharding)
    digest = checkpoint.save_base(folder.path, frozen, setup.model.meta)
    return state, frozen, checkpoint.Progress(fingerprint=fingerprint, base=digest)


def _restore_values(folder: Workdir, config: Config, model: Model) -> tuple[Values, int]:
    """Reads a workdir's values for inference, and the step they are of."""
    sharding = replicated(make_mesh())
    plan = make_plan(leaves(model), model.stages, config.tune)
    schedule = make_schedule(
        dataclasses.replace(config.optimizer, warmup="0"), total_steps=1, steps_per_epoch=1
    )
    shapes = _abstract_state(
        model, plan, make_optimizer(plan, config.optimizer, schedule), sharding
    )
    checkpoints = checkpoint.Checkpoints(folder.path, keep_last=config.checkpoint.keep_last)
    try:
        found = checkpoints.restore(shapes)
        if found is None:
            raise InputError(f"{folder.path} holds no checkpoint yet")
        state, progress, problems = found
        for problem in problems:
            _say(problem)
        which = config.eval.checkpoint
        if which == "best" and progress.best_step < 0:
            raise InputError(
                f"{folder.path} was trained without validation, there is no best checkpoint"
            )
        if which != "last" and progress.best_step not in (-1, progress.step):
            best = checkpoints.restore(shapes, step=progress.best_step)
            assert best is not None
            state, progress, _ = best
    finally:
        checkpoints.close()
    frozen, digest = checkpoint.load_base(folder.path, plan.frozen, sharding)
    if digest != progress.base:
        raise InputError(
            f"{folder.path}: the checkpoint was made on frozen weights {progress.base[:16]}, base/ holds {digest[:16]}"
        )
    return all_values(state, frozen), progress.step


def _abstract_state(
    model: Model, plan: TuningPlan, optimizer: optax.GradientTransformation, sharding: Any
) -> TrainState:
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for path, leaf in leaves(model).items()
    }
    trainable = {path: shapes[path] for path in plan.trainable}
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, trainable),
    )
    return TrainState(trainable, {path: shapes[path] for path in plan.statistics}, state)


def _loop_plan(config: Config, tuning: Tuning) -> Plan:
    def steps(text: str) -> int:
        found = duration(
            text, steps_per_epoch=tuning.steps_per_epoch, total_steps=tuning.total_steps
        )
        return max(found, 1) if text.strip() != "0" else 0

    return Plan(
        tuning.total_steps,
        steps(config.eval.every),
        steps(config.checkpoint.every),
        config.train.log_every,
        config.eval.metric,
    )


def _stored_meta(folder: Workdir) -> WeightsMeta:
    return WeightsMeta.from_json(json.loads(folder.base.read_text())["weights_meta"])


def _refuse_random_values(setup: Setup) -> None:
    loaded = setup.source.loaded
    fresh = loaded.fresh if loaded else tuple(setup.source.leaves)
    if fresh:
        raise InputError(
            f"nothing to evaluate: {len(fresh)} values come from no file ({', '.join(fresh[:4])}...); "
            "set model.weights, and model.head=keep to evaluate the file's own head"
        )


def _facts(setup: Setup, mode: str) -> dict[str, Any]:
    found = setup.source.leaves
    device = jax.devices()[0]
    file = setup.source.file
    return {
        "mode": mode,
        "model": setup.model.meta.architecture,
        "weights": str(file.path) if file else "none",
        "weights_sha256": file.content_hash if file else "",
        "params/total": count_parameters(
            found, [p for p, leaf in found.items() if leaf.is_parameter]
        ),
        "skipped_images": len(setup.splits.skipped),
        "device": f"{device.platform} {device.device_kind}",
        "devices": jax.device_count(),
        "dtype": setup.dtype,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _report(
    setup: Setup,
    folder: Workdir,
    summary: dict[str, Any],
    found: Evaluation,
    split: pipeline.Split,
    name: str,
    *,
    table: str,
    command: str,
) -> None:
    names = split.examples.class_names
    mistakes = [
        Mistake(
            image=split.rows(np.array([index]))[0],
            name=split.examples.name(int(index)),
            target=names[found.targets[index]],
            predicted=names[found.outcomes["prediction"][index]],
            probability=float(found.outcomes["probability"][index]),
            loss=float(found.outcomes["loss"][index]),
        )
        for index in found.worst(WORST_KEPT)
    ]
    report = Report(
        title=f"{setup.model.meta.architecture} on {setup.config.data.source}",
        command=command,
        summary=summary,
        plan_table=table,
        records=logging.read_records(folder.path),
        class_names=names,
        confusion=found.confusion(),
        per_class=found.per_class_accuracy(),
        mistakes=mistakes,
        split=name,
    )
    write_report(folder.path, report)


def _say_result(summary: Mapping[str, Any], name: str) -> None:
    if f"{name}/accuracy" in summary:
        _say(
            f"{name}: accuracy {summary[f'{name}/accuracy']:.4f} "
            f"({summary[f'{name}/correct']:,} of {summary[f'{name}/examples']:,})  loss {summary[f'{name}/loss']:.4f}"
        )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stdout, flush=True)
