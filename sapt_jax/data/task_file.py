r"""task.toml: what a user says of a task of their own. Every key may be left out.

instruction = "Say which team should answer."   # what stands before the input in the prompt
input = "text"                  # a column, or a template such as "{title}\n{text}"
output = "team"                 # a column (text, number, list of texts), or a template
labels = ["billing", "sales"]   # names of the numbers in that column, or [labels] 0 = "billing"
metric = "accuracy"             # see evaluation.metric
max_train = 1000                # first so many rows; also max_dev, max_test
test = 0.1                      # share that is set aside where there is no such file; also dev

[source]                        # rows from a hub instead of files
kind = "datasets"               # Hugging Face datasets; or tfds, TensorFlow Datasets
path = "org/name"               # hub id, name, or a local folder
config = "en"
streaming = true                # datasets: read no more than max_train rows
train = "train"                 # names of the splits there; without dev, test: set aside
test = "validation"
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
import re
import tomllib
import typing
from collections.abc import Mapping
from typing import Any, Literal

from sapt_jax.checks import require
from sapt_jax.config.tasks import METRICS
from sapt_jax.data.tables import PlacedRow
from sapt_jax.data.tasks import Example
from sapt_jax.errors import InputError
from sapt_jax.text_files import read_text

PLACE = r"\{([^{}]+)\}"  # of a column in a template


@dataclasses.dataclass(frozen=True)
class HubSource:
  """Where rows come from that are in no file of the user's."""

  path: str
  kind: Literal["datasets", "tfds"] = "datasets"
  config: str = ""
  streaming: bool = False
  train: str = "train"
  dev: str = ""
  test: str = ""


@dataclasses.dataclass(frozen=True)
class TaskFile:
  """The content of a task.toml; `where` is what errors call it."""

  where: str
  instruction: str = ""
  input: str = "input"
  output: str = "output"
  labels: dict[str, str] = dataclasses.field(default_factory=dict)
  metric: str = ""
  max_train: int = 0
  max_dev: int = 0
  max_test: int = 0
  dev: float = 0.1
  test: float = 0.1
  source: HubSource | None = None

  def limit(self, split: str) -> int | None:
    """The most rows of a split; None: all."""
    return getattr(self, f"max_{split}") or None

  def example(self, row: PlacedRow) -> Example:
    """A row as an input and its acceptable answers.

    Raises:
      InputError: a column is not there, or does not hold what it should.
    """
    place, columns = row
    self._check(place, columns)
    answers = columns.get(self.output) if "{" not in self.output else None
    if isinstance(answers, list):
      if not answers:
        raise InputError(f"{place}: column {self.output!r} holds an empty list; give an answer")
      references = tuple(self._named(self._text(answer, self.output, place)) for answer in answers)
    else:
      references = (self._named(self._filled(self.output, row)),)
    return Example(self._filled(self.input, row), references)

  def _check(self, place: str, columns: Mapping[str, Any]) -> None:
    """Names all that is missing at once."""
    patterns = {"input": self.input, "output": self.output}
    named = {key: re.findall(PLACE, template_of(pattern)) for key, pattern in patterns.items()}
    lacking = {key: [x for x in names if x not in columns] for key, names in named.items()}
    if any(lacking.values()):
      missing = dict.fromkeys(name for names in lacking.values() for name in names)
      ways = ", ".join(
        f'{key} = "{{COLUMN}} {{COLUMN}}"' if "{" in patterns[key] else f'{key} = "COLUMN"'
        for key, names in lacking.items()
        if names
      )
      raise InputError(
        f"{place}: no column {', '.join(map(repr, missing))} among {', '.join(map(str, columns))}; "
        f"say in {self.where} what to read: {ways}"
      )

  def _filled(self, pattern: str, row: PlacedRow) -> str:
    """A column's text, or a template with the texts of its columns in it."""
    place, columns = row
    return re.sub(
      PLACE, lambda found: self._text(columns[found[1]], found[1], place), template_of(pattern)
    )

  @staticmethod
  def _text(value: Any, column: str, place: str) -> str:
    right = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not right or (isinstance(value, float) and not math.isfinite(value)):
      raise InputError(
        f"{place}: column {column!r} holds {value!r:.40}; it must hold text or a number"
      )
    return str(value)

  def _named(self, text: str) -> str:
    """The label that an answer stands for, if the task has labels; 1.0 is the number 1."""
    if self.labels and text not in self.labels:
      text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    if not self.labels or text in self.labels:
      return self.labels.get(text, text)
    if text not in self.labels.values():
      raise InputError(
        f"{self.where}: labels has no {text!r}, which a row of the task has; it has "
        + ", ".join(f"{number} for {name!r}" for number, name in self.labels.items())
      )
    return text


def template_of(pattern: str) -> str:
  """A column's name as a template of that column alone."""
  return pattern if "{" in pattern else f"{{{pattern}}}"


def read_task_file(file: pathlib.Path) -> TaskFile:
  """What a task.toml says; the defaults where there is none.

  Raises:
    InputError: it is no TOML, or says what nobody asks.
  """
  if not file.exists():
    return TaskFile(str(file))
  try:
    values = tomllib.loads(read_text(file))
  except (tomllib.TOMLDecodeError, RecursionError) as error:
    raise InputError(f"{file}: not TOML ({error})") from None
  if "where" in values:  # a field, but no key
    raise InputError(f"{file}: no key 'where'; take it out")
  if "source" in values:
    if not isinstance(source := values["source"], dict):
      raise InputError(f"{file}: source must be a table, [source], not {type(source).__name__}")
    values["source"] = _checked(HubSource, source, f"{file}: [source]")
  if isinstance(labels := values.get("labels"), list):
    labels = dict(enumerate(labels))
  if isinstance(labels, dict):
    values["labels"] = {str(number): name for number, name in labels.items()}
  task = _checked(TaskFile, {"where": str(file), **values}, str(file))
  if ".py:" in task.metric:  # a path as seen from the file
    task = dataclasses.replace(task, metric=str(file.parent / task.metric))
  _check_values(task)
  return task


def _check_values(task: TaskFile) -> None:
  """Whether the values are such that a task can have them.

  Raises:
    InputError: one is not.
  """
  where = task.where
  require(
    not task.metric or task.metric in METRICS or ".py:" in task.metric,
    f"{where}: metric {task.metric!r}: must be {', '.join(METRICS)}, or FILE.py:FUNCTION",
  )
  names = list(task.labels.values())
  require(all(isinstance(name, str) for name in names), f"{where}: labels must be names, as texts")
  require(len(set(names)) == len(names), f"{where}: labels: two numbers have one name")
  both = [name for name in names if task.labels.get(name, name) != name]
  require(
    not both,
    f"{where}: labels: {both[:1]} is the name of one number and itself another; use other names",
  )
  for key in ("input", "output"):
    value = getattr(task, key)
    rest = re.sub(PLACE, "", value)
    require(
      bool(value) and not set(rest) & set("{}"),
      f"{where}: {key} {value!r}: must be a column, or a text with columns in braces, such as "
      '"{title}: {text}"',
    )
  if task.source is not None:
    require(
      bool(task.source.train), f"{where}: [source] train is empty: name a split to learn from"
    )
  for split in ("dev", "test"):
    value = getattr(task, split)
    require(0 < value < 1, f"{where}: {split} {value}: must be a share between 0 and 1")
  for name in ("max_train", "max_dev", "max_test"):
    value = getattr(task, name)
    require(value >= 0, f"{where}: {name} {value}: must not be negative")


def _checked(kind: Any, values: dict[str, Any], where: str) -> Any:
  """A dataclass from values of a TOML file, their names and types checked."""
  hints = typing.get_type_hints(kind)
  for name, value in values.items():
    if name not in hints:
      known = [key for key in hints if key != "where"]
      near = difflib.get_close_matches(name, known, 1)
      others = (
        f"did you mean {near[0]}?" if near else f"what a task's file may say is {', '.join(known)}"
      )
      raise InputError(f"{where}: no key {name!r}; {others}")
    wanted = hints[name]
    if typing.get_origin(wanted) is Literal:
      if value not in typing.get_args(wanted):
        choices = " or ".join(typing.get_args(wanted))
        raise InputError(f"{where}: {name} {value!r}: must be {choices}")
      continue
    kinds = tuple(typing.get_origin(one) or one for one in typing.get_args(wanted) or (wanted,))
    kinds = (dict,) if typing.get_origin(wanted) is dict else kinds
    kinds += (int,) if float in kinds else ()
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
      said = " or ".join(one.__name__ for one in kinds if one is not type(None))
      raise InputError(f"{where}: {name} must be {said}, not {type(value).__name__}")
  try:
    return kind(**values)
  except TypeError:
    needed = [field.name for field in dataclasses.fields(kind) if field.name not in values]
    raise InputError(f"{where}: {needed[0]} is missing") from None
