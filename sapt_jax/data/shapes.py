"""The few shapes that batches are padded to, chosen from those that a stream's own batches need.

Each shape is a program to compile; what padding adds is computed for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

Shape = tuple[int, int]  # places of a source, or of source and answer in one row; of an answer
STEP = 8  # shapes are multiples of it at least: parts of that many places fill a device's units
MOST_CELLS = 512  # lengths are rounded until so few needs differ
MOST_CORNERS = 2048  # shapes that could be moved to; where there are more, only to those of needs


def places(shapes: np.ndarray, joined: bool) -> np.ndarray:
  """What a row of each of the shapes (..., 2) costs, in tokens. In a joined row an answer's places
  cost their logits alone: a quarter of a token in SmolLM2-135M, a thirteenth in Llama 3 8B, a
  fiftieth in LLaMA-2-7B.
  """
  return shapes[..., 0] + shapes[..., 1] / (16 if joined else 1)


def choose_shapes(needs: Iterable[Shape], count: int, joined: bool) -> tuple[Shape, ...]:
  """At most `count` shapes, so that each need has one that holds it: near the best of all choices,
  where lengths are few.

  Args:
    needs: the least shape of each batch.
    joined: rows hold source and answer together.
  """
  needs, step = list(needs), STEP
  cells = _rounded(needs, step)
  while len(cells) > MOST_CELLS:
    step *= 2
    cells = _rounded(needs, step)
  each, weights = np.array(list(cells)).reshape(-1, 2), np.array(list(cells.values()), float)
  shapes = _moved(_agglomerated(each, weights, count, joined), each, weights, joined)
  return tuple(sorted({(int(source), int(answer)) for source, answer in shapes}))


def _agglomerated(each: np.ndarray, weights: np.ndarray, count: int, joined: bool) -> np.ndarray:
  """All needs are shapes at first; then, again and again, the two become one that cost the fewest
  places more as one.

  Args:
    each: (n, 2), the needs.
    weights: (n,), how many batches have each.
  """
  shapes, weights = each.copy(), weights.copy()
  while len(shapes) > count:
    together = np.maximum(shapes[:, None], shapes[None])
    alone = weights * places(shapes, joined)
    added = (weights[:, None] + weights[None]) * places(together, joined)
    added -= alone[:, None] + alone[None]
    np.fill_diagonal(added, np.inf)
    one, other = np.unravel_index(np.argmin(added), added.shape)
    shapes[one], weights[one] = together[one, other], weights[one] + weights[other]
    shapes, weights = np.delete(shapes, other, 0), np.delete(weights, other)
  return shapes


def _moved(shapes: np.ndarray, each: np.ndarray, weights: np.ndarray, joined: bool) -> np.ndarray:
  """Each shape in turn moves to where it costs least beside the others, until none moves. Needs and
  weights are as above.
  """
  corners = np.stack(np.meshgrid(np.unique(each[:, 0]), np.unique(each[:, 1])), -1).reshape(-1, 2)
  if len(corners) > MOST_CORNERS:
    corners = np.unique(np.concatenate([each, shapes]), axis=0)
  holds = (each[:, None] <= corners).all(axis=-1)
  costs = np.where(holds, places(corners, joined), np.inf)
  chosen = [int(np.flatnonzero((corners == shape).all(axis=-1))[0]) for shape in shapes]
  before: list[int] = []
  while chosen != before:
    before = list(chosen)
    for i in range(len(chosen)):
      beside = costs[:, chosen[:i] + chosen[i + 1 :]].min(axis=1, initial=np.inf)
      totals = weights @ np.minimum(costs, beside[:, None])
      if totals.min() < totals[chosen[i]]:
        chosen[i] = int(np.argmin(totals))
  return corners[chosen]


def _rounded(needs: Iterable[Shape], step: int) -> Counter[Shape]:
  return Counter((-(-source // step) * step, -(-answer // step) * step) for source, answer in needs)
