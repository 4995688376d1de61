"""What is asked of an implementation of attention: of a whole run, and of one call.

Letters: B batch, H query heads, G key heads, L queries, S keys, K head width.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sapt_jax.backbones.attention.seen import SOME, Seen


class Asked(NamedTuple):
  """What decides whether an implementation can do all that a model asks for.

  Attributes:
    dtype: of queries, keys and values.
    head_width: K.
    biased: position biases are added to the scores (T5).
    cap: scores x become cap * tanh(x / cap) (Gemma 2); 0: they stay.
    dropout: share of the weights that are dropped while learning.
    window: keys that a query sees at most; 0: all, SOME: it differs from layer to layer.
    platform: "cpu", "gpu" or "tpu", of the devices; empty: one that has been found to do.
  """

  dtype: Any
  head_width: int
  biased: bool = False
  cap: float = 0.0
  dropout: float = 0.0
  window: int = 0
  platform: str = ""


class Call(NamedTuple):
  """One attention of one layer.

  Attributes:
    q: (B, H, L, K).
    k, v: (B, G, S, K).
    bias: (1, H, L, S), a frozen position bias; None: there is none.
    seen: which keys each query sees.
    scale, cap: the scores are capped(scale * q k^T, cap).
    dropout: of the weights; 0 where nothing is learned.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  bias: jax.Array | None
  seen: Seen
  scale: float
  cap: float
  dropout: float

  @property
  def asked(self) -> Asked:
    """What the call asks for, wherever it is computed."""
    return Asked(
      self.q.dtype,
      self.q.shape[-1],
      self.bias is not None,
      self.cap,
      self.dropout,
      self.seen.window,
    )


def refuse(cannot: bool, reason: str) -> None:
  """Raises NotImplementedError with the reason where an implementation cannot."""
  if cannot:
    raise NotImplementedError(reason)


def needs_platform(asked: Asked, platform: str, words: str) -> None:
  """Refuses other devices than those of one platform."""
  refuse(asked.platform not in ("", platform), f"it runs on {words} alone")


def needs_halves(asked: Asked) -> None:
  """Refuses float32, which these kernels do not compute or round to fewer digits."""
  refuse(
    jnp.dtype(asked.dtype) != jnp.bfloat16,
    f"it computes in bfloat16, not {jnp.dtype(asked.dtype).name} (--backbone.dtype)",
  )


def needs_library(name: str, way: str) -> None:
  """Refuses where an optional library is absent; way: how to have it."""
  refuse(importlib.util.find_spec(name) is None, f"it is not installed: {way}")


def no_dropout(asked: Asked) -> None:
  """Refuses dropout of the weights."""
  refuse(asked.dropout > 0, f"it drops no weights (--backbone.dropout {asked.dropout:g})")


def windows_alike(asked: Asked) -> None:
  """Refuses layers that differ in their window."""
  refuse(asked.window == SOME, "its window is the same in all layers, this model's is not")


def reads_ranges(call: Call) -> None:
  """Refuses a single token, whose keys stand in a cache: what it sees is given as a dense mask."""
  refuse(call.seen.bias is not None, "what a single token sees in its cache is no range of keys")
