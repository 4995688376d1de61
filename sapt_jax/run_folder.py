"""The folder of one run: its configuration, its log, one snapshot after each task, and what is left
for the reader at the end.

config.json            what was asked for; a run goes on with nothing else, but for the mesh
errors.log             tracebacks of what the run did not expect
metrics.jsonl          one line per logged step, validation or event, and one per task with its cost
snapshots/NN_TASK/     all that was learned up to this task, and its scores
predictions/           the answers given after each task
pseudo_inputs/         the pseudo inputs that stand for each task
progress/NN/           a checkpoint inside the task that is being learned
pseudo_examples/       lfpt5: the examples of earlier tasks that a task was learned with
scores.json            the score matrix and the four figures
predictions.jsonl      every answer given
mixture_*.png          the mean mixtures of the tasks
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import jax

from sapt_jax import cli, processes, saved_options
from sapt_jax.config import Config
from sapt_jax.errors import FailedError, InputError, Stopped
from sapt_jax.methods.base import Learned
from sapt_jax.text_files import json_lines, read_object
from sapt_jax.training import checkpoint


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix: value}
  return {
    key: leaf
    for name, inner in value.items()
    for key, leaf in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
  }


def _asked(config: Config, fingerprint: str) -> dict[str, Any]:
  """What config.json holds."""
  asked = json.loads(json.dumps(dataclasses.asdict(config)))
  asked |= {"backbone.weights": fingerprint, "numbers": NUMBERS}
  del asked["distributed"]  # each process has its own
  return asked


def write_lines(file: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  """Writes JSON lines, whole or not at all."""
  file.parent.mkdir(parents=True, exist_ok=True)
  draft = file.with_name(file.name + ".draft")
  with draft.open("w", encoding="utf-8") as out:
    out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  draft.replace(file)


def read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a file of JSON lines."""
  return [row for _, row in json_lines(file)]


# What the same options compute: raised when a new version computes something else, so that no run
# is half the one and half the other.
NUMBERS = 2


class RunFolder:
  """A run's folder, new or to be continued; a context that keeps other runs out of it. Process 0
  writes, the others read what it wrote.

  Raises (on entering):
    InputError: another run is at work in it; it was begun with another configuration; it is a
      folder of something else; it is not one and the same folder to all processes of this run.
  """

  def __init__(self, path: pathlib.Path, config: Config, fingerprint: str):
    self.path, self.snapshots = path, path / "snapshots"
    self.asked = _asked(config, fingerprint)
    self.at = "at the start"  # in words, for errors
    self._lock: TextIO | None = None

  def __enter__(self) -> RunFolder:
    processes.first_does(self._enter)
    seen = processes.all_say(self._seen())
    if not all(seen):
      self.__exit__()
      raise InputError(
        f"{self.path}: process {seen.index(False)} does not find there what process 0 wrote; all "
        "processes need the same options, and one folder that all their machines share"
      )
    return self

  def _enter(self) -> None:
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = (self.path / "lock").open("a+")
    except OSError as error:
      raise InputError(
        f"--output {self.path}: cannot be a run's folder ({error.strerror}); choose another"
      ) from None
    try:
      self._take_lock(self._lock)
      self._check_config(self.path / "config.json")
    except InputError:
      self._lock.close()
      raise
    self.snapshots.mkdir(exist_ok=True)

  def _seen(self) -> bool:
    """Whether config.json is here, and as this process would have written it; file systems of
    clusters may show it late.
    """
    for _ in range(10):
      with contextlib.suppress(OSError, ValueError):
        if json.loads((self.path / "config.json").read_text(encoding="utf-8")) == self.asked:
          return True
      time.sleep(1)
    return False

  def __exit__(self, kind: object = None, error: BaseException | None = None, *_: object) -> None:
    try:
      if isinstance(error, Exception) and not isinstance(error, InputError | Stopped | FailedError):
        raise FailedError(self._failure(error)) from error
    finally:
      if self._lock is not None:
        self._lock.close()  # which frees the lock, as the end of the process would

  def _failure(self, error: Exception) -> str:
    """What an unexpected error says, where the run was, and where its traceback is kept."""
    name = "errors.log" if processes.is_first() else f"errors.{jax.process_index()}.log"
    return (
      f"{self.path}: {cli.reason_of(error)}; {self.at}, all that was saved is there"
      f"{cli.keep_traceback(self.path / name)}"
    )

  def _take_lock(self, lock: TextIO) -> None:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      lock.seek(0)
      holder = lock.read().strip() or "another process"
      raise InputError(
        f"{self.path}: {holder} is at work here; wait for it or choose another --output"
      ) from None
    except OSError as error:
      raise InputError(
        f"{self.path}: its file system has no locks ({error.strerror}), so that two runs could "
        "spoil each other; choose an --output on another one"
      ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()

  def _check_config(self, file: pathlib.Path) -> None:
    if not file.exists():
      strangers = sorted(
        entry.name for entry in self.path.iterdir() if entry.name not in ("lock", "single")
      )
      if strangers:
        raise InputError(
          f"{self.path}: not a run's folder (it holds {strangers[0]} and no config.json); choose "
          "another --output"
        )
    if file.exists() and any(checkpoint.is_finished(place) for place in self.path.glob("*/*")):
      # Before anything has been learned, no other configuration can spoil it; the mesh changes no
      # result. An option that is younger than the run has its default there.
      begun, now = self._as_begun(file), _flat(self.asked)
      changed = [
        f"{key}: {begun.get(key)} -> {now.get(key)}"
        for key in sorted(begun | now)
        if begun.get(key) != now.get(key) and not key.startswith("mesh.")
      ]
      if changed:
        raise InputError(
          f"{self.path}: begun with another configuration ({'; '.join(changed)}); use the same "
          "one, or another --output"
        )
    checkpoint.write_json(file, self.asked)

  def _as_begun(self, file: pathlib.Path) -> dict[str, Any]:
    """The configuration that the run was begun with, as this version of the library reads it."""
    values = read_object(file)
    if values.get("numbers", 1) != NUMBERS:
      raise InputError(
        f"{self.path}: begun with an older version of the library, which computed other numbers; "
        "it can be asked and exported, but not gone on with: choose another --output"
      )
    config = saved_options.config_from_json(values)
    return _flat(_asked(config, values["backbone.weights"]))

  def snapshot(self, index: int, task: str) -> pathlib.Path:
    """The folder of the snapshot after a task."""
    return self.snapshots / f"{index:02d}_{task}"

  def progress(self, index: int) -> pathlib.Path:
    """The folder of checkpoints while a task is being learned."""
    return self.path / "progress" / f"{index:02d}"

  def lines_of(self, folder: str, index: int, task: str) -> pathlib.Path:
    """The file of JSON lines that a task has in one of the run's folders."""
    return self.path / folder / f"{index:02d}_{task}.jsonl"

  def save(
    self,
    index: int,
    task: str,
    learned: Learned,
    record: dict[str, Any],
    lines: dict[str, list[dict[str, Any]]],
  ) -> None:
    """Writes what a task leaves behind, rows for the reader first; with the snapshot, which comes
    last, the task is done, and a restart begins with the next one.

    Args:
      lines: rows by the folder that they belong in.
    """
    if processes.is_first():
      for folder, rows in lines.items():
        write_lines(self.lines_of(folder, index, task), rows)
    checkpoint.save(self.snapshot(index, task), learned, record)
    if processes.is_first():
      shutil.rmtree(self.path / "progress", ignore_errors=True)

  def restore(self, tasks: list[str], abstract: Learned) -> tuple[Learned, list[dict[str, Any]]]:
    """The newest sound snapshot and the records of all tasks up to it; the `abstract` tree itself
    when there is none.

    A damaged snapshot is named on stderr and passed over for the one before it.
    """
    done = processes.first_says(lambda: self._sound(tasks))
    if not done:
      return abstract, []
    learned, _ = checkpoint.load(self.snapshot(done - 1, tasks[done - 1]), abstract)
    return learned, self._records(tasks[:done])

  def _sound(self, tasks: list[str]) -> int:
    """How many tasks the newest sound snapshot stands for."""
    for done in reversed(range(1, len(tasks) + 1)):
      folder = self.snapshot(done - 1, tasks[done - 1])
      if not checkpoint.is_finished(folder):
        continue
      try:
        checkpoint.verify(folder)
        self._records(tasks[:done])
      except checkpoint.DamagedError as error:
        print(f"warning: {error}; going back to the snapshot before", file=sys.stderr)
        shutil.rmtree(self.path / "progress", ignore_errors=True)
        continue
      return done
    return 0

  def _records(self, tasks: list[str]) -> list[dict[str, Any]]:
    return [checkpoint.read_record(self.snapshot(i, task)) for i, task in enumerate(tasks)]

  def trim_log(self, done: int) -> None:
    """Drops log lines of what will be learned again, so that no step stands in the log twice; and a
    checkpoint that is damaged.
    """
    processes.first_does(lambda: self._drop_damaged(self.progress(done)))
    file, progress = self.path / "metrics.jsonl", self.progress(done)
    if processes.is_first() and file.exists():
      step = checkpoint.read_record(progress)["step"] if checkpoint.is_finished(progress) else 0
      write_lines(file, _kept_lines(file.read_text(encoding="utf-8").splitlines(), done, step))

  def _drop_damaged(self, folder: pathlib.Path) -> None:
    try:
      if checkpoint.is_finished(folder):
        checkpoint.verify(folder)
    except checkpoint.DamagedError as error:
      print(f"warning: {error}; the task is learned from its beginning", file=sys.stderr)
      shutil.rmtree(folder)

  def log(self, row: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    self.at = f"task {row['task']}" + (f", after step {row['step']}" if "step" in row else "")
    if not processes.is_first():
      return
    with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
      file.write(json.dumps(row) + "\n")


def _kept_lines(lines: Iterable[str], done: int, step: int) -> Iterator[dict[str, Any]]:
  """The log's rows of the tasks before the done-th, and that task's up to a step. A line that a
  process was killed in is no row.
  """
  last = 0
  for line in lines:
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if row["index"] == done:
      # A step that is no later than the one before belongs to what came after: the pseudo inputs'
      # training, or an earlier start.
      if not last < row.get("step", 0) + ("dev" in row) or row["step"] > step:
        return
      last = max(last, row["step"] - ("dev" in row))
    if row["index"] <= done:
      yield row


def sound_snapshots(run: pathlib.Path) -> list[pathlib.Path]:
  """The finished snapshots of a run, in order of the stream, up to the newest that is not damaged;
  damaged ones are named on stderr.

  Raises:
    InputError: there is none.
  """
  found = sorted(
    (run / "snapshots").glob("[0-9]*_*"), key=lambda folder: int(folder.name.split("_")[0])
  )  # 100 comes after 99
  finished = [folder for folder in found if checkpoint.is_finished(folder)]
  while finished:
    try:
      checkpoint.verify(finished[-1])
      return finished
    except checkpoint.DamagedError as error:
      print(f"warning: {error}; going back to the snapshot before", file=sys.stderr)
      finished.pop()
  raise InputError(f"{run}: no finished snapshot; the run has not learned a task yet")
