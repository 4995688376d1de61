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
from sapt_jax.training.step import in_parts


def mixture_loss(
  model: Model,
  method: Method,
  params: Any,
  learned: Learned,
  weights: jax.Array,
  batch: Batch,
  parts: int,
) -> jax.Array:
  """The mean cross-entropy of a batch's answer tokens, () float32, in nats, where all rows have
  these weights of blocks, (T,); computed in `parts` parts.
  """

  def loss_sum(part: Batch) -> jax.Array:
    mixture = jnp.broadcast_to(weights, (len(part.task), len(weights)))
    logits = method.logits_with(model, params, learned, part, mixture)
    return jnp.sum(token_losses(logits, part.target, part.target_mask))

  sums = jax.lax.map(loss_sum, jax.tree.map(lambda x: in_parts(x, parts), batch))
  return jnp.sum(sums) / jnp.sum(batch.target_mask)


class MixtureLosses:
  """The same for several mixtures, compiled once per shape."""

  def __init__(self, backbone: Backbone, method: Method, mesh: jax.sharding.Mesh):
    self.params, self.placement = backbone.params, sharding.batch_sharded(mesh)
    self.of_batch = jax.jit(
      partial(mixture_loss, backbone.model, method),
      out_shardings=sharding.replicated(mesh),
      static_argnums=4,
    )

  def __call__(
    self, learned: Learned, batch: Batch, mixtures: np.ndarray, parts: int = 1
  ) -> np.ndarray:
    """Of each of the mixtures (n, T): (n,) float32; the batch is computed in so many parts."""
    there = sharding.to_devices(batch, self.placement)
    losses = [self.of_batch(self.params, learned, weights, there, parts) for weights in mixtures]
    return np.array(losses, np.float32)
