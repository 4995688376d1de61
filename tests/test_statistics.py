"""Spread and intervals, against numbers worked out by hand or by repetition."""

import math

import numpy as np
import pytest

from sapt_jax.evaluation.statistics import over_seeds, over_test_rows, spread


def test_spread_is_mean_and_sample_deviation():
  assert spread([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
  assert spread([4.0]) == (4.0, None)


def test_the_interval_over_three_seeds_is_students():
  """Differences 1, 2, 3: mean 2, deviation 1, t(0.975; 2) = 4.3027, so 2 +- 4.3027 / sqrt 3."""
  found = over_seeds({0: 11.0, 1: 22.0, 2: 33.0, 9: 0.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 5.0})
  assert found == pytest.approx((2.0, 2 - 2.4842, 2 + 2.4842), abs=1e-3)
  assert not found.excludes_zero
  assert over_seeds({0: 5.0, 1: 5.1, 2: 5.0}, {0: 1.0, 1: 1.0, 2: 1.1}).excludes_zero


def test_one_seed_gives_no_interval_and_none_is_an_error():
  found = over_seeds({0: 3.0}, {0: 1.0})
  assert found.mean == 2.0
  assert math.isnan(found.low)
  assert not found.excludes_zero
  with pytest.raises(ValueError, match="no seed in common"):
    over_seeds({0: 3.0}, {1: 1.0})


def test_the_bootstrap_covers_the_true_difference_as_often_as_it_says():
  rng, covered = np.random.default_rng(0), 0
  for repeat in range(200):
    first = [[100 * (rng.random(60) < 0.7) for _ in range(3)] for _ in range(2)]
    second = [[100 * (rng.random(60) < 0.6) for _ in range(3)] for _ in range(2)]
    found = over_test_rows(first, second, seed=repeat)
    covered += found.low <= 10 <= found.high
  assert 0.89 < covered / 200 < 0.99


def test_paired_rows_that_agree_leave_nothing_to_doubt():
  rows = [[[0.0, 100.0, 100.0, 0.0]]]
  assert over_test_rows(rows, rows) == (0.0, 0.0, 0.0)
  with pytest.raises(ValueError, match=r"shorter|longer"):
    over_test_rows(rows, [*rows, rows[0]])


def test_rows_that_runs_share_are_not_counted_as_more_rows():
  rng = np.random.default_rng(0)
  first, second = ([[list(100.0 * (rng.random(30) < 0.5))]] for _ in range(2))
  once, thrice = over_test_rows(first, second), over_test_rows(3 * first, 3 * second)
  assert thrice == pytest.approx(once, abs=0.5)


def test_one_test_row_says_nothing_of_others_and_unlike_rows_are_an_error():
  found = over_test_rows([[[100.0]]], [[[0.0]]])
  assert found.mean == 100.0
  assert math.isnan(found.low)
  with pytest.raises(ValueError, match="argument 2 is"):
    over_test_rows([[[1.0, 2.0]]], [[[1.0]]])
  with pytest.raises(ValueError, match="different numbers of test rows"):
    over_test_rows([[[1.0, 2.0]], [[1.0]]], [[[1.0, 2.0]], [[1.0]]])
