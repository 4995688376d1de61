"""What a method can look at of an input before any block is applied: all frozen, (B, D) float32.

B batch, L source length, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sapt_jax import sals
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch


def pooled_embeddings(
  model: Model, params: Any, batch: Batch, with_padding: bool = False
) -> jax.Array:
  """The largest value of each dimension over an input's token embeddings (SAPT Eq. 1).

  Args:
    with_padding: a reference quirk, padding takes part.
  """
  mask = jnp.ones_like(batch.source_mask) if with_padding else batch.source_mask
  embedded = model.apply({"params": params}, batch.source, method="embed")
  return sals.pool_embeddings(embedded, mask)


def mean_states(model: Model, params: Any, batch: Batch) -> jax.Array:
  """The mean over an input's real tokens of their last states in a plain pass without blocks.

  Of an encoder-decoder these are the encoder's states. Costs a pass over the source.
  """
  states = model.apply({"params": params}, batch.source, batch.source_mask, method="states")
  real = batch.source_mask[:, :, None]
  total = jnp.sum(jnp.where(real, states.astype(jnp.float32), 0.0), axis=1)
  return total / jnp.sum(real, axis=1)


def unit(x: jax.Array) -> jax.Array:
  """Vectors (..., D) at length 1."""
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


Feature = Literal["states", "embeddings"]
FEATURES: dict[Feature, Callable[[Model, Any, Batch], jax.Array]] = {
  "states": mean_states,
  "embeddings": pooled_embeddings,
}
