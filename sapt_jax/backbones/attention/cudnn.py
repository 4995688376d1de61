"""Attention by cuDNN, through jax.nn: NVIDIA GPUs, no library to install beside JAX's own.

It takes padding as lengths, so on the right alone; what else is hidden becomes a mask (B, 1, L, S),
1/H of the scores' size. A position bias it would differentiate whether it is frozen or not, so T5
is refused. JAX asks for a GPU while it traces the call: nothing can be compiled without one.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from sapt_jax.backbones.attention import asked as asks
from sapt_jax.backbones.attention.asked import Asked, Call, refuse
from sapt_jax.backbones.attention.seen import SOME

IMPLEMENTATION: Literal["cudnn", "xla"] = (
  "cudnn"  # tests put "xla" here, which takes the same arguments
)


def check(asked: Asked) -> None:
  """Raises NotImplementedError with the reason why cuDNN cannot do what is asked."""
  asks.needs_platform(asked, "gpu", "NVIDIA GPUs")
  asks.needs_halves(asked)
  asks.no_dropout(asked)
  refuse(asked.biased, "it would compute the gradient of the frozen position bias")
  refuse(asked.cap > 0, "it caps no scores")
  refuse(
    asked.head_width % 8 != 0 or asked.head_width > 128,
    f"a head is a multiple of 8 wide, at most 128, not {asked.head_width}",
  )
  refuse(
    asked.platform == "gpu" and jax.default_backend() != "gpu",
    "JAX traces it where a GPU is, so it can be run but not planned",
  )


def attend(call: Call) -> jax.Array:
  """(B, H, L, K), as Call says.

  Raises:
    NotImplementedError: a single token with its cache.
  """
  asks.reads_ranges(call)
  seen, (rows, _, queries, _), keys = call.seen, call.q.shape, call.k.shape[2]
  mask = lengths = window = None
  if seen.padding != "right" or seen.window == SOME:
    # In full: a broadcast mask it takes for a bias of another shape (jax issue 28974).
    mask = jnp.broadcast_to(seen.mask(rows, queries, keys), (rows, 1, queries, keys))
    # Its gradient asks for even lengths where a mask is added.
    refuse(queries % 2 + keys % 2 > 0, f"lengths {queries} and {keys} under a mask: must be even")
  elif seen.causal:
    window = (seen.window - 1, 0) if seen.window else None
  else:
    lengths = seen.ranges(rows, 1, keys)[1][:, 0]
  # A mask (B, 1, L, S) already says what is causal.
  q, k, v = (x.swapaxes(1, 2) for x in (call.q, call.k, call.v))
  y = jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=mask,
    scale=call.scale,
    is_causal=seen.causal and mask is None,
    key_value_seq_lengths=lengths,
    local_window_size=window,
    implementation=IMPLEMENTATION,
  )
  return y.swapaxes(1, 2)
