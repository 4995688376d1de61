"""Attention in plain XLA: it does everything, on every device, and is what the other
implementations are held against.

Letters: B batch, H query heads, G key heads (grouped-query attention: H is a multiple of G), L
queries, S keys, K head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.backbones.layers import dropped


# Autodiff keeps several arrays of the scores' size and goes over them once for each operation of
# softmax. This rule keeps one, the exponentials, and divides what is small in place of them: with e
# = exp(scores - max), z = sum e and y = e v / z,
#   dv = e^T (dy / z)    dscores = e * ((dy / z) v^T - (dy / z) . y)
# and, where scores are capped, times the cap's slope, for which they are computed again.
# Dropout multiplies e by what it keeps wherever e or its gradient meets v. What it keeps is drawn
# again in the backward pass.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def core(form: tuple[float, float], dropout: float, *arrays: Any) -> jax.Array:
  """softmax(capped(scale * q k^T) + biases) v, (B, H, L, K) in q's dtype.

  Args:
    form: scale and cap.
    dropout: share of the weights that are dropped.
    arrays: q (B, H, L, K), k and v (B, G, S, K), a tuple of biases that are broadcastable to
      (B, H, L, S), and a random key for dropout or None.
  """
  return _forward(form, dropout, *arrays)[0]


def capped(x: jax.Array, cap: float) -> jax.Array:
  """cap * tanh(x / cap); x where cap is 0 (Gemma 2)."""
  return cap * jnp.tanh(x / cap) if cap else x


def _by_key_head(x: jax.Array, groups: int) -> jax.Array:
  """(B, H, L, ...) -> (B, G, H / G * L, ...): the queries that share a key head,
  one behind the other.
  """
  return x.reshape(x.shape[0], groups, -1, x.shape[-1])


def _forward(
  form: tuple[float, float],
  dropout: float,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  biases: tuple[jax.Array, ...],
  key: jax.Array | None,
) -> tuple[jax.Array, tuple]:
  groups, of_scores = k.shape[1], (*q.shape[:3], k.shape[2])
  product = partial(jnp.einsum, preferred_element_type=jnp.float32)
  scale, cap = form
  scores = capped(product("bglk,bgsk->bgls", _by_key_head(q, groups), k) * scale, cap)
  scores = sum(biases, start=scores.reshape(of_scores))
  e = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  z = jnp.sum(e, axis=-1, keepdims=True)
  e = e.astype(v.dtype)
  y = _weighed(_by_key_head(dropped(e, dropout, key), groups), v)
  y = (y.reshape(q.shape) / z).astype(q.dtype)
  return y, (q, k, v, biases, key, e, z, y)


def _weighed(weights: jax.Array, v: jax.Array) -> jax.Array:
  """weights (B, G, L, S) times v (B, G, S, K), in float32."""
  product = partial(jnp.einsum, "bgls,bgsk->bglk", preferred_element_type=jnp.float32)
  if weights.shape[2] > 1:
    return product(weights, v)

  def with_another_row(weights: jax.Array, v: jax.Array) -> jax.Array:
    return product(jnp.pad(weights, [(0, 0), (0, 0), (0, 1), (0, 0)]), v)[:, :, :1]

  # On a CPU one core alone multiplies a single row; it takes longer than two rows on two cores.
  return jax.lax.platform_dependent(weights, v, cpu=with_another_row, default=product)


def _backward(form: tuple[float, float], dropout: float, saved: tuple, dy: jax.Array) -> tuple:
  scale, cap = form
  q, k, v, biases, key, e, z, y = saved
  groups = k.shape[1]
  wide = dy.astype(jnp.float32) / z
  share = jnp.sum(wide * y.astype(jnp.float32), axis=-1, keepdims=True)
  dy = _by_key_head(wide.astype(v.dtype), groups)
  dv = jnp.einsum("bgls,bglk->bgsk", _by_key_head(dropped(e, dropout, key), groups), dy)
  de = jnp.einsum("bglk,bgsk->bgls", dy, v, preferred_element_type=jnp.float32).reshape(e.shape)
  de = dropped(de, dropout, key)
  dscores = e.astype(jnp.float32) * (de - share)
  before_cap = dscores
  if cap:
    again = jnp.einsum(
      "bglk,bgsk->bgls", _by_key_head(q, groups), k, preferred_element_type=jnp.float32
    )
    slope = 1 - jnp.square(jnp.tanh(again * scale / cap))
    before_cap = dscores * slope.reshape(dscores.shape)
  d_grouped = _by_key_head((before_cap * scale).astype(q.dtype), groups)
  dq = jnp.einsum("bgls,bgsk->bglk", d_grouped, k).reshape(q.shape)
  dk = jnp.einsum("bgls,bglk->bgsk", d_grouped, _by_key_head(q, groups))
  return dq, dk, dv, tuple(_summed_to(bias.shape, dscores) for bias in biases), None


def _summed_to(shape: tuple[int, ...], x: jax.Array) -> jax.Array:
  """The gradient of an array of this shape that was broadcast to x's."""
  broadcast = tuple(axis for axis, size in enumerate(shape) if size != x.shape[axis])
  return jnp.sum(x, axis=broadcast, keepdims=True)


core.defvjp(_forward, _backward)
