"""What is kept of a task while it is learned, so that a run that is stopped or killed goes on where
it was: a checkpoint of each training, and the answers given so far.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from sapt_jax.evaluation.kept_answers import KeptAnswers


@dataclasses.dataclass(frozen=True)
class Progress:
  """The folder of one task's progress, which goes when the task is done, and what is to be done
  when a checkpoint has been saved.
  """

  folder: pathlib.Path
  saved: Callable[[], None]

  def checkpoint(self, phase: str) -> pathlib.Path:
    """Where a training keeps its checkpoint: "learn", or "inputs" for the generator's."""
    return self.folder / phase

  def answers(self, name: str) -> KeptAnswers:
    """The answers of this name that were given so far, to be added to."""
    return KeptAnswers(self.folder / f"{name}.jsonl")
