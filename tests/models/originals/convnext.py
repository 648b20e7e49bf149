"""ConvNeXt: torchvision's, timm's, the authors' names as timm reads them, and transformers'."""

import functools
import re

from tests.models.originals.renamed import Renamed
from tests.models.reference import timm_features, timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params.
PARAMETERS = {
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {"convnext_tiny": (1, 65, 97)}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    return (
        Original(
            functools.partial(torchvision_model, name),
            "torchvision",
            _torchvision_outputs,
            lambda module, x: module.classifier[:2](module.avgpool(module.features(x))),
        ),
        Original(
            functools.partial(timm_model, name),
            "timm",
            _timm_outputs,
            timm_features,
        ),
        Original(
            functools.partial(_facebook, name),
            "facebook",
            lambda module, x: _timm_outputs(module.module, x),
            lambda module, x: _timm_outputs(module.module, x)["norm"],
        ),
        Original(
            functools.partial(transformers_convnext, name),
            "transformers",
            _transformers_outputs,
            lambda module, x: module.convnext(x).pooler_output,
            lambda module, x: module(x).logits,
        ),
    )


def _last(maps):
    return {name: y.permute(0, 2, 3, 1) if y.ndim == 4 else y for name, y in maps.items()}


def _torchvision_outputs(module, x):
    found = {}
    for index, layer in enumerate(module.features):
        x = layer(x)
        if index == 0:
            found["stem"] = x
        elif index % 2:
            found[f"stage{(index + 1) // 2}"] = x
    return _last(found | {"norm": module.classifier[:2](module.avgpool(x))})


def _timm_outputs(module, x):
    found = {"stem": module.stem(x)}
    x = found["stem"]
    for index, stage in enumerate(module.stages):
        x = found[f"stage{index + 1}"] = stage(x)
    return _last(found | {"norm": module.forward_head(x, pre_logits=True)})


def _transformers_outputs(module, x):
    y = module.convnext.embeddings(x)
    found = {"stem": y}
    for index, stage in enumerate(module.convnext.encoder.stages):
        y = found[f"stage{index + 1}"] = stage(y)
    return _last(found | {"norm": module.convnext.layernorm(y.mean((2, 3)))})


def _facebook(name: str) -> Renamed:
    """timm's network with the names of the authors' files."""
    from timm.models.convnext import checkpoint_filter_fn

    return Renamed(timm_model(name), _as_facebook, checkpoint_filter_fn)


def _as_facebook(state):
    rules = (
        (r"head\.norm\.", "norm."),
        (r"head\.fc\.", "head."),
        (r"stem\.", "downsample_layers.0."),
        (r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"(stages\.\d+)\.blocks\.", r"\1."),
        (r"(.*)\.conv_dw\.", r"\1.dwconv."),
        (r"(.*)\.mlp\.fc(\d)\.", r"\1.pwconv\2."),
    )
    found = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(f"^{pattern}", replacement, key)
        found[key] = value
    return found


def transformers_convnext(name: str, epsilon: float = 1e-12):
    """transformers' network; `epsilon` of the last norm is 1e-12 in its default configuration."""
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    from transformers import ConvNextConfig, ConvNextForImageClassification

    from tlx.models.convnext import PRESETS

    preset = PRESETS[name]
    return ConvNextForImageClassification(
        ConvNextConfig(
            depths=preset.depths,
            hidden_sizes=preset.widths,
            num_labels=1000,
            layer_norm_eps=epsilon,
        )
    )
