"""Tasks of the user's own: a folder with a folder or a file for each of them.

TASK/{train,dev,test}.{jsonl,json,csv,tsv,parquet}, and what is to be said of it in TASK/task.toml;
or TASK.{jsonl,...} and TASK.toml. Where dev or test is not there, it is set aside from train.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from sapt_jax import streams
from sapt_jax.data.hubs import hub_rows
from sapt_jax.data.tables import FORMATS, PlacedRow, read_table
from sapt_jax.data.task_file import HubSource, TaskFile, read_task_file
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError

SPLITS = {
  "train": ("train",),
  "dev": ("dev", "validation", "valid", "val"),
  "test": ("test",),
}
# Most rows that are set aside for dev or test, whatever the share.
MOST_SET_ASIDE = {"dev": 100, "test": 1000}


def own_tasks(root: pathlib.Path) -> list[str]:
  """The names of the tasks in a folder, in alphabetical order.

  Raises:
    InputError: the folder is a task itself.
  """
  names = {
    path.name if path.is_dir() else path.stem
    for path in root.iterdir()
    if not path.name.startswith((".", "__"))
    and (path.is_dir() or path.suffix.lower() in (*FORMATS, ".toml"))
  }
  splits = [name for name in names if any(name.lower() in words for words in SPLITS.values())]
  if "train" in splits and len(splits) == len(names):
    raise InputError(
      f"{root}: holds {', '.join(sorted(splits))}, which are splits of one task; put them into a "
      "folder of it that has the task's name"
    )
  return sorted(names)


def read_own_task(root: pathlib.Path, name: str, seed: int, learned: bool) -> Task:
  """A task of the user's own.

  Args:
    seed: of the draw that sets rows aside.
    learned: the task has been learned already, so that its files need not be there.

  Raises:
    InputError: a file is missing, or is not what it should be; the message names it.
  """
  folder = root / name
  said = read_task_file(folder / "task.toml" if folder.is_dir() else root / f"{name}.toml")
  if said.source is not None:
    splits = _hub_splits(said, said.source, learned)
  else:
    files = _files(root, name)
    if "train" not in files and not learned:
      looked = folder / "train" if folder.is_dir() else root / name
      raise InputError(f"{looked}: no such file with an ending of {', '.join(FORMATS)}")
    splits = {split: _examples(said, read_table(file)) for split, file in files.items()}
  train, dev, test = (tuple(splits.get(split, ())[: said.limit(split)]) for split in SPLITS)
  labels = tuple(said.labels.values())
  task = Task(name, said.instruction.strip(), train, dev, test, said.metric, labels)
  for split in ("test", "dev"):
    if task.train and not getattr(task, split):
      task = _set_aside(task, split, getattr(said, split), said.limit(split), seed)
  return task


def _hub_splits(said: TaskFile, source: HubSource, learned: bool) -> dict[str, list[Example]]:
  """The splits that a hub has of a task; of a learned one none where it cannot be reached."""
  named = {split: there for split in SPLITS if (there := getattr(source, split))}
  try:
    return {
      split: _examples(said, hub_rows(source, there, said.limit(split), said.where))
      for split, there in named.items()
    }
  except InputError as error:
    if not learned:
      raise
    print(f"warning: {error}; the task has been learned and is not scored", file=sys.stderr)
    return {}


def _examples(said: TaskFile, rows: Sequence[PlacedRow]) -> list[Example]:
  return [said.example(row) for row in rows]


def _files(root: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
  """The file of each split that has one.

  Raises:
    InputError: a split has two, the task is a folder and has a file beside it, or a file has a name
      that says nothing.
  """
  folder = root / name
  beside = [path for path in root.iterdir() if path.is_file() and path.stem == name]
  beside = [path for path in beside if path.suffix.lower() in (*FORMATS, ".toml")]
  if folder.is_dir() and beside:
    raise InputError(f"{beside[0]}: the task is the folder {folder}; move the file into it")
  stems = SPLITS if folder.is_dir() else {"train": (name,)}
  there = sorted(folder.iterdir()) if folder.is_dir() else beside
  files = {}
  for split, names in stems.items():
    found = [path for path in there if path.stem in names and path.suffix.lower() in FORMATS]
    if len(found) > 1:
      raise InputError(f"{found[0]}, {found[1]}: two files of one split; remove one")
    if found:
      files[split] = found[0]
  said = "task.toml" if folder.is_dir() else f"{name}.toml"
  for path in there:
    if path.suffix.lower() in (*FORMATS, ".toml") and path not in (
      *files.values(),
      path.parent / said,
    ):
      known = ", ".join([said, *(words[0] for words in stems.values())])
      raise InputError(
        f"{path}: nobody would read a file of this name; a task's files are {known}, with an "
        f"ending of {', '.join(FORMATS)}"
      )
  return files


def _set_aside(task: Task, split: str, share: float, limit: int | None, seed: int) -> Task:
  """The task with rows of a split, at most `limit`, drawn out of train by seed.

  Raises:
    InputError: train has too few rows.
  """
  size = max(1, min(limit or MOST_SET_ASIDE[split], int(share * len(task.train))))
  if len(task.train) <= size:
    raise InputError(
      f"task {task.name}: has too few rows to set {split} aside ({len(task.train)} left); a "
      f"task needs three rows, to learn from, to validate and to test with, or a file {split}"
    )
  order = streams.host(seed, f"{split} set aside").permutation(len(task.train))
  chosen, rest = np.sort(order[:size]), np.sort(order[size:])
  drawn = tuple(task.train[i] for i in chosen)
  task = dataclasses.replace(task, train=tuple(task.train[i] for i in rest))
  return (
    dataclasses.replace(task, test=drawn)
    if split == "test"
    else dataclasses.replace(task, dev=drawn)
  )
