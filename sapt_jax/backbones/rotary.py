"""Rotary positions (Su et al., 2021) and the ways to stretch them that config.json files name.

Letters: B batch, L length, K head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Rope:
  """How positions turn the coordinates of queries and keys.

  Attributes:
    theta: the base of the frequencies.
    factor: how much longer texts may be than in pretraining.
    length: of texts in pretraining.
    slow, fast: rotations over that length below which a wave is stretched, above which it is kept
      (llama3, yarn).
    whole: yarn: the waves between which it changes from one to the other are rounded.
    short, long: longrope: what each wave is stretched by in texts up to that length, and in longer
      ones.
    magnitude: what queries and keys are multiplied by.
  """

  theta: float = 10000.0
  kind: Kind = "default"
  factor: float = 1.0
  length: int = 0
  slow: float = 1.0
  fast: float = 32.0
  whole: bool = True
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()
  magnitude: float = 1.0

  def frequencies(self, width: int, lengths: jax.Array) -> jax.Array | np.ndarray:
    """(width / 2,) float32, radians per position; (B, 1, width / 2) where each row has its own.

    Args:
      lengths: (B,) int32, how many tokens each row has so far; dynamic and longrope look at it, at
        the row's own tokens, so that neither padding nor neighbours change an answer.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / width
    plain = (1.0 / self.theta**exponents).astype(np.float32)
    if self.kind == "dynamic":
      longer = jnp.maximum(lengths[:, None, None] / self.length, 1.0)
      stretch = self.factor * longer - (self.factor - 1)
      return plain / (stretch ** (width / (width - 2))) ** exponents
    if self.kind == "linear":
      return plain / np.float32(self.factor)
    if self.kind == "longrope":
      short, long = (plain / np.asarray(one, np.float32) for one in (self.short, self.long))
      return jnp.where(lengths[:, None, None] > self.length, long, short)
    if self.kind == "llama3":
      rotations = self.length * plain / (2 * math.pi)
      keep = np.clip((rotations - self.slow) / (self.fast - self.slow), 0.0, 1.0)
      return (plain * (keep + (1 - keep) / self.factor)).astype(np.float32)
    if self.kind == "yarn":
      keep = self._kept_by_yarn(width)
      return (plain * (keep + (1 - keep) / self.factor)).astype(np.float32)
    return plain

  def _kept_by_yarn(self, width: int) -> np.ndarray:
    """How far each wave is kept as it is, 0 to 1 (Peng et al., 2023)."""

    def wave(rotations: float) -> float:
      return width * math.log(self.length / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

    first, last = wave(self.fast), wave(self.slow)
    if self.whole:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = (np.arange(width // 2, dtype=np.float32) - first) / max(last - first, 0.001)
    return 1 - np.clip(ramp, 0.0, 1.0)

  def turns(self, positions: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the angles at positions (B, L), times the magnitude: (B, L, width / 2) float32
    each.
    """
    lengths = jnp.max(positions, axis=1) + 1
    angles = positions[:, :, None] * jnp.asarray(self.frequencies(width, lengths))
    return self.magnitude * jnp.cos(angles), self.magnitude * jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """x (B, heads, L, K) turned by angles with these cos and sin (B, L, W/2) float32; the two halves
  of the first W entries of K are the two coordinates, the others stay.
  """
  turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
  cos, sin = cos[:, None], sin[:, None]
  first, second = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
  parts = [first * cos - second * sin, second * cos + first * sin]
  if rest.shape[-1]:
    parts.append(rest.astype(jnp.float32))
  return jnp.concatenate(parts, axis=-1).astype(x.dtype)
