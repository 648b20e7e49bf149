import json
import math

import numpy as np
import pytest

from tests import levels
from tlx import main
from tlx.errors import InputError
from tlx.lr_find import HIGHEST, LOWEST, STEPS, RangeTest, lr_find

RATES = tuple((LOWEST * (HIGHEST / LOWEST) ** (np.arange(STEPS) / (STEPS - 1))).tolist())


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    fall = 2.0 - 1.5 / (1.0 + np.exp(-4.0 * (np.log10(RATES) + 3.0)))  # about 1e-3
    losses = np.where(np.array(RATES) > 0.1, 9.0, fall)
    found = RangeTest(RATES, tuple(losses.tolist()))
    assert 1e-3 <= found.suggestion <= 1e-1  # the average lags behind
    weights = 0.98 ** np.arange(50)[::-1]
    assert found.smoothed[49] == pytest.approx((weights * losses[:50]).sum() / weights.sum())


def test_nothing_is_suggested_where_nothing_falls():
    assert math.isnan(RangeTest(RATES, tuple(np.linspace(1, 5, STEPS))).suggestion)
    assert math.isnan(RangeTest(RATES[:3], (2.0, 1.0, 0.5)).suggestion)


@pytest.fixture
def fields(tmp_path):
    return levels.fields(tmp_path) | {
        "train.steps": 4,
        "tune.method": "head",
        "data.labels_per_class": 0,
    }


def test_the_range_is_run_through_until_the_loss_diverges(tmp_path, fields, capsys):
    found = lr_find(fields | {"optimizer.options": "momentum=0.0"}, tmp_path / "run")
    assert found.rates == pytest.approx(RATES[: len(found.rates)], rel=1e-4)
    assert 20 < len(found.losses) <= STEPS
    assert np.ptp(found.losses[:5]) < 0.5 * max(found.losses)  # the first rates change nothing
    assert np.isfinite(found.losses).all()
    stored = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    assert stored["rates"] == list(found.rates) and stored["suggestion"] == found.suggestion
    assert (tmp_path / "run" / "lr_find.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["lr_find.json", "lr_find.png"]
    assert f"suggestion: --config.optimizer.lr={found.suggestion:.2g}" in capsys.readouterr().out


def test_as_a_command_and_with_what_is_wrong(tmp_path, fields, capsys):
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["--config=configs/digits.py", "--mode=lr_find", f"--workdir={tmp_path / 'run'}"]
    assert main.main([*command, *arguments, "--config.optimizer.lr=-1"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert main.main([*command, *arguments]) == 0
    with pytest.raises(InputError, match="nothing is left to train"):
        lr_find(fields | {"tune.method": "rules", "tune.rules": ".*=frozen"}, tmp_path / "other")
    assert not (tmp_path / "other").exists()
