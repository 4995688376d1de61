"""Frozen weights in 8 or 4 bits: one code per weight, one scale per group of inputs.

A kernel (D_in, D_out) becomes codes (D_in, D_out), int8 or int4, and scales (D_in / G, D_out) in
the compute dtype, for groups of G inputs that enter one output: 8.25 or 4.25 bits a weight in
bfloat16 at G = 64. A weight is level(code) * scale, where the scale is the group's largest weight,
sign changed, so that the lowest code is this weight exactly and no code is left unused. With 8 bits
levels lie evenly. With 4 bits they are k (128 + k^2) / 1536 for k = -8 ... 7, closer together
around zero, where most weights are: on normal weights an error of 8.7 % (root mean square, of the
weights'), where even levels leave 9.5 % and NF4 (Dettmers et al., 2023, QLoRA), which is looked up
in a table, 9.2 %. Arithmetic on codes is what every compiler fuses with what comes after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Bits = Literal[0, 8, 4]  # 0: not quantised
CODES: dict[int, Any] = {8: jnp.int8, 4: jnp.int4}
GROUP = 64


def group_of(d_in: int) -> int:
  """Inputs that share a scale: 64; 32 where only then eight devices can share the groups; less
  where the width has no such factor.
  """
  return math.gcd(d_in, GROUP if d_in // GROUP % 8 == 0 else GROUP // 2)


def level(codes: Any, bits: int) -> Any:
  """What codes stand for, in [-1, 1): float32 arrays of codes -> float32."""
  return codes / 128 if bits == 8 else codes * (128 + codes * codes) / 1536


def code_table(bits: int) -> np.ndarray:
  """The code of the level that is nearest to x, at place round_down((x + 1) * 3072) for x in [-1,
  1]: no two levels meet in between.
  """
  codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
  levels = level(codes.astype(np.float32), bits)
  middle = (levels[1:] + levels[:-1]) / 2
  places = (np.arange(2 * 3072 + 1) + 0.5) / 3072 - 1
  return codes[np.searchsorted(middle, places)].astype(CODES[bits])


def quantize(
  kernel: np.ndarray, bits: int, dtype: Any, group: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Codes and scales of one kernel, on the host.

  Args:
    kernel: (D_in, D_out), any float dtype.
    bits: 8 or 4.
    dtype: of the scales.
    group: G, where the kernel is a part of one; 0: as group_of says.

  Returns:
    codes (D_in, D_out) int8 or int4, scales (D_in / G, D_out). A weight's error is at most the
    widest step between levels times the group's largest weight, and half of that but where it is
    near the largest and of the other sign.
  """
  d_in, d_out = kernel.shape
  groups = kernel.astype(np.float32).reshape(-1, group or group_of(d_in), d_out)
  low, high = groups.min(axis=1), groups.max(axis=1)
  scales = np.where(high > -low, -high, -low).astype(dtype)
  whole = scales.astype(np.float32)
  inverse = np.divide(3072, whole, out=np.zeros_like(whole), where=whole != 0)
  groups *= inverse[:, None]
  groups += 3072
  np.clip(groups, 0, 2 * 3072, out=groups)
  # As bytes, and with indices of the machine's own width: other types are taken one by one.
  codes = np.take(code_table(bits).view(np.int8), groups.astype(np.intp), mode="clip")
  return codes.view(CODES[bits]).reshape(d_in, d_out), scales


def dequantize(codes: jax.Array, scales: jax.Array) -> jax.Array:
  """Codes (D_in, D_out) and scales (D_in / G, D_out) -> the kernel, in the scales' dtype."""
  levels = level(codes.astype(jnp.float32), 8 if codes.dtype == jnp.int8 else 4)
  groups = levels.reshape(scales.shape[0], -1, scales.shape[1])
  return (groups * scales[:, None].astype(jnp.float32)).astype(scales.dtype).reshape(codes.shape)


# The backward pass makes the kernel again: kept, it would be the model in the compute dtype.
@partial(jax.checkpoint, prevent_cse=False)
def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
  """x (..., D_in) times the kernel -> (..., D_out). Gradients reach x alone."""
  return x @ dequantize(codes, jax.lax.stop_gradient(scales))


def random_codes(bits: int) -> Callable[[jax.Array, tuple[int, ...], Any], jax.Array]:
  """An initializer of codes, all alike likely."""
  half = 2 ** (bits - 1)

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.randint(key, shape, -half, half, jnp.int8).astype(dtype)

  return init


def scale_for(bits: int, stddev: float) -> float:
  """The scale that gives random codes this standard deviation."""
  codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float32)
  return stddev / float(np.sqrt(np.mean(level(codes, bits) ** 2)))
