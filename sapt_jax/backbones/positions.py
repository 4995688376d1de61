"""T5's relative positions: the bucket of a distance, and the bias that each head has for it.

Letters: L queries, S keys, H heads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.backbones import attention


def relative_buckets(
  distance: jax.Array, bidirectional: bool, buckets: int, max_distance: int
) -> jax.Array:
  """Bucket of each key-minus-query distance: half of them exact, the rest logarithmic up to
  max_distance (T5, section 2.1).
  """
  offset = jnp.zeros_like(distance)
  if bidirectional:
    buckets //= 2
    offset = jnp.where(distance > 0, buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  return offset + jnp.take(bucket_table(buckets, max_distance), jnp.minimum(distance, max_distance))


def bucket_table(buckets: int, max_distance: int) -> np.ndarray:
  """Bucket of each distance 0 ... max_distance, int32.

  Computed on the host, in the float32 that T5 was trained with: many a bucket ends where the
  logarithm is a whole number, and a device that rounds it the other way would put distances 16, 32
  and 64 in the bucket before.
  """
  distance, exact = np.arange(max_distance + 1), buckets // 2
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
  ratio /= np.float32(math.log(max_distance / exact))
  far = exact + (ratio * np.float32(buckets - exact)).astype(np.int32)
  return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


class PositionBias(nn.Module):
  """Relative position bias, one table per stack, computed once and given to all of its layers.

  Attributes:
    dtype: of the table.
    wide: the bias is float32, as plain XLA adds it; else it is the table's, as kernels read it.
  """

  heads: int
  buckets: int
  max_distance: int
  bidirectional: bool
  dtype: Any
  stddev: float
  wide: bool = True

  @nn.compact
  def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """queries (L,) or, of each row, (B, L); keys (S,): positions, int32. Returns (1, H, L, S) or
    (B, H, L, S).
    """
    normal = nn.initializers.normal(self.stddev)
    init = nn.with_logical_partitioning(normal, ("buckets", "heads"))
    table = self.param("table", init, (self.buckets, self.heads), self.dtype)
    distance = keys - jnp.atleast_2d(queries)[..., None]
    buckets = relative_buckets(distance, self.bidirectional, self.buckets, self.max_distance)
    bias = jnp.moveaxis(jnp.take(table, buckets, axis=0), -1, 1)
    return bias.astype(jnp.float32) if self.wide else bias


class Places(NamedTuple):
  """Where the tokens of a self-attention are.

  Attributes:
    bias: (1, H, L, S) or (B, H, L, S), the same for all layers; None: each has biases of its own.
    queries, keys: (L,) or (B, L), and (S,) int32, positions, for layers with biases of their own.
    seen: which keys each query sees.
  """

  bias: jax.Array | None
  queries: jax.Array
  keys: jax.Array
  seen: attention.Seen


def bias_at(places: Places, own: PositionBias | None) -> jax.Array | None:
  """What is added to the scores of a layer with these biases of its own, or with none."""
  return places.bias if own is None else own(places.queries, places.keys)
