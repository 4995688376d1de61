"""How sure a figure is: spread over seeds, and intervals of paired differences between methods."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2000


class Interval(NamedTuple):
  """A mean with the 95 % interval around it; no interval (nan) where there is too little to say."""

  mean: float
  low: float
  high: float

  @property
  def excludes_zero(self) -> bool:
    return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> tuple[float, float | None]:
  """Mean and, of several values, standard deviation (n - 1)."""
  return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
  """Mean of first - second over the seeds that both have, with Student's interval of 95 %.

  Raises:
    ValueError: they share no seed.
  """
  differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
  if not differences:
    raise ValueError("no seed in common")
  mean, deviation = spread(differences)
  if not deviation:  # equal differences do not say that all seeds have that one
    return Interval(mean, float("nan"), float("nan"))
  count = len(differences)
  reach = float(stats.t.ppf(0.975, count - 1)) * deviation / count**0.5
  return Interval(mean, mean - reach, mean + reach)


def over_test_rows(
  first: Sequence[Sequence[Sequence[float]]],
  second: Sequence[Sequence[Sequence[float]]],
  seed: int = 0,
) -> Interval:
  """Mean over runs and tasks of the difference in mean score, with the bootstrap interval of 95 %.

  Test rows are drawn again with replacement within each task, the same ones for both methods and
  for all runs, which may share their rows. So the interval says what other test rows of the same
  tasks could have given; it says nothing of other seeds.

  Args:
    first, second: the score of every test row, [run][task][row]; the runs stand in one order.

  Returns:
    no interval (nan) where no task has more than one row.

  Raises:
    ValueError: runs, tasks or rows do not match.
  """
  differences = [
    [
      np.array([a - b for a, b in zip(rows, others, strict=True)])
      for rows, others in zip(run, other, strict=True)
    ]
    for run, other in zip(first, second, strict=True)
  ]
  rng, drawn, terms = np.random.default_rng(seed), np.zeros(RESAMPLES), 0
  for tasks in zip(*differences, strict=True):
    if len({len(rows) for rows in tasks}) > 1:
      raise ValueError("runs have different numbers of test rows")
    chosen = rng.integers(0, len(tasks[0]), (RESAMPLES, len(tasks[0])))
    drawn += sum(rows[chosen].mean(axis=1) for rows in tasks)
    terms += len(tasks)
  mean = float(np.mean([rows.mean() for run in differences for rows in run]))
  if all(len(rows) < 2 for run in differences for rows in run):
    return Interval(mean, float("nan"), float("nan"))
  low, high = np.quantile(drawn / terms, [0.025, 0.975])
  return Interval(mean, float(low), float(high))
