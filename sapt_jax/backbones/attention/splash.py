"""Attention by the splash kernel that comes with JAX: TPUs. It takes no bias, so no T5.

What is causal or windowed is given as the shape of the computation, so that hidden blocks are left
out; padding is told from tokens by segment numbers, and sees padding alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.backbones.attention import asked as asks
from sapt_jax.backbones.attention.asked import Asked, Call, refuse
from sapt_jax.backbones.attention.over_mesh import over_mesh
from sapt_jax.backbones.layers import KEPT

LANES = 128  # of a TPU's vectors: lengths of blocks and widths of heads are multiples of it
BLOCK = 512  # at most; blocks of queries and of keys
INTERPRET = False  # tests run the kernel without a TPU


def check(asked: Asked) -> None:
  """Raises NotImplementedError with the reason why splash cannot do what is asked."""
  asks.needs_platform(asked, "tpu", "TPUs")
  asks.no_dropout(asked)
  refuse(asked.biased, "it adds no position bias")
  asks.windows_alike(asked)
  refuse(
    asked.head_width % LANES != 0,
    f"a head is a multiple of {LANES} wide, not {asked.head_width}",
  )


def attend(call: Call) -> jax.Array:
  """(B, H, L, K), as Call says.

  Raises:
    NotImplementedError: a single token with its cache, or a window over soft prompts, where tokens
      that stand apart are neighbours.
  """
  asks.reads_ranges(call)
  seen, (queries, keys) = call.seen, (call.q.shape[2], call.k.shape[2])
  refuse(seen.window > 0 and seen.padding == "any", "its window counts places, not tokens")
  refuse(seen.causal and queries != keys, "as many queries as keys, where causal")
  long = queries + -queries % LANES, keys + -keys % LANES

  def padded(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

  # The kernel has no scale of its own.
  q = padded(call.q * jnp.asarray(call.scale, call.q.dtype), long[0])
  k, v = padded(call.k, long[1]), padded(call.v, long[1])
  segments = _segments(call, long)

  def on_device(q: jax.Array, k: jax.Array, v: jax.Array, *segments: Any) -> tuple[jax.Array]:
    kernel = _kernel(q.shape[1], long, seen.causal, seen.window, call.cap)
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    ids = library.SegmentIds(*segments) if segments else None
    return (jax.vmap(kernel)(q, k, v, ids) if ids else jax.vmap(kernel)(q, k, v),)

  heads, of_row = ("batch", "heads", None, None), ("batch", None)
  arrays, axes = (q, k, v, *segments), (heads, heads, heads, *[of_row for _ in segments])
  [y] = over_mesh(on_device, arrays, axes, [heads])
  return y[:, :, :queries].astype(call.q.dtype)


def _segments(call: Call, long: tuple[int, int]) -> tuple[jax.Array, ...]:
  """(B, L) and (B, S) int32: queries see keys of their own number; none: all see all."""
  seen, (queries, keys) = call.seen, (call.q.shape[2], call.k.shape[2])
  if seen.causal and (seen.padding == "right" or seen.tokens is None):
    return ()  # what stands behind a token is hidden anyway
  tokens = seen.tokens
  if tokens is None:
    tokens = jnp.ones((call.k.shape[0], keys), bool)
  # Where not causal, all queries see the tokens among the keys.
  ours = tokens if seen.causal else jnp.ones((call.q.shape[0], queries), bool)
  both = zip((ours, tokens), long, strict=True)
  return tuple(
    jnp.pad(x.astype(jnp.int32), ((0, 0), (0, length - x.shape[1]))) for x, length in both
  )


def _kernel(heads: int, lengths: tuple[int, int], causal: bool, window: int, cap: float) -> Any:
  from jax.experimental.pallas.ops.tpu import splash_attention as library

  mask: Any = library.FullMask(lengths)
  if causal:
    mask = library.LocalMask(lengths, (window - 1, 0), 0) if window else library.CausalMask(lengths)
  queries, keys = (
    next(size for size in (BLOCK, 256, LANES) if length % size == 0) for length in lengths
  )
  blocks = library.BlockSizes(
    block_q=queries,
    block_kv=keys,
    block_q_dkv=queries,
    block_kv_dkv=keys,
    block_q_dq=queries,
    block_kv_dq=keys,
  )
  return library.make_splash_mha_single_device(
    mask=library.MultiHeadMask([mask] * heads),
    block_sizes=blocks,
    attn_logits_soft_cap=cap or None,
    residual_checkpoint_name=KEPT,
    interpret=INTERPRET,
  )
