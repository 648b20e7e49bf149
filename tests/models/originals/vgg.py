"""VGG: torchvision's, and timm's, whose linear layers are convolutions."""

import functools

from tests.models.reference import timm_features, timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params.
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {"vgg11_bn": (1, 65, 97)}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    return (
        Original(
            functools.partial(torchvision_model, name, init_weights=False),
            "torchvision",
            functools.partial(_outputs, _torchvision_prelogits),
            _torchvision_prelogits,
        ),
        Original(
            functools.partial(timm_model, name),
            "timm",
            functools.partial(_outputs, timm_features),
            timm_features,
        ),
    )


def _torchvision_prelogits(module, x):
    return module.classifier[:6](module.avgpool(module.features(x)).flatten(1))


def _outputs(prelogits, module, x):
    found, y = {}, x
    for layer in module.features:
        y = layer(y)
        if type(layer).__name__ == "MaxPool2d":
            found[f"block{len(found) + 1}"] = y.permute(0, 2, 3, 1)
    return found | {"prelogits": prelogits(module, x)}
