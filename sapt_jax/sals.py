"""Shared attentive learning and selection (SALS): one attention over the pool per input, the same
when learning and when answering.

SAPT section 3.2. Letters: B batch, L tokens, D embedding width, T capacity of the pool.
"""

from __future__ import annotations

import math
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax.precision import exact

BOTTLENECK = 100  # width between W_down and W_up, as in the public code


class QueryProjection(flax.struct.PyTreeNode):
  """q = LayerNorm(SiLU(W_up W_down e)), float32: down (D, 100), up (100, D), scale, bias (D,)."""

  down: jax.Array
  up: jax.Array
  scale: jax.Array
  bias: jax.Array


class Centre(flax.struct.PyTreeNode):
  """What is taken off pooled embeddings before the projection: (e - mean) / scale; mean (D,), scale
  (), 0 and 1 in the published form.
  """

  mean: jax.Array
  scale: jax.Array


def init_query(rng: jax.Array, width: int) -> QueryProjection:
  """A fresh projection: both matrices uniform in +-1/sqrt(fan in), LayerNorm at identity."""

  def uniform(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / math.sqrt(shape[0])

  for_down, for_up = jax.random.split(rng)
  down, up = uniform(for_down, (width, BOTTLENECK)), uniform(for_up, (BOTTLENECK, width))
  return QueryProjection(down, up, jnp.ones(width), jnp.zeros(width))


def init_key(rng: jax.Array, width: int) -> jax.Array:
  """A fresh key ~ U(-1, 1), (D,) float32."""
  return jax.random.uniform(rng, (width,), minval=-1.0, maxval=1.0)


def no_centre(width: int) -> Centre:
  """The published form: pooled embeddings as they are."""
  return Centre(jnp.zeros(width), jnp.ones(()))


def pool_embeddings(embedded: jax.Array, mask: jax.Array) -> jax.Array:
  """Largest value per dimension over real tokens: embedded (B, L, D),
  mask (B, L) bool -> (B, D) float32 (SAPT Eq. 1).
  """
  wide = embedded.astype(jnp.float32)
  return jnp.max(jnp.where(mask[:, :, None], wide, -jnp.inf), axis=1)


@partial(jax.jit, static_argnames="between")
@exact
def query(projection: QueryProjection, pooled: jax.Array, between: bool = False) -> jax.Array:
  """(B, D) pooled embeddings -> (B, D) queries, float32.

  Args:
    between: put SiLU between W_down and W_up, as the paper's Eq. 1 has it; the public code, and so
      the default, puts it after W_up.
  """
  h = pooled @ projection.down
  h = jax.nn.silu(h) @ projection.up if between else jax.nn.silu(h @ projection.up)
  mean, variance = jnp.mean(h, axis=-1, keepdims=True), jnp.var(h, axis=-1, keepdims=True)
  return (h - mean) * jax.lax.rsqrt(variance + 1e-5) * projection.scale + projection.bias


@exact
def scores(queries: jax.Array, keys: jax.Array, count: jax.Array) -> jax.Array:
  """q . k_i / sqrt(D) for the first `count` keys, -inf for empty slots:
  (B, D), (T, D), () int32 -> (B, T) (SAPT Eq. 2).
  """
  raw = queries @ keys.T / math.sqrt(keys.shape[-1])
  return jnp.where(jnp.arange(keys.shape[0]) < count, raw, -jnp.inf)


@exact
def with_shares(mixture: jax.Array, shares: jax.Array) -> jax.Array:
  """The weights of blocks where the attention says which tasks an input is like, (..., T), and a
  task takes from blocks by its row of shares (T, T): (..., T), of any sign and size.
  """
  return mixture @ shares


@partial(jax.jit, static_argnames="between")
@exact
def log_mixture(
  projection: QueryProjection,
  keys: jax.Array,
  count: jax.Array,
  pooled: jax.Array,
  centre: Centre,
  between: bool = False,
) -> jax.Array:
  """log softmax of the scores, (B, T) float32; -inf at empty slots (SAPT Eq. 3)."""
  queries = query(projection, (pooled - centre.mean) / centre.scale, between)
  return jax.nn.log_softmax(scores(queries, keys, count), axis=-1)
