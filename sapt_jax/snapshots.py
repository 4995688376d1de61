"""Which snapshots a run's folder holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sapt_jax.errors import InputError
from sapt_jax.text_files import is_number, read_object
from sapt_jax.training import checkpoint

Check = Callable[[Any], bool]


def _is(kind: type) -> Check:
  return lambda value: isinstance(value, kind)


def _list_of(check: Check) -> Check:
  return lambda value: isinstance(value, list) and all(map(check, value))


def _or_none(check: Check) -> Check:
  return lambda value: value is None or check(value)


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**24


NUMBERS = _list_of(is_number)
# What a record holds, by its key; None: the key need not be there.
RECORD: dict[str, Check] = {
  "task": _is(str),
  "scores": _list_of(_or_none(is_number)),
  "capacity": lambda value: _is_count(value) and value > 0,
  "memory_inputs": _is_count,
  "rows": _or_none(_list_of(_or_none(NUMBERS))),
  "training_mixture": _or_none(NUMBERS),
  "testing_mixture": _or_none(_list_of(_or_none(NUMBERS))),
  "wall_s": _or_none(is_number),
  "forgotten": _or_none(_is_count),
  "without_test_rows": _or_none(_list_of(_is(str))),
  **dict.fromkeys(
    ("files", "changed", "begins_with", "options", "made", "data"), _or_none(_is(dict))
  ),
  **dict.fromkeys(("metric", "attention", "definition"), _or_none(_is(str))),
}


def number_of(folder: pathlib.Path) -> int:
  """A task's place in the stream, as its folder or file says it; 100 comes after 99."""
  return int(folder.name.split("_")[0])


def finished_snapshots(run: pathlib.Path, keep: int | None = None) -> list[pathlib.Path]:
  """The finished ones, in order of the stream.

  Args:
    keep: of so many tasks, from the first; None: of all.

  Raises:
    InputError: there are two of one task.
  """
  found = [path for path in numbered(run / "snapshots", "*") if checkpoint.is_finished(path)]
  for path, other in itertools.pairwise(found):
    if number_of(path) == number_of(other):
      raise InputError(f"{path} and {other.name}: two snapshots of one task; put one elsewhere")
  return [path for path in found if keep is None or number_of(path) < keep]


def record_of(folder: pathlib.Path) -> dict[str, Any]:
  """The record of a task's snapshot.

  Raises:
    DamagedError: see checkpoint.read_record.
    InputError: it is that of another task, or of another place in the stream; or it is none.
  """
  record = checkpoint.read_record(folder)
  for key, fits in RECORD.items():
    if not fits(record.get(key)):
      raise InputError(
        f"{folder / checkpoint.RECORD}: {key}: not what a run writes; put it back as it was"
      )
  name = f"{len(record['scores']) - 1:02d}_{record['task']}"
  if folder.name != name:
    raise InputError(f"{folder}: holds the snapshot {name}; give each folder its own name again")
  return record


def numbered(folder: pathlib.Path, names: str) -> list[pathlib.Path]:
  """What a run has left in a folder for each task, NUMBER_TASK, in order of the stream."""
  if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
    raise InputError(f"{folder}: this user may not read it; give rights (chmod u+rX)")
  found = [path for path in folder.glob(names) if re.match(r"\d+_", path.name)]
  return sorted(found, key=lambda path: (number_of(path), path.name))


def sound_snapshots(run: pathlib.Path) -> list[pathlib.Path]:
  """The finished snapshots of a run, in order of the stream, up to the newest that is not damaged;
  damaged ones are named on stderr, and so are tasks that have scores and no snapshot.

  Raises:
    InputError: see unbroken.
  """
  finished, file = finished_snapshots(run), run / "scores.json"
  scored = read_object(file).get("tasks") if file.is_file() else None
  if isinstance(scored, list) and (lost := scored[len(finished) :]):
    print(
      f"warning: {run}: no snapshot of {', '.join(map(str, lost))}, though scores.json has scores; "
      "the command that began the run learns again what is lost",
      file=sys.stderr,
    )
  while finished:
    try:
      checkpoint.verify(finished[-1])
      return unbroken(run, finished)
    except checkpoint.DamagedError as error:
      print(f"warning: {error}; going back to the snapshot before", file=sys.stderr)
      finished.pop()
  return unbroken(run, finished)


def unbroken(run: pathlib.Path, finished: list[pathlib.Path]) -> list[pathlib.Path]:
  """The finished snapshots of a run, if those of all tasks before the last one are there: a task's
  place among them is its block's place in the pool.

  Raises:
    InputError: there is none, one is missing, or see record_of.
  """
  if not finished:
    raise InputError(f"{run}: no finished snapshot; the run has not learned a task yet")
  there = [number_of(folder) for folder in finished]
  if missing := sorted(set(range(there[-1])).difference(there)):
    raise InputError(
      f"{run / 'snapshots'}: that of task {missing[0] + 1} is missing or has no manifest, though "
      "later ones are there; put it back, or have the run's command learn from there again"
    )
  for folder in finished:
    with contextlib.suppress(checkpoint.DamagedError):  # the newest one is all that is needed
      record_of(folder)
  return finished


def name_unfinished(folder: pathlib.Path) -> None:
  """Names a saved folder that no killed process leaves: whole, but without its manifest."""
  if folder.is_dir() and not checkpoint.is_finished(folder):
    manifest = folder / checkpoint.MANIFEST
    print(f"warning: {manifest}: missing; what was saved there is not used", file=sys.stderr)


def newest_sound(folders: Sequence[pathlib.Path]) -> int:
  """How many tasks the newest sound snapshot stands for; 0: none is there.

  Args:
    folders: those of all tasks of the stream, whether they are there or not.

  Raises:
    InputError: more than the newest task would be lost.
  """
  newest = max((number for number, folder in enumerate(folders, 1) if folder.is_dir()), default=0)
  done, harm = newest, ""
  while done:
    folder = folders[done - 1]
    try:
      checkpoint.verify(folder)
      if checkpoint.has_arrays(folder):
        break
      harm = harm or f"{folder}: its arrays were pruned"
    except checkpoint.DamagedError as error:
      harm = harm or str(error)
    done -= 1
  if newest - done > 1:
    raise InputError(f"{harm}; {put_back_or_learn(done + 1)}")
  if harm:
    again = "going back to the snapshot before" if done else "the first task is learned again"
    print(f"warning: {harm}; {again}", file=sys.stderr)
  return done


def records_of(folders: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
  """The records of the first tasks, from their snapshots.

  Raises:
    InputError: one is damaged.
  """
  records = []
  for number, folder in enumerate(folders, 1):
    try:
      records.append(record_of(folder))
    except checkpoint.DamagedError as error:
      raise InputError(f"{error}; {put_back_or_learn(number)}") from None
  return records


def check_kept(
  run: pathlib.Path, earlier: Sequence[pathlib.Path], records: Sequence[dict[str, Any]]
) -> None:
  """Whether earlier snapshots are whole, and the files of lines are those that the tasks left. A
  damaged snapshot is only named: the run does not need it.

  Raises:
    InputError: a file of lines is not as it was left.
  """
  for number, folder in enumerate(earlier, 1):
    try:
      if checkpoint.has_arrays(folder):
        checkpoint.verify(folder)
    except checkpoint.DamagedError as error:
      needed = f"this run does not need it, but --from-task {number + 1} would"
      print(f"warning: {error}; {needed}", file=sys.stderr)
  check_files(run, records)


def check_snapshots(run: pathlib.Path, tasks: Sequence[str], keep: int | None) -> None:
  """Whether a run's finished snapshots are, by their names, those of these tasks, and the run can
  be learned again behind the first `keep` of them.

  Args:
    tasks: none: they are not known.
    keep: None: it goes on where it is.

  Raises:
    InputError: one is not, or it cannot.
  """
  own = [f"{index:02d}_{task}" for index, task in enumerate(tasks)]
  for folder in finished_snapshots(run, keep):
    if tasks and folder.name not in own:
      raise InputError(
        f"{folder}: by its name of no task of this run; give it its own name again, or put it "
        "elsewhere"
      )
  found = [path for path in finished_snapshots(run) if checkpoint.has_arrays(path)]
  starts = [1, *(number_of(path) + 2 for path in found if number_of(path) + 1 < len(tasks))]
  if keep and keep + 1 not in starts:
    raise InputError(
      f"--from-task {keep + 1}: {run} holds no arrays of the task before (--keep-snapshots may "
      f"have removed them); it can begin at task {' or '.join(map(str, starts))}"
      if keep < len(tasks)
      else f"--from-task {keep + 1}: the stream has {len(tasks)} tasks; give one of them, from 1"
    )
  if keep:
    before = finished_snapshots(run, keep)
    try:
      checkpoint.verify(before[-1])
    except checkpoint.DamagedError as error:
      raise InputError(
        f"--from-task {keep + 1}: {error}; put it back, or begin at an earlier task"
      ) from None
    check_files(run, records_of(before))


def words_of_place(tasks: Sequence[str], done: int, steps: Mapping[str, int]) -> str:
  """Where a run of these tasks begins or goes on.

  Args:
    done: tasks that are learned.
    steps: those of the next task that are saved, by the phase.
  """
  if done == len(tasks):
    return f"all {done} tasks are learned"
  if not (done or steps):
    return f"a new run of {len(tasks)} tasks"
  words = {"learn": "learned up to step", "inputs": "its generator up to step"}
  saved = [f"{words[phase]} {step}" for phase, step in steps.items()]
  return ", ".join([f"going on with task {done + 1} of {len(tasks)}, {tasks[done]}", *saved])


def check_files(run: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
  """Whether the files that tasks left beside their snapshots are as they were left.

  Raises:
    InputError: one is not.
  """
  for number, record in enumerate(records, 1):
    for name, digest in record.get("files", {}).items():
      file = run / name
      if not file.is_file() or checkpoint.sha256(file) != digest:
        what = "changed since it was written" if file.is_file() else "missing"
        raise InputError(f"{file}: {what}; {put_back_or_learn(number)}")


def put_back_or_learn(number: int) -> str:
  """The ways out when a file of the number-th task is damaged, which the run cannot do without."""
  return f"put it back, or learn from task {number} on again: --from-task {number}"
