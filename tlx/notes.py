"""What a run tells its user of a setup before it begins, beside its plan."""

from __future__ import annotations

from tlx.models.leaves import is_within
from tlx.setup import Setup, Tuning
from tlx.tasks import LossOptions
from tlx.training.statistics import batches_of_estimate


def describe_drawn(setup: Setup) -> list[str]:
    """Returns a warning of stages that the weights lack something of, which stays as it is drawn.

    It is none where all values are drawn (model.weights=none): features of a random network are asked for.
    """
    frozen = [path for path in setup.weights.fresh if path in set(setup.plans[-1].frozen)]
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
