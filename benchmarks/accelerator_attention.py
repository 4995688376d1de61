"""Kernels of attention on the device that is here: against plain XLA in float32, and in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.backbones import attention
from sapt_jax.backbones.attention import backward


@dataclasses.dataclass(frozen=True)
class Form:
  """What is computed: (rows, heads, length, width) of q, k and v, and what is seen.

  Attributes:
    biased: with a frozen position bias, as T5 has it, and so without a scale.
  """

  shape: tuple[int, int, int, int]
  biased: bool
  causal: bool
  padding: attention.Padding

  def tokens(self) -> jax.Array:
    """(rows, length) bool: up to half of a row is padding."""
    rows, _, length, _ = self.shape
    missing, place = jnp.arange(rows)[:, None] * length // (2 * rows), jnp.arange(length)[None]
    return place >= missing if self.padding == "left" else place < length - missing

  def seen(self, by: str) -> attention.Seen:
    """What queries see, for an implementation."""
    see = attention.earlier_tokens if self.causal else attention.all_tokens
    return see(self.tokens(), self.padding, by)

  def answers(self, by: str, bias: jax.Array | None, *given: jax.Array) -> Any:
    """The output of one implementation at real places, and the gradients of q, k and v.

    Raises:
      NotImplementedError: it refuses.
    """
    *qkv, g = given
    rows, _, length, width = self.shape
    scale = 1.0 if self.biased else width**-0.5

    def form(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
      if by == "xla":
        biases = () if bias is None else (bias,)
        return attention.attend(q, k, v, *biases, seen=self.seen(by), scale=scale)
      call = attention.Call(q, k, v, bias, self.seen(by), scale, 0.0, 0.0)
      attention.KERNELS[by].check(call.asked._replace(platform=jax.default_backend()))
      return attention.KERNELS[by].attend(call).swapaxes(1, 2).reshape(rows, length, -1)

    y, back = jax.vjp(form, *qkv)
    real = self.tokens()[:, :, None]
    weights = jnp.where(real, g.swapaxes(1, 2).reshape(y.shape), 0).astype(y.dtype)
    return jnp.where(real, y, 0), back(weights)


FORMS = {
  "T5-Large": Form((32, 16, 512, 64), True, False, "right"),
  "T5-Large, left": Form((32, 16, 512, 64), True, False, "left"),
  "LLaMA": Form((8, 32, 1024, 128), False, True, "right"),
  "LLaMA, left": Form((8, 32, 1024, 128), False, True, "left"),
}


def add_kernels(
  add: Callable[[str, Any, str], None], tiny: bool, median_s: Callable[[Callable], float]
) -> None:
  """Adds for each form and implementation how far it is off, and its milliseconds; or why it
  refuses.
  """
  for name, form in FORMS.items():
    if tiny:
      form = dataclasses.replace(form, shape=(2, 2, 64, form.shape[3]))
    *keys, last = jax.random.split(jax.random.key(0), 5)
    given = [jax.random.normal(key, form.shape, jnp.bfloat16) for key in keys]
    _, heads, length, _ = form.shape
    bias = jax.random.normal(last, (1, heads, length, length)) if form.biased else None
    exact = jax.jit(partial(form.answers, "xla", bias))(*(x.astype(jnp.float32) for x in given))
    for by in ("xla", *attention.KERNELS):
      step = partial(jax.jit(partial(form.answers, by, bias)), *given)
      try:
        found = jax.block_until_ready(step())
      except Exception as error:  # noqa: BLE001 (whatever a kernel refuses is a finding)
        add(f"{name}, {by}: refused", f"{type(error).__name__}: {str(error)[:120]}", "")
        continue
      pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
      add(f"{name}, {by}: off", max(off(*pair) for pair in pairs), "of the norm, both passes")
      add(f"{name}, {by}: both passes", 1e3 * median_s(lambda: jax.block_until_ready(step())), "ms")  # noqa: B023


def off(found: jax.Array, exact: jax.Array) -> float:
  """The norm of the difference over that of the exact array."""
  return float(jnp.linalg.norm((found - exact).ravel()) / jnp.linalg.norm(exact.ravel()))


# Tiles of the backward kernels that are tried, in (queries, keys, warps, stages).
TILES_DQ = [(64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3)]
TILES_DKV = [(64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (32, 64, 4, 3), (128, 128, 8, 2)]


def add_tiles(add: Callable[[str, Any, str], None], tiny: bool, in_a_row_s: Callable) -> None:
  """Adds the milliseconds of the two kernels of our backward pass in several tiles."""
  for name in ("T5-Large", "LLaMA"):
    rows, heads, length, width = (1, 2, 128, 16) if tiny else FORMS[name].shape
    *keys, last = jax.random.split(jax.random.key(0), 5)
    shape = (rows, length, heads, width)
    q, k, v, dy = (jax.random.normal(key, shape, jnp.bfloat16) * width**-0.25 for key in keys)
    ends = jnp.arange(1, length + 1) if FORMS[name].causal else jnp.full(length, length)
    given = backward.Given(
      *(q, k, v, dy),
      bias=jax.random.normal(last, (1, heads, length, length), jnp.bfloat16),
      norm=jnp.full((rows, heads, length), jnp.log(length)),
      delta=jnp.zeros((rows, heads, length)),
      start=jnp.zeros((rows, length), jnp.int32),
      end=jnp.broadcast_to(ends, (rows, length)).astype(jnp.int32),
      keys=None,
    )
    if not FORMS[name].biased:
      given = given._replace(bias=None)
    kernels: dict[str, tuple[Callable, list]] = {
      "dq": (backward.for_queries, TILES_DQ),
      "dk, dv": (partial(backward.for_keys, causal=FORMS[name].causal), TILES_DKV),
    }
    for kernel, (compute, tiles) in kernels.items():
      for tile in tiles:
        step = jax.jit(partial(compute, scale=1.0, tile=backward.Tile(*tile)))
        try:
          add(f"{name}, {kernel}, {tile}", 1e3 * in_a_row_s(partial(step, given)), "ms")
        except Exception as error:  # noqa: BLE001 (whatever a compiler refuses is a finding)
          add(f"{name}, {kernel}, {tile}: refused", f"{type(error).__name__}: {error!s:.120}", "")
