"""The folder of one run: its configuration, its log, one snapshot after each task, and what is left
for the reader at the end.

config.json            what was asked for; a run goes on with nothing else, but for the mesh
errors.log             tracebacks of what the run did not expect
metrics.jsonl          one line per logged step, validation or event, and one per task with its cost
metrics.seal.json      the length and the hash of metrics.jsonl, to find damage
snapshots/NN_TASK/     all that was learned up to this task, and its scores
predictions/           the answers given after each task
pseudo_inputs/         the pseudo inputs that stand for each task
progress/NN/           of the task that is learned now: checkpoints of its trainings, answers so far
pseudo_examples/       lfpt5: the examples of earlier tasks that a task was learned with
scores.json            the score matrix and the four figures
predictions.jsonl      every answer given
mixture_*.png          the mean mixtures of the tasks
profile/               a trace of some steps (--profile)
tracking/TOOL.json     what a tool has been sent (--track); its own files are beside it
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any, TextIO

import jax

from sapt_jax import cli, processes, progress, stopping, tracking
from sapt_jax.config import Config
from sapt_jax.errors import FailedError, InputError, Stopped
from sapt_jax.methods.lesson import Learned
from sapt_jax.progress import PROGRESS, Progress
from sapt_jax.remote import Mirror
from sapt_jax.requeued import start_of_job
from sapt_jax.run_identity import BEGUN_IN, asked, check_begun, shared, tasks_of
from sapt_jax.run_lock import (
  LINES,
  OWN,
  PICTURES,
  check_kinds,
  check_no_strangers,
  clear,
  recover,
  take_lock,
)
from sapt_jax.run_log import RunLog
from sapt_jax.snapshots import (
  check_kept,
  check_snapshots,
  finished_snapshots,
  name_unfinished,
  newest_sound,
  number_of,
  numbered,
  record_of,
  records_of,
  words_of_place,
)
from sapt_jax.text_files import read_object, remove, write_json, write_lines
from sapt_jax.training import checkpoint
from sapt_jax.training.saver import Saver


class RunFolder:
  """A run's folder, new or to be continued; a context that keeps other runs out of it. Process 0
  alone reads and writes there; the others are told what they need to know.

  Args:
    identity: what tells data, tokenizer and backbone from others (RunInputs.identity).
    keep: tasks, from the first, whose snapshots stay; what was learned after them is removed. None:
      all stay.
    mirror: copies the folder to a remote place, from which it is fetched first; None: it is here.

  Raises (on entering, when nothing has changed in it yet):
    InputError: another run is at work in it; it was begun with another configuration; it is a
      folder of something else.
  """

  def __init__(
    self,
    path: pathlib.Path,
    config: Config,
    identity: dict[str, Any],
    keep: int | None = None,
    mirror: Mirror | None = None,
  ):
    self.path, self.snapshots, self.keep, self.mirror = path, path / "snapshots", keep, mirror
    self.config, self.identity = config, identity
    self.run_log = RunLog(path / "metrics.jsonl")
    self.tracking = tracking.Tracking(config.track, path, mirror.url if mirror else str(path))
    self.saver = Saver()
    self.at = "at the start"  # in words, for errors
    self.anew = False  # whether the same command would remove what is learned
    self._lock: TextIO | None = None

  def __enter__(self) -> RunFolder:
    processes.first_does(self._enter)
    return self

  def begin(self) -> None:
    """Makes the folder this run's: what is to be learned again goes, and config.json says what is
    asked for. Until then nothing has changed in it.

    Raises:
      InputError: the processes do not have the same data.
    """
    processes.check_alike(shared(self.config, self.identity), "data")
    processes.first_does(self._begin)
    stopping.removed = self.anew

  def _begin(self) -> None:
    file = self.path / "config.json"
    values = read_object(file) if self._begun() and self.keep != 0 else None
    if self.keep is not None:
      self._forget_after(self.keep)
    if values is None or self.keep is not None:
      tracking.forget(self.path)
      remove(self.path / PROGRESS)  # and what a start with other options has cost
    if values is not None and tasks_of(values) != list(self.identity.get("tasks", ())):
      for answers in self.path.glob("progress/*/*.jsonl"):  # given by a pool of another size
        answers.unlink()
    if self.keep is not None:
      values = (values or {}) | {BEGUN_IN: start_of_job()}
    write_json(file, asked(self.config, self.identity, values))
    self.snapshots.mkdir(exist_ok=True)
    self.push(anything=self.keep is not None)

  def _begun(self) -> bool:
    """Whether something has been learned here; before, nothing can spoil it."""
    saved = [*self.path.glob("snapshots/*"), *self.path.glob("progress/*/*")]
    return (self.path / "config.json").exists() and any(map(checkpoint.is_finished, saved))

  def _enter(self) -> None:
    tracking.check(self.config.track)
    for task in self.identity.get("tasks", ()):
      checkpoint.check_path(self.snapshot(0, task))
    recover(self.path)
    check_kinds(self.path)
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = (self.path / "lock").open("a+")
    except OSError as error:
      lost = self.path.is_symlink() and not self.path.exists()
      reason = "a link that leads nowhere" if lost else error.strerror
      raise InputError(
        f"--output {self.path}: cannot be a run's folder ({reason}); choose another"
      ) from None
    try:
      take_lock(self._lock, self.path)
      clear(self.path)
      if self.mirror is not None:
        self.mirror.take()
        self.mirror.fetch()
      for place in (self.snapshots, *self.path.glob("progress/*")):
        checkpoint.settle(place)
      self._check_config(self.path / "config.json")
    except InputError:
      self._lock.close()
      raise

  def push(self, anything: bool = False) -> None:
    """Copies what has changed to the remote place, if the folder has one, and removes there what
    is gone here: anything, or what goes while a run is at work.
    """
    if self.mirror is not None and processes.is_first():
      self.mirror.push(lambda name: anything or self._goes(pathlib.PurePath(name)))

  def _goes(self, name: pathlib.PurePath) -> bool:
    """Whether it is a file of a task's progress, of the run alone (--single), of nothing that a run
    needs, or one of the arrays of a pruned snapshot.
    """
    first = pathlib.PurePath(name.parts[0])
    if str(first) in (PROGRESS, "single") or not any(map(first.match, OWN)):
      return True
    if checkpoint.TREE not in name.parts:
      return False
    number = name.parts.index(checkpoint.TREE)
    manifest = self.path.joinpath(*name.parts[:number], checkpoint.MANIFEST)
    return manifest.is_file() and "/".join(name.parts[number:]) not in read_object(manifest)

  def _push_at_the_end(self) -> None:
    """As push, but whatever fails is only said: how the run has ended counts more."""
    try:
      self.push()
    except Exception as error:  # noqa: BLE001 (each kind of store has errors of its own)
      print(f"warning: not all of {self.path} was copied: {cli.reason_of(error)}", file=sys.stderr)

  def __exit__(self, kind: object = None, error: BaseException | None = None, *_: object) -> None:
    if isinstance(error, Stopped):
      error.where = error.where or self.at
    unsaved = self.saver.failure()
    if unsaved is not None and (error is None or isinstance(error, Stopped)):
      error = unsaved
    try:
      if isinstance(error, Exception) and not isinstance(error, InputError | Stopped | FailedError):
        raise FailedError(self._failure(error)) from error
      if unsaved is not None and error is unsaved:
        raise unsaved
    finally:
      self.tracking.close(error is None)
      if self._lock is not None:
        if not isinstance(error, InputError):
          self._push_at_the_end()
        self._lock.close()  # which frees the lock, as the end of the process would

  def _failure(self, error: Exception) -> str:
    """What an unexpected error says, where the run was, and where its traceback is kept."""
    name = "errors.log" if processes.is_first() else f"errors.{jax.process_index()}.log"
    return (
      f"{self.path}: {cli.reason_of(error)}; {self.at}, all that was saved is there"
      f"{cli.keep_traceback(self.path / name)}"
    )

  def _check_config(self, file: pathlib.Path) -> None:
    if not file.exists():
      check_no_strangers(self.path)
    if self.keep == 0 or not self._begun():  # whatever the run was begun with
      return
    learning = self.keep is None and any(
      map(checkpoint.is_finished, self.path.glob("progress/*/*"))
    )
    try:
      values, again = read_object(file), self.keep is not None
    except InputError as error:
      raise InputError(f"{error}; put it back, or learn all tasks again: --fresh") from None
    check_begun(self.path, values, self.config, self.identity, self.finished(), learning, again)
    check_snapshots(self.path, list(self.identity.get("tasks", ())), self.keep)

  def finished(self) -> int:
    """How many tasks have been learned, and stay."""
    return len(finished_snapshots(self.path, self.keep))

  def _forget_after(self, keep: int) -> None:
    """Removes all that was learned after the first tasks; log lines go when the run goes on."""
    gone = [path.name for path in finished_snapshots(self.path) if number_of(path) >= keep]
    if gone:
      print(f"{self.path}: what was learned is removed, as asked: {', '.join(gone)}")
    for folder in ("snapshots", *LINES):
      for place in numbered(self.path / folder, "*"):
        if number_of(place) >= keep:
          remove(place)
    for name in ("scores.json", "predictions.jsonl", *PICTURES):
      remove(self.path / name)

  def snapshot(self, index: int, task: str) -> pathlib.Path:
    """The folder of the snapshot after a task."""
    return self.snapshots / f"{index:02d}_{task}"

  def progress(self, index: int) -> Progress:
    """What is kept of a task while it is learned."""
    return Progress(self.path / PROGRESS / f"{index:02d}", self.saver, self.push)

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
      files = [self.lines_of(folder, index, task) for folder in lines]
      sealed = {str(file.relative_to(self.path)): checkpoint.sha256(file) for file in files}
      record = record | {"files": sealed}
      self.tracking.scored(record)
    self.saver.save(self.snapshot(index, task), learned, record, lambda: self._saved(index))
    if self.mirror is not None:  # this machine, and all it has, may be gone any moment
      processes.first_does(self.saver.wait)

  def _saved(self, index: int) -> None:
    """What a task's snapshot makes needless goes; the next task may have begun."""
    if processes.is_first():
      progress.drop(self.path, lambda number: number <= index)
      self._prune(index)
      self.push()

  def _prune(self, newest: int) -> None:
    """Removes the arrays of snapshots that are no longer to be kept (Config.keep_snapshots)."""
    if not self.config.keep_snapshots:
      return
    for folder in numbered(self.snapshots, "*"):
      old = number_of(folder) <= newest - self.config.keep_snapshots
      if old and checkpoint.has_arrays(folder):
        checkpoint.prune(folder)

  def size(self, name: str) -> int:
    """A size that the newest snapshot's arrays have, by the name that the record has it under; 0:
    there is none.
    """

    def look() -> int:
      there = finished_snapshots(self.path, self.keep)
      try:
        return int(record_of(there[-1])[name]) if there else 0
      except checkpoint.DamagedError:
        return 0

    return processes.first_tells(look)

  def restore(self, tasks: list[str], abstract: Learned) -> tuple[Learned, list[dict[str, Any]]]:
    """The newest sound snapshot, in arrays as large as those of the `abstract` tree, and the
    records of all tasks up to it; that tree itself when there is none.

    A damaged snapshot is named on stderr and passed over for the one before it.
    """
    folders = [self.snapshot(index, task) for index, task in enumerate(tasks)]
    done = processes.first_tells(lambda: newest_sound(folders))
    if not done:
      return abstract, []
    learned, _ = checkpoint.load(folders[done - 1], abstract, grow=True)
    records = processes.first_tells(lambda: records_of(folders[:done]))
    processes.first_does(lambda: check_kept(self.path, folders[: done - 1], records))
    return learned, records

  def go_on(self, records: list[dict[str, Any]]) -> None:
    """Drops what was left of tasks that are not among these finished ones and cannot be gone on
    with: checkpoints that are damaged, and lines of the log that will be written again. Says where
    the run goes on, if it does.
    """

    def drop() -> None:
      done, steps = len(records), {}
      self._prune(done - 1)  # it may have been killed before it did
      progress.drop(self.path, lambda number: number != done)
      for phase in ("learn", "inputs"):
        place = self.progress(done).checkpoints(phase).folder
        name_unfinished(place)
        if checkpoint.is_finished(place) and self._is_sound(place):
          steps[phase] = checkpoint.read_record(place)["step"]
      name = self.mirror.url if self.mirror else str(self.path)
      print(f"{name}: {words_of_place(list(self.identity.get('tasks', ())), done, steps)}")
      self.run_log.trim(done, steps)
      self.tracking.begin(asked(self.config, {}), self.run_log.rows(), records)

    processes.first_does(drop)

  def _is_sound(self, place: pathlib.Path) -> bool:
    """Whether a checkpoint is as it was written; if not, the task's progress is dropped."""
    try:
      checkpoint.verify(place)
    except checkpoint.DamagedError as error:
      print(f"warning: {error}; the task is learned from its beginning", file=sys.stderr)
      remove(place.parent)
      return False
    return True

  def log(self, row: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    self.saver.look()
    self.at = f"task {row['task']}" + (f", after step {row['step']}" if "step" in row else "")
    if processes.is_first():
      if not (self.path / "config.json").exists():
        there = "give the same command again" if self.mirror else "put it back"
        raise FailedError(f"{self.path}: was removed while the run was at work; {there}")
      self.run_log.add(row)
      self.tracking.add(row)
