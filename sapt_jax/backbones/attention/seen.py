"""Which keys each query of an attention sees: said as ranges and kinds, from which a kernel can
leave out what is hidden, or as one dense bias, which plain XLA adds.

Letters: B batch, L queries, S keys.
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

MASKED = -1e9  # a logit of attention that softmax turns into zero, in float32 and bfloat16
SOME = -1  # as a window: some layers have one, and `start` alone says what is seen

# Where a row has places without a token: behind its tokens, before them, or anywhere (soft prompts
# before a padded source).
Padding = Literal["right", "left", "any"]


class Seen(flax.struct.PyTreeNode):
  """What the queries of one attention see.

  Either `bias` says all, or the other fields do: query l of row b sees key s where
  start[b, l] <= s < end[b, l], and `tokens` holds a token there or padding is not "any". Every
  query sees a key at least, also one that stands for padding: kernels divide by what is seen.

  Attributes:
    bias: (B or 1, 1, L or 1, S) float32, 0 or MASKED, added to the scores.
    start: (B or 1, L or 1) int32, the first key that is seen; None: 0.
    end: (B or 1, L or 1) int32, the one behind the last; None: l + 1 where causal, else S.
    tokens: (B, S) bool, keys that hold a token; None: all do.
    padding, causal, window: static, what start and end are made from. A window is the number of
      tokens that a query sees, itself included; 0: all, SOME: start alone says.
  """

  bias: jax.Array | None = None
  start: jax.Array | None = None
  end: jax.Array | None = None
  tokens: jax.Array | None = None
  padding: Padding = flax.struct.field(pytree_node=False, default="right")
  causal: bool = flax.struct.field(pytree_node=False, default=False)
  window: int = flax.struct.field(pytree_node=False, default=0)

  @property
  def keys(self) -> jax.Array | None:
    """(B, S) bool, which keys between start and end are seen; None: all. Padding before the first
    token is among them, so that it sees itself; the start of tokens lies behind it.
    """
    if self.tokens is None or self.padding != "any":
      return None
    return self.tokens | (jnp.arange(self.tokens.shape[1]) < first_token(self.tokens))

  def ranges(self, rows: int, queries: int, keys: int) -> tuple[jax.Array, jax.Array]:
    """start and end, both (rows, queries) int32."""
    start = jnp.zeros((1, 1), jnp.int32) if self.start is None else self.start
    end = self.end
    if end is None:
      end = jnp.arange(1, queries + 1)[None] if self.causal else jnp.full((1, 1), keys)
    shape = (rows, queries)
    return jnp.broadcast_to(start, shape), jnp.broadcast_to(end, shape).astype(jnp.int32)

  def mask(self, rows: int, queries: int, keys: int) -> jax.Array:
    """(rows, 1, queries, keys) bool: the same, dense."""
    assert self.bias is None
    start, end = self.ranges(rows, queries, keys)
    place = jnp.arange(keys)
    mask = (start[:, :, None] <= place) & (place < end[:, :, None])
    if (among := self.keys) is not None:
      mask &= among[:, None, :]
    return mask[:, None]

  def dense(self, rows: int, queries: int, keys: int) -> jax.Array:
    """The bias, made from the ranges where it is not there: float32, broadcastable to
    (rows, 1, queries, keys).
    """
    return self.bias if self.bias is not None else mask_bias(self.mask(rows, queries, keys))


def mask_bias(mask: jax.Array) -> jax.Array:
  """0 where mask is true and MASKED elsewhere, float32, in mask's shape."""
  return jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


def causal_mask(length: int) -> jax.Array:
  """(1, 1, length, length) bool: position l sees positions up to l."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def first_token(tokens: jax.Array) -> jax.Array:
  """(B, S) bool -> (B, 1) int32, the place of each row's first token; 0 where it has none."""
  return jnp.argmax(tokens, axis=1, keepdims=True).astype(jnp.int32)


def all_tokens(tokens: jax.Array, padding: Padding, by: str) -> Seen:
  """Every query sees all tokens of its row.

  Args:
    tokens: (B, S) bool, keys that hold one.
    by: the implementation that reads it: plain XLA adds a bias.
  """
  if by == "xla":
    return Seen(bias=mask_bias(tokens)[:, None, None, :])
  start = None if padding == "right" else first_token(tokens)
  if padding == "any":
    return Seen(start=start, tokens=tokens, padding=padding)
  end = jnp.sum(tokens, axis=1, keepdims=True, dtype=jnp.int32) + (0 if start is None else start)
  return Seen(start=start, end=jnp.maximum(end, 1), tokens=tokens, padding=padding)


def earlier_places(length: int, by: str) -> Seen:
  """Query l sees keys 0 to l; padding stands behind all tokens, so it is seen by itself alone."""
  return Seen(bias=mask_bias(causal_mask(length))) if by == "xla" else Seen(causal=True)


def earlier_tokens(
  tokens: jax.Array, padding: Padding, by: str, window: int | None = None, some: bool = False
) -> Seen:
  """Queries are the keys themselves, and each sees the tokens up to it.

  Args:
    tokens: (B, L) bool, places that hold one.
    by: the implementation that reads it: plain XLA adds a bias.
    window: tokens, itself included, that one sees; None: all.
    some: there are layers with this window and layers without; all ranges then have one shape.
  """
  length = tokens.shape[1]
  place, position = jnp.arange(length), jnp.cumsum(tokens, axis=1) - 1
  if by == "xla":
    mask = causal_mask(length) & tokens[:, None, None, :]
    if window is not None:
      mask &= position[:, None, :, None] - position[:, None, None, :] < window
    return Seen(bias=mask_bias(mask))
  # Padding before the first token sees itself.
  start = None if padding == "right" else jnp.minimum(first_token(tokens), place)
  if window is not None or some:
    size = length if window is None else window
    if padding == "any":  # tokens count, not places
      hidden = position[:, None, :] <= position[:, :, None] - size
      near = jnp.sum(hidden, axis=-1, dtype=jnp.int32)
    else:
      near = jnp.maximum(place - size + 1, 0)[None]
    start = near if start is None else jnp.maximum(start, near)
  kind = SOME if some else window or 0
  return Seen(start=start, tokens=tokens, padding=padding, causal=True, window=kind)
