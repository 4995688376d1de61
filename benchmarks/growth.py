"""How the memory of one process grows with the tasks that it learns."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from programs import PATIENCE, end, start

from sapt_jax.snapshots import finished_snapshots
from sapt_jax.training import checkpoint


def grown(options: Sequence[str], folder: pathlib.Path, count: int) -> dict[str, Any]:
  """The memory of a process after each of so many tasks, with snapshots on the disk, and once more
  with the newest one kept in memory: what it grows by then is not the storage library's.

  Args:
    options: of sapt_jax.train, but for --output.
    folder: gets the runs and their logs.

  Returns:
    all in MiB: `resident_mib` after each task, `grew_mib` from about the 25th to the last,
    `learned_mib` of the arrays of the last snapshot; the first two again as `apart_...`.
  """
  run = folder / "grown"
  found = measured(options, run, count, None)
  arrays = checkpoint.arrays_of(finished_snapshots(run)[-1]).values()
  learned = sum(array.nbytes for array in arrays) / 2**20
  apart = measured(options, folder / "grown_apart", count, keep_in_memory)
  shutil.rmtree(run)
  shutil.rmtree(folder / "grown_apart")
  apart = {f"apart_{name}": value for name, value in apart.items()}
  return found | {"learned_mib": round(learned, 1)} | apart


def measured(
  options: Sequence[str], run: pathlib.Path, count: int, before: Callable[[], None] | None
) -> dict[str, Any]:
  """`resident_mib` and `grew_mib` of one such run."""
  log = run.with_suffix(".log")
  shutil.rmtree(run, ignore_errors=True)
  arguments = [*options, "--output", str(run), "--evaluation.no-every-task"]
  process = start([*arguments, "--keep-snapshots", "1"], log, before=before)
  status = pathlib.Path(f"/proc/{process.pid}/status")
  after: list[float] = []
  while process.is_alive():
    learned = len(list(run.glob("snapshots/*/manifest.json")))
    with contextlib.suppress(OSError, StopIteration):  # it has just ended
      lines = status.read_text().splitlines()
      resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
      after += [round(resident / 1024, 1)] * (learned - len(after))
    time.sleep(0.05)
  if end(process, PATIENCE) or len(after) < count:
    sys.exit(f"the run of {count} tasks failed; see {log}")
  early, late = (float(np.median(part)) for part in (after[20:30], after[-10:]))
  return {"resident_mib": after, "grew_mib": round(late - early, 1)}


def keep_in_memory() -> None:
  """Has snapshots of this process hold no arrays; the newest ones stay in memory."""
  kept: dict[pathlib.Path, dict[str, np.ndarray]] = {}

  def put(place: pathlib.Path, arrays: dict[str, np.ndarray], _: bool) -> None:
    place.mkdir()
    kept.clear()
    kept[place] = arrays

  def get(place: pathlib.Path, _: Any = None) -> dict[str, np.ndarray]:
    return kept[place]

  for name, kept_by in (("_put", put), ("_get", get)):
    setattr(checkpoint, name, kept_by)
