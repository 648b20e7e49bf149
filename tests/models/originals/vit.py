"""Vision Transformers: timm's; and torchvision's, under its present names and those of its published files.

The names of transformers and of the authors of DINOv2 are compared in test_vit.py, with files and small pictures.
"""

import functools

from tests.models.originals.renamed import Renamed
from tests.models.reference import timm_features, timm_model
from tests.models.zoo import Original

# torchvision's documented num_params for the base and large ones, timm's published counts for the others.
PARAMETERS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch16_224": 304_326_632,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_base_patch14_dinov2": 86_579_712,
    "vit_small_patch14_reg4_dinov2": 22_057_344,
    "vit_base_patch14_reg4_dinov2": 86_582_016,
}

# Name -> pictures, height and width of its golden logits.
GOLDENS = {
    "vit_tiny_patch16_224": (1, 224, 224),
    "vit_small_patch32_224": (1, 224, 224),
}

# Position embeddings are for one size.
ODD_SIZES = dict.fromkeys(PARAMETERS)

# How many of the key tables are compared at full size; all tables of the others are the same rows.
COMPARED = dict.fromkeys(PARAMETERS, 1) | {"vit_tiny_patch16_224": 3, "vit_base_patch32_224": 2}


# Compared as the others are, but not in quick runs.
SLOW = ("vit_large_patch16_224", "vit_base_patch14_dinov2", "vit_base_patch14_reg4_dinov2")


def originals(name: str) -> tuple[Original, ...]:
    """The networks that have the same mathematics under the same name, one for each compared table."""
    all_of_them = (
        Original(
            functools.partial(timm_model, name),
            "timm",
            _timm_outputs,
            timm_features,
        ),
        Original(
            functools.partial(torchvision_vit, name),
            "torchvision",
            _torchvision_outputs,
            lambda module, x: _torchvision_outputs(module, x)["norm"][:, 0],
        ),
        Original(
            functools.partial(_published, name),
            "torchvision_published",
            lambda module, x: _torchvision_outputs(module.module, x),
            lambda module, x: _torchvision_outputs(module.module, x)["norm"][:, 0],
        ),
    )
    return all_of_them[: COMPARED[name]]


def _timm_outputs(module, x):
    found = {"stem": module._pos_embed(module.patch_embed(x))}
    y = found["stem"]
    for index, block in enumerate(module.blocks):
        y = found[f"block{index}"] = block(y)
    return found | {"norm": module.norm(y)}


def _torchvision_outputs(module, x):
    import torch

    y = module._process_input(x)
    y = torch.cat([module.class_token.expand(len(y), -1, -1), y], dim=1)
    found = {"stem": y + module.encoder.pos_embedding}
    y = found["stem"]
    for index, block in enumerate(module.encoder.layers):
        y = found[f"block{index}"] = block(y)
    return found | {"norm": module.encoder.ln(y)}


def torchvision_vit(name: str):
    """torchvision's network, in the preset's size, with random weights."""
    from tests.torchvision_import import import_torchvision
    from tlx.models.vit import PRESETS

    preset = PRESETS[name]
    return import_torchvision().models.VisionTransformer(
        image_size=224,
        patch_size=preset.patch,
        num_layers=preset.depth,
        num_heads=preset.heads,
        hidden_dim=preset.width,
        mlp_dim=4 * preset.width,
    )


def _published(name: str) -> Renamed:
    """torchvision's network with the names of its files, which its modules rename when they are loaded."""

    def publish(state):
        return {
            key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
            for key, value in state.items()
        }

    return Renamed(torchvision_vit(name), publish, lambda state, _module: state)
