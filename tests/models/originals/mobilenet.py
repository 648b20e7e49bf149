"""MobileNet-V2 and V3: torchvision's and timm's."""

import functools

import numpy as np

from tests.models.reference import timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params; timm's networks have as many.
PARAMETERS = {
    "mobilenetv2_100": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "mobilenetv3_large_100": 5_483_032,
    "mobilenetv3_small_100": 2_542_856,
}

GOLDENS = {
    "mobilenetv2_100": (1, 65, 97),
    "mobilenetv3_small_100": (1, 65, 97),
}

# Of each stage, the position of its last block in torchvision's flat sequence.
_LAST = {
    "mobilenetv2_100": (1, 3, 6, 10, 13, 16, 17),
    "mobilenet_v3_large": (1, 3, 6, 10, 12, 15),
    "mobilenet_v3_small": (1, 3, 6, 8, 11),
}


def _v2_values(arrays):
    """Convolutions drawn smaller: PyTorch's own float32 is 3e-5 off its float64 otherwise (0.8: 1e-6)."""
    return {k: a * np.float32(0.8) if a.ndim == 4 else a for k, a in arrays.items()}


def _v3_values(arrays):
    """Squeeze-excites drawn smaller: saturated gates make PyTorch's float32 5e-5 off (halved: 2e-6)."""
    gates = (".fc1.weight", ".fc2.weight", ".conv_reduce.weight", ".conv_expand.weight")
    return {k: a * np.float32(0.5) if k.endswith(gates) else a for k, a in arrays.items()}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    found = []
    if name in _LAST:
        found.append(_torchvision(name))
    if name.endswith("_100"):
        found.append(_timm(name, v3=name != "mobilenetv2_100"))
    return tuple(found)


def _torchvision(name):
    last = _LAST[name]
    stages = {f"stage{i + 1}": f"features.{n}" for i, n in enumerate(last)}
    if name == "mobilenetv2_100":
        build = functools.partial(torchvision_model, "mobilenet_v2")
        stages |= {"stem": "features.0", "conv_head": f"features.{last[-1] + 1}"}
        return Original(
            build,
            "torchvision",
            stages,
            lambda m, x: m.features(x).mean((2, 3)),
            values=_v2_values,
        )
    build = functools.partial(torchvision_model, name)
    stages |= {"stem": "features.0", "conv_head": "classifier.1"}
    return Original(build, "torchvision", stages, _torchvision_v3_features, values=_v3_values)


def _torchvision_v3_features(module, x):
    return module.classifier[:2](module.features(x).mean((2, 3)))


def _timm(name, *, v3):
    build = functools.partial(timm_model, name)
    stages = {f"stage{i + 1}": f"blocks.{i}" for i in range(_timm_stages(name))}
    stages |= {"stem": "bn1", "conv_head": "flatten" if v3 else "bn2"}
    return Original(
        build,
        "timm",
        stages,
        lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
        values=_v3_values if v3 else _v2_values,
    )


def _timm_stages(name):
    return {"mobilenetv2_100": 7, "mobilenetv3_large_100": 6, "mobilenetv3_small_100": 5}[name]
