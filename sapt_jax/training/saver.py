"""Saving beside the computation: what is saved is copied, and a thread writes it while the next
steps are made.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sapt_jax import processes
from sapt_jax.errors import InputError
from sapt_jax.training import checkpoint

Then = Callable[[], object]
M_ARENA_MAX = -8  # of glibc's malloc.h


def limit_arenas() -> None:
  """Gives this process one place to allocate from for each core, where glibc makes up to eight: the
  storage library's threads leave a little in each of them that is never freed, so that a long run
  grows. It has to be called before there are threads; the variable MALLOC_ARENA_MAX goes before.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
    mallopt(M_ARENA_MAX, os.cpu_count() or 1)


class Saver:
  """Saves trees of one run, one after another. Whatever comes after a save looks whether it has
  ended, or waits: see `look`, `wait` and `failure`. Process 0 writes.
  """

  def __init__(self) -> None:
    self._threads = ThreadPoolExecutor(1, "saver")
    self._pending: tuple[Future[None], Then] | None = None

  def save(
    self,
    folder: pathlib.Path,
    tree: Any,
    record: dict[str, Any],
    then: Then,
    in_one_file: bool = False,
  ) -> None:
    """As checkpoint.save, of the tree and the record as they are now, after the save before. All
    processes take part.

    Args:
      then: what is to be done once it is written, by the thread that finds that it is.

    Raises:
      OSError, InputError: see wait.
    """
    self.wait()
    # Copies: a step donates its state, and a log of losses grows.
    tree, record = checkpoint.on_host(tree), copy.deepcopy(record)
    if processes.is_first():
      self._pending = self._threads.submit(_write, folder, tree, record, in_one_file), then

  def look(self) -> None:
    """Does what is to be done after a save, if one has been written.

    Raises:
      OSError, InputError: see wait.
    """
    if self._pending is not None and self._pending[0].done():
      self.wait()

  def wait(self) -> None:
    """Waits until all is written.

    Raises:
      OSError: something could not be written.
      InputError: what was to be done then has met wrong input.
    """
    if self._pending is not None:
      (work, then), self._pending = self._pending, None
      work.result()
      then()

  def failure(self) -> Exception | None:
    """What `wait` raises."""
    try:
      self.wait()
    except Exception as error:  # noqa: BLE001 (whoever asks says it or raises it)
      return error
    return None


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """Where a training keeps its newest checkpoint, what writes it, what is to be done then, and the
  number of its task, from 1.
  """

  folder: pathlib.Path
  saver: Saver
  saved: Then
  task: int

  def save(self, tree: Any, record: dict[str, Any]) -> None:
    """As Saver.save."""
    self.saver.save(self.folder, tree, record, self.saved, in_one_file=True)

  def load(self, tree: Any) -> tuple[Any, dict[str, Any]] | None:
    """As checkpoint.load, of arrays that may have grown since; None: there is no checkpoint.

    Raises:
      InputError: it cannot be used.
    """
    if not processes.first_tells(lambda: checkpoint.is_finished(self.folder)):
      return None
    try:
      return checkpoint.load(self.folder, tree, grow=True)
    except InputError as error:
      raise InputError(f"{error}, or learn the task again: --from-task {self.task}") from None


def _write(*given: Any) -> None:
  checkpoint.save(*given)
  # The storage library's threads leave free memory between what is in use, some hundred MiB in a
  # long run; glibc, where it is there, gives it back.
  getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
