"""Products in true float32 on every device.

A GPU computes float32 products in TF32 and a TPU in one pass of bfloat16, unless a product asks for
more. What is small and decides much (shared attention, reflection, routing, look-ups, projectors)
must ask: P P - P of a projector is 3e-6 in float32 and 2e-2 in bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def exact(function: Callable[P, T]) -> Callable[P, T]:
  """The function with all its products, and those of their gradients, at the highest precision."""

  @functools.wraps(function)
  def at_highest(*args: P.args, **kwargs: P.kwargs) -> T:
    with jax.default_matmul_precision("highest"):
      return function(*args, **kwargs)

  return at_highest
