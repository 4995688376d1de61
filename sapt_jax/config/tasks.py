"""Options of what is learned: which tasks, from where, and how answers are scored."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from sapt_jax.checks import at_least, at_most, require, typed

METRICS = (
  "benchmark",
  "rouge_l",
  "rouge_l_multilingual",
  "exact_match",
  "accuracy",
  "token_f1",
  "edit_similarity",
)


@dataclasses.dataclass(frozen=True)
class Stream:
  """Which tasks come, in which order."""

  tasks: tuple[str, ...] = ()
  """Task names; a name may be cut short where that is unambiguous (task363). Empty: all tasks of
  the benchmark, in its order.
  """
  fit: tuple[str, ...] = ()
  """What is learned otherwise than the other tasks: TASK:OPTION=VALUE, an option of fit.* for one
  task, such as cb:steps=100.
  """
  blocks: tuple[str, ...] = ()
  """What tasks' blocks start as, otherwise than pet.new_block says: TASK=FOLDER, a peft adapter of
  the same kind, rank and targets.
  """

  def __post_init__(self) -> None:
    typed(self, "stream.")
    require(
      len(set(self.tasks)) == len(self.tasks),
      f"stream.tasks: a task stands twice in {' '.join(self.tasks)}",
    )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from and how they are cut."""

  benchmark: Literal[
    "mini", "mini_related", "tasks", "superni", "long_sequence", "natural_instructions", "trace"
  ] = "mini"
  """mini and mini_related are generated; tasks: tasks of your own (docs/your_own_tasks.md); the
  others are published, and differ in files, prompt and score.
  """
  root: str = ""
  """Folder of the tasks: one folder or file for each; for superni and long_sequence the folder that
  holds SuperNI or Long_Sequence.
  """
  frame: str = "benchmark"
  """The prompt around an input: benchmark: its own; chat: the chat template that comes with the
  model; or a text with {definition} and {input}, in which \\n is a new line.
  """
  positive_examples: int = 0
  """natural_instructions: so many of a task's solved examples stand behind its definition."""
  protocol: Literal["published", "clean"] = "clean"
  """published: dev.json as it is, even where it holds the test rows; clean: dev is carved out of
  train.
  """
  max_source_length: int = 512
  """Most tokens of a prompt; longer inputs are cut, the frame around them is kept."""
  max_target_length: int = 50
  """Most tokens of an answer, in training and when answering."""
  max_train: int = 0
  """Use the first so many training rows; 0: all."""
  max_test: int = 0
  """Use the first so many test rows; 0: all."""

  def __post_init__(self) -> None:
    require(
      self.is_generated or bool(self.root),
      f"data.root is empty: benchmark {self.benchmark} needs a folder",
    )
    places = re.findall(r"\{\w*\}", self.frame)
    require(
      self.frame in ("benchmark", "chat")
      or (places.count("{input}") == 1 and set(places) <= {"{input}", "{definition}"}),
      f"data.frame {self.frame!r}: must be benchmark, chat, or a text with {{input}} in it once, "
      "and {definition} where the instruction goes",
    )
    at_least(self, "data", 0, "positive_examples")
    at_least(self, "data", 1, "max_source_length")
    at_least(self, "data", 2, "max_target_length")
    at_least(self, "data", 0, "max_train", "max_test")
    at_most(self, "data", 2**20, "max_source_length", "max_target_length")

  @property
  def is_generated(self) -> bool:
    """Whether the tasks are made by the library, in the language of t5-mini."""
    return self.benchmark in ("mini", "mini_related")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scoring."""

  batch_size: int = 32
  """Inputs answered, or pseudo inputs sampled, at once."""
  metric: str = "benchmark"
  """benchmark: as a task says itself, else rouge_l for superni and natural_instructions,
  exact_match for the others; rouge_l; rouge_l_multilingual: for answers that are not in Latin
  script; exact_match; accuracy: over the task's labels; token_f1; edit_similarity: of characters;
  or FILE.py:FUNCTION, a function of yours (prediction, references) -> 0 to 100.
  """
  every_task: bool = True
  """Score all tasks seen after each task; false: only after the last."""

  def __post_init__(self) -> None:
    at_least(self, "evaluation", 1, "batch_size")
    require(
      self.metric in METRICS or ".py:" in self.metric,
      f"evaluation.metric {self.metric!r}: must be {', '.join(METRICS)}, or FILE.py:FUNCTION",
    )
