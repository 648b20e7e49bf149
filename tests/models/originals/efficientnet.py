"""EfficientNet B0 to B4 and V2 small: torchvision's and timm's."""

import functools

import numpy as np

from tests.models.reference import timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params; timm's networks have as many.
PARAMETERS = {
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_v2_s": 21_458_488,
    "tf_efficientnetv2_s": 21_458_488,
}

GOLDENS = {
    "efficientnet_b0": (1, 65, 97),
    "tf_efficientnetv2_s": (1, 65, 97),
}


def _values(arrays, *, convolutions):
    """Random values drawn smaller.

    Activations of unnormalised random networks grow from stage to stage and saturate the gates: PyTorch's float32
    is then 0.5 of the largest logit off its own float64 (V2 small; 1e-6 with these).
    """
    gates = (".fc1.weight", ".fc2.weight", ".conv_reduce.weight", ".conv_expand.weight")
    return {
        k: a * np.float32(0.5 if k.endswith(gates) else convolutions) if a.ndim == 4 else a
        for k, a in arrays.items()
    }


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    count = 6 if "v2" in name else 7
    values = functools.partial(_values, convolutions=0.8 if count == 6 else 1.0)
    found = []
    if not name.startswith("tf_"):
        last = f"features.{count + 1}"
        stages = {"stem": "features.0", "conv_head": last}
        stages |= {f"stage{i}": f"features.{i}" for i in range(1, count + 1)}
        build = functools.partial(torchvision_model, name)
        found.append(
            Original(
                build,
                "torchvision",
                stages,
                lambda m, x: m.features(x).mean((2, 3)),
                values=values,
            )
        )
    if "_v2_" not in name:
        stages = {"stem": "bn1", "conv_head": "bn2"}
        stages |= {f"stage{i + 1}": f"blocks.{i}" for i in range(count)}
        build = functools.partial(timm_model, name)
        found.append(
            Original(
                build,
                "timm",
                stages,
                lambda m, x: m.forward_features(x).mean((2, 3)),
                values=values,
            )
        )
    return tuple(found)
