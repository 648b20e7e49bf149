"""Swin: torchvision's, timm's, the authors' names as timm reads them, and transformers'."""

import functools
import re

import numpy as np

from tests.models.originals.renamed import Renamed
from tests.models.reference import timm_features, timm_model, torchvision_model
from tests.models.zoo import Original

# torchvision's documented num_params.
PARAMETERS = {
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {"swin_tiny_patch4_window7_224": (1, 224, 224)}


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each key table."""
    short = f"swin_{name.split('_')[1][0]}"
    return (
        Original(
            functools.partial(torchvision_model, short),
            "torchvision",
            _torchvision_outputs,
            lambda module, x: module.norm(module.features(x)).mean((1, 2)),
        ),
        Original(
            functools.partial(timm_model, name),
            "timm",
            _timm_outputs,
            timm_features,
        ),
        Original(
            functools.partial(_microsoft, name),
            "microsoft",
            lambda module, x: _timm_outputs(module.module, x),
            lambda module, x: _timm_outputs(module.module, x)["norm"],
        ),
        Original(
            functools.partial(_transformers_files, name),
            "transformers",
            lambda module, x: _transformers_outputs(module.module, x),
            lambda module, x: module.module.swin(x).pooler_output,
            lambda module, x: module(x).logits,
        ),
        Original(
            functools.partial(transformers_swin, name),
            "transformers5",
            _transformers_outputs,
            lambda module, x: module.swin(x).pooler_output,
            lambda module, x: module(x).logits,
        ),
    )


def _torchvision_outputs(module, x):
    found = {}
    for index, layer in enumerate(module.features):
        x = layer(x)
        if index == 0:
            found["stem"] = x
        elif index % 2:
            found[f"stage{(index + 1) // 2}"] = x
    return found | {"norm": module.norm(x).mean((1, 2))}


def _timm_outputs(module, x):
    found = {"stem": module.patch_embed(x)}
    x = found["stem"]
    for index, stage in enumerate(module.layers):
        x = found[f"stage{index + 1}"] = stage(x)
    return found | {"norm": module.forward_head(module.norm(x), pre_logits=True)}


def _transformers_outputs(module, x):
    y, (height, width) = module.swin.embeddings(x)
    found = {"stem": y.unflatten(1, (height, width))}
    for index, stage in enumerate(module.swin.encoder.layers):
        for block in stage.blocks:
            y, _ = block(y, (height, width))
        found[f"stage{index + 1}"] = y.unflatten(1, (height, width))
        if stage.downsample is not None:
            y = stage.downsample(y, (height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
    return found | {"norm": module.swin.layernorm(y).mean(1)}


def _microsoft(name: str) -> Renamed:
    """timm's network with the names and buffers of the authors' files."""
    from timm.models.swin_transformer import checkpoint_filter_fn

    module = timm_model(name)
    # Both projects compute the buffers with the same code; timm no longer stores them.
    buffers = {
        key: value
        for key, value in module.named_buffers()
        if key.endswith(("relative_position_index", "attn_mask"))
    }

    def publish(state):
        found = {}
        for key, value in state.items():
            key = re.sub(
                r"layers\.(\d+)\.downsample",
                lambda match: f"layers.{int(match[1]) - 1}.downsample",
                key,
            )
            found[key.replace("head.fc.", "head.")] = value
        return found | buffers

    return Renamed(module, publish, checkpoint_filter_fn)


def _transformers_files(name: str) -> Renamed:
    """transformers' network with the names of its files: those that version 4 gives and 5 reads."""
    module = transformers_swin(name)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import apply_renamings

    index = relative_position_index()

    def publish(state):
        import torch

        found = {}
        for key, value in state.items():
            for new, old in (
                (".q_proj.", ".self.query."),
                (".k_proj.", ".self.key."),
                (".v_proj.", ".self.value."),
                (".attention.relative_position_bias.", ".attention.self."),
                (".o_proj.", ".output.dense."),
                (".mlp.fc1.", ".intermediate.dense."),
                (".mlp.fc2.", ".output.dense."),
            ):
                key = key.replace(new, old)
            found[key] = value
            if key.endswith("relative_position_bias_table"):
                found[key.replace("bias_table", "index")] = torch.from_numpy(index)
        return found

    def read(state, module):
        renamings = get_checkpoint_conversion_mapping("swin")
        found = {apply_renamings(key, renamings): value for key, value in state.items()}
        return {key: value for key, value in found.items() if not key.endswith("_index")}

    return Renamed(module, publish, read)


def relative_position_index() -> np.ndarray:
    """The buffer of version 4, [49, 49]: for a pair of patches the row of the bias table."""
    index = np.empty((49, 49), np.int64)
    for query in range(49):
        for key in range(49):
            down, right = query // 7 - key // 7, query % 7 - key % 7
            index[query, key] = (down + 6) * 13 + right + 6
    return index


def transformers_swin(name: str):
    """transformers' network with random weights."""
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    from transformers import SwinConfig, SwinForImageClassification

    from tlx.models.swin import HEAD_FEATURES, PRESETS

    preset = PRESETS[name]
    heads = tuple(preset.width // HEAD_FEATURES * 2**i for i in range(4))
    return SwinForImageClassification(
        SwinConfig(embed_dim=preset.width, depths=preset.depths, num_heads=heads, num_labels=1000)
    )
