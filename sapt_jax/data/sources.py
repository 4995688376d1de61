"""Where tasks come from: a generated stream, a published benchmark, or the user's own."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sapt_jax import config
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.own_tasks import own_tasks, read_own_task
from sapt_jax.data.published import (
  clean_split,
  is_task,
  read_one_file_task,
  read_task,
  read_trace_task,
)
from sapt_jax.data.tasks import Task
from sapt_jax.errors import InputError
from sapt_jax.mini.related import related_stream
from sapt_jax.mini.tasks import mini_stream

GENERATED = {"mini": mini_stream, "mini_related": related_stream}


class Source(NamedTuple):
  """where: what errors call it; names: of the tasks that are there; read: name, whether the task
  has been learned already, so that its files need not be there -> the task.
  """

  where: str
  names: list[str]
  read: Callable[[str, bool], Task]


def source_of(options: config.Data, seed: int) -> Source:
  """The source that the options name.

  Raises:
    InputError: there is no such folder.
  """
  if options.is_generated:
    if options.root:
      raise InputError(
        f"data.root {options.root!r}: benchmark {options.benchmark} is generated and reads no "
        "folder; for tasks of your own give --data.benchmark tasks"
      )
    generated = {task.name: task for task in GENERATED[options.benchmark](seed)}

    def made(name: str, learned: bool) -> Task:
      del learned
      # A run that was begun with another benchmark has tasks that are not here.
      return generated.get(name) or Task(name, "", (), (), ())

    return Source(f"the {options.benchmark} stream", list(generated), made)
  folder = pathlib.Path(options.root).expanduser() / BENCHMARKS[options.benchmark].folder
  if not folder.is_dir():
    raise InputError(f"data.root {options.root!r}: {folder} is not a folder")
  if options.benchmark == "tasks":
    return Source(
      str(folder),
      own_tasks(folder),
      lambda name, learned: read_own_task(folder, name, seed, learned),
    )
  if options.benchmark == "natural_instructions":

    def read_file(name: str, learned: bool) -> Task:
      task = read_one_file_task(folder / f"{name}.json", options.positive_examples, learned)
      return clean_split(task, seed) if task.train else task

    return Source(str(folder), sorted(path.stem for path in folder.glob("[!._]*.json")), read_file)
  folders = sorted(path.name for path in folder.iterdir() if is_task(path))
  if options.benchmark == "trace":
    return Source(
      str(folder), folders, lambda name, learned: read_trace_task(folder / name, learned)
    )
  clean = options.protocol == "clean"

  def read(name: str, learned: bool) -> Task:
    task = read_task(folder / name, not clean, learned)
    return clean_split(task, seed) if clean and task.train else task

  return Source(str(folder), folders, read)


def choose(
  available: Sequence[str], wanted: Sequence[str], where: str, called: str = "stream.tasks"
) -> list[str]:
  """The full names of the wanted tasks, in the wanted order;
  a name may be cut short where that is unambiguous. `called`: the option that names them.
  """
  chosen = []
  for name in wanted:
    if not name:
      raise InputError(f"{called}: the name of a task is empty; {where} has {', '.join(available)}")
    fits = [name] if name in available else [full for full in available if full.startswith(name)]
    if not fits:
      raise InputError(f"{called} {name!r} is not in {where}: there are {', '.join(available)}")
    if len(fits) > 1:
      raise InputError(f"{called} {name!r} is ambiguous: {', '.join(fits)}")
    if fits[0] in chosen:
      raise InputError(f"{called} {name!r} is {fits[0]}, which is in the stream already")
    chosen.append(fits[0])
  return chosen


def together(begun: Sequence[str], available: Sequence[str]) -> list[str]:
  """The tasks that a run has begun with, and behind them the others that there are."""
  return [*begun, *(name for name in available if name not in begun)]


def load_stream(
  options: config.Data, stream: config.Stream, seed: int, begun: Sequence[str] = ()
) -> list[Task]:
  """The tasks of a run, in order.

  Args:
    begun: tasks that the run has already. Those stand first where the stream's tasks are not named,
      and none of their files needs to be there.

  Raises:
    InputError: no such folder, file or task, or a file that does not hold what it should.
  """
  source = source_of(options, seed)
  if not source.names and not begun:
    raise InputError(f"data.root {options.root!r}: {source.where} holds no task folder or file")
  there = together(begun, source.names)
  names = choose(there, stream.tasks or there, f"{source.where}{' or this run' if begun else ''}")
  for name in names:
    if not (name.isprintable() or name in begun):  # a line end, or bytes that are not UTF-8
      raise InputError(f"task {name!r}: its name cannot be printed; rename its folder or file")
  tasks = [source.read(name, name in begun) for name in names]
  train, test = options.max_train or None, options.max_test or None
  return [
    dataclasses.replace(task, train=task.train[:train], test=task.test[:test]) for task in tasks
  ]
