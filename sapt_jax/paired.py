"""Paired differences in AP between groups of runs that differ in their method alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sapt_jax.evaluation.statistics import Interval, over_seeds, over_test_rows

Runs = Sequence[Mapping[str, Any]]
HEADING = [
  "method",
  "less",
  "in common",
  "AP difference",
  "95 % over seeds",
  "95 % over test rows",
]


class Pair(NamedTuple):
  """first - second, in points of AP.

  Attributes:
    seeds: those that both have.
    rows: None where a run does not say its test rows' scores.
  """

  first: str
  second: str
  seeds: list[int]
  by_seed: Interval
  by_row: Interval | None

  def cells(self) -> list[str]:
    """A row of the table under HEADING."""
    return [
      self.first,
      self.second,
      ("seed " if len(self.seeds) == 1 else "seeds ") + ", ".join(map(str, self.seeds)),
      f"{self.by_seed.mean:+.1f}",
      words(self.by_seed),
      words(self.by_row),
    ]


def learned(run: Mapping[str, Any]) -> int:
  """How many of its stream's tasks a run has learned."""
  return int(run.get("learned", len(run["tasks"])))


def words(interval: Interval | None) -> str:
  """An interval for a table; bold where it excludes zero."""
  if interval is None or interval.low != interval.low:
    return "-"
  text = f"{interval.low:+.1f} to {interval.high:+.1f}"
  return f"**{text}**" if interval.excludes_zero else text


def pairs_of(groups: Mapping[str, Runs]) -> list[Pair]:
  """Every pair of groups with a seed in common, in the order of the groups."""
  return [
    pair
    for (first, runs), (second, others) in itertools.combinations(groups.items(), 2)
    if (pair := pair_of(first, runs, second, others)) is not None
  ]


def pair_of(first: str, runs: Runs, second: str, others: Runs) -> Pair | None:
  """The difference between two groups of runs; None where they share no seed with a known AP over
  as many tasks.
  """
  known = ([run for run in group if run["metrics"]["AP"] is not None] for group in (runs, others))
  left, right = ({run["seed"]: run for run in group} for group in known)
  shared = left.keys() & right.keys()
  seeds = sorted(seed for seed in shared if learned(left[seed]) == learned(right[seed]))
  if not seeds:
    return None
  aps, others_aps = (
    {seed: group[seed]["metrics"]["AP"] for seed in seeds} for group in (left, right)
  )
  rows: list[Any]
  others_rows: list[Any]
  rows, others_rows = ([group[seed].get("rows") for seed in seeds] for group in (left, right))
  try:
    by_row = None if None in rows + others_rows else over_test_rows(rows, others_rows)
  except ValueError:  # scored on different numbers of rows
    by_row = None
  return Pair(first, second, seeds, over_seeds(aps, others_aps), by_row)
