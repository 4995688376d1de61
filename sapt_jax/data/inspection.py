"""What is odd in a task's rows, counted before it is learned."""

from __future__ import annotations

from collections.abc import Sequence

from sapt_jax.data.batches import Row
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Example

Figures = dict[str, int]
FEW = 20  # test rows below which a score says little
COMMON = 10  # points from which on it is said what one answer for all would score


def figures_of(task: PreparedTask, codec: Codec) -> Figures:
  """How many rows each split has, and how many of all of them are odd: training rows that stand in
  train twice (`duplicates`), dev and test inputs that stand in train (`seen`), rows whose input or
  answer is blank (`empty`), and prompts and answers that are cut (`cut_inputs`, `cut_answers`).
  """
  splits = {"train": task.train, "dev": task.dev, "test": task.test}
  rows = task.train.examples
  learned = {example.input for example in rows}
  held_out = [*task.dev.examples, *task.test.examples]
  everything = [*rows, *held_out]
  pairs = [
    pair for split in splits.values() for pair in zip(split.rows, split.examples, strict=True)
  ]
  return {name: len(split) for name, split in splits.items()} | {
    "duplicates": len(rows) - len({(example.input, example.references[0]) for example in rows}),
    "seen": sum(example.input in learned for example in held_out),
    "empty": sum(
      not (one.input.strip() and all(map(str.strip, one.references))) for one in everything
    ),
    "cut_inputs": sum(input_is_cut(*pair, task.definition, codec) for pair in pairs),
    "cut_answers": sum(answer_is_cut(*pair, codec) for pair in pairs),
  }


def input_is_cut(row: Row, example: Example, definition: str, codec: Codec) -> bool:
  """Whether the row shows less than the whole prompt; a cut one has nearly the most tokens that it
  may have, so that only those are looked at again.
  """
  if len(row.source) <= 0.8 * codec.max_source:
    return False
  return len(codec.encode(codec.prompt(definition, example.input))) > codec.max_source


def answer_is_cut(row: Row, example: Example, codec: Codec) -> bool:
  """The same of the answer."""
  if len(row.target) < codec.max_target:
    return False
  answer = codec.tokenizer(example.references[0], add_special_tokens=False)["input_ids"]
  return len(answer) >= codec.max_target


def words_of(name: str, figures: Figures) -> str:
  """The figures in a line, and what always the commonest answer would score, if that is among them;
  what is not odd is left out.
  """
  odd = {
    "duplicates": "training rows that stand there twice",
    "seen": "dev or test inputs that stand in train",
    "empty": "rows with a blank input or answer, used all the same",
    "cut_inputs": "inputs cut to --data.max-source-length",
    "cut_answers": "answers cut to --data.max-target-length",
  }
  found: Sequence[str] = [f"{words}: {figures[key]}" for key, words in odd.items() if figures[key]]
  sizes = ", ".join(f"{figures[split]} {split}" for split in ("train", "dev", "test"))
  if 0 < figures["test"] < FEW:
    found = [*found, f"few test rows: one is {100 / figures['test']:.0f} points of the score"]
  if figures.get("commonest", 0) >= COMMON:
    sizes += f" (always the commonest training answer would score {figures['commonest']})"
  return f"{name}: {sizes}" + "".join(f"; {one}" for one in found)
