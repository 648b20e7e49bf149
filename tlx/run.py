"""What the command line does, as calls: fine-tune, evaluate, load, export.

config -> data source -> weights and their meta -> model -> plan -> state -> loop -> evaluation -> report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlx import config as config_lib
from tlx import models, pretrained
from tlx.config import Config
from tlx.data import pipeline
from tlx.data.class_subset import subset_hint
from tlx.errors import InputError
from tlx.features.decide import Decision
from tlx.features.feeds import Feeds, decisions, describe_decisions
from tlx.files import write_json_atomic
from tlx.models.adapters import adapted_layers
from tlx.models.base import Model
from tlx.models.leaves import leaves, with_values
from tlx.notes import describe_average, describe_drawn, describe_parts, describe_weights
from tlx.setup import Setup, Tuning, prepare, prepare_tuning
from tlx.steps import estimator, step_function
from tlx.summary import make_report, results, run_facts
from tlx.training import logging
from tlx.training.calls import make_call
from tlx.training.checkpoint import Checkpoints
from tlx.training.loop import Loop
from tlx.training.mesh import make_mesh, replicated
from tlx.training.reference import start_reference
from tlx.training.resume import restore_values, start, stored_facts, stored_model
from tlx.training.state import inference_values
from tlx.tuning.adapters import with_adapters
from tlx.tuning.phases import describe
from tlx.tuning.plan import audit, digests, make_plans
from tlx.tuning.table import count_parameters, plan_table
from tlx.weights.peft_write import save_adapters
from tlx.weights.text_folder import WEIGHTS as TEXT_WEIGHTS
from tlx.weights.text_write import class_of
from tlx.workdir import Workdir

AnyConfig = Config | Mapping[str, Any]  # also an ml_collections.ConfigDict


def finetune(config: AnyConfig, workdir: str | Path, *, command: str = "") -> dict[str, Any]:
    """Fits a network to a task and returns the summary; called again, it resumes or says it is done.

    Args:
      config: from a `get_config()`, a (nested or dotted) dict of fields, or a `Config`; what is set in it where
        tune.method is auto: see `tlx.config.build`.
      workdir: gets config.json, metrics.jsonl, summary.json, checkpoints/, report.md.
      command: shown in the report.

    Raises:
      InputError: what the user can put right. It comes before anything is written, except for what only
        training can show: a loss that is not finite, a broken picture in data too large to decode beforehand.
      tlx.training.loop.Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    config, begun = config_lib.build(config), time.perf_counter()
    if config.soup.runs:
        raise InputError(
            "soup.runs is set, and a soup is not trained: --mode=soup (or tlx.soup) makes it of finished runs"
        )
    folder = Workdir(Path(workdir))
    folder.check(config)
    if summary := folder.read_summary():
        print(
            f"{folder.path}: this run is complete ({summary['steps']} steps on {summary['data']}); "
            f"see {folder.path}/report.md"
        )
        return summary
    trained, given = folder.has_checkpoints, config
    stored = stored_model(folder) if trained else None
    choices = folder.read_choices(config) if trained else ()
    setup, lines = prepare(config, stored=stored, choices=choices)
    config, tuning = setup.config, prepare_tuning(setup)
    table = plan_table(tuning.phases[-1].plan, setup.leaves, config.optimizer)
    table = "\n".join([table, *describe(tuning.phases, setup.plans)])
    lines += describe_drawn(setup)
    lines += describe_parts(config.train.accumulate, tuning)
    lines += describe_average(setup, tuning)
    lines += describe_weights(tuning.loss_options, setup.splits.class_names)
    starts = decisions(setup, tuning)
    lines += describe_decisions(starts)
    print(*lines, "", table, "", sep="\n", flush=True)
    splits = setup.open("train", "val", setup.held_out)
    for name, split in splits.items():
        print_lines(split.notes(name))
    with folder.locked():
        folder.write_config(given, setup.choices)
        with Checkpoints(folder.path, keep_last=config.checkpoint.keep_last) as checkpoints:
            return _train(setup, tuning, starts, splits, folder, checkpoints, table, command, begun)


def evaluate(config: AnyConfig, workdir: str | Path, *, command: str = "") -> dict[str, Any]:
    """Evaluates the workdir's checkpoint, or the pretrained network as it is, without training.

    Returns `test/*` metrics (of the validation split where there is no test split) and writes them to
    evaluation.json; where nothing was trained in the workdir, also to summary.json, with a report.

    Raises:
      InputError: as `finetune`; also a head that no file fills, or other classes than the checkpoint's.
    """
    config = config_lib.build(config)
    folder = Workdir(Path(workdir))
    folder.check(config)
    begun = time.perf_counter()
    trained = folder.has_checkpoints
    stored = stored_model(folder) if trained else None
    choices = folder.read_choices(config) if trained else ()
    setup, lines = prepare(config, stored=stored, choices=choices, training=False)
    config = setup.config
    print(*lines, sep="\n", flush=True)
    sharding = replicated(setup.mesh)
    if trained:
        values, position, messages = restore_values(
            folder.path,
            setup.leaves,
            setup.plans,
            config,
            config.eval.checkpoint,
            sharding,
        )
        print(*messages, f"checkpoint of step {position.step}", sep="\n", flush=True)
        step, facts = position.step, stored_facts(folder)[1]
    else:
        refuse_random_values(setup)
        values = setup.weights.place(config.seed, sharding)
        step, facts = 0, setup.weights.facts()
    name = setup.held_out
    split = setup.open(name).get(name)
    if split is None:
        raise InputError(
            "the data has neither a test nor a validation split: set data.test_fraction"
        )
    print_lines(split.notes(name))
    found = setup.evaluate(split, values)
    summary = run_facts(setup, "evaluate") | facts
    summary |= {"steps": step, "seconds": time.perf_counter() - begun}
    summary |= results(name, found)
    summary["compilations/eval_step"] = setup.eval_compilations
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder.evaluation, summary)
    if not trained:
        write_json_atomic(folder.summary, summary)
        make_report(setup, folder, summary, found, split, name, table="", command=command)
    print(f"{name}: {found.headline()}", flush=True)
    return summary


def load(workdir: str | Path, *, checkpoint: str = "") -> Model:
    """Returns the trained model of a workdir, in inference mode, with its meta, ready for new inputs.

    The workdir alone is enough: the weights it was trained from are not read.

    Args:
      workdir: of the run.
      checkpoint: best, last, or auto: the best where there was validation, else the last; "": as the run's config says.

    Raises:
      InputError, InputFileNotFoundError: the folder holds no run, its checkpoints are damaged, or an interruption left the
        statistics of its averaged values to be estimated when the run goes on.
    """
    folder = Workdir(Path(workdir))
    config = folder.read_decided()
    meta, origin, adapters = stored_model(folder)
    source = pretrained.source(
        meta.architecture, class_names=meta.class_names, meta=meta, origin=origin
    )
    model = with_adapters(source, config.tune, adapters).model
    found = leaves(model)
    plans = make_plans(found, model.stages, config.tune, model.auxiliary)
    values, _, _ = restore_values(
        folder.path,
        found,
        plans,
        config,
        checkpoint or config.eval.checkpoint,
        replicated(make_mesh()),
    )
    return with_values(model, values)


def export(workdir: str | Path, *, checkpoint: str = "") -> list[Path]:
    """Writes the trained model of a workdir for other programs; returns the files and folders.

    `export/ARCHITECTURE.safetensors` is the whole network under its source's names, adapters merged into it; of a text model
    `export/` is a folder that transformers and tlx open, with model.safetensors, config.json and the tokenizer.
    `export/adapter/` has LoRA, DoRA or IA3 adapters alone, with the head, in peft's layout.

    Raises:
      InputError, InputFileNotFoundError: as `load`; or the model has bottleneck adapters.
    """
    model, folder = load(workdir, checkpoint=checkpoint), Path(workdir) / "export"
    folder.mkdir(exist_ok=True)
    is_text = models.is_text(model.meta.architecture)
    path = folder / (TEXT_WEIGHTS[0] if is_text else f"{model.meta.architecture}.safetensors")
    pretrained.save_weights(model, path)
    written = [folder if is_text else path]
    print(f"written: {written[0]}", flush=True)
    if is_text and not class_of(model.meta):
        print(
            "note: the weights that it was trained from have no pooler, and so neither has it: tlx opens the folder, but "
            "transformers' classifier of this family would draw one at random"
        )
    if any(adapted_layers(model)):
        try:
            save_adapters(model, folder / "adapter")
        except InputError as error:  # the network is written, with the adapters in it
            print(f"the adapters are not written alone: {error}", flush=True)
        else:
            written.append(folder / "adapter")
            print(f"written: {written[1]}", flush=True)
    return written


def _train(
    setup: Setup,
    tuning: Tuning,
    starts: Sequence[Decision],
    splits: dict[str, pipeline.Whole],
    folder: Workdir,
    checkpoints: Checkpoints,
    table: str,
    command: str,
    begun: float,  # as time.perf_counter() counts
) -> dict[str, Any]:
    config, phases, total = setup.config, tuning.phases, tuning.cadence.total_steps
    batch_size, sharding = config.train.batch_size, replicated(setup.mesh)
    state, frozen, position, messages = start(
        folder.path,
        checkpoints,
        setup.weights,
        phases,
        seed=config.seed,
        fingerprint=setup.fingerprint,
        sharding=sharding,
    )
    reference, position = start_reference(
        folder.path, setup.weights, phases, tuning.regularizers, state, frozen, position
    )
    if position.step:
        messages.append(f"resuming at step {position.step} of {total}")
    print(*messages, sep="\n", end="\n" if messages else "", flush=True)
    before = digests(frozen, tuple(frozen))
    estimate = estimator(setup, tuning, splits["train"])
    with (
        logging.MetricsWriter(folder.path, resume_step=position.step or None) as writer,
        logging.Progress(total, start=position.step) as screen,
    ):
        feeds = Feeds(setup, starts, splits, screen.message)
        together = feeds.steps_per_call
        calls = [
            make_call(
                step_function(setup, tuning, phase, reference.drawn, decision.start),
                setup.mesh,
                steps=together,
            )
            for phase, decision in zip(phases, starts, strict=True)
        ]
        loop = Loop(
            tuning.cadence,
            phases,
            calls=calls,
            steps_per_call=together,
            frozen=frozen,
            source=reference.values,
            feeds=feeds,
            batch_size=batch_size,
            mesh=setup.mesh,
            learning_rate=tuning.schedule,
            checkpoints=checkpoints,
            writer=writer,
            screen=screen,
            estimator=estimate,
        )
        state, position = loop.run(state, position)
    first_step = max(loop.first_step_done - begun, 0.0)  # none where all had been taken
    plan = phases[position.phase].plan
    after = digests(loop.frozen, plan.frozen)
    audit({path: before[path] for path in after}, after)
    print(f"audit: {len(plan.frozen)} frozen values are bit-identical to what was loaded")
    values = inference_values(state, loop.frozen)
    if estimate is not None or position.best_step not in (-1, position.step):
        values, _, messages = restore_values(
            folder.path, setup.leaves, setup.plans, config, "auto", sharding
        )
        print(*messages, sep="\n", end="\n" if messages else "")
    summary = run_facts(setup, "train") | stored_facts(folder)[1]
    summary |= {
        "steps": position.step,
        "epochs": position.step / tuning.steps_per_epoch,
        "checkpoint": "best" if position.best_step >= 0 else "last",
        "best_step": position.best_step if position.best_step >= 0 else position.step,
        "params/trainable": count_parameters(setup.leaves, plan.trainable),
        "frozen_values_audited": len(plan.frozen),
        "seconds": position.seconds,
        "seconds_to_first_step": first_step,
        "cache/stages": ",".join(str(decision.start) for decision in starts),
        "examples_per_second": loop.watch.rate(batch_size),
        "compilations/train_step": max(call._cache_size() for call in calls),  # type: ignore[attr-defined]
    }
    if position.best_step >= 0:
        summary[f"val/{config_lib.selecting_metric(config)}"] = loop.metric_value(position)
    name = setup.held_out
    if name in splits:
        found = setup.evaluate(splits[name], values)
        summary |= results(name, found)
        summary["compilations/eval_step"] = setup.eval_compilations
        make_report(setup, folder, summary, found, splits[name], name, table=table, command=command)
        print(f"{name}: {found.headline()}")
    write_json_atomic(folder.summary, summary)
    print(f"report: {folder.path}/report.md", flush=True)
    return summary


def print_lines(lines: Sequence[str]) -> None:
    """Prints each line; nothing where there is none."""
    for line in lines:
        print(line, flush=True)


def refuse_random_values(setup: Setup) -> None:
    """Raises InputError where a value that evaluation uses would be drawn from the seed."""
    fresh = setup.weights.drawn
    if fresh:
        file = setup.weights.file
        hint = subset_hint(setup.splits.class_names, file.meta) if file else ""
        raise InputError(
            f"nothing to evaluate: {len(fresh)} values come from no file ({', '.join(fresh[:4])}...); "
            f"set model.weights, and model.head=keep to evaluate the file's own head{hint}"
        )
