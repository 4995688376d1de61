"""Which rows of an earlier task are kept to be learned from again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sapt_jax import streams

T = TypeVar("T")


def draw(rows: Sequence[T], share: float, seed: int) -> list[T]:
  """A fixed draw by seed of int(share * n) rows, at least one, in their own order: the same
  rows whenever they are asked for.

  Rounded as the public code rounds the number of its pseudo inputs; share 0 draws none, 1 all.
  """
  if not share:
    return []
  count = max(1, int(share * len(rows)))
  chosen = streams.host(seed, "rehearsal").permutation(len(rows))[:count]
  return [rows[i] for i in np.sort(chosen)]
