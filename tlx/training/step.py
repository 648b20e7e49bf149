"""The jitted functions of a run: one training step, one evaluation step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from tlx.data.augment import Augmentation
from tlx.data.mixing import NO_MIXING, Mixing
from tlx.data.preprocess import network_input
from tlx.models.base import Model
from tlx.models.formulations import global_norm
from tlx.models.layers import BatchNorm
from tlx.models.leaves import Values, module_of, values, with_values
from tlx.tasks import LossOptions, Task
from tlx.training.compilation import jit
from tlx.training.mesh import replicated, split_batch
from tlx.training.state import TrainState
from tlx.tuning.average import averages_statistics
from tlx.tuning.penalties import Penalties, need_outputs
from tlx.tuning.plan import TuningPlan
from tlx.tuning.regularizers import Regularizer
from tlx.weights.meta import Preprocess

# Folded into a step's key for what the network drops and how examples are mixed; far from the positions of
# augmentations, which are folded into the same key.
DROPPING, MIXING = 1 << 20, 1 << 21

Metrics = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
StatisticsStep = Callable[..., Values]
EvalStep = Callable[..., dict[str, jax.Array]]
PrefixStep = Callable[..., jax.Array]


class StepFunction(NamedTuple):
    """A training step before it is compiled."""

    function: TrainStep  # (state, frozen, batch, step, *source) -> (state, metrics)
    needs_source: bool


def training_model(model: Model, plan: TuningPlan, dtype: str, start: int = 0) -> Model:
    """Returns the (abstract) model in the modes that the plan gives its parts, for inputs from stage `start` on.

    A BatchNorm uses batch statistics, a stage drops at random, and an auxiliary loss counts, only where the plan
    trains something of it.
    """
    copy = nnx.merge(*nnx.split(model))
    copy.dtype, copy.start = dtype, start
    trained = {module_of(path) for path in plan.trainable}
    copy.random_stages = tuple(name for name in model.stages if name in trained)
    copy.auxiliary = tuple(item for item in model.auxiliary if item[0] in trained)
    for path, module in nnx.iter_modules(copy):
        if isinstance(module, BatchNorm):
            module.use_running_average = ".".join(map(str, path)) not in plan.training_norms
    return copy


def inference_model(model: Model, dtype: str, start: int = 0) -> Model:
    """Returns the (abstract) model with the compute type set and every BatchNorm on running statistics."""
    copy = nnx.merge(*nnx.split(model))
    copy.dtype, copy.start = dtype, start
    return copy


def make_step_function(
    model: Model,
    task: Task,
    plan: TuningPlan,
    optimizer: optax.GradientTransformation,
    augmentation: Augmentation,
    *,
    dtype: str,
    loss_options: LossOptions,
    seed: int,
    mixing: Mixing = NO_MIXING,
    parts: int = 1,
    regularizers: tuple[Regularizer, ...] = (),
    drawn: frozenset[str] = frozenset(),
    start: int = 0,
    remat: bool = False,
) -> StepFunction:
    """Returns the function `step(state, frozen, batch, step) -> (state, metrics)`, and whether it needs the source.

    With a regularizer that needs them, the source's values are a fifth argument; `drawn` are those
    that came from no weights file. `loss` is what is minimised, penalties included; each is a metric of its name beside it.

    Only trainable leaves are differentiated: the frozen ones are not arguments of the gradient. Randomness is
    `fold_in(seed, step)`. Metrics: loss, the task's own of the (mixed) batch, gradient norm of the trainable leaves.

    With `parts` above 1 the gradient is summed over as many parts of the batch, one after the other: the same as that of
    the whole batch but for rounding, where no batch statistics are used, nothing is dropped at random and no singular
    values are shrunk. A part counts in the loss as much as its examples weigh, in the penalties as many as they are.

    With `start` the inputs are not pictures or texts but what `Model.prefix` makes of them, nothing is augmented or mixed. With `remat`
    what is inside a stage is not kept for the backward pass but computed again there.
    """
    forward = training_model(model, plan, dtype, start)
    forward.remat = remat
    inputs_of = _training_inputs(augmentation, mixing, model.meta.preprocess, seed, start)
    source_model = inference_model(model, dtype) if need_outputs(regularizers) else None
    penalties = Penalties(regularizers, plan, source_model, drawn)

    def train_step(
        state: TrainState,
        frozen: Values,
        batch: Any,
        step: jax.Array,
        source: Values | None = None,
    ) -> Any:
        images, batch, dropping = inputs_of(batch, step)

        def loss_fn(
            trainable: Values,
            statistics: Values,
            images: Any,
            batch: Any,
            key: jax.Array,
            share: jax.Array | float = 1.0,
            portion: float = 1.0,
        ) -> Any:
            """Returns what these examples add to the loss of the batch: `share` of its weight, `portion` of its rows."""
            fixed = {**frozen, **statistics}
            network = with_values(forward, {**fixed, **trainable})
            carries = penalties.watch(network)
            logits, further = network.training_outputs(images, key)
            loss = task.loss(logits, batch, loss_options)
            for auxiliary, weight in further:
                loss += weight * task.loss(auxiliary, batch, loss_options)
            added, terms = penalties(network, carries, images, trainable, fixed, source or {})
            terms = {name: portion * term for name, term in terms.items()}
            loss = share * loss + portion * added
            moved = values(network)
            return loss, (logits, {path: moved[path] for path in statistics}, terms)

        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        if parts == 1:
            (loss, (logits, statistics, terms)), gradients = differentiate(
                state.trainable, state.statistics, images, batch, dropping
            )
        else:
            total = task.total_weight(batch, loss_options)
            total = jnp.where(total > 0, total, 1.0)  # all of it can be of classes of weight 0

            def accumulate(carry: Any, part: Any) -> Any:
                loss, statistics, gradients = carry
                number, images, batch = part
                key = jax.random.fold_in(dropping, number)
                share = task.total_weight(batch, loss_options) / total
                (own, (logits, statistics, terms)), new = differentiate(
                    state.trainable, statistics, images, batch, key, share, 1.0 / parts
                )
                gradients = jax.tree.map(jnp.add, gradients, new)
                return (loss + own, statistics, gradients), (logits, terms)

            zeros = jax.tree.map(jnp.zeros_like, state.trainable)
            (loss, statistics, gradients), (logits, terms) = jax.lax.scan(
                accumulate,
                (jnp.zeros(()), state.statistics, zeros),
                (jnp.arange(parts), *_in_parts((images, batch), parts)),
            )
            terms = {name: term.sum() for name, term in terms.items()}
            logits = logits.swapaxes(0, 1).reshape(-1, *logits.shape[2:])
        further = {"source": source} if "init" in terms else {}
        if averages_statistics(state.optimizer):
            further["statistics"] = statistics
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.trainable, **further
        )
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": loss,
            **task.batch_metrics(logits, batch),
            "grad_norm": global_norm(gradients),
            **terms,
        }
        return TrainState(trainable, statistics, optimizer_state), metrics

    return StepFunction(train_step, penalties.need_source)


def make_train_step(step: StepFunction, mesh: Mesh) -> TrainStep:
    """Returns the step, jitted, the state donated; the source's values are not."""
    whole, rows = replicated(mesh), split_batch(mesh)
    return jit(
        step.function,
        in_shardings=(whole, whole, rows, whole, *([whole] if step.needs_source else [])),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def make_statistics_step(
    model: Model,
    plan: TuningPlan,
    augmentation: Augmentation,
    mesh: Mesh,
    *,
    dtype: str,
    seed: int,
    mixing: Mixing = NO_MIXING,
    parts: int = 1,
) -> StatisticsStep:
    """Returns `step(values, batch, step, count) -> statistics`, jitted: those that move, with one more batch in their mean.

    `values` are all of the network, the statistics among them the mean over `count` batches so far; with none they do not
    matter. The network, what it drops and its inputs are those of the training step of the same number. A statistic of
    a part that training does not run is returned as it was.
    """
    forward = training_model(model, plan, dtype)
    for path, module in nnx.iter_modules(forward):
        if isinstance(module, BatchNorm) and ".".join(map(str, path)) in plan.training_norms:
            module.momentum = 1.0  # what it is left with are the statistics of the batch
    inputs_of = _training_inputs(augmentation, mixing, model.meta.preprocess, seed)

    def statistics_step(state: Values, batch: Any, step: jax.Array, count: jax.Array) -> Values:
        images, _, dropping = inputs_of(batch, step)

        def add(mean: Values, images: jax.Array, key: jax.Array, count: jax.Array) -> Values:
            network = with_values(forward, {**state, **mean})
            network.training_outputs(images, key)
            found = values(network)
            return {
                path: jnp.where(count == 0, found[path], old + (found[path] - old) / (count + 1))
                for path, old in mean.items()
            }

        mean = {path: state[path] for path in plan.statistics}
        if parts == 1:
            return add(mean, images, dropping, count)

        def accumulate(mean: Values, part: Any) -> Any:
            number, images = part
            key = jax.random.fold_in(dropping, number)
            return add(mean, images, key, parts * count + number), None

        numbered = (jnp.arange(parts), _in_parts(images, parts))
        return jax.lax.scan(accumulate, mean, numbered)[0]

    whole, rows = replicated(mesh), split_batch(mesh)
    return jit(statistics_step, in_shardings=(whole, rows, whole, whole), out_shardings=whole)


def make_eval_step(
    model: Model, task: Task | None, mesh: Mesh, *, dtype: str, start: int = 0
) -> EvalStep:
    """Returns `step(values, batch) -> outcomes`, jitted: per-example results, [B, ...] on every device.

    With `start` the inputs are what `Model.prefix` makes of the pictures or texts. Without a task the outcomes are the logits.
    """
    forward = inference_model(model, dtype, start)
    preprocess = model.meta.preprocess

    def eval_step(state: Values, batch: Any) -> dict[str, jax.Array]:
        inputs = batch["inputs"] if start else network_input(batch["inputs"], preprocess)
        logits = with_values(forward, state)(inputs)
        return {"logits": logits} if task is None else task.outcomes(logits, batch)

    whole, rows = replicated(mesh), split_batch(mesh)
    return jit(eval_step, in_shardings=(whole, rows), out_shardings=whole)


def make_prefix_step(
    model: Model, augmentation: Augmentation | None, mesh: Mesh, *, dtype: str, start: int
) -> PrefixStep:
    """Returns `step(values, inputs, key) -> what Model.prefix makes of them`, jitted, [B, ...] on every device.

    The pictures are uint8 [B, S, S, C]; with an augmentation, which `key` draws, they are on its canvas.
    """
    forward = inference_model(model, dtype)
    preprocess = model.meta.preprocess

    def prefix_step(state: Values, inputs: jax.Array, key: jax.Array) -> jax.Array:
        images = inputs if augmentation is None else augmentation(key, inputs)
        return with_values(forward, state).prefix(network_input(images, preprocess), start)

    whole, rows = replicated(mesh), split_batch(mesh)
    return jit(prefix_step, in_shardings=(whole, rows, whole), out_shardings=whole)


def _training_inputs(
    augmentation: Augmentation,
    mixing: Mixing,
    preprocess: Preprocess,
    seed: int,
    start: int = 0,
) -> Callable[[Any, jax.Array], tuple[jax.Array, Any, jax.Array]]:
    """Returns `(batch, step) -> (images, batch, key)`: augmented and mixed, and the key of what the network drops."""

    def inputs_of(batch: Any, step: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        if start:
            return batch["inputs"], batch, jax.random.fold_in(key, DROPPING)
        images = network_input(augmentation(key, batch["inputs"]), preprocess)
        images, batch = mixing(jax.random.fold_in(key, MIXING), images, batch)
        return images, batch, jax.random.fold_in(key, DROPPING)

    return inputs_of


def _in_parts(tree: Any, parts: int) -> Any:
    """Maps [B, ...] to [parts, B / parts, ...]: every part takes rows from all over the batch, and so from every device."""
    return jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), tree)
