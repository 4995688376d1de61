"""Prompts that wait, and the thread that answers them in batches; it alone uses the device, but for
a run that is loaded beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sapt_jax import cli
from sapt_jax.data.batches import Row
from sapt_jax.evaluation.stepwise import rows_to_take
from sapt_jax.serve.metrics import Metrics
from sapt_jax.serve.ready import Ready


class FullError(Exception):
  """More prompts than may wait."""


TELL_EVERY = 20  # seconds, while programs are compiled


@dataclasses.dataclass(frozen=True)
class News:
  """What is written of an answer so far.

  ids: its tokens; ended: its last one is the end token; whole: nothing more will come.
  """

  ids: list[int]
  mixture: dict[str, float]
  snapshot: str
  ended: bool
  whole: bool


class Job:
  """A prompt that is to be answered.

  Attributes:
    length: tokens that its prompt is padded to where it is alone.
    most: tokens to write at most.
    streamed: whether parts of the answer are wanted before it is whole.
    news: filled by the worker; read in the event loop.
    left: set where nobody waits for the answer any more.
  """

  def __init__(
    self, row: Row, length: int, most: int, streamed: bool, loop: asyncio.AbstractEventLoop
  ):
    self.row, self.length, self.most, self.streamed = row, length, most, streamed
    self.loop = loop
    self.arrived, self.left, self.told = time.monotonic(), False, False
    self.news: asyncio.Queue[News | Exception] = asyncio.Queue()

  @property
  def open(self) -> bool:
    """Whether an answer is still to be written."""
    return not (self.left or self.told)


class Waiting:
  """The queue; may be used by all threads.

  Args:
    most: jobs that may wait.
    patience: seconds that a job waits for others when the device is idle.
  """

  def __init__(self, most: int, patience: float):
    self.most, self.patience = most, patience
    self._jobs: list[Job] = []
    self.shut = False  # whether nothing more will come
    self._changed = threading.Condition()

  def __len__(self) -> int:
    return sum(job.open for job in self._jobs)

  def put(self, jobs: Sequence[Job]) -> None:
    """Adds jobs, all or none.

    Raises:
      FullError: they are too many.
    """
    with self._changed:
      self._jobs = [job for job in self._jobs if job.open]
      if len(self._jobs) + len(jobs) > self.most:
        raise FullError(f"{len(self._jobs)} prompts wait already")
      self._jobs += jobs
      self._changed.notify()

  def take(self, sizes: list[int]) -> list[Job]:
    """The next batch, as large as one of these sizes at most: the oldest job and those whose
    lengths are most like its own, so that little is padded. Waits for a job; none after `close`.
    """
    with self._changed:
      self._changed.wait_for(lambda: self._jobs or self.shut)
      if self._jobs:
        rest = self._jobs[0].arrived + self.patience - time.monotonic()
        self._changed.wait_for(lambda: len(self._jobs) >= sizes[-1] or self.shut, max(rest, 0))
      jobs = [job for job in self._jobs if job.open]
      if not jobs:
        self._jobs = []
        return []
      length = jobs[0].length
      jobs.sort(key=lambda job: abs(job.length - length))  # stable: of equals the oldest first
      count = rows_to_take(len(jobs), sizes)
      self._jobs = sorted(jobs[count:], key=lambda job: job.arrived)
      return jobs[:count]

  def close(self) -> None:
    """Has `take` return what is there, and then nothing."""
    with self._changed:
      self.shut = True
      self._changed.notify_all()

  @property
  def closed(self) -> bool:
    """Whether nothing is there and nothing will come."""
    return self.shut and not self._jobs


class Worker(threading.Thread):
  """Answers what waits.

  Args:
    ready: what answers; between two batches another one may be put in its place.
    warmed: called once all shapes are compiled.
    failed: called with an error that has kept them from it.
  """

  def __init__(
    self,
    ready: Ready,
    waiting: Waiting,
    metrics: Metrics,
    warmed: Callable[[], None],
    failed: Callable[[Exception], None],
  ):
    super().__init__(name="worker", daemon=True)
    self.ready, self.waiting, self.metrics = ready, waiting, metrics
    self.warmed, self.failed = warmed, failed
    self.compiled = 0  # shapes
    self.sound = True  # whether the last batch was answered

  def run(self) -> None:
    """Compiles, then answers until the queue is closed and empty."""
    with jax.set_mesh(self.ready.mesh):
      try:
        said = time.monotonic()
        for _ in self.ready.warm_up():
          self.compiled += 1
          if time.monotonic() - said > TELL_EVERY:
            said = time.monotonic()
            print(f"{self.compiled} of {self.ready.shapes} shapes are compiled", flush=True)
          if self.waiting.closed:
            return
      except Exception as error:  # noqa: BLE001 (whatever it is, the program ends with it)
        self.failed(error)
        return
      self.warmed()
      while not self.waiting.closed:
        if jobs := self.waiting.take(self.ready.sizes):
          self.answer(jobs)

  def answer(self, jobs: list[Job]) -> None:
    """Answers one batch; an error goes to those who wait for it."""
    ready, start = self.ready, time.monotonic()
    for job in jobs:
      self.metrics.observe("queue_seconds", start - job.arrived)
    try:
      self._answer(ready, jobs)
      self.sound = True
    except Exception as error:  # noqa: BLE001 (the next batch may fare better)
      self.sound = False
      kept = cli.keep_traceback(cli.temporary("serve.log"))
      reason = f"a batch of {len(jobs)} failed: {cli.reason_of(error)}{kept}"
      print(f"warning: {reason}", file=sys.stderr, flush=True)
      tell([(job, error) for job in jobs if job.open])
    self.metrics.observe("batch_seconds", time.monotonic() - start)

  def _answer(self, ready: Ready, jobs: list[Job]) -> None:
    rows = [job.row for job in jobs]
    self.metrics.observe("batch_rows", len(rows))
    self.metrics.count("batch_places_total", ready.places(len(rows)))
    for written in ready.answer(rows):
      count, news = written.tokens.shape[1], []
      for job, ids, ended, mixture in zip(
        jobs, written.tokens, written.ended, written.mixtures, strict=True
      ):
        whole = bool(ended) or count >= job.most
        if job.open and (whole or job.streamed):
          news.append((job, news_of(ready, job, ids, whole, mixture)))
      tell(news)
      if not any(job.open for job in jobs):
        return


def news_of(ready: Ready, job: Job, ids: np.ndarray, whole: bool, mixture: np.ndarray) -> News:
  """What a job is told of its tokens (count,) and its mixture (T,)."""
  kept = ids[: job.most].tolist()
  ended = ready.end in kept
  if ended:
    kept = kept[: kept.index(ready.end) + 1]
  return News(kept, ready.mixture(mixture), ready.snapshot, ended, whole)


def tell(news: Sequence[tuple[Job, News | Exception]]) -> None:
  """Hands news over to the event loop."""
  for job, one in news:
    job.told = isinstance(one, Exception) or one.whole

  def put() -> None:
    for job, one in news:
      job.news.put_nowait(one)

  if news:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
      news[0][0].loop.call_soon_threadsafe(put)  # one call for all: each wakes the loop up
