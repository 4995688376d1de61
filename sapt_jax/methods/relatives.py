"""Which earlier tasks a new one begins with: those that do best on it before it is learned
(config.Pet.new_block).

That is measured, and not taken from the attention: a task can read like another one and ask for
something else, or the other way round. T capacity of the pool.
"""

from __future__ import annotations

import numpy as np

from sapt_jax.methods.lesson import Learned, Study

# The most that a relative may leave of the loss. A smaller gain is as a rule the form of answers,
# not what they say, and a block that is in the way takes steps to be left (docs/sharing.md).
ENOUGH = 0.5


def first_row(
  learned: Learned, study: Study, row: np.ndarray, shares: np.ndarray, tasks: int, most: int
) -> np.ndarray:
  """The weights of blocks that a new task begins with, (T,) float32: a row, and added to it those
  of at most `most` earlier tasks, chosen one after another, each of which halves the loss.

  Args:
    row: (T,) float32, what it begins with anyhow.
    shares: (T, T), a row of weights for each task.
    tasks: how many there are before it.
  """
  left = list(range(tasks))
  if not min(most, tasks):
    return row
  [loss] = study.losses(learned, row[None])
  taken, without = {}, float(loss)
  for _ in range(min(most, tasks)):
    rows = row + shares[left]
    found = study.losses(learned, rows)
    best = int(np.argmin(np.where(np.isfinite(found), found, np.inf)))
    if not (np.isfinite(found[best]) and found[best] <= ENOUGH * loss):
      break
    row, loss = rows[best], found[best]
    taken[left.pop(best)] = float(loss)
  study.begins_with(taken, without)
  return row
