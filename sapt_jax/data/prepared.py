"""Tasks as a run uses them: each split's examples with their tokens, which are made once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from sapt_jax.data.batches import Row
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Example, Task


class Split:
  """Examples of a task and, made when they are first asked for, their rows."""

  def __init__(self, codec: Codec, index: int, definition: str, examples: Sequence[Example]):
    self.codec, self.index, self.definition, self.examples = codec, index, definition, examples

  @cached_property
  def rows(self) -> list[Row]:
    """One tokenised row per example, in order."""
    return [tokenised(self.codec, self.index, self.definition, one) for one in self.examples]

  def __len__(self) -> int:
    return len(self.examples)


class PreparedTask:
  """The index-th task of a stream, its splits tokenised once for all who read them."""

  def __init__(self, index: int, task: Task, codec: Codec):
    self.index, self.task, self.name, self.definition = index, task, task.name, task.definition
    self.train, self.dev, self.test = (
      Split(codec, index, task.definition, examples)
      for examples in (task.train, task.dev, task.test)
    )


def tokenised(codec: Codec, index: int, definition: str, example: Example) -> Row:
  """An example of the index-th task as a row: its prompt, and its first reference as the answer."""
  return Row(codec.source(definition, example.input), codec.target(example.references[0]), index)
