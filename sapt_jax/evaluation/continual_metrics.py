"""The four figures of a continual-learning run, from its matrix of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Scores = Sequence[float | None]

# What the public scorer takes, whatever the run, for the mean score of tasks learned alone.
PUBLIC_SINGLE = 50.94


def mean_difference(first: Scores, second: Scores) -> float | None:
  """mean_j (first[j] - second[j]); None of nothing, or where a score is not known."""
  known = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
  return sum(known) / len(known) if known and len(known) == len(first) else None


def highest(column: Scores) -> float | None:
  """The largest score; None where one is not known."""
  known = [score for score in column if score is not None]
  return max(known) if known and len(known) == len(column) else None


def continual_metrics(
  scores: Sequence[Scores],
  single: Sequence[float] | None = None,
  form: Literal["paper", "public"] = "paper",
) -> dict[str, float | None]:
  """AP, F.Ra, BWT and FWT after N tasks.

      AP = mean_j a[N][j]    F.Ra = mean_{j<N} (max_{i<N} a[i][j] - a[N][j])
      BWT = mean_{j<N} (a[N][j] - a[j][j])    FWT = mean_j (a[j][j] - a0[j])

  Args:
    scores: N rows; a[i][j] is the score (0-100) on task j after learning task i. What stands above
      the diagonal is not read; scores that were not taken are None.
    single: a0[j], the score of a block trained on task j alone, for the first N tasks or more.
    form: "paper", as above; "public", as the authors' scorer computes them: BWT is divided by N
      instead of N-1, and FWT takes the constant 50.94 (SuperNI, T5-Large) for the mean of a0, so
      that it does not need `single`.

  Returns:
    Each figure, in points; None where it is not defined: F.Ra and BWT of one task, FWT without
    `single`, and what needs a score that is None.

  Raises:
    ValueError: `single` is shorter than N.
  """
  tasks = len(scores)
  last, own = scores[-1][:tasks], [scores[j][j] for j in range(tasks)]
  earlier = [[scores[i][j] for i in range(j, tasks - 1)] for j in range(tasks - 1)]
  best = [highest(column) for column in earlier]
  backward = mean_difference(last[:-1], own[:-1])
  if form == "public":
    backward = None if backward is None else backward * (tasks - 1) / tasks
    forward = mean_difference(own, [PUBLIC_SINGLE] * tasks)
  else:
    forward = None if single is None else mean_difference(own, single[:tasks])
  return {
    "AP": mean_difference(last, [0.0] * tasks),
    "F.Ra": mean_difference(best, last[:-1]),
    "BWT": backward,
    "FWT": forward,
  }


LEAST = 1e-6  # weights are rounded to this


def blocks_used(mixtures: Sequence[Sequence[float]]) -> float:
  """How many blocks the tasks' mean mixtures (a row each) put their weight on: the exponential of
  the entropy of the mean row. A weight below 0 counts by its size.
  """
  sizes = [[abs(weight) for weight in mixture] for mixture in mixtures]
  rows = [[weight / sum(mixture) for weight in mixture] for mixture in sizes]
  mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
  return math.exp(-sum(weight * math.log(weight) for weight in mean if weight > 0))


def alignment(
  learning: Sequence[Sequence[float]], answering: Sequence[Sequence[float]]
) -> float | None:
  """How far the mixtures of answering are from those of learning: the mean over tasks of
  KL(learning || answering) in nats, of their mean mixtures (a row each). None where weights are no
  shares: below 0, or not 1 in sum.
  """
  rows = [(row, other[: len(row)]) for row, other in zip(learning, answering, strict=True)]
  if (
    not rows
    or not all(learning)
    or any(min(row) < 0 or abs(sum(row) - 1) > 1e-3 for pair in rows for row in pair)
  ):
    return None
  divergences = [
    sum(p * math.log(p / max(q, LEAST)) for p, q in zip(row, other, strict=True) if p > 0)
    for row, other in rows
  ]
  return max(sum(divergences) / len(divergences), 0.0)  # rounding can leave less
