"""What is kept of a task while it is learned, so that a run that is stopped or killed goes on where
it was: a checkpoint of each training, the answers given so far, and what it has cost.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping

from sapt_jax import processes
from sapt_jax.evaluation.kept_answers import KeptAnswers
from sapt_jax.text_files import checked_lines, parse_json, remove, write_checked_lines
from sapt_jax.training.saver import Checkpoints, Saver

PROGRESS, COST = "progress", "cost.jsonl"


def drop(run: pathlib.Path, of: Callable[[int], bool]) -> None:
  """Removes what a run keeps of the tasks of these numbers."""
  folder = run / PROGRESS
  for place in folder.glob("*"):
    if place.name.isdecimal() and of(int(place.name)):
      remove(place)
  if folder.is_dir() and not any(folder.iterdir()):
    remove(folder)


@dataclasses.dataclass(frozen=True)
class Progress:
  """The folder of one task's progress, which goes when the task is done, what saves its
  checkpoints, and what is to be done when one has been saved.
  """

  folder: pathlib.Path
  saver: Saver
  saved: Callable[[], None]

  def checkpoints(self, phase: str) -> Checkpoints:
    """Those of a training: "learn", or "inputs" for the generator's."""
    return Checkpoints(self.folder / phase, self.saver, self.saved, int(self.folder.name) + 1)

  def keep_cost(self, figures: Mapping[str, int | float]) -> None:
    """Keeps what the task has cost so far (Cost.so_far)."""
    if processes.is_first():
      self.folder.mkdir(parents=True, exist_ok=True)
      write_checked_lines(self.folder / COST, [json.dumps(dict(figures))])

  def cost(self) -> dict[str, int | float]:
    """What was kept of it last; empty: nothing."""
    file = self.folder / COST

    def last() -> dict[str, int | float]:
      lines = checked_lines(file)
      return parse_json(lines[-1], str(file)) if lines else {}

    return processes.first_tells(last)

  def answers(self, name: str) -> KeptAnswers:
    """The answers of this name that were given so far, to be added to."""
    return KeptAnswers(self.folder / f"{name}.jsonl")
