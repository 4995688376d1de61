"""Attention: one function, several implementations.

Each implementation is a file with `check`, which raises NotImplementedError with the reason for
what it cannot do, and `attend`, which may raise it too. Which one a run takes is decided once, by
`choose`; a call that it refuses (a single token with its cache, odd sizes) is computed in plain
XLA, which does everything and is what the others are held against.

Letters: B batch, H query heads, G key heads (grouped-query attention: H is a multiple of G), L
queries, S keys, K head width. Heads stand before positions everywhere, so that no product of plain
XLA copies its operands.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Literal, get_args

import jax

from sapt_jax.backbones.attention import cudnn, splash, tokamax, trial, xla
from sapt_jax.backbones.attention.asked import Asked, Call
from sapt_jax.backbones.attention.heads import split_heads, write_cache
from sapt_jax.backbones.attention.seen import (
  MASKED,
  SOME,
  Padding,
  Seen,
  all_tokens,
  causal_mask,
  earlier_places,
  earlier_tokens,
  mask_bias,
)
from sapt_jax.backbones.attention.xla import capped
from sapt_jax.errors import InputError

__all__ = [
  "KERNELS",
  "MASKED",
  "SOME",
  "Asked",
  "Call",
  "Name",
  "Padding",
  "Seen",
  "all_tokens",
  "attend",
  "capped",
  "causal_mask",
  "choose",
  "earlier_places",
  "earlier_tokens",
  "mask_bias",
  "split_heads",
  "write_cache",
]

Name = Literal["auto", "xla", "cudnn", "tokamax", "splash"]

# Those that are tried, in this order; plain XLA is behind them all.
KERNELS: dict[str, ModuleType] = {"tokamax": tokamax, "cudnn": cudnn, "splash": splash}

log = logging.getLogger(__name__)


def choose(name: str, asked: Asked, here: bool = False) -> tuple[str, str]:
  """The implementation that a run takes, and why not the others.

  Args:
    name: one of Name.
    asked: what the model asks for, on which platform.
    here: on the devices of this process, where a kernel is tried before it is taken (trial.py).

  Returns:
    "xla" or a name in KERNELS; for "auto" a reason for each that was tried before it, in one line,
    else nothing.

  Raises:
    InputError: the one that was asked for by its name cannot do it.
  """
  if name not in get_args(Name):
    raise InputError(f"backbone.attention {name!r}: must be one of {', '.join(get_args(Name))}")
  if name == "xla":
    return name, ""
  reasons: dict[str, str] = {}
  for kernel in KERNELS if name == "auto" else [name]:
    if not (reason := _reason_against(kernel, asked, here)):
      return kernel, "; ".join(f"{other}: {reason}" for other, reason in reasons.items())
    reasons[kernel] = reason
  if name != "auto":
    others = [
      other for other in KERNELS if other != name and not _reason_against(other, asked, here)
    ]
    raise InputError(
      f"backbone.attention {name}: {reasons[name]}; give {' or '.join([*others, 'xla'])}, or auto"
    )
  return "xla", "; ".join(f"{other}: {reason}" for other, reason in reasons.items())


def _reason_against(kernel: str, asked: Asked, here: bool) -> str:
  """Why a kernel is not taken; empty: it is."""
  try:
    KERNELS[kernel].check(asked)
  except NotImplementedError as reason:
    return str(reason)
  return trial.reason_against(KERNELS[kernel], kernel, asked) if here else ""


@jax.named_scope("attention")
def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *biases: jax.Array,
  seen: Seen | None = None,
  by: str = "xla",
  scale: float = 1.0,
  cap: float = 0.0,
  dropout: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """softmax(capped(scale * q k^T) + biases) v over the keys that are seen, with float32 scores and
  softmax; key heads may be fewer than query heads.

  Args:
    q: (B, H, L, K).
    k, v: (B, G, S, K).
    biases: each broadcastable to (B, H, L, S). They are added one by one, as the sum of a
      position bias (1, H, L, S) and a mask (B, 1, 1, S) would be as large as the scores, and kept
      for all layers. To a kernel at most one is given, (1, H, L, S), and it is frozen.
    seen: which keys each query sees; None: all.
    by: the implementation, from `choose`; one that refuses this call leaves it to plain XLA.
    dropout, key: of the weights; see layers.dropped. Without a key nothing is dropped.

  Returns:
    (B, L, H * K) in q's dtype.

  Raises:
    InputError: a gradient is asked for of a bias that a kernel was given.
  """
  dropout, y = 0.0 if key is None else dropout, None
  if by != "xla":
    try:
      if len(biases) > 1:
        raise NotImplementedError("it adds one bias at most")
      bias = biases[0] if biases else None
      call = Call(q, k, v, bias, Seen() if seen is None else seen, scale, cap, dropout)
      KERNELS[by].check(call.asked)
      y = KERNELS[by].attend(call)
    except NotImplementedError as reason:
      log.debug("attention of %s over %s not by %s: %s", q.shape, k.shape, by, reason)
  if y is None:
    masks = () if seen is None else (seen.dense(q.shape[0], q.shape[2], k.shape[2]),)
    y = xla.core((scale, cap), dropout, q, k, v, (*biases, *masks), key if dropout else None)
  return y.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1)
