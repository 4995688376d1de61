"""Terms of a loss. B batch, M target length, V vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def token_losses(logits: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
  """Cross-entropy (B, M) in nats, float32, of each target token; 0 at masked places."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)
  return jnp.where(mask, losses, 0.0)


def distillation_loss(logits: jax.Array, taught: jax.Array, mask: jax.Array) -> jax.Array:
  """Sum of KL(softmax taught || softmax logits), in nats, float32, over the places (B, M) of a
  mask; both (B, M, V).
  """
  now, before = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, taught))
  divergence = optax.losses.kl_divergence_with_log_targets(now, before)
  return jnp.sum(jnp.where(mask, divergence, 0.0))
