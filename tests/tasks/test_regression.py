from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tlx.config import TrainConfig, build, digest, sign_of
from tlx.data.pipeline import evaluation_batches, make_splits
from tlx.data.source import load_splits
from tlx.errors import InputError
from tlx.evaluation.report import Report, Shown, write_report
from tlx.tasks import LossOptions, regression
from tlx.weights.meta import ImagePreprocess

RNG = np.random.default_rng(0)
TARGETS = (RNG.integers(0, 11, 60) / 2).astype(np.float32)  # with ties, as STS-B
LOGITS = (TARGETS + RNG.standard_normal(60) * 1.5).astype(np.float32)[:, None]
LOGITS[::7] = LOGITS[0]  # ties here too


def batch(targets: Any = TARGETS, weight: Any = None) -> dict[str, Any]:
    ones = np.ones(len(targets), np.float32)
    return {"targets": targets, "weight": ones if weight is None else weight}


def evaluated(logits: Any = LOGITS, targets: Any = TARGETS) -> regression.Evaluation:
    found = jax.device_get(regression.outcomes(jnp.asarray(logits), batch(targets)))
    return regression.evaluation(targets, found, ())


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "theirs"), [("mse", "MSELoss"), ("mae", "L1Loss"), ("huber", "HuberLoss")]
)
def test_losses_are_pytorchs(name: str, theirs: str) -> None:
    import torch

    logits = torch.from_numpy(LOGITS.copy()).requires_grad_()
    expected = getattr(torch.nn, theirs)()(logits.squeeze(1), torch.from_numpy(TARGETS))
    expected.backward()
    options = regression.loss_options(TrainConfig(loss=name), TARGETS, ())
    found, gradient = jax.value_and_grad(lambda z: regression.loss(z, batch(), options))(
        jnp.asarray(LOGITS)
    )
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-5, atol=1e-8)


def test_padding_does_not_count() -> None:
    weight = np.ones(60, np.float32)
    weight[40:] = 0
    wild = np.where(weight[:, None] > 0, LOGITS, 1e3).astype(np.float32)
    expected = np.mean((LOGITS[:40, 0] - TARGETS[:40]) ** 2)
    found = regression.loss(jnp.asarray(wild), batch(weight=weight))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    nothing = regression.loss(jnp.asarray(LOGITS), batch(weight=np.zeros(60, np.float32)))
    assert float(nothing) == 0.0


def test_the_loss_is_the_tasks_own_unless_it_is_set() -> None:
    assert regression.loss_options(TrainConfig(), TARGETS, ()) == LossOptions(name="mse")
    plain, named = ({"task": "regression"} | own for own in ({}, {"train.loss": "mse"}))
    assert digest(build(plain)) == digest(build(named))
    assert digest(build(plain)) != digest(build(plain | {"train.loss": "mae"}))
    for task, own in (("classification", "cross_entropy"), ("multilabel", "bce")):
        assert digest(build({"task": task})) == digest(build({"task": task, "train.loss": own}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"loss": "cross_entropy"},
            r"'cross_entropy' \(of a regression there are: mse, mae, huber",
        ),
        ({"loss": "msa"}, r"did you mean 'ms?"),
        ({"label_smoothing": 0.1}, r"train\.label_smoothing is for tasks with classes"),
        ({"class_weights": ("auto",)}, r"train\.class_weights is for tasks with classes"),
        ({"mixup": 0.2}, r"train\.mixup is for tasks with classes"),
    ],
)
def test_what_only_classes_have_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        regression.loss_options(TrainConfig(**fields), TARGETS, ())


def test_metrics_are_those_of_scipy_and_scikit_learn() -> None:
    summary = evaluated().summary()
    outputs = LOGITS[:, 0].astype(np.float64)
    expected = {
        "spearman": scipy.stats.spearmanr(TARGETS, outputs).statistic,
        "pearson": scipy.stats.pearsonr(TARGETS.astype(np.float64), outputs).statistic,
        "r2": sklearn.metrics.r2_score(TARGETS, outputs),
        "mse": sklearn.metrics.mean_squared_error(TARGETS, outputs),
        "mae": sklearn.metrics.mean_absolute_error(TARGETS, outputs),
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(float(value), rel=1e-10), name
    assert summary["loss"] == summary["mse"] and summary["examples"] == 60
    assert set(regression.metrics(0)) <= set(summary)
    np.testing.assert_array_equal(
        regression.ranks(LOGITS[:, 0]), scipy.stats.rankdata(LOGITS[:, 0])
    )


def test_a_perfect_order_is_1_and_its_reverse_minus_1() -> None:
    targets = np.arange(9, dtype=np.float32)
    assert evaluated(np.exp(targets)[:, None], targets).summary()["spearman"] == 1.0
    assert evaluated(-np.exp(targets)[:, None], targets).summary()["spearman"] == -1.0
    perfect = evaluated(targets[:, None], targets).summary()
    assert (perfect["r2"], perfect["mse"], perfect["mae"]) == (1.0, 0.0, 0.0)


def test_what_is_not_defined_is_nan() -> None:
    constant = evaluated(np.ones((60, 1), np.float32)).summary()
    assert np.isnan(constant["spearman"]) and np.isnan(constant["pearson"])
    assert constant["r2"] <= 0
    same = evaluated(targets=np.ones(60, np.float32)).summary()
    assert np.isnan(same["r2"]) and np.isnan(same["spearman"])
    broken = LOGITS.copy()
    broken[3] = np.nan
    found = evaluated(broken)
    assert all(np.isnan(found.summary()[name]) for name in regression.metrics(0))
    assert found.worst(1).tolist() == [3]


def test_selection_knows_which_way_is_better() -> None:
    for name in regression.metrics(0):
        good, bad = evaluated(TARGETS[:, None] + 0.01 * LOGITS), evaluated()
        sign = sign_of(name)
        assert sign * good.summary()[name] > sign * bad.summary()[name], name


def test_worst_are_furthest_off() -> None:
    targets = np.zeros(4, np.float32)
    found = evaluated(np.array([[1.0], [-3.0], [0.0], [2.0]], np.float32), targets)
    assert found.worst(9).tolist() == [1, 3, 0] and found.worst(1).tolist() == [1]
    assert found.per_class() == {}
    assert found.headline().endswith("mae 1.5000  (4 examples)")


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_report(tmp_path: Path, broken: bool, pictures: bool) -> None:
    found = evaluated(np.full_like(LOGITS, np.nan) if broken else LOGITS)
    picture = np.zeros((4, 4, 3), np.uint8) if pictures else None
    worst = found.worst(3)
    text = ("one", "the other")
    shown = [Shown(int(i), picture, f"test.tsv line {i + 2}", text) for i in worst]
    section = found.section(shown)
    records = [{"step": 1, "train/loss": 2.0, "val/loss": 1.5, "val/spearman": 0.3}]
    write_report(tmp_path, Report("t", "", {}, "", records, "test", section))
    text = (tmp_path / "report.md").read_text()
    assert (tmp_path / "report" / "scatter.png").is_file() == (not broken)
    assert (tmp_path / "report" / "mistakes.png").is_file() == pictures
    assert ("report/scatter.png" in text) == (not broken)
    index = int(worst[0])
    source = f"test.tsv line {index + 2}" + ("" if pictures else " | one / the other")
    row = f"| {source} | {TARGETS[index]:.4g} | "
    assert row in text and text.count("test.tsv line") == 3


def test_numbers_of_pictures_become_targets(tmp_path: Path) -> None:
    from PIL import Image

    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    (tmp_path / "x.csv").write_text("path,label\na,0.5\nb,-2\nc,1e3\n")
    config = build({"data.source": "table", "data.root": str(tmp_path / "x.csv")})
    splits = load_splits(config.data, 0, targets=regression.TARGETS)
    assert splits.train and splits.test and splits.class_names == ()
    preprocess = ImagePreprocess(size=4, resize=4)
    split = make_splits({"train": (splits.train, 4)}, preprocess, config.data)["train"]
    (found,) = evaluation_batches(split, batch_size=3)
    assert found["targets"].dtype == np.float32
    values = {"a": 0.5, "b": -2.0, "c": 1000.0}
    expected = [values[Path(splits.train.name(i)).name] for i in range(2)]
    assert found["targets"].tolist() == [*expected, 0.0] and found["weight"].tolist() == [1, 1, 0]
