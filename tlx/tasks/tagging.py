"""A tag for each word of a sentence: the loss, what evaluation keeps, and F1 of entities.

Targets are int32 [B, T], the index of a tag where a token is the first of its word and -1 elsewhere: such
tokens are in no loss and no metric.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.config import DEFAULT_LOSSES, TrainConfig
from tlx.errors import InputError
from tlx.evaluation import entities, tagged
from tlx.evaluation import predictions as told
from tlx.evaluation.report import Section, Shown
from tlx.tasks import PLAIN, LossOptions, losses

TARGETS = "tags"


def metrics(num_classes: int) -> tuple[str, ...]:
    """Returns the metrics by which the best checkpoint may be chosen, the default one first."""
    del num_classes
    return ("f1", "precision", "recall", "macro_f1", "accuracy", "loss")


def loss_options(
    config: TrainConfig, labels: np.ndarray, class_names: Sequence[str]
) -> LossOptions:
    """Returns the loss that the config describes.

    Args:
      config: of the run.
      labels: the words' tags in the training split, int of any shape; -1 is none. (Not
        `TaggedTexts.labels`, which say only whether a tag occurs in a sentence.)
      class_names: the tags.

    Raises:
      InputError: a loss that is not of one class for each word, or weights that do not fit the tags.
    """
    assert labels.dtype != np.uint8, "which tags occur, not the tags"
    name, gamma = losses.parse_loss(config.loss or DEFAULT_LOSSES["tagging"])
    if name == "bce":
        raise InputError(
            "train.loss: a word has one tag, which is fitted by cross_entropy or focal:GAMMA, not by bce"
        )
    weights = losses.class_weights(config.class_weights, labels[labels >= 0], class_names)
    return LossOptions(config.label_smoothing, weights, name, gamma)


def loss(logits: jax.Array, batch: Any, options: LossOptions = PLAIN) -> jax.Array:
    """Returns the mean loss over the words of all examples of weight 1, in nats; see tlx.tasks.losses.

    Args:
      logits: float [B, T, C].
      batch: targets, int [B, T]; weight, float [B], 0 for padding.
      options: which loss, label smoothing and class weights.
    """
    targets = batch["targets"]
    classes = logits.shape[-1]
    # Of tokens that do not count, logits may be anything, even no numbers; nor may their gradient be.
    logits = jnp.where((targets >= 0)[..., None], logits.astype(jnp.float32), 0.0)
    each = losses.LOSSES[options.name](
        logits.reshape(-1, classes), jax.nn.one_hot(targets.reshape(-1), classes), options
    )
    total = total_weight(batch, options)
    return jnp.sum(each * _counted(batch).reshape(-1)) / jnp.where(total > 0, total, 1.0)


def total_weight(batch: Any, options: LossOptions) -> jax.Array:
    """Returns the number of words in examples of weight 1, each times the weight of its tag."""
    share = _counted(batch)
    if options.class_weights:
        share = share * jnp.asarray(options.class_weights)[batch["targets"]]
    return share.sum()


def batch_metrics(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns the share of a training batch's words that got their tag."""
    counted = _counted(batch)
    right = jnp.argmax(logits, axis=-1) == batch["targets"]
    return {"accuracy": jnp.sum(right * counted) / jnp.maximum(counted.sum(), 1.0)}


def outcomes(logits: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Returns for each token, [B, T]: its loss, prediction, and the prediction's probability.

    The loss is the plain cross-entropy in nats, whatever training minimises, and 0 where there is no
    target. Where logits are no numbers the prediction is -1, which is never right.
    """
    targets = batch["targets"]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probs, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return {
        "loss": jnp.where(targets >= 0, -own, 0.0),
        "prediction": jnp.where(jnp.isnan(log_probs).any(axis=-1), -1, best),
        "probability": jnp.exp(log_probs.max(axis=-1)),
    }


def _counted(batch: Any) -> jax.Array:
    """Returns float [B, T]: the example's weight where there is a target, else 0."""
    return (batch["targets"] >= 0) * batch["weight"][:, None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a split's evaluation found. Every word counts once; sums are taken in float64."""

    targets: np.ndarray  # int [N, T], -1: no word begins here
    # [N, T], in the split's order; `read` is bool, where it is given: words that the network was not given are in no loss
    outcomes: dict[str, np.ndarray]
    class_names: Sequence[str]

    @functools.cached_property
    def tags(self) -> entities.Tags:
        """What the class names mean."""
        return entities.Tags(self.class_names)

    @functools.cached_property
    def counted(self) -> np.ndarray:
        """Bool [N, T]: where a word begins."""
        return self.targets >= 0

    @functools.cached_property
    def read(self) -> np.ndarray:
        """Bool [N, T]: the words that the network was given."""
        return self.counted & self.outcomes.get("read", True)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """Bool [N, T + 1]: what of a row is kept, its words and a mark that ends the sentence."""
        return np.pad(self.counted, ((0, 0), (0, 1)), constant_values=True)

    def _find(self, indices: np.ndarray) -> entities.Found:
        ended = np.pad(indices, ((0, 0), (0, 1)), constant_values=-1)
        return entities.find(ended[self._places], self.tags)

    @functools.cached_property
    def true(self) -> entities.Found:
        """The true entities of all sentences, one after the other."""
        return self._find(self.targets)

    @functools.cached_property
    def predicted(self) -> entities.Found:
        """The predicted entities, among the same words."""
        return self._find(self.outcomes["prediction"])

    @functools.cached_property
    def scores(self) -> entities.EntityScores:
        """Precision, recall and F1 of each type."""
        return entities.score(self.true, self.predicted, self.tags.types)

    @functools.cached_property
    def wrong(self) -> np.ndarray:
        """Which sentences lack an entity or have one too many, bool [N]."""
        there = (self.true.type_of >= 0) | (self.predicted.type_of >= 0)
        rows = np.nonzero(self._places)[0]
        missed = rows[there & ~self.true.same(self.predicted)]
        return np.bincount(missed, minlength=len(self.targets)) > 0

    @functools.cached_property
    def losses(self) -> np.ndarray:
        """The mean loss of each sentence's words, float64 [N]."""
        total = np.where(self.read, self.outcomes["loss"].astype(np.float64), 0.0).sum(axis=1)
        return total / np.maximum(self.read.sum(axis=1), 1)

    def summary(self) -> dict[str, Any]:
        """Returns f1, precision, recall (of all entities), macro_f1, accuracy (of words), loss (nats), and counts.

        Macro F1 is the mean over types of which there is an entity, true or predicted. Where a
        quotient is 0 / 0 it is 0, as seqeval has it with zero_division=0.
        """
        precision, recall, f1 = self.scores.micro()
        words = max(int(self.counted.sum()), 1)
        right = (self.outcomes["prediction"] == self.targets)[self.counted].sum()
        losses = self.outcomes["loss"][self.read].astype(np.float64)
        return {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "macro_f1": self.scores.macro()[2],
            "accuracy": int(right) / words,
            "loss": float(losses.sum() / max(len(losses), 1)),
            "entities": int(self.scores.support.sum()),
            "words": int(self.counted.sum()),
            "unread_words": int((self.counted & ~self.read).sum()),
            "examples": len(self.targets),
        }

    def headline(self) -> str:
        """Returns F1, precision, recall and loss in words."""
        found = self.summary()
        return (
            f"F1 {found['f1']:.4f}  precision {found['precision']:.4f}  recall {found['recall']:.4f}"
            f"  loss {found['loss']:.4f}  ({found['entities']:,} entities in "
            f"{found['examples']:,} sentences)"
        )

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns precision, recall and F1 of each type of which there is an entity, true or predicted."""
        found = self.scores

        def by_type(values: np.ndarray) -> dict[str, float]:
            named = zip(found.types, values.tolist(), found.occurs, strict=True)
            return {name: value for name, value, occurs in named if occurs}

        return {
            "precision": by_type(found.precision),
            "recall": by_type(found.recall),
            "f1": by_type(found.f1),
        }

    def worst(self, limit: int) -> np.ndarray:
        """Returns the indices of sentences with a wrong entity, highest mean loss first."""
        wrong = np.flatnonzero(self.wrong)
        order = np.argsort(-np.nan_to_num(self.losses[wrong], nan=np.inf), kind="stable")
        return wrong[order][:limit]

    def section(self, worst: Sequence[Shown]) -> Section:
        """Returns what a report says: a table of the types, and the worst sentences.

        The text of `worst` is the words of each; where they are more than the sentence has targets, the
        first are those.
        """
        return tagged.section(
            self.scores,
            [self._mistake(shown) for shown in worst],
            wrong=int(self.wrong.sum()),
            examples=len(self.targets),
        )

    def _mistake(self, shown: Shown) -> tagged.Mistake:
        row = self.counted[shown.index]
        true, predicted = (
            entities.find(indices[shown.index][row], self.tags).listed(self.tags.types)
            for indices in (self.targets, self.outcomes["prediction"])
        )
        return tagged.Mistake(
            name=shown.name,
            words=(shown.text,) if isinstance(shown.text, str) else shown.text,
            known=int(row.sum()),
            true=true,
            predicted=predicted,
            loss=float(self.losses[shown.index]),
        )


evaluation = Evaluation


def predictions(
    targets: np.ndarray, outcomes: dict[str, np.ndarray], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns of each sentence its entities: type, first word, word after the last, and mean probability of its words.

    Args:
      targets: int [N, T], -1: no word begins here; otherwise not looked at.
      outcomes: of the words, [N, T] each.
      class_names: the tags.
    """
    tags = entities.Tags(class_names)
    found = []
    for row, indices, probability in zip(
        targets >= 0, outcomes["prediction"], outcomes["probability"], strict=True
    ):
        own = probability[row].astype(np.float64)
        listed = entities.find(indices[row], tags).listed(tags.types)
        found.append(
            {
                "entities": [
                    {
                        "type": kind,
                        "start": start,
                        "end": end,
                        "probability": told.number(own[start:end].mean()),
                    }
                    for kind, start, end in listed
                ]
            }
        )
    return found
