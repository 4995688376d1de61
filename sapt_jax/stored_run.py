"""A run as values: what its folder holds, task by task, so that another folder can be written from
it with tasks taken out or put behind them.
"""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import re
import shlex
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import learner, results, saved_options
from sapt_jax.config import Config
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.sources import choose
from sapt_jax.errors import FailedError, InputError
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned
from sapt_jax.pet.blocks import capacity_for
from sapt_jax.remote import readable
from sapt_jax.run_folder import RunFolder
from sapt_jax.run_identity import BY_TASK, check_begun, tasks_of
from sapt_jax.run_inputs import read_inputs
from sapt_jax.run_log import RunLog
from sapt_jax.scoring import metric_of
from sapt_jax.snapshots import check_files, finished_snapshots, record_of, sound_snapshots
from sapt_jax.text_files import (
  json_lines,
  object_lines,
  read_object,
  remove,
  write_json,
  write_lines,
)
from sapt_jax.training import checkpoint

Rows = list[dict[str, Any]]
# Options of the stream with an entry per task, and what stands behind the task's name in one.
PER_TASK = {"fit": ":", "blocks": "="}


@dataclasses.dataclass(frozen=True)
class StoredRun:
  """What a run's folder holds.

  Attributes:
    values: of config.json.
    records: of each task that has been learned.
    lines: folder -> the rows that each task left there; None: it left none.
    log: metrics.jsonl.
    learned: what was known after the last of these tasks.
    single: a0 of FWT, if the run has it.
  """

  values: dict[str, Any]
  records: Rows
  lines: dict[str, list[Rows | None]]
  log: Rows
  method: Method
  learned: Learned
  single: list[float] | None

  @property
  def config(self) -> Config:
    return saved_options.config_from_json(self.values)

  @property
  def names(self) -> list[str]:
    """The tasks, in order."""
    return [record["task"] for record in self.records]

  def write(self, path: pathlib.Path) -> None:
    """Writes the run into a new folder; until all is written, it has another name.

    Raises:
      InputError: there is something of that name.
    """
    path = new_folder(path)
    if not all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(self.learned)):
      raise FailedError(f"{path}: what would be written holds numbers that are none")
    draft = path.with_name(f".{path.name}.draft")
    remove(draft)
    folder = RunFolder(draft, self.config, {})
    draft.mkdir(parents=True)
    for index, record in enumerate(self.records):
      self._write_task(folder, index, record)
    write_json(draft / "config.json", self.values)
    result = results.summary(
      self.config, self.method, self.names, self.records, self.single, self.learned
    )
    results.publish(folder, self.method, self.names, self.records, result)
    draft.rename(path)

  def _write_task(self, folder: RunFolder, index: int, record: dict[str, Any]) -> None:
    name, files = record["task"], []
    for kind, tasks in self.lines.items():
      if (rows := tasks[index]) is not None:
        files.append(folder.lines_of(kind, index, name))
        write_lines(files[-1], rows)
    for row in self.log:
      if row["index"] == index:
        folder.run_log.add(row)
    sealed = {str(file.relative_to(folder.path)): checkpoint.sha256(file) for file in files}
    record = record | {"files": sealed}
    if index + 1 == len(self.records):
      checkpoint.save(folder.snapshot(index, name), self.learned, record)
    else:
      checkpoint.save_record(folder.snapshot(index, name), record)


def new_folder(path: pathlib.Path) -> pathlib.Path:
  """Where a run can be written, as an absolute path.

  Raises:
    InputError: there is something of that name.
  """
  path = path.resolve()
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise InputError(f"{path}: is there already; choose another folder")
  return path


def read_run(path: pathlib.Path, called: str) -> StoredRun:
  """The run in a folder; its backbone's weights are not read.

  Args:
    called: what an error calls the folder.

  Raises:
    InputError: the folder is no run's, no task has been learned, or one is being learned.
  """
  values = read_object(path / "config.json", f"{called}: config.json of a run")
  try:
    config = saved_options.config_from_json(values)
  except InputError as error:
    raise InputError(f"{called}: {error}") from None
  snapshots = sound_snapshots(path)
  try:
    records = [record_of(folder) for folder in snapshots]
    sizes = [records[-1][name] for name in ("capacity", "memory_inputs")]
    method, shapes = learner.abstract(config, learner.backbone_folder(config), *sizes)
    stored, _ = checkpoint.read(snapshots[-1], shapes)
    learned = jax.tree.map(jnp.asarray, stored)  # as a method has it while it learns
  except checkpoint.DamagedError as error:
    raise InputError(f"{called}: {error}") from None
  names = [record["task"] for record in records]
  missing = [name for name in tasks_of(values) if name not in names]
  if missing:
    raise InputError(
      f"{called}: {', '.join(missing)} not learned yet; finish the run first, with the command "
      "that began it, or leave what is not learned out of its --stream.tasks"
    )
  check_files(path, records)
  folder = RunFolder(path, config, {})
  kinds = sorted(
    {pathlib.PurePath(name).parts[0] for one in records for name in one.get("files", ())}
  )
  lines = {
    kind: [_rows(folder.lines_of(kind, index, name)) for index, name in enumerate(names)]
    for kind in kinds
  }
  log = _log(folder.run_log, len(names))
  file = path / "scores.json"
  single = read_object(file).get("single") if file.is_file() else None
  return StoredRun(values, records, lines, log, method, learned, single)


def fork(source: str, path: pathlib.Path, remote: bool, config: Config) -> None:
  """Makes a folder a copy of a finished run, to be gone on with as `config` says; one that was
  begun so already stays as it is.

  Raises:
    InputError: the run is not finished, or cannot be gone on with so; the folder is remote, the
      source itself, or was begun otherwise.
  """
  called = f"--start-from {source}"
  place = readable(source)
  if remote or place.resolve() == path.resolve():
    raise InputError(f"{called}: --output must be another folder, on this machine")
  if (path / "config.json").is_file():
    begun = read_object(path / "config.json").get("started_from") or {}
    record = [folder / checkpoint.RECORD for folder in finished_snapshots(place)][
      : begun.get("tasks")
    ]
    if not record or begun.get("record") != checkpoint.sha256(record[-1]):
      raise InputError(f"{called}: {path} was not begun with it; choose another --output")
    return
  run = read_run(place, called)
  inputs = read_inputs(config, run.names)
  check_begun(place, run.values, config, inputs.identity, len(run.names))
  newest = finished_snapshots(place)[-1] / checkpoint.RECORD
  begun = {"tasks": len(run.names), "record": checkpoint.sha256(newest)}
  dataclasses.replace(run, values=run.values | {"started_from": begun}).write(path)


def _log(log: RunLog, tasks: int) -> Rows:
  """The lines of a log of so many tasks; one that was changed is named on stderr."""
  rows = []
  log.check()
  for place, row in json_lines(log.file) if log.file.is_file() else ():
    if not (isinstance(row, dict) and row.get("index") in range(tasks)):
      raise InputError(f"{place}: no line that a run has logged; take it out")
    rows.append(row)
  return rows


def _rows(file: pathlib.Path) -> Rows | None:
  return [row for _, row in object_lines(file)] if file.is_file() else None


def without(run: StoredRun, index: int) -> StoredRun:
  """The run as if it had never had its index-th task, but for what the task has left in what all
  tasks share (Method.without). Scores and answers of the others are those from before.

  Raises:
    InputError: see Method.without; or it has no other task, or others answer with its block.
  """
  name = run.names[index]
  if len(run.names) == 1:
    raise InputError(f"{name} is all that this run has learned; remove its folder instead")
  if takers := [run.names[slot] for slot in reversed(run.method.takers(run.learned, index))]:
    raise InputError(
      f"{name}: later tasks take from its block, and would answer otherwise without it; forget "
      f"them first, in this order: {', '.join(takers)}"
    )
  kept = [place for place in range(len(run.names)) if place != index]
  values: dict[str, Any] = copy.deepcopy(run.values)
  for hashes in BY_TASK:
    values.get(hashes, {}).pop(name, None)
  stream = values["stream"]
  stream["tasks"] = [run.names[place] for place in kept]
  for key, mark in PER_TASK.items():
    named = {one: choose(run.names, one.split(mark)[:1], "the run") for one in stream.get(key, ())}
    stream[key] = [one for one, tasks in named.items() if tasks != [name]]
  lines = {
    kind: [_rows_without(tasks[place], name) for place in kept] for kind, tasks in run.lines.items()
  }
  log = [
    row | {"index": row["index"] - (row["index"] > index)}
    for row in run.log
    if row["index"] != index
  ]
  records = [_record_without(run.records[place], run.names, index) for place in kept]
  learned = run.method.without(run.learned, index)
  single = None if run.single is None else [run.single[place] for place in kept]
  return StoredRun(values, records, lines, log, run.method, learned, single)


def beside(first: StoredRun, second: StoredRun) -> StoredRun:
  """A run that has the tasks of both, those of the second behind those of the first. What it says
  of scores and answers is what both have said.

  Raises:
    InputError: the runs differ in what all tasks share, have a task in common, or see
      Method.joined.
  """
  _check_alike(first, second)
  taken, records = len(first.names), [*first.records]
  sizes = {
    "capacity": capacity_for(taken + len(second.names)),
    "memory_inputs": max(run.records[-1]["memory_inputs"] for run in (first, second)),
  }
  for record in second.records:
    later = {key: [None] * taken + record[key] for key in ("scores", "rows")}
    mixtures = [None if row is None else _behind(row, taken) for row in record["testing_mixture"]]
    later["testing_mixture"] = [None] * taken + mixtures
    later["training_mixture"] = _behind(record["training_mixture"], taken)
    records.append(record | later | sizes | {"joined": True})
  values: dict[str, Any] = copy.deepcopy(first.values)
  for hashes in BY_TASK:
    values.setdefault(hashes, {}).update(second.values.get(hashes, {}))
  streams = [run.values["stream"] for run in (first, second)]
  values["stream"] = {"tasks": first.names + second.names} | {
    key: [entry for stream in streams for entry in stream.get(key, ())] for key in PER_TASK
  }
  kinds = sorted(first.lines.keys() | second.lines.keys())
  lines = {
    kind: [rows for run in (first, second) for rows in run.lines.get(kind, [None] * len(run.names))]
    for kind in kinds
  }
  log = [*first.log, *(row | {"index": row["index"] + taken} for row in second.log)]
  folder = learner.backbone_folder(first.config)
  method, _ = learner.abstract(first.config, folder, **sizes)
  learned = method.joined(first.learned, second.learned)
  both = (first.single, second.single)
  single = None if None in both else [score for one in both for score in one or ()]
  return StoredRun(values, records, lines, log, method, learned, single)


def _behind(mixture: list[float], taken: int) -> list[float]:
  return [0.0] * taken + mixture


def _check_alike(first: StoredRun, second: StoredRun) -> None:
  twice = sorted(set(first.names) & set(second.names))
  if twice:
    raise InputError(f"both runs have learned {', '.join(twice)}; forget it in one of them first")
  ours, theirs = (_shared(run) for run in (first, second))
  differing = [
    f"{key} {_shown(ours.get(key))} and {_shown(theirs.get(key))}"
    for key in sorted(ours | theirs)
    if ours.get(key) != theirs.get(key)
  ]
  if differing:
    raise InputError(f"the runs cannot be joined: they have {'; '.join(differing)}")


def _shown(value: Any) -> str:
  """A value in words; of a hash its first digits."""
  return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1...", str(value))


def _shared(run: StoredRun) -> dict[str, Any]:
  """What all tasks of a run share, by the name of the option."""
  config, data = run.config, run.config.data
  frame = BENCHMARKS[data.benchmark].frame if data.frame == "benchmark" else data.frame
  whole = dataclasses.asdict(config)
  values = {
    f"{part}.{name}": value
    for part in ("method", "pet", "backbone")
    for name, value in whole[part].items()
  }
  del values["backbone.path"]
  return values | {
    "backbone.weights": run.values.get("backbone.weights"),
    "tokenizer": run.values.get("tokenizer"),
    "data.frame": frame,
    "evaluation.metric": metric_of(config),
    "data.max_source_length": data.max_source_length,
    "data.max_target_length": data.max_target_length,
  }


def _rows_without(rows: Rows | None, name: str) -> Rows | None:
  return None if rows is None else [row for row in rows if row.get("task") != name]


def _command_without(command: str, names: list[str], index: int) -> str:
  """A command line that does not name one of the tasks in the options of its stream, nor by its
  beginning.
  """
  words, option = [], ""
  for word in shlex.split(command):
    option = word if word.startswith("--") else option
    called = re.split("[:=]", word)[0]
    named = names[index].startswith(called) and called not in {*names} - {names[index]}
    if not (named and option.startswith("--stream.")):
      words.append(word)
  return shlex.join(words)


def _record_without(record: dict[str, Any], names: list[str], index: int) -> dict[str, Any]:
  """A task's record without what it says of the index-th of these."""
  name = names[index]

  def cut(row: list[Any] | None) -> list[Any] | None:
    return None if row is None else row[:index] + row[index + 1 :]

  per_task = {key: cut(record.get(key)) for key in ("scores", "rows", "testing_mixture")}
  mixtures = [cut(row) for row in per_task["testing_mixture"] or ()]
  of_tasks = {
    key: {task: figure for task, figure in record[key].items() if task != name}
    for key in ("changed", "begins_with")
    if key in record
  }
  absent = [task for task in record.get("without_test_rows", ()) if task != name]
  made = record.get("made") or {}
  return (
    record
    | per_task
    | of_tasks
    | {
      "testing_mixture": mixtures,
      "training_mixture": cut(record["training_mixture"]),
      "without_test_rows": absent,
      "made": made | {"command": _command_without(made.get("command", ""), names, index)},
      "forgotten": record.get("forgotten", 0) + 1,
    }
  )
