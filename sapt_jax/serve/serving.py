"""The parts of a server that is running, and how they start and end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

from sapt_jax.serve.metrics import Metrics
from sapt_jax.serve.options import ServeOptions
from sapt_jax.serve.queue import Waiting, Worker
from sapt_jax.serve.ready import Ready
from sapt_jax.serve.watch import Sight, Watcher


class Serving:
  """Queue, worker and watcher.

  Args:
    seen: the sight of the run's folder before `ready` was read from it.
    end: called when the server cannot go on.
  """

  def __init__(self, ready: Ready, seen: Sight, options: ServeOptions, end: Callable[[], None]):
    self.metrics, self.end = Metrics(), end
    self.waiting = Waiting(options.limits.queue, options.wait_ms / 1000)
    self.failure: Exception | None = None
    self.warm = threading.Event()
    self.worker = Worker(ready, self.waiting, self.metrics, self._warmed, self._failed)
    self.watcher = None
    if options.look_every and seen:
      run = ready.answering.run
      self.watcher = Watcher(run, seen, options.look_every, self.worker, self.metrics)

  @property
  def ready(self) -> Ready:
    """What answers now."""
    return self.worker.ready

  def start(self) -> None:
    """Starts to compile, then to answer."""
    self.worker.start()

  def _warmed(self) -> None:
    gc.collect()
    gc.freeze()  # what is here stays; to look through it again takes as long as many batches
    self.warm.set()
    print("ready", flush=True)
    if self.watcher:
      self.watcher.start()

  def _failed(self, error: Exception) -> None:
    self.failure = error
    self.end()

  def state(self) -> str:
    """ready, warming up, failing (the last batch was not answered) or stopping."""
    if self.waiting.shut:
      return "stopping"
    if not self.warm.is_set():
      return "warming up"
    return "ready" if self.worker.sound and self.worker.is_alive() else "failing"

  def figures(self) -> str:
    """All figures as Prometheus reads them."""
    return self.metrics.text(
      {
        "queue_length": len(self.waiting),
        "tasks": len(self.ready.tasks),
        "ready": self.state() == "ready",
      }
    )

  def stop(self) -> None:
    """Answers what waits, and ends the threads."""
    self.waiting.close()
    if self.watcher:
      self.watcher.stopped.set()
    # A program that is being compiled cannot be left; the end of the process does not wait for it.
    self.worker.join(timeout=10)
