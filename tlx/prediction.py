"""What a trained network, or a pretrained one as it is, says of inputs that have no labels."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tlx import config as config_lib
from tlx import network, pretrained
from tlx.config import Config
from tlx.data import pipeline
from tlx.data.conll_json import split_words
from tlx.data.new_pictures import given_pictures, read_pictures
from tlx.data.new_texts import NewInputs, given_texts, read_texts
from tlx.data.text_batches import TextSplit, make_text_splits
from tlx.errors import InputError, InputFileNotFoundError
from tlx.evaluation.collect import collect_split
from tlx.evaluation.predictions import check_output, write_predictions
from tlx.evaluation.tagged import marked
from tlx.models.base import Model
from tlx.models.leaves import values, with_values
from tlx.run import AnyConfig, load, print_lines
from tlx.setup import compute_dtype
from tlx.tasks import Task, get_task
from tlx.tokens.tokenizer import EncodedWords
from tlx.training.mesh import make_mesh, place_batch, replicated
from tlx.training.step import make_eval_step
from tlx.weights.meta import TextPreprocess, WeightsMeta
from tlx.workdir import Workdir

Record = dict[str, Any]


def predict(
    workdir: str | Path,
    inputs: str | Path | Sequence[Any],
    *,
    output: str | Path = "",
    config: AnyConfig | None = None,
) -> list[Record]:
    """Returns a record of each input, in their order, and prints how many there were.

    A record begins with where the input stands (line, path or index) and what else is known of it: its text, and all
    columns of a table by their own names (`input.prediction` where that is a name of what follows). Then come `prediction`
    and its `probability`, and `probabilities` of all classes where there are no more than 20; of several labels those above 0.5;
    of a regression the `prediction` alone. Of tagged words `entities`, each with type, start, end, text and the mean probability of its
    words, where places are characters of the text, or in a file of words the words, the end excluded; `marked`, the sentence with
    its entities; and `cut_off`, how many words the network did not read.

    Args:
      workdir: of the run; of one that was not trained, the weights that its config names are used as they are.
      inputs: a file (see `read_texts` and `read_pictures`; "-" is the standard input), or the inputs themselves: texts or
        pairs of them, or paths of pictures.
      output: a .jsonl or .csv for the records; "": none is written.
      config: fields in place of the run's own: eval.checkpoint, eval.batch_size, and those that say how new inputs are
        read (`tlx.config.OF_NEW_INPUTS`).

    Raises:
      InputError, InputFileNotFoundError: as `tlx.load`, of another run's config, and what is wrong with inputs, by its line.
    """
    begun, folder = time.perf_counter(), Workdir(Path(workdir))
    full = _config(folder, config)
    where = Path(output) if output else None
    if where is not None:
        check_output(where, str(inputs) if isinstance(inputs, (str, Path)) else "")
    model = _model(folder, full)
    found = _inputs(inputs, model, full)
    print_lines(found.notes)
    split = _split(found, model, full)
    outcomes = _outcomes(split, model, full)
    records = _records(found, split, outcomes, model.meta.class_names, get_task(full.task))
    if where is not None:
        write_predictions(where, records)
    seconds = time.perf_counter() - begun
    kind = "texts" if isinstance(split, TextSplit) else "pictures"
    cut = f", {split.encoded.truncated:,} of them cut off" if isinstance(split, TextSplit) else ""
    written = f"; written: {where}" if where is not None else ""
    print(f"predicted: {len(records):,} {kind}{cut}, in {seconds:.1f} s{written}", flush=True)
    return records


def _config(folder: Workdir, config: AnyConfig | None) -> Config:
    """Returns the run's config with the fields that are given, or a whole one where it is given. Raises InputError for another run's."""
    if isinstance(config, Config) or (config is not None and not folder.config.is_file()):
        full = config_lib.build(config)
    else:
        full = config_lib.build(folder.read_config(), config or {})
    folder.check_same(full, free=config_lib.OF_NEW_INPUTS)
    return full


def _model(folder: Workdir, config: Config) -> Model:
    """Returns the trained model, or that of the weights that the config names. Raises InputError where they lack a value."""
    if folder.has_checkpoints:
        return load(folder.path, checkpoint=config.eval.checkpoint)
    if config.data.class_subset or config.model.head == "new":
        raise InputError(
            f"nothing is trained in {folder.path}, and predictions are those of the weights' own head: leave "
            + ("data.class_subset out" if config.data.class_subset else "model.head=new out")
        )
    name, tag = pretrained.name_and_weights(config.model.name, config.model.weights)
    opened = network.open_network(name, tag, config, (), training=False)
    file = opened.adapters if opened.adapters and opened.adapters.meta else opened.file
    names = file.meta.class_names if file and file.meta else ()
    count = opened.file.num_classes if opened.file else 0
    if opened.file:
        _check_task(opened.file.meta, count, config)
    names = names or tuple(str(index) for index in range(count))
    keeping = dataclasses.replace(config, model=dataclasses.replace(config.model, head="keep"))
    source = opened.fitted(keeping, names, training=False)
    if source.drawn or not names:
        listed = ", ".join(source.drawn[:4]) if names else "the head"
        raise InputError(
            f"nothing to predict with: nothing is trained in {folder.path}, and of the weights "
            f"{config.model.weights!r} there is no {listed}"
        )
    print(
        f"nothing is trained in {folder.path}: the weights as they are",
        *opened.describe(source),
        sep="\n",
        flush=True,
    )
    return with_values(source.model, source.place(config.seed, replicated(make_mesh())))


def _check_task(meta: WeightsMeta, outputs: int, config: Config) -> None:
    """Raises InputError where the weights' head, of so many outputs, was made for another task than the config's."""
    if meta.head_task not in ("", config.task):
        raise InputError(
            f"the head of {config.model.weights!r} is of the task {meta.head_task}, but the config's is {config.task}: "
            f"set config.task={meta.head_task}"
        )
    if config.task == "regression" and outputs != 1:
        raise InputError(
            f"the head of {config.model.weights!r} has {outputs} outputs, and a regression has one"
        )
    if config.task == "tagging" and not meta.per_token:
        raise InputError(
            f"the head of {config.model.weights!r} is of whole inputs, not of words, which task=tagging needs"
        )


def _inputs(inputs: Any, model: Model, config: Config) -> NewInputs:
    meta, data = model.meta, config.data
    texts = isinstance(meta.preprocess, TextPreprocess)
    if not isinstance(inputs, (str, Path)):
        given = list(inputs)
        if texts:
            return given_texts(given, meta.class_names, config.task)
        return given_pictures(given, data, meta.class_names)
    path = Path(inputs).expanduser()
    if not path.exists() and str(inputs) != "-":
        raise InputFileNotFoundError(f"the input {str(inputs)!r} is not there")
    if texts:
        return read_texts(path, data, meta.class_names, config.task)
    return read_pictures(path, data, meta.class_names)


def _split(inputs: NewInputs, model: Model, config: Config) -> pipeline.Rows:
    preprocess = model.meta.preprocess
    if isinstance(preprocess, TextPreprocess):
        split = make_text_splits({"inputs": inputs.examples}, preprocess, config.data)["inputs"]
        print_lines(split.notes("inputs"))
        return split
    return pipeline.make_splits(
        {"inputs": (inputs.examples, preprocess.size)}, preprocess, config.data
    )["inputs"]


def _outcomes(
    split: pipeline.Rows, model: Model, config: Config
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns what stands for targets and the outcomes of all inputs: logits, of which windows have the mean, or words' tags."""
    task, mesh = get_task(config.task), make_mesh()
    words = task.TARGETS == "tags"
    step = make_eval_step(model, task if words else None, mesh, dtype=compute_dtype(config))
    state = jax.device_put(values(model), replicated(mesh))
    # A few inputs need no whole batch.
    rows = -(-len(split.evaluated[0]) // mesh.size) * mesh.size
    batch_size = min(config.eval.batch_size or config.train.batch_size, rows)
    return collect_split(split, lambda batch: step(state, place_batch(batch, mesh)), batch_size)


def _records(
    inputs: NewInputs,
    split: pipeline.Rows,
    found: tuple[np.ndarray, dict[str, np.ndarray]],
    class_names: tuple[str, ...],
    task: Task,
) -> list[Record]:
    said = task.predictions(*found, class_names)
    if isinstance(split, TextSplit) and isinstance(split.encoded, EncodedWords):
        cut_off = Counter(split.encoded.cut_off[:, 0].tolist())
        said = [_tagged(inputs, index, cut_off[index], own) for index, own in enumerate(said)]
    return [{**facts, **own} for facts, own in zip(inputs.facts, said, strict=True)]


def _tagged(inputs: NewInputs, index: int, cut_off: int, said: Record) -> Record:
    """Returns a sentence's record with its entities placed in the text, where there is one."""
    words, found = inputs.examples.words[index], said["entities"]
    if inputs.texts is None:
        spans = [(each["type"], each["start"], each["end"]) for each in found]
        own = [each | {"text": " ".join(words[each["start"] : each["end"]])} for each in found]
        shown = marked(words, spans, np.ones(len(words), bool))
    else:
        text = inputs.texts[index]
        own = _in_text(text, found)
        shown = _marked_text(text, own)
    return {"entities": own, "marked": shown, "cut_off": cut_off}


def _in_text(text: str, found: Sequence[Record]) -> list[Record]:
    """Returns the entities with their first character and the one after the last in place of words, and their text."""
    places = split_words(text)
    placed = []
    for each in found:
        start, end = places[each["start"]][0], places[each["end"] - 1][1]
        placed.append(each | {"start": start, "end": end, "text": text[start:end]})
    return placed


def _marked_text(text: str, entities: Sequence[Record]) -> str:
    """Returns the text with its entities as `tlx.evaluation.tagged.marked` shows them."""
    parts, done = [], 0
    for each in entities:
        parts += [text[done : each["start"]], f"[{each['text']}]({each['type']})"]
        done = each["end"]
    return "".join([*parts, text[done:]])
