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
  """One text-to-text task of a stream: its instruction ("definition") and its three splits.

  Attributes:
    metric: what its answers are scored by, where the run names none; empty: as its benchmark's.
    labels: the answers that it has, where they are known beforehand.
  """

  name: str
  definition: str
  train: tuple[Example, ...]
  dev: tuple[Example, ...]
  test: tuple[Example, ...]
  metric: str = ""
  labels: tuple[str, ...] = ()
