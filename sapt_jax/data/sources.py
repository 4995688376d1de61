"""Where tasks come from: the generated mini stream, or a benchmark folder
TASK/{train,dev,test}.json in SuperNI's layout.

A file is JSON with "Definition" (str or list of str, which may be empty) and "Instances", a list of
{"input": str, "output": str or list of str}.
Wrong data is an InputError that names file, line or row, and field.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sapt_jax import config, streams
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.mini.tasks import mini_stream
from sapt_jax.text_files import read_object

# Rows of train that the clean protocol sets aside for dev, or a tenth of train where that is less.
CLEAN_DEV = 100


def read_example(row: Any, where: str) -> Example:
  """One instance; `where` is what an error calls it."""
  if not isinstance(row, dict):
    raise InputError(
      f'{where}: an instance must be an object with "input" and "output", not {type(row).__name__}'
    )
  for field in ("input", "output"):
    if field not in row:
      raise InputError(f"{where}: field {field!r} is missing")
  outputs = row["output"] if isinstance(row["output"], list) else [row["output"]]
  if not isinstance(row["input"], str):
    raise InputError(f"{where}: field 'input' must be text, not {type(row['input']).__name__}")
  if not outputs or not all(isinstance(output, str) for output in outputs):
    raise InputError(f"{where}: field 'output' must be text or a list of at least one text")
  return Example(row["input"], tuple(outputs))


def read_split(file: pathlib.Path) -> tuple[str, list[Example]]:
  """The definition and all examples of one file."""
  content = read_object(file)
  for field in ("Definition", "Instances"):
    if field not in content:
      raise InputError(f"{file}: field {field!r} is missing")
  if not isinstance(content["Instances"], list):
    raise InputError(
      f"{file}: field 'Instances' must be a list, not {type(content['Instances']).__name__}"
    )
  if not content["Instances"]:
    raise InputError(f"{file}: field 'Instances' is empty; a split needs at least one example")
  definition = content["Definition"]
  if isinstance(definition, list):
    definition = definition[0] if definition else ""  # Long Sequence has a task without any, copa
  if not isinstance(definition, str):
    raise InputError(f"{file}: field 'Definition' must be text or a list of texts")
  rows = enumerate(content["Instances"])
  examples = [read_example(row, f"{file}: Instances[{number}]") for number, row in rows]
  return definition.strip(), examples


def is_task(folder: pathlib.Path) -> bool:
  """Whether this is a task's folder, and not one that other programs leave among them, such as
  .ipynb_checkpoints or __MACOSX.
  """
  return folder.is_dir() and not folder.name.startswith((".", "__"))


def read_task(folder: pathlib.Path, with_dev: bool = True, learned: bool = False) -> Task:
  """One task as published: a file for each split; without dev its file need not be there, and of a
  task that has been learned already no file.
  """
  definition, splits = "", dict[str, tuple[Example, ...]]()
  for name in ("train", "dev", "test"):
    splits[name] = ()
    file = folder / f"{name}.json"
    if (name == "dev" and not with_dev) or (learned and not file.exists()):
      continue
    said, examples = read_split(file)
    definition, splits[name] = definition or said, tuple(examples)
  return Task(folder.name, definition, **splits)


def clean_split(task: Task, seed: int) -> Task:
  """The task with its dev rows carved out of train (a fixed draw by seed), so that nothing but the
  final score looks at test rows.
  """
  size = max(1, min(CLEAN_DEV, len(task.train) // 10))
  if len(task.train) <= size:
    raise InputError(
      f"task {task.name}: {len(task.train)} training row(s) are too few to carve dev out of; "
      "use --data.protocol published"
    )
  order = streams.host(seed, "clean split").permutation(len(task.train))
  dev, train = np.sort(order[:size]), np.sort(order[size:])
  return dataclasses.replace(
    task, train=tuple(task.train[i] for i in train), dev=tuple(task.train[i] for i in dev)
  )


def choose(available: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
  """The full names of the wanted tasks, in the wanted order;
  a name may be cut short where that is unambiguous.
  """
  chosen = []
  for name in wanted:
    fits = [name] if name in available else [full for full in available if full.startswith(name)]
    if not fits:
      there = ", ".join(available)
      raise InputError(f"stream.tasks {name!r} is not in {where}, which has {there}")
    if len(fits) > 1:
      raise InputError(f"stream.tasks {name!r} is ambiguous: {', '.join(fits)}")
    if fits[0] in chosen:
      raise InputError(f"stream.tasks {name!r} is {fits[0]}, which is in the stream already")
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
  if options.benchmark == "mini":
    generated = {task.name: task for task in mini_stream(seed)}
    there = together(begun, list(generated))
    names = choose(there, stream.tasks or there, "the mini stream")
    tasks = [generated[name] for name in names]
  else:
    folder = pathlib.Path(options.root).expanduser() / BENCHMARKS[options.benchmark].folder
    if not folder.is_dir():
      raise InputError(f"data.root {options.root!r}: {folder} is not a folder")
    available = sorted(path.name for path in folder.iterdir() if is_task(path))
    if not available:
      raise InputError(f"data.root {options.root!r}: {folder} holds no task folder")
    there = together(begun, available)
    names = choose(there, stream.tasks or there, str(folder))
    clean = options.protocol == "clean"
    tasks = [read_task(folder / name, not clean, name in begun) for name in names]
    if clean:
      tasks = [clean_split(task, seed) if task.train else task for task in tasks]
  train, test = options.max_train or None, options.max_test or None
  return [
    dataclasses.replace(task, train=task.train[:train], test=task.test[:test]) for task in tasks
  ]
