"""A run's folder, looked at again and again: what it learns or forgets is taken over between two
batches.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import jax

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.serve.metrics import Metrics
from sapt_jax.serve.queue import Worker
from sapt_jax.snapshots import finished_snapshots

Sight = tuple[object, ...]
AGAIN = 30.0  # seconds until what could not be taken over is tried again


def sight_of(run: Path) -> Sight:
  """What tells one state of a run from another: its tasks, and the file that the newest snapshot
  was sealed with; empty: there is none.
  """
  try:
    found = finished_snapshots(run)
    if not found:
      return ()
    seal = (found[-1] / "manifest.json").stat()
    return (*(place.name for place in found), seal.st_ino, seal.st_mtime_ns, seal.st_size)
  except (OSError, ValueError):  # it is being replaced just now; or a folder that is no snapshot
    return ()


class Watcher(threading.Thread):
  """Takes over what changes.

  Args:
    seen: the sight of what the worker answers with.
    every: seconds between two looks.
  """

  def __init__(self, run: Path, seen: Sight, every: float, worker: Worker, metrics: Metrics):
    super().__init__(name="watcher", daemon=True)
    self.run_folder, self.seen, self.every = run, seen, every
    self.worker, self.metrics = worker, metrics
    self.before, self.refused_at = seen, 0.0
    self.refused: Sight = ()
    self.stopped = threading.Event()

  def run(self) -> None:
    """Looks until it is stopped."""
    with jax.set_mesh(self.worker.ready.mesh):
      while not self.stopped.wait(self.every):
        self.look()

  def look(self) -> None:
    """One look. A sight counts when it is the same twice: while a snapshot takes the place of
    another, or forget that of the whole run, there are moments without one.
    """
    now, before = sight_of(self.run_folder), self.before
    self.before = now
    if not now or now != before or now == self.seen:
      return
    if now == self.refused and time.monotonic() - self.refused_at < AGAIN:
      return
    try:
      new = self.worker.ready.renewed()
      for _ in new.warm_up():
        if self.stopped.is_set():
          return
      if sight_of(self.run_folder) != now:
        return  # it has changed meanwhile: the next look decides
    except Exception as error:  # noqa: BLE001 (whatever is wrong there, what is in memory answers)
      self._refuse(now, error)
      return
    self.worker.ready, self.seen = new, now
    self.metrics.count("renewals_total", outcome="taken")
    print(f"answers with {new.snapshot} now: {', '.join(new.tasks)}", flush=True)

  def _refuse(self, now: Sight, error: Exception) -> None:
    if now != self.refused:  # said once
      reason = str(error) if isinstance(error, InputError) else cli.reason_of(error)
      kept = f"goes on with {self.worker.ready.snapshot}"
      print(f"warning: {reason}; {kept}", file=sys.stderr, flush=True)
    self.metrics.count("renewals_total", outcome="refused")
    self.refused, self.refused_at = now, time.monotonic()
