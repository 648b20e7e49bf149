"""SqueezeNet: torchvision's."""

import functools

from tests.models.reference import torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params.
PARAMETERS = {"squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {"squeezenet1_0": (2, 64, 83), "squeezenet1_1": (1, 97, 70)}

_STAGES = {
    "squeezenet1_0": {"stem": "2", "stage1": "6", "stage2": "11", "stage3": "12"},
    "squeezenet1_1": {"stem": "2", "stage1": "5", "stage2": "8", "stage3": "12"},
}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    return (
        Original(
            functools.partial(torchvision_model, name),
            "torchvision",
            {stage: f"features.{index}" for stage, index in _STAGES[name].items()},
            lambda module, x: module.features(x).mean((2, 3)),
        ),
    )
