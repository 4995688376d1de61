"""What is kept of a task while it is learned, so that a run that is stopped or killed goes on where
it was: a checkpoint of each training, and the answers given so far.
"""

from __future__ import annotations

import dataclasses
import pathlib

from sapt_jax.evaluation.kept_answers import KeptAnswers


@dataclasses.dataclass(frozen=True)
class Progress:
  """The folder of one task's progress; it goes when the task is done."""

  folder: pathlib.Path

  def checkpoint(self, phase: str) -> pathlib.Path:
    """Where a training keeps its checkpoint: "learn", or "inputs" for the generator's."""
    return self.folder / phase

  def answers(self, name: str) -> KeptAnswers:
    """The answers of this name that were given so far, to be added to."""
    return KeptAnswers(self.folder / f"{name}.jsonl")
