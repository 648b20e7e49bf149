"""torchvision's and timm's names for networks of inverted residual blocks."""

from __future__ import annotations

from collections.abc import Iterator

from tlx.models.mbconv import Block, MBConvPreset
from tlx.weights.keymap import CONV_AS_LINEAR, Key, KeyTable, batchnorm, conv, linear

# A block's layers but the squeeze-excite -> timm's names of their convolutions; the norms are bn1, bn2, ...
_TIMM_CONVS = {
    ("expand", "depthwise", "project"): ("conv_pw", "conv_dw", "conv_pwl"),
    ("depthwise", "project"): ("conv_dw", "conv_pw"),
    ("expand", "project"): ("conv_exp", "conv_pwl"),
    ("conv",): ("conv",),
}


def blocks(preset: MBConvPreset) -> Iterator[tuple[int, int, Block, str]]:
    """Yields for each block its stage and its position, from 0, itself, and its path."""
    for stage, members in enumerate(preset.stages):
        for position, block in enumerate(members):
            yield stage, position, block, f"stage{stage + 1}.{position}"


def conv_norm(conv_name: str, bn_name: str, target: str) -> tuple[Key, ...]:
    """The rows of a convolution and its BatchNorm."""
    return (conv(conv_name, f"{target}.conv"), *batchnorm(bn_name, f"{target}.bn"))


def torchvision_block(source: str, target: str, block: Block, *, nested: bool) -> Iterator[Key]:
    """Yields the rows of a block that torchvision has as one sequence.

    Args:
      source: the sequence's name.
      target: the block's path.
      block: the block.
      nested: whether the projection is a sequence inside the sequence, as all but MobileNet-V2 have it.
    """
    for index, layer in enumerate(block.layers):
        theirs, ours = f"{source}.{index}", f"{target}.{layer}"
        if layer == "se":
            yield from linear(f"{theirs}.fc1", f"{ours}.reduce", CONV_AS_LINEAR)
            yield from linear(f"{theirs}.fc2", f"{ours}.expand", CONV_AS_LINEAR)
        elif layer == "project" and not nested:
            yield from conv_norm(theirs, f"{source}.{index + 1}", ours)
        else:
            yield from conv_norm(f"{theirs}.0", f"{theirs}.1", ours)


def timm_table(preset: MBConvPreset) -> KeyTable:
    """Returns timm's key table, which names all these families alike."""
    rows = [*conv_norm("conv_stem", "bn1", "stem"), *linear("classifier", "head")]
    for stage, position, block, target in blocks(preset):
        rows += _timm_block(f"blocks.{stage}.{position}", target, block)
    if preset.projection:
        last = f"blocks.{len(preset.stages)}.0"
        rows += conv_norm(f"{last}.conv", f"{last}.bn1", "conv_head")
        rows += linear("conv_head", "conv_head.linear", CONV_AS_LINEAR)
    else:
        rows += conv_norm("conv_head", "bn2", "conv_head")
    return KeyTable("timm", tuple(rows))


def _timm_block(source: str, target: str, block: Block) -> Iterator[Key]:
    layers = tuple(layer for layer in block.layers if layer != "se")
    for index, (layer, name) in enumerate(zip(layers, _TIMM_CONVS[layers], strict=True)):
        yield from conv_norm(f"{source}.{name}", f"{source}.bn{index + 1}", f"{target}.{layer}")
    if block.squeeze:
        yield from linear(f"{source}.se.conv_reduce", f"{target}.se.reduce", CONV_AS_LINEAR)
        yield from linear(f"{source}.se.conv_expand", f"{target}.se.expand", CONV_AS_LINEAR)
