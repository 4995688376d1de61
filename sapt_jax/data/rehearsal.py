"""Which rows of an earlier task are kept to be learned from again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sapt_jax.data.tasks import Example


def kept(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
  """A fixed draw by seed of int(share * n) examples, at least one, in their own order: the same
  rows whenever they are asked for.

  Rounded as the public code rounds the number of its pseudo inputs; share 0 keeps none, 1 keeps
  all.
  """
  if not share:
    return []
  count = max(1, int(share * len(examples)))
  chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
  return [examples[i] for i in np.sort(chosen)]
