"""The same run on 1 and on 8 simulated devices.

From pretrained weights: at random ones and a few pixels, rounding grows a thousandfold in ten steps.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
import jax, numpy as np
from tests.training.test_step import Fixture
it = Fixture(
    model__weights="glyphs", data__image_size=16, data__resize=16, train__batch_size=32,
    optimizer__lr=1e-3, optimizer__schedule="constant", data__augment="pad_crop:1,flip",
)
indices = [np.asarray(b["index"]).tolist() for _, b in zip(range(20), it.batches())]
losses = [float(m["loss"]) for m in it.train(20)]
found = it.setup.evaluate(it.setup.open("test")["test"], {**it.state.trainable, **it.state.statistics, **it.frozen})
print(json.dumps({"devices": jax.device_count(), "indices": indices, "losses": losses,
                  "compilations": it.step._cache_size(), "test": found.summary()}))
"""


def run_on(devices, script=SCRIPT):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
        timeout=500,
    )


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    one, eight = (json.loads(run_on(devices).stdout.splitlines()[-1]) for devices in (1, 8))
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["indices"] == eight["indices"]
    assert one["compilations"] == eight["compilations"] == 1
    np.testing.assert_allclose(eight["losses"][0], one["losses"][0], rtol=1e-6)
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    assert eight["test"]["examples"] == one["test"]["examples"]
    np.testing.assert_allclose(eight["test"]["loss"], one["test"]["loss"], rtol=1e-4)


def test_a_batch_that_does_not_divide_names_both_numbers():
    script = "import sys; from tlx.main import main; sys.exit(main(sys.argv[1:]))"
    done = run_on(
        8,
        script.replace(
            "sys.argv[1:]", "['--config=configs/digits.py', '--config.train.batch_size=12']"
        ),
    )
    assert done.returncode == 2
    assert (
        "train.batch_size is 12, which 8 devices cannot share evenly; use a multiple of 8, as 8"
        in done.stderr
    )
