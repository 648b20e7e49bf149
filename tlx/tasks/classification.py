"""Single-label classification: the loss, and what evaluation keeps of each example."""

from __future__ import annotations

import jax
import jax.numpy as jnp

TOP_K = 5


def loss(
    logits: jax.Array, targets: jax.Array, weight: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the weighted mean cross-entropy, in nats.

    Label smoothing (Szegedy et al. 2015, section 7) spreads that share of the target evenly over all
    classes, as `torch.nn.CrossEntropyLoss` does.

    Args:
      logits: float [B, C].
      targets: int [B].
      weight: float [B]; 0 for padding.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
    per_example = -(1.0 - label_smoothing) * chosen - label_smoothing * log_probs.mean(axis=1)
    return jnp.sum(per_example * weight) / jnp.maximum(weight.sum(), 1.0)


def outcomes(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """Returns for each example, [B]: its loss, prediction, the prediction's probability, top-5 hit."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probs, targets[:, None], axis=1)
    # Ties count against the network, so a constant output is not right by its position.
    better = jnp.sum(log_probs >= own, axis=1) - 1
    return {
        "loss": -own[:, 0],
        "prediction": jnp.argmax(logits, axis=1).astype(jnp.int32),
        "probability": jnp.exp(log_probs.max(axis=1)),
        "top5": (better < TOP_K).astype(jnp.float32),
    }
