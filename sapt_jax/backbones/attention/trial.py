"""Whether a kernel computes, on the devices at hand, what plain XLA computes there: tried on small
arrays before a run takes it, as a kernel that was compiled for one card may be wrong on another.

Letters: B batch, H query heads, G key heads, L queries and keys, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from functools import partial
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
  both = zip(forms(asked, name), forms(asked, "xla"), strict=True)
  with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):  # each device for itself
    for (words, ranges, counted, biased), (_, dense, _, _) in both:
      q, k, v, bias, weights = _inputs(asked, counted)
      try:
        found = _answers(
          partial(_by_kernel, kernel, ranges, bias if biased else None), weights, q, k, v
        )
      except Exception as error:  # noqa: BLE001 (whatever a compiler or a driver raises)
        first = (str(error).splitlines() or [""])[0][:120]
        return f"it fails here ({type(error).__name__}: {first})"
      biases = ((bias,) if biased else ()) + (dense.dense(B, L, L),)
      wide = (x.astype(jnp.float32) for x in (q, k, v))
      expected = _answers(partial(_by_xla, biases), weights, *wide)
      for what, ours, theirs in zip(("answers", "dq", "dk", "dv"), found, expected, strict=True):
        off = np.abs(ours - theirs).max() / np.abs(theirs).max()
        if not off <= TOLERANCE:
          return f"it computes other {what} of {words} here (off by {off:.1%} of the largest)"
  return ""


def _inputs(asked: Asked, counted: np.ndarray) -> list[jax.Array]:
  """Queries, keys, values, a position bias, and weights of the answers: 0 where a query does not
  count.
  """
  width, groups = asked.head_width, H if asked.biased else G
  shapes = [(B, H, L, width), *[(B, groups, L, width)] * 2, (1, H, L, L)]
  *keys, last = jax.random.split(jax.random.key(0), 5)
  drawn = [
    jax.random.normal(key, shape, asked.dtype) for key, shape in zip(keys, shapes, strict=True)
  ]
  return [*drawn, jax.random.normal(last, shapes[0]) * counted[:, None, :, None]]


def _by_kernel(
  kernel: ModuleType, ranges: seen.Seen, bias: jax.Array | None, q: Any, k: Any, v: Any
) -> jax.Array:
  return kernel.attend(Call(q, k, v, bias, ranges, q.shape[-1] ** -0.5, 0.0, 0.0))


def _by_xla(biases: tuple[jax.Array, ...], q: Any, k: Any, v: Any) -> jax.Array:
  return xla.core((q.shape[-1] ** -0.5, 0.0), 0.0, q, k, v, biases, None)


def _answers(attend: Any, weights: jax.Array, q: Any, k: Any, v: Any) -> list[np.ndarray]:
  """What is answered where weights (B, H, L, K) are not 0, and the gradients of q, k and v."""

  def total(q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
    y = attend(q, k, v).astype(jnp.float32)
    return jnp.sum(weights * y), jnp.where(weights == 0, 0, y)

  (_, y), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return [np.asarray(x, np.float32) for x in (y, *gradients)]
