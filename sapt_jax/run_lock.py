"""What in a run's folder is the run's own, and one process at a time in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TextIO

from sapt_jax.errors import InputError
from sapt_jax.text_files import remove

# What a run leaves in its folder; the rest is the user's.
LINES = ("predictions", "pseudo_inputs", "pseudo_examples")  # folders with a file of each task
PICTURES = ("mixture_training.png", "mixture_testing.png")
_WRITTEN_WHOLE = ("config.json", "metrics.jsonl", "scores.json", "predictions.jsonl")
_BESIDE_ANY = ("lock", "owner.lock", "errors.log", "errors.[0-9]*.log")
# What a run may have left that ended before there was a config.json.
BEFORE_IT_BEGINS = (*_BESIDE_ANY, "single", "config.json.draft")
OWN_FILES = (
  *_WRITTEN_WHOLE,
  *(f"{name}.draft" for name in _WRITTEN_WHOLE),
  *("metrics.seal.json", "metrics.seal.draft", *_BESIDE_ANY, *PICTURES),
)
OWN_FOLDERS = ("snapshots", "progress", "single", *LINES)
OWN = OWN_FILES + OWN_FOLDERS


def check_kinds(run: pathlib.Path) -> None:
  """Whether what a run finds in its folder by the names of its own files is files (opening a pipe
  would wait for ever), and folders by those of its folders.

  Raises:
    InputError: something is not.
  """
  if not run.is_dir():
    return
  check_rights(run)
  lines = [file for name in LINES for file in (run / name).glob("[0-9]*_*.jsonl*")]
  lines += run.glob("progress/*/*.jsonl*")
  for entry in [*run.iterdir(), *lines]:
    if entry in lines or any(map(entry.match, OWN_FILES)):
      right, what = entry.is_file(), "file"
    elif any(map(entry.match, OWN_FOLDERS)):
      right, what = entry.is_dir(), "folder"
    else:
      continue
    if not right:
      raise InputError(f"{entry}: is no {what}, as a run has it there; move it elsewhere")
    check_rights(entry)


def check_no_strangers(run: pathlib.Path) -> None:
  """Whether a folder without config.json may become a run's: it holds nothing but what a run leaves
  that ended before it began.

  Raises:
    InputError: it may not.
  """
  strangers = [entry.name for entry in run.iterdir() if not any(map(entry.match, BEFORE_IT_BEGINS))]
  if strangers:
    raise InputError(
      f"{run}: not a run's folder (it holds {min(strangers)} and no config.json); choose another "
      "--output"
    )


def check_rights(entry: pathlib.Path) -> None:
  """Whether this process may read and change a file or a folder.

  Raises:
    InputError: it may not.
  """
  needed = os.R_OK | os.W_OK | (os.X_OK if entry.is_dir() else 0)
  if not os.access(entry, needed, effective_ids=True):
    raise InputError(f"{entry}: this user may not read and change it; give rights (chmod u+rwX)")


def check_not_own(option: str, path: pathlib.Path) -> None:
  """Whether a program may write there: not over what a run has left in its folder.

  Raises:
    InputError: it may not.
  """
  whole = path.resolve()
  for run in whole.parents:
    first = pathlib.PurePath(whole.relative_to(run).parts[0])
    if (run / "config.json").is_file() and (run / "snapshots").is_dir():
      if any(map(first.match, OWN)):
        raise InputError(f"{option} {path}: {first} belongs to the run in {run}; choose another")
      return


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


def successor(folder: pathlib.Path) -> pathlib.Path:
  """The folder that is made to take the place of a run's (replace)."""
  return folder.with_name(f".{folder.name}.forgetting")


def replace(folder: pathlib.Path) -> None:
  """Puts a run's successor in its place; the user's own files stay."""
  folder = folder.resolve()
  folder.rename(_before(folder))
  successor(folder).rename(folder)
  clear(folder)


def recover(folder: pathlib.Path) -> None:
  """Takes a run's folder back, if a process was killed in `replace` before the successor had its
  name.
  """
  folder = folder.resolve()
  if not folder.name or folder.exists() or not successor(folder).is_dir():
    return
  if _before(folder).is_dir():
    _before(folder).rename(folder)


def clear(folder: pathlib.Path) -> None:
  """Removes what `replace` has replaced, but for the user's own files, which move.

  Raises:
    InputError: one of these has a name that is taken by now; nothing has changed.
  """
  folder = folder.resolve()
  before = _before(folder)
  kept = [
    entry
    for entry in (before.iterdir() if before.is_dir() else ())
    if not any(map(entry.match, OWN))
  ]
  for entry in kept:
    if os.path.lexists(folder / entry.name):
      raise InputError(
        f"{folder / entry.name}: is there twice, as a program was killed while it moved it from "
        f"{before}; move one of the two elsewhere"
      )
  for entry in kept:
    entry.rename(folder / entry.name)
  remove(before)


def _before(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f".{folder.name}.before")


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
