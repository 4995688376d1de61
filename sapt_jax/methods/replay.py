"""Replay (experience replay, Chaudhry et al., 2019): one block trained on and on, with real rows of
earlier tasks among each task's own.
"""

from __future__ import annotations

import dataclasses

from sapt_jax import checks, config
from sapt_jax.data import rehearsal
from sapt_jax.methods.lesson import Learned, Lesson, Study, need_rows
from sapt_jax.methods.sequential import Sequential


@dataclasses.dataclass(frozen=True)
class ReplayOptions(config.MethodOptions):
  """One block, trained on and on with rows of earlier tasks (Chaudhry et al., 2019)."""

  name: str = "replay"
  replay_share: float | None = None
  """Share of every earlier task's training rows that is kept and learned from again, at least one;
  none: as many as SAPT keeps pseudo inputs (generator.keep, generator.keep_at_least).
  """

  def __post_init__(self) -> None:
    if self.replay_share is not None:
      checks.share(self, "method", "replay_share")


class Replay(Sequential):
  """One block for everything, and a fixed draw of every earlier task's rows, question and answer,
  in the training rows.

  SAPT compares with replay of 2 % but ships no code for it; the form here is the union of the
  task's rows with the kept ones, each equally likely. A step costs the same however many tasks
  there are. Stored besides the block: the kept rows, which are drawn again from the stream's files
  instead of being copied into the snapshot.
  """

  Options = ReplayOptions
  options: ReplayOptions

  def check_task(self, study: Study) -> None:
    need_rows(study, "rows to learn from again")

  def lesson(self, learned: Learned, study: Study) -> Lesson:
    earlier = [
      row
      for task in study.stream[: study.index]
      for row in rehearsal.draw(task.train.rows, self.kept(len(task.train), study), study.seed)
    ]
    return Lesson([*earlier, *study.task.train.rows])

  def kept(self, rows: int, study: Study) -> int:
    """How many of a task's rows are kept."""
    share = self.options.replay_share
    return study.sampling.kept_of(rows) if share is None else max(1, int(share * rows))
