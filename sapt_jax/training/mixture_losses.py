"""What a task's answers cost with mixtures that are given: how well blocks do on it before it is
learned. T capacity of the pool.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import sharding
from sapt_jax.backbones.hf import Backbone, Model
from sapt_jax.data.batches import Batch
from sapt_jax.losses import token_losses
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned


def mixture_loss(
  model: Model, method: Method, params: Any, learned: Learned, weights: jax.Array, batch: Batch
) -> jax.Array:
  """The mean cross-entropy of a batch's answer tokens, () float32, in nats, where all rows have
  these weights of blocks, (T,).
  """
  mixture = jnp.broadcast_to(weights, (len(batch.task), len(weights)))
  logits = method.logits_with(model, params, learned, batch, mixture)
  losses = token_losses(logits, batch.target, batch.target_mask)
  return jnp.sum(losses) / jnp.sum(batch.target_mask)


class MixtureLosses:
  """The same for several mixtures, compiled once per shape."""

  def __init__(self, backbone: Backbone, method: Method, mesh: jax.sharding.Mesh):
    self.params, self.placement = backbone.params, sharding.batch_sharded(mesh)
    self.of_batch = jax.jit(
      partial(mixture_loss, backbone.model, method), out_shardings=sharding.replicated(mesh)
    )

  def __call__(self, learned: Learned, batch: Batch, mixtures: np.ndarray) -> np.ndarray:
    """Of each of the mixtures (n, T): (n,) float32."""
    there = sharding.to_devices(batch, self.placement)
    losses = [self.of_batch(self.params, learned, weights, there) for weights in mixtures]
    return np.array(losses, np.float32)
