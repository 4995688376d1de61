"""Which snapshots a run's folder holds."""

from __future__ import annotations

import pathlib
import sys

from sapt_jax.errors import InputError
from sapt_jax.training import checkpoint


def number_of(folder: pathlib.Path) -> int:
  """A task's place in the stream, as its folder or file says it; 100 comes after 99."""
  return int(folder.name.split("_")[0])


def finished_snapshots(run: pathlib.Path, keep: int | None = None) -> list[pathlib.Path]:
  """The finished ones, in order of the stream.

  Args:
    keep: of so many tasks, from the first; None: of all.
  """
  found = [path for path in (run / "snapshots").glob("[0-9]*_*") if checkpoint.is_finished(path)]
  return sorted((path for path in found if keep is None or number_of(path) < keep), key=number_of)


def sound_snapshots(run: pathlib.Path) -> list[pathlib.Path]:
  """The finished snapshots of a run, in order of the stream, up to the newest that is not damaged;
  damaged ones are named on stderr.

  Raises:
    InputError: there is none.
  """
  finished = finished_snapshots(run)
  while finished:
    try:
      checkpoint.verify(finished[-1])
      return finished
    except checkpoint.DamagedError as error:
      print(f"warning: {error}; going back to the snapshot before", file=sys.stderr)
      finished.pop()
  raise InputError(f"{run}: no finished snapshot; the run has not learned a task yet")
