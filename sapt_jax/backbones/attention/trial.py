"""Whether a kernel computes, on the devices at hand, what plain XLA computes there: tried on small
arrays before a run takes it, as a kernel that was compiled for one card may be wrong on another.

Letters: B batch, H query heads, G key heads, L queries and keys, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.backbones.attention import seen, xla
from sapt_jax.backbones.attention.asked import Asked, Call

B, H, G, L = 2, 4, 2, 128
# Of the largest entry: bfloat16 has 8 bits, and kernels round weights to it.
TOLERANCE = 0.03


def forms(asked: Asked, by: str) -> Iterator[tuple[str, seen.Seen, np.ndarray, bool]]:
  """What a model of this kind sees, in words and as `by` reads it; which queries count, (B, L);
  whether position biases are added.
  """
  place, short = np.arange(L), L // 3
  right, left = (np.stack([place >= 0, rest]) for rest in (place < L - short, place >= short))
  every = np.ones((B, L), bool)
  if asked.biased:
    sources = seen.all_tokens(jnp.asarray(right), "right", by)
    yield "a source", sources, every, True
    yield "an answer", seen.earlier_places(L, by), every, True
    yield "a source from an answer", sources, every, False
    return
  window = L // 4 if asked.window == seen.SOME else min(asked.window, L // 4) or None
  paddings: list[tuple[str, seen.Padding, np.ndarray]]
  paddings = [("rows to learn", "right", right), ("rows to answer", "left", left)]
  for words, padding, tokens in paddings:
    there = jnp.asarray(tokens)
    yield (
      words,
      seen.earlier_tokens(there, padding, by, window, asked.window == seen.SOME),
      tokens,
      False,
    )


def reason_against(kernel: ModuleType, name: str, asked: Asked) -> str:
  """Why a kernel is not to be taken here; empty: it computes what it should."""
  return _reason(kernel, name, asked._replace(dtype=jnp.dtype(asked.dtype)))


@functools.cache
def _reason(kernel: ModuleType, name: str, asked: Asked) -> str:
  keys, width, dtype = jax.random.split(jax.random.key(0), 5), asked.head_width, asked.dtype
  heads = [H, H if asked.biased else G, H if asked.biased else G]
  q, k, v = (jax.random.normal(keys[i], (B, n, L, width), dtype) for i, n in enumerate(heads))
  bias = jax.random.normal(keys[3], (1, H, L, L), dtype)
  weights, scale = jax.random.normal(keys[4], q.shape), width**-0.5
  nowhere = jax.sharding.Mesh(np.empty((), object), ())
  both = zip(forms(asked, name), forms(asked, "xla"), strict=True)
  with jax.set_mesh(nowhere):
    for (words, ranges, counted, biased), (_, dense, _, _) in both:
      real = weights * counted[:, None, :, None]

      def by_kernel(q: Any, k: Any, v: Any) -> jax.Array:
        call = Call(q, k, v, bias if biased else None, ranges, scale, 0.0, 0.0)  # noqa: B023
        return kernel.attend(call)

      def by_xla(q: Any, k: Any, v: Any) -> jax.Array:
        biases = ((bias,) if biased else ()) + (dense.dense(B, L, L),)  # noqa: B023
        return xla.core((scale, 0.0), 0.0, q, k, v, biases, None)

      try:
        found = _answers(by_kernel, real, q, k, v)
      except Exception as error:  # noqa: BLE001 (whatever a compiler or a driver raises)
        first = (str(error).splitlines() or [""])[0][:120]
        return f"it fails here ({type(error).__name__}: {first})"
      expected = _answers(by_xla, real, *(x.astype(jnp.float32) for x in (q, k, v)))
      for what, ours, theirs in zip(("answers", "dq", "dk", "dv"), found, expected, strict=True):
        off = np.abs(ours - theirs).max() / np.abs(theirs).max()
        if not off <= TOLERANCE:
          return f"it computes other {what} of {words} here (off by {off:.1%} of the largest)"
  return ""


def _answers(attend: Any, weights: jax.Array, q: Any, k: Any, v: Any) -> list[np.ndarray]:
  """What is answered where weights (B, H, L, K) are not 0, and the gradients of q, k and v."""

  def total(q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
    y = attend(q, k, v).astype(jnp.float32)
    return jnp.sum(weights * y), jnp.where(weights == 0, 0, y)

  (_, y), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return [np.asarray(x, np.float32) for x in (y, *gradients)]
