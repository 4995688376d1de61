"""What a task is: an instruction and examples, as plain values."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
  """One input and its acceptable answers; the first reference is the one that training uses."""

  input: str
  references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Task:
  """One text-to-text task of a stream: its instruction ("definition") and its three splits."""

  name: str
  definition: str
  train: tuple[Example, ...]
  dev: tuple[Example, ...]
  test: tuple[Example, ...]
