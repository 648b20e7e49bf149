"""The network that a config names: its weights and adapters opened, and fitted to the data's classes and the config's input."""

from __future__ import annotations

import dataclasses
import functools

from tlx import pretrained
from tlx.config import AUTO, Config
from tlx.data import preprocess
from tlx.data.class_subset import resolve_subset
from tlx.errors import InputError
from tlx.models import default_meta, is_text
from tlx.models.leaves import leaves
from tlx.tasks import get_task
from tlx.training.resume import StoredModel
from tlx.tuning import auto
from tlx.tuning.adapters import with_adapters
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.plan import make_plans
from tlx.tuning.trained_adapters import check_method, with_trained_adapters
from tlx.weights.load import Fitting, WeightsFile, open_weights, read_folder
from tlx.weights.meta import TextPreprocess, WeightsMeta
from tlx.weights.peft_read import AdapterFiles, open_adapters
from tlx.weights.text_folder import TextFolder, open_folder


@dataclasses.dataclass(frozen=True)
class Opened:
    """What `open_network` found."""

    name: str  # of the architecture
    meta: WeightsMeta  # of the weights
    file: WeightsFile | None  # None: from scratch
    adapters: AdapterFiles | None  # that were trained before
    classes: tuple[
        int, ...
    ]  # of the file, those that data.class_subset says the data's are; (): it says nothing

    def fitted(
        self, config: Config, class_names: tuple[str, ...], *, training: bool, texts: int = 0
    ) -> pretrained.Source:
        """Returns the model with its values, and with the adapters that were trained before.

        Args:
          config: whose input it is fitted to; its tune.method may still be auto.
          class_names: of the data, in the network's order where that has them.
          training: as in `tlx.setup.prepare`.
          texts: of an input that it is to be trained on; 0: none, or what the weights know of it.

        Raises:
          InputError: as `tlx.pretrained.source` and `with_trained_adapters`.
        """
        model, own = config.model, self.meta
        shaped = pretrained.shaped(own, in_channels=model.in_channels, stem=model.stem)
        shaped = dataclasses.replace(shaped, per_token=per_token(config), task=config.task)
        resolved = preprocess.resolve(shaped.preprocess, config.data)
        if texts and isinstance(resolved, TextPreprocess):
            resolved = dataclasses.replace(resolved, texts=texts)
        source = functools.partial(
            pretrained.source,
            self.name,
            file=self.file,
            class_names=class_names,
            head_init=model.head_init,
            missing_ok=model.missing_ok,
            meta=dataclasses.replace(shaped.derived() if training else shaped, preprocess=resolved),
            fitting=Fitting(model.stem_init, self.classes),
            dropout=model.dropout,
            drop_path=model.drop_path,
            overridden=tuple(preprocess.overrides(own.preprocess, resolved)),
        )
        if not self.adapters:
            return source(head=self._head(config))
        tune = config.tune
        if tune.method == AUTO:  # which has no other
            tune = dataclasses.replace(tune, method=self.adapters.method, keep=())
        return with_trained_adapters(source, self.adapters, tune, model.head, class_names)

    def _head(self, config: Config) -> str:
        """Returns `model.head`; a head that was trained for another task is no head of this one's.

        Raises:
          InputError: it is to be kept all the same.
        """
        own, head = self.meta.head_task, config.model.head
        if self.file is None or not own or own == config.task or head == "new":
            return head
        if head == "keep":
            raise InputError(
                f"model.head=keep, but the head of {self.file.path} was trained for task={own}, not {config.task}"
            )
        return "new"

    def describe(self, weights: pretrained.Source) -> list[str]:
        """Returns lines for the log: what was loaded, and what of the preprocessing is another."""
        lines = weights.describe()
        lines += [
            f"preprocessing overridden by the config: {change}" for change in weights.overridden
        ]
        if self.adapters and self.adapters.meta:
            own, now = self.adapters.meta.preprocess, weights.model.meta.preprocess
            others = preprocess.overrides(own, now)
            lines += [f"the adapters were trained with other preprocessing: {x}" for x in others]
        return lines


def per_token(config: Config) -> bool:
    """Returns whether the task's labels are those of tokens."""
    return get_task(config.task).TARGETS == "tags"


def open_network(
    name: str, weights: str, config: Config, class_names: tuple[str, ...], *, training: bool
) -> Opened:
    """Opens the weights and the adapters of a config.

    Args:
      name, weights: from `tlx.pretrained.name_and_weights`.
      config: of the run.
      class_names: of the data.
      training: as in `tlx.setup.prepare`; what can be said of the method is then said before anything is fetched.

    Raises:
      InputError: anything the user can put right.
    """
    adapters = open_adapters(config.model.adapters) if config.model.adapters else None
    if adapters and weights == "none":
        raise InputError(
            "model.adapters were trained on weights that stay as they are, but model.weights is none"
        )
    folder = open_folder(name, weights) if is_text(name) and weights != "none" else None
    if training:
        _check_tuning(_structure(name, folder, config), len(class_names), config, adapters)
    if folder is not None:
        file: WeightsFile | None = read_folder(folder)
    else:
        file = None if weights == "none" else open_weights(name, weights)
    meta = file.meta if file else default_meta(name)
    classes = resolve_subset(config.data.class_subset, class_names, meta)
    if classes and (file is None or config.model.head == "new"):
        raise InputError(
            "data.class_subset says which of the weights' classes the data's are, but "
            + ("model.weights is none" if file is None else "model.head=new draws a new head")
        )
    return Opened(name, meta, file, adapters, classes)


def of_run(stored: StoredModel, config: Config, class_names: tuple[str, ...]) -> pretrained.Source:
    """Returns the model of a run whose values are in its workdir. Raises InputError where the data has other classes."""
    _check_classes(stored.meta, class_names)
    weights = pretrained.source(
        stored.meta.architecture,
        class_names=class_names,
        meta=stored.meta,
        origin=stored.origin,
        dropout=config.model.dropout,
        drop_path=config.model.drop_path,
    )
    return with_adapters(weights, config.tune, stored.adapters)


def _structure(name: str, folder: TextFolder | None, config: Config) -> WeightsMeta:
    """Returns what says the network's structure: of a text model the config.json beside its weights, which are not read.

    Raises:
      InputError: config.json is of no such network; a text model without weights, which has no tokenizer.
    """
    if not is_text(name):
        return default_meta(name)
    if folder is None:
        raise InputError(
            f"{name} needs model.weights, a folder with config.json and a tokenizer (or OWNER/NAME of one on the hub): "
            "there are no sizes and no tokenizer without"
        )
    return dataclasses.replace(folder.meta(), per_token=per_token(config))


def _check_tuning(
    structure: WeightsMeta, num_classes: int, config: Config, adapters: AdapterFiles | None
) -> None:
    """Raises what a method, its targets, its rules or an optimizer have wrong, from the model's structure alone."""
    deciding = config.tune.method == AUTO
    tried = _stand_in(config, adapters) if deciding else config
    if adapters:
        check_method(adapters, tried.tune)
    plain = pretrained.source(structure.architecture, num_classes=num_classes, meta=structure)
    model = with_adapters(plain, tried.tune).model
    plans = make_plans(leaves(model), model.stages, tried.tune, model.auxiliary)
    make_optimizer(plans[-1], tried.optimizer, lambda step: 0.0)
    if deciding:
        auto.check_rate(config)


def _stand_in(config: Config, adapters: AdapterFiles | None) -> Config:
    """Returns a config that tune.method=auto could decide on, with what is set in it: to be checked before the weights
    are there. The groups are left out: their names are those of the method that is chosen.
    """
    method = auto.methods_for(config, adapters.method if adapters else "")[0]
    tune = dataclasses.replace(config.tune, method=method, groups=(), keep=())
    optimizer, given = config.optimizer, config.tune.keep
    if "optimizer.schedule" not in given:
        optimizer = dataclasses.replace(optimizer, schedule="constant")  # which all take
    if "optimizer.name" not in given:
        (taking, *_) = auto.optimizers_taking(optimizer.options)
        optimizer = dataclasses.replace(optimizer, name=taking)
    return dataclasses.replace(config, tune=tune, optimizer=optimizer)


def _check_classes(stored: WeightsMeta, names: tuple[str, ...]) -> None:
    if stored.class_names != names:
        raise InputError(
            f"the run was trained on {len(stored.class_names)} classes "
            f"({', '.join(stored.class_names[:5])}...), the data has {len(names)} "
            f"({', '.join(names[:5])}...)"
        )
