"""The few shapes that batches are padded to, chosen from those that a stream's own batches need.

Each shape is a program to compile; what padding adds is computed for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

Shape = tuple[int, int]  # places of a source, or of source and answer in one row; of an answer
STEP = 8  # shapes are multiples of it at least: parts of that many places fill a device's units
MOST_CELLS = 256  # lengths are rounded until so few of them differ


def places(shapes: np.ndarray, joined: bool) -> np.ndarray:
  """What a row of each of the shapes (..., 2) costs, in tokens. In a joined row an answer's places
  cost their logits alone: about an eighth of a token in a small model, less in a large one.
  """
  return shapes[..., 0] + shapes[..., 1] / (8 if joined else 1)


def choose_shapes(needs: Iterable[Shape], count: int, joined: bool) -> tuple[Shape, ...]:
  """At most `count` shapes, so that each need has one that holds it.

  All needs, rounded up, are shapes at first; then, again and again, the two become one that cost
  the fewest places more as one (agglomeration by least cost, so not the best of all choices).

  Args:
    needs: the least shape of each batch.
    joined: rows hold source and answer together.
  """
  needs = list(needs)
  step, cells = STEP, _rounded(needs, STEP)
  while len(cells) > MOST_CELLS:
    step *= 2
    cells = _rounded(needs, step)
  shapes = np.array(list(cells)).reshape(-1, 2)
  weights = np.array(list(cells.values()), float)
  while len(shapes) > count:
    together = np.maximum(shapes[:, None], shapes[None])
    alone = weights * places(shapes, joined)
    added = (weights[:, None] + weights[None]) * places(together, joined)
    added -= alone[:, None] + alone[None]
    np.fill_diagonal(added, np.inf)
    one, other = np.unravel_index(np.argmin(added), added.shape)
    shapes[one], weights[one] = together[one, other], weights[one] + weights[other]
    shapes, weights = np.delete(shapes, other, 0), np.delete(weights, other)
  return tuple(sorted((int(source), int(answer)) for source, answer in shapes))


def _rounded(needs: Iterable[Shape], step: int) -> Counter[Shape]:
  return Counter((-(-source // step) * step, -(-answer // step) * step) for source, answer in needs)
