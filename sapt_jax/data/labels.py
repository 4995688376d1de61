"""Tasks whose answers are a small closed set."""

from __future__ import annotations

from sapt_jax.data.tasks import Task

LABELS = 20  # most answers that a closed set has; DBpedia's 14 are the most in SAPT's streams
EXAMPLES_PER_LABEL = 4  # training examples of each, on average, that a closed set has at least


def flat(text: str) -> str:
  """The text with single spaces, as tokenizers that know no other white space give it back."""
  return " ".join(text.split())


def closed_answers(task: Task) -> frozenset[str] | None:
  """The answers that a task's training examples have, if those are a small closed set (LABELS,
  EXAMPLES_PER_LABEL); None if not.
  """
  answers = frozenset(flat(example.references[0]) for example in task.train)
  return answers if len(answers) <= min(LABELS, len(task.train) // EXAMPLES_PER_LABEL) else None


def classes_of(task: Task) -> list[int]:
  """The number of each training example's label among the task's closed answers, in their
  alphabetical order; 0 for all where answers are free text.
  """
  answers = closed_answers(task)
  if answers is None:
    return [0] * len(task.train)
  number = {answer: place for place, answer in enumerate(sorted(answers))}
  return [number[flat(example.references[0])] for example in task.train]
