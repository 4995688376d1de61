"""Multi-task learning: one block trained on the rows of all tasks at once. No continual learner,
but the usual upper reference.
"""

from __future__ import annotations

from sapt_jax.methods.sequential import Sequential


class MultiTask(Sequential):
  """Waits until the last task is there, then makes as many steps on all tasks' rows together as the
  others make in the whole stream.

  Scores exist after the last task only, so there is AP but no forgetting or transfer.
  """

  waits = True

  @property
  def rehearsal(self) -> float:
    return 1.0
