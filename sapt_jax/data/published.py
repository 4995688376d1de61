"""Tasks in the layouts that benchmarks are published in.

SuperNI and Long Sequence: TASK/{train,dev,test}.json, each with "Definition" (str or list of str,
which may be empty) and "Instances", a list of {"input": str, "output": str or list of str}.
Natural Instructions: one such file for each task, TASK.json, with "Positive Examples".
TRACE: TASK/{train,eval,test}.json, each a list of {"prompt": str, "answer": str}.
Wrong data is an InputError that names file, line or row, and field.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from sapt_jax import streams
from sapt_jax.data.tables import read_table
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
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
  return split_of(read_object(file), file)


def split_of(content: dict[str, Any], file: pathlib.Path) -> tuple[str, list[Example]]:
  """The same of a file's content."""
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
  return Task(folder.name, definition, splits["train"], splits["dev"], splits["test"])


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


# Rows of a natural-instructions task that are scored: its authors take the first so many.
NI_TEST = 100


def read_one_file_task(file: pathlib.Path, positive_examples: int, learned: bool = False) -> Task:
  """A task of Natural Instructions: the first rows are for the test, the others to learn from.

  Args:
    positive_examples: so many of the file's own go behind the definition, solved, as in
      Tk-Instruct's prompts; 0: none.
    learned: the task has been learned already, so that its file need not be there.
  """
  if learned and not file.exists():
    return Task(file.stem, "", (), (), ())
  content = read_object(file)
  definition, rows = split_of(content, file)
  test = NI_TEST if len(rows) > 2 * NI_TEST else max(1, len(rows) // 10)
  shown = content.get("Positive Examples", []) if positive_examples else []
  if not isinstance(shown, list):
    raise InputError(f"{file}: field 'Positive Examples' must be a list")
  for number, row in enumerate(shown[:positive_examples], 1):
    one = read_example(row, f"{file}: Positive Examples[{number - 1}]")
    definition += (
      f"\n\nPositive Example {number} -\nInput: {one.input}\nOutput: {one.references[0]}"
    )
  return Task(file.stem, definition, tuple(rows[test:]), (), tuple(rows[:test]))


TRACE_METRICS = {
  "MeetingBank": "rouge_l",
  "Py150": "edit_similarity",
  "20Minuten": "rouge_l_multilingual",
}


def read_trace_task(folder: pathlib.Path, learned: bool = False) -> Task:
  """A task of TRACE: prompts that are whole, without a definition, and one answer each."""
  splits = dict[str, tuple[Example, ...]]()
  for split, stem in (("train", "train"), ("dev", "eval"), ("test", "test")):
    file = folder / f"{stem}.json"
    splits[split] = (
      () if learned and not file.exists() else tuple(map(_trace_row, read_table(file)))
    )
  metric = TRACE_METRICS.get(folder.name, "exact_match")
  return Task(folder.name, "", splits["train"], splits["dev"], splits["test"], metric)


def _trace_row(placed: tuple[str, dict[str, Any]]) -> Example:
  place, row = placed
  for field in ("prompt", "answer"):
    if not isinstance(row.get(field), str):
      raise InputError(f"{place}: field {field!r} must be text")
  return Example(row["prompt"], (row["answer"],))
