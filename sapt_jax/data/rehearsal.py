"""Which rows of an earlier task are kept to be learned from again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sapt_jax import streams

T = TypeVar("T")


def draw(rows: Sequence[T], count: int, seed: int) -> list[T]:
  """A fixed draw by seed of so many rows, or all, in their own order: the same rows whenever they
  are asked for.
  """
  chosen = streams.host(seed, "rehearsal").permutation(len(rows))[:count]
  return [rows[i] for i in np.sort(chosen)]
