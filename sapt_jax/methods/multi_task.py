"""Multi-task learning: one block trained on the rows of all tasks at once. No continual learner,
but the usual upper reference.
"""

from __future__ import annotations

import dataclasses

from sapt_jax import config
from sapt_jax.methods.lesson import Learned, Lesson, Study, need_rows
from sapt_jax.methods.sequential import Sequential


@dataclasses.dataclass(frozen=True)
class MultiTaskOptions(config.MethodOptions):
  """One block, all tasks at once."""

  name: str = "multi_task"


class MultiTask(Sequential):
  """Waits until the last task is there, then makes as many steps on all tasks' rows together as
  the others make in the whole stream.

  Scores exist after the last task only, so there is AP but no forgetting or transfer.
  """

  Options = MultiTaskOptions

  def check_task(self, study: Study) -> None:
    need_rows(study, "all rows")

  def lesson(self, learned: Learned, study: Study) -> Lesson:
    if study.index + 1 < len(study.stream):
      return Lesson(rows=[], counted={})
    rows = [row for task in study.stream for row in task.train.rows]
    sizes = {task.index: len(task.train) for task in study.stream}
    return Lesson(rows, counted=sizes, judged=range(len(study.stream)))
