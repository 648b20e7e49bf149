"""Adapters that were trained before, which a run goes on training: `model.adapters`.

Layers, rank and alpha are those of the folder, whatever `tune` has at its defaults; where it has something else it must be the
same. The head is the folder's as `model.head` says, as if it were that of the weights: kept, new, or by default kept where
its classes have the data's names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tlx.config import TuneConfig
from tlx.errors import InputError
from tlx.models.adapters import attached
from tlx.models.leaves import is_within, leaves
from tlx.pretrained import Source, Trained
from tlx.tuning.adapters import candidates, chosen
from tlx.weights.load import CLASSIFIER_KERNELS, listing
from tlx.weights.peft_read import AdapterFiles, Fitted, fit_adapters


def check_method(files: AdapterFiles, tune: TuneConfig) -> None:
    """Raises InputError where the method does not train adapters of this kind."""
    if tune.method != files.method:
        raise InputError(
            f"model.adapters: {files.folder} holds {files.method} adapters, but tune.method is {tune.method!r}: set "
            f"tune.method={files.method}"
        )


def with_trained_adapters(
    make: Callable[..., Source],
    files: AdapterFiles,
    tune: TuneConfig,
    head: str,
    class_names: Sequence[str],
) -> Source:
    """Returns the source of the model with the folder's adapters, and with what else was trained beside them.

    Args:
      make: returns the source of the plain model, from a weights file, for a `head` as `model.head` has it.
      files: from `open_adapters`.
      tune: the method and its options.
      head: `model.head`.
      class_names: of the data.

    Raises:
      InputError: another method, rank, alpha or layers than `tune` has, layers whose adapters cannot be trained,
        shapes that do not fit the network, or a head of another number of classes that is to be kept.
    """
    source = make(head="new")
    fitted = fit_adapters(source.model, files)
    why = _not_its_head(source, fitted, files, head, class_names)
    if not _classifier(fitted) or why:
        source = make(head=head)
        heads = ("head", *source.model.classifiers)
        beside = {p: a for p, a in fitted.beside.items() if not is_within(p, heads)}
        fitted = dataclasses.replace(fitted, beside=beside)
    assert source.loaded is not None  # `prepare` refuses adapters without weights
    _check(source, fitted, files, tune)
    model = attached(source.model, fitted.specs)
    found = leaves(model)
    fitted.check_beside(found)
    filled = fitted.arrays | fitted.beside
    loaded = dataclasses.replace(
        source.loaded,
        leaves=found,
        arrays=source.loaded.arrays | filled,
        fresh=tuple(path for path in source.loaded.fresh if path not in filled),
    )
    trained = Trained(files, tuple(fitted.beside), why)
    return dataclasses.replace(source, model=model, loaded=loaded, trained=trained)


def _not_its_head(
    source: Source, fitted: Fitted, files: AdapterFiles, head: str, class_names: Sequence[str]
) -> str:
    """Returns why a head that is in the folder is not the run's; "": it is, or there is none."""
    if not (kernel := _classifier(fitted)):
        return ""
    assert source.loaded is not None
    if kernel not in source.loaded.fresh:
        return "data.class_subset names classes of the weights' own"
    count = fitted.beside[kernel].shape[-1]
    if head == "keep" and count != len(class_names):
        raise InputError(
            f"model.head=keep, but {files.folder} has a head of {count} classes and the data has {len(class_names)}"
        )
    if head != "auto":
        return "" if head == "keep" else "model.head=new"
    if files.meta is None or not files.meta.class_names:
        return "its classes have no names there (model.head=keep takes it)"
    known = files.meta.class_names
    return "" if known == tuple(class_names) and count == len(known) else "it is for other classes"


def _classifier(fitted: Fitted) -> str:
    """Returns the path of the classifier's kernel that is in the folder; "": there is none."""
    return next((path for path in CLASSIFIER_KERNELS if path in fitted.beside), "")


def _check(source: Source, fitted: Fitted, files: AdapterFiles, tune: TuneConfig) -> None:
    check_method(files, tune)
    trainable = candidates(source.model)
    if others := [path for path in fitted.specs if path not in trainable]:
        raise InputError(
            f"model.adapters: {files.folder} has adapters at {listing(others)}; a run trains those at layers of stages that "
            "are no grouped convolutions"
        )
    defaults = TuneConfig()
    for field in ("rank", "alpha"):
        given = getattr(tune, field)
        own = sorted({getattr(spec, field) for spec in fitted.specs.values()})
        if given != getattr(defaults, field) and own != [given]:
            raise InputError(
                f"tune.{field} is {given:g}, but the adapters of {files.folder} have {', '.join(f'{n:g}' for n in own)}: leave "
                f"tune.{field} out"
            )
    if tune.targets:
        wanted = {path: spec.inputs for path, spec in chosen(source.model, tune).items()}
        own_layers = {path: spec.inputs for path, spec in fitted.specs.items()}
        if wanted != own_layers:
            differing = [p for p in {**wanted, **own_layers} if wanted.get(p) != own_layers.get(p)]
            raise InputError(
                f"tune.targets are not the layers that {files.folder} has adapters at: they differ in {listing(differing)}; "
                "leave tune.targets out"
            )
