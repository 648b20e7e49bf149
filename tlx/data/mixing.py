"""Mixing the examples of a training batch: mixup and CutMix, on the device, one draw for each batch.

Example i is mixed with example B - 1 - i, its partner in the reversed batch (as timm's Mixup): a
batch is in random order already, and every example is the larger share of one pair. In a batch of
odd size the middle one is its own partner.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tlx.config import TrainConfig
from tlx.errors import InputError


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The alphas of the two methods, 0: off. Where both are on each batch draws one, with probability 1/2."""

    mixup: float = 0.0
    cutmix: float = 0.0
    num_classes: int = 0  # needed where targets are classes, int [B]

    def __call__(
        self, key: jax.Array, images: jax.Array, batch: dict[str, Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns mixed images and the batch with its targets mixed in the same share, float [B, C].

        Args:
          key: of the step.
          images: float [B, H, W, C], augmented.
          batch: targets, int [B] or float [B, C], and what else belongs to the examples.
        """
        if not self.mixup and not self.cutmix:
            return images, batch
        choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
        height, width = images.shape[1:3]
        share = jnp.ones((height, width))
        if self.mixup:
            share = mixup_share(mixup_key, self.mixup, height, width)
        if self.cutmix:
            cut = cutmix_share(cutmix_key, self.cutmix, height, width)
            chosen = jax.random.bernoulli(choice_key) if self.mixup else True
            share = jnp.where(chosen, cut, share)
        return mix(images, batch, share, self.num_classes)


NO_MIXING = Mixing()


def make_mixing(train: TrainConfig, num_classes: int) -> Mixing:
    """Returns the mixing that the config asks for. The parts of `train.accumulate` are cut from a batch that is mixed.

    Raises:
      InputError: a batch of one example, which has nothing to be mixed with.
    """
    for field, alpha in (("mixup", train.mixup), ("cutmix", train.cutmix)):
        if alpha and train.batch_size == 1:
            raise InputError(
                f"train.{field} is {alpha:g}, but train.batch_size is 1: an example would be mixed with itself; "
                f"use batches of 2 or more, or train.{field}=0"
            )
    return Mixing(train.mixup, train.cutmix, num_classes)


def mixup_share(key: jax.Array, alpha: float, height: int, width: int) -> jax.Array:
    """Returns the share that an example keeps of its pixels, float [H, W], the same everywhere.

    It is drawn from Beta(alpha, alpha) (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization").
    """
    return jnp.full((height, width), jax.random.beta(key, alpha, alpha))


def cutmix_share(key: jax.Array, alpha: float, height: int, width: int) -> jax.Array:
    """Returns 1 for the pixels that an example keeps and 0 for its partner's, float [H, W].

    The partner's are a box in the picture's proportions whose area is 1 - lambda of it, lambda drawn
    from Beta(alpha, alpha), around a uniform centre and cut at the border (Yun et al. 2019, "CutMix",
    algorithm A1; sides as in timm's `rand_bbox`).
    """
    share_key, y_key, x_key = jax.random.split(key, 3)
    ratio = jnp.sqrt(1.0 - jax.random.beta(share_key, alpha, alpha))

    def inside(centre_key: jax.Array, side: int) -> jax.Array:
        half = (side * ratio).astype(jnp.int32) // 2
        centre = jax.random.randint(centre_key, (), 0, side)
        return (jnp.arange(side) >= centre - half) & (jnp.arange(side) < centre + half)

    box = inside(y_key, height)[:, None] & inside(x_key, width)[None, :]
    return jnp.where(box, 0.0, 1.0)


def mix(
    images: jax.Array, batch: dict[str, Any], share: jax.Array, num_classes: int
) -> tuple[jax.Array, dict[str, Any]]:
    """Returns images and batch mixed with their reverse; targets in the share that the pixels have on average.

    Args:
      images: float [B, H, W, C].
      batch: as for `Mixing`.
      share: of its own pixels that an example keeps, float [H, W] in [0, 1].
      num_classes: of the targets.
    """
    targets = batch["targets"]
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)
    own = share.mean()
    pixels = share[None, :, :, None]
    return images * pixels + images[::-1] * (1.0 - pixels), {
        **batch,
        "targets": targets * own + targets[::-1] * (1.0 - own),
    }
