"""Heads and their key-value cache.

Letters: B batch, L length, G key heads, S keys, K head width.
"""

from __future__ import annotations

from functools import partial

import jax

from sapt_jax.sharding import constrain


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """(B, L, heads * K) -> (B, heads, L, K)."""
  return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def write_cache(cache: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
  """Writes new (..., B, G, 1, K) into a cache (..., B, G, S, K),
  of one layer or of all, at each row's place index (B,) int32; past the end, at the last place.

  While one token goes through the layers, the stacked cache is only read: a layer writes its keys
  and values into its own slice, which the loop over layers cuts out anyway, and those of all layers
  are written together behind the loop. As the loop's carry the whole cache would be copied at every
  layer.
  """
  rows = cache.ndim - 4
  write = partial(jax.lax.dynamic_update_slice_in_dim, axis=cache.ndim - 3)  # an axis less in a row
  by_row = jax.vmap(write, in_axes=(rows, rows, 0), out_axes=rows)
  cache = by_row(cache, new.astype(cache.dtype), index)
  return constrain(cache, *[None] * (cache.ndim - 4), "batch", "any", None, "any")
