"""One process at a time in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TextIO

from sapt_jax.errors import InputError

BEFORE = ".before"  # the end of the name of a folder that is being replaced


def take_lock(lock: TextIO, folder: pathlib.Path) -> None:
  """Locks a folder by a file in it, until the file is closed.

  Raises:
    InputError: another process has it, or the file system has no locks.
  """
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    lock.seek(0)
    holder = lock.read().strip() or "another process"
    raise InputError(
      f"{folder}: {holder} is at work here; wait for it or choose another folder"
    ) from None
  except OSError as error:
    raise InputError(
      f"{folder}: its file system has no locks ({error.strerror}), so that two runs could spoil "
      "each other; choose a folder on another one"
    ) from None
  lock.truncate(0)
  lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  lock.flush()


def recover(folder: pathlib.Path) -> None:
  """Takes a run's folder back whose task was to be forgotten, if the process was killed before the
  new folder had its name (forget.py).
  """
  before = folder.with_name(folder.name + BEFORE)
  if folder.name and not folder.exists() and (before / "config.json").is_file():
    before.rename(folder)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a folder that is there.

  Raises:
    InputError: see take_lock; or nothing can be written there.
  """
  try:
    lock = (folder / "lock").open("a+")
  except OSError as error:
    raise InputError(f"{folder}: cannot be changed ({error.strerror})") from None
  with lock:
    take_lock(lock, folder)
    yield
