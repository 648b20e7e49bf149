"""Inception-v3: torchvision's, and timm's, which has the same names but no auxiliary classifier."""

import functools

from tests.models.reference import timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params, the auxiliary classifier's among them.
PARAMETERS = {"inception_v3": 27_161_264}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {"inception_v3": (1, 97, 131)}

SLOW = ("inception_v3",)

_STAGES = {"mixed5": "Mixed_5d", "mixed6": "Mixed_6e", "mixed7": "Mixed_7c"}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    return (
        Original(
            functools.partial(inception, name),
            "torchvision",
            {"stem": "maxpool2", **_STAGES},
            _torchvision_features,
        ),
        Original(
            functools.partial(timm_model, name),
            "timm",
            {"stem": "Pool2", **_STAGES},
            lambda module, x: module.forward_features(x).mean((2, 3)),
        ),
    )


def inception(name="inception_v3", *, transform_input=False, **options):
    """torchvision's network; as it is built for its published weights, but for `transform_input`."""
    return torchvision_model(
        name, transform_input=transform_input, aux_logits=True, init_weights=False, **options
    )


def _torchvision_features(module, x):
    for name, layer in module.named_children():
        if name == "avgpool":
            return layer(x).flatten(1)
        x = x if name == "AuxLogits" else layer(x)
    raise AssertionError("no avgpool")
