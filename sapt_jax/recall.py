"""LFPT5's pseudo examples: a block that learned to write the examples of its tasks is asked for
some of each.

An example is written as it stands in a prompt: input, what the benchmark puts between input and
answer ("Output:"), answer.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax

from sapt_jax import config
from sapt_jax.backbones.hf import Backbone
from sapt_jax.data.batches import Batcher, Row
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Example, Task
from sapt_jax.evaluation.decode import sampler
from sapt_jax.evaluation.evaluate import Answerer
from sapt_jax.methods.base import Learned, Method

LABELS = 20  # most answers that a closed set has; DBpedia's 14 are the most in SAPT's streams
EXAMPLES_PER_LABEL = 4  # training examples of each, on average, that a closed set has at least


@dataclasses.dataclass(frozen=True)
class PseudoExamples:
  """examples: those of one task that were kept; counts: how many samples were drawn, malformed, of
  no label, repeated, kept.
  """

  examples: list[Example]
  counts: dict[str, int]


def flat(text: str) -> str:
  """The text with single spaces, as tokenizers that know no other white space give it back."""
  return " ".join(text.split())


def closed_answers(task: Task) -> frozenset[str] | None:
  """The answers that a task's training examples have, if those are a small closed set (LABELS,
  EXAMPLES_PER_LABEL); None if not.
  """
  answers = frozenset(flat(example.references[0]) for example in task.train)
  return answers if len(answers) <= min(LABELS, len(task.train) // EXAMPLES_PER_LABEL) else None


def marker(codec: Codec, index: int) -> list[int]:
  """What asks for examples of the index-th task: words that any tokenizer can spell, and short, so
  that batches keep to few shapes.
  """
  return codec.tokenizer(f"Task {index + 1}:")["input_ids"]


def lm_pair(codec: Codec, index: int, example: Example, longest: int) -> Row:
  """marker -> the example, at most `longest` tokens; where it is longer, the end of its input is
  cut.
  """

  def spell(text):
    return codec.tokenizer(text, add_special_tokens=False)["input_ids"]

  between = codec.frame[1]
  answer = dataclasses.replace(codec, max_target=codec.max_target + len(spell(between))).target(
    between + example.references[0]
  )
  return Row(
    marker(codec, index), [*spell(example.input)[: max(0, longest - len(answer))], *answer], index
  )


def sort_out(
  samples: Sequence[str], separator: str, labels: frozenset[str] | None, keep: int
) -> PseudoExamples:
  """Samples that are an input, one separator and an answer, the answer among the labels where there
  are any, and the input a new one.

  At most `keep` of them, the answers taking turns, so that frequent ones leave room for the others.
  """
  turns: list[tuple[int, Example]] = []
  inputs: set[str] = set()
  answers: collections.Counter[str] = collections.Counter()
  counts = {"drawn": len(samples), "malformed": 0, "no_label": 0, "repeated": 0}
  for sample in samples:
    parts = [part.strip() for part in sample.split(separator)]
    if len(parts) != 2 or not all(parts):
      counts["malformed"] += 1
    elif labels is not None and flat(parts[1]) not in labels:
      counts["no_label"] += 1
    elif flat(parts[0]) in inputs:
      counts["repeated"] += 1
    else:
      turns.append((answers[flat(parts[1])], Example(parts[0], (parts[1],))))
      inputs.add(flat(parts[0]))
      answers[flat(parts[1])] += 1
  chosen = [example for _, example in sorted(turns, key=lambda turn: turn[0])][:keep]
  return PseudoExamples(chosen, counts | {"kept": len(chosen)})


class Recaller:
  """Has a method learn to write examples, and write some: one compiled sampler for all tasks."""

  def __init__(
    self,
    options: config.Generator,
    keep: int,
    backbone: Backbone,
    method: Method,
    codec: Codec,
    answering: Batcher,
    mesh: jax.sharding.Mesh,
  ):
    self.options, self.keep, self.codec = options, keep, codec
    choose = sampler(options.top_k, options.repetition_penalty, options.temperature)
    self.answerer = Answerer(backbone, method, answering, mesh, choose)

  def with_lm_pairs(self, rows: Sequence[Row], examples: Sequence[Example]) -> list[Row]:
    """The rows of these examples, each with its language-modelling pair."""

    def pair(row, example):
      return lm_pair(self.codec, row.task, example, self.options.max_length)

    return [
      dataclasses.replace(row, lm_pair=pair(row, example))
      for row, example in zip(rows, examples, strict=True)
    ]

  def write(
    self, learned: Learned, labels: Sequence[frozenset[str] | None], seed: int
  ) -> list[PseudoExamples]:
    """Pseudo examples of the first tasks of the stream, as many as there are `labels` (see
    sort_out); fixed by learned and seed.
    """
    drawn = math.ceil(self.keep * self.options.oversample)
    rows = [
      Row(marker(self.codec, index), [self.codec.eos_id], index)
      for index in range(len(labels))
      for _ in range(drawn)
    ]
    texts = [
      self.codec.text(ids)
      for ids in self.answerer.answer(learned, rows, self.options.max_length, seed).tokens
    ]
    separator = self.codec.frame[1].strip()
    return [
      sort_out(texts[index * drawn : (index + 1) * drawn], separator, of_task, self.keep)
      for index, of_task in enumerate(labels)
    ]
