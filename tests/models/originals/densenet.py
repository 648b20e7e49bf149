"""DenseNet: torchvision's, under its present names and under those of the files it publishes."""

import functools
import re

from tests.models.originals.renamed import Renamed
from tests.models.reference import torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params.
PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {"densenet121": (1, 97, 131)}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    return (
        Original(functools.partial(torchvision_model, name), "torchvision", _outputs, _features),
        Original(
            functools.partial(_published, name),
            "torchvision_published",
            lambda module, x: _outputs(module.module, x),
            lambda module, x: _features(module.module, x),
        ),
    )


def _outputs(module, x):
    found = {}
    for name, layer in module.features.named_children():
        x = layer(x)
        # The last of the layers before the next stage's begin is what the stage returns.
        number = re.search(r"\d", name).group()
        stage = "stem" if number == "0" else f"denseblock{min(int(number), 4)}"
        found[stage] = x.permute(0, 2, 3, 1)
    return found | {"denseblock4": found["denseblock4"].relu()}


def _features(module, x):
    return module.features(x).relu().mean((2, 3))


def _published(name):
    """torchvision's network, its state under the names of its files of 2017, read as torchvision reads them."""
    return Renamed(
        torchvision_model(name),
        lambda state: {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        },
        lambda state, _: {
            re.sub(
                r"(denselayer\d+\.(?:norm|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$",
                r"\1\2",
                key,
            ): value
            for key, value in state.items()
        },
    )
