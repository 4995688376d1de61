"""LFPT5 (Qin and Joty, ICLR 2022): one soft prompt that learns to answer and to write examples, and
so rehearses what it wrote itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch, Row
from sapt_jax.data.labels import closed_answers
from sapt_jax.data.prepared import tokenised
from sapt_jax.data.tasks import Example
from sapt_jax.losses import distillation_loss, token_losses
from sapt_jax.methods.base import Pool, Terms
from sapt_jax.methods.lesson import Lesson, Study, need_rows
from sapt_jax.methods.lfpt5.pseudo_examples import (
  PseudoExamples,
  example_row,
  marker,
  sort_out,
)
from sapt_jax.methods.sequential import Sequential

WRITTEN = "written"  # the companion of a row in which the example itself is the answer


@dataclasses.dataclass(frozen=True)
class Lfpt5Options(config.MethodOptions):
  """A block that rehearses examples which it wrote itself (Qin and Joty, ICLR 2022)."""

  name: str = "lfpt5"
  lm_weight: float = 0.25
  """lambda, the weight of learning to write a task's examples; its authors give 0.25 for
  classification, 0.10 for named entities and summaries.
  """
  kd_weight: float = 0.01
  """Weight of answering pseudo examples as before the task, the rest of 1 is for learning; its
  authors give 0.01 for classification, 0.03 for named entities, 0.04 for summaries.
  """
  pseudo_examples: int = 20
  """Most pseudo examples of each earlier task; its authors take 2 per class, or 4 per domain of
  summaries. generator.* says how they are sampled.
  """

  def __post_init__(self) -> None:
    checks.at_least(self, "method", 0, "lm_weight")
    checks.at_least(self, "method", 1, "pseudo_examples")
    checks.require(0 <= self.kd_weight < 1, f"method.kd_weight {self.kd_weight}: must be in [0, 1)")


class Lfpt5Learned(Pool):
  """The one block, and how many tasks there were (() int32)."""

  tasks: jax.Array


class Lfpt5(Sequential):
  """Loss: (1 - kd_weight) (CE of answers + lm_weight CE of examples)
  + kd_weight KL(block before the task || block now).

  One block is trained through all tasks. Every example is also learned as "Task 3:" -> input,
  "Output:", answer, so that before a task the block can be asked for examples of each earlier one
  (pseudo_examples.py). These stand among the task's own, and on their answers alone KL compares,
  over the vocabulary, with what the block said before the task: that is what `learned` holds while
  training goes on beside it. Stored besides the block: each earlier task's instruction, and its
  labels if they are few (read again from the stream's files).

  Both cross-entropies are means over tokens. KL is summed over the tokens of an answer, as
  published, so that it weighs more on long answers, and over pseudo examples; but it is divided by
  the number of rows in the batch, where the public code takes the sum over a batch of 2, which a
  batch of 32 would make sixteen times as heavy.

  Other differences from the public code: a prompt stands before the input, not after it, has
  pet.prompt_length tokens where the authors take 300, and starts from random token embeddings, not
  from those of task names, labels and frequent words; the task's marker is plain words, not a new
  token; the optimizer is AdamW at fit.learning_rate, not Adafactor at 0.5 with a weight decay of
  1e-5; the instruction of a pseudo example is the real one. Pseudo examples for validation are not
  drawn: dev scores are those of the newest task alone. LoRA blocks, which the paper does not have,
  are learned in the same way.
  """

  Options = Lfpt5Options
  options: Lfpt5Options

  def check_task(self, study: Study) -> None:
    need_rows(study, "instruction and labels")

  def start(self, rng: jax.Array) -> Lfpt5Learned:
    pool = super().start(rng)
    return Lfpt5Learned(pool.blocks, pool.count, tasks=jnp.zeros((), jnp.int32))

  def begin(self, learned: Lfpt5Learned, rng: jax.Array, study: Study) -> Lfpt5Learned:
    return learned.replace(tasks=learned.tasks + 1)

  def lesson(self, learned: Lfpt5Learned, study: Study) -> Lesson:
    """Pseudo examples of each earlier task, and the task's own rows, all with their companions."""
    rows: list[Row] = []
    for task, pseudo in zip(study.stream, self.recall(learned, study), strict=False):
      recalled = [
        tokenised(study.codec, task.index, task.definition, example) for example in pseudo.examples
      ]
      rows += with_written(study, recalled, pseudo.examples)
    own = study.task.train
    return Lesson([*rows, *with_written(study, own.rows, own.examples)])

  def recall(self, learned: Lfpt5Learned, study: Study) -> list[PseudoExamples]:
    """Examples of each earlier task, written by what has been learned so far.

    Of the tasks their instructions and closed sets of labels are read, no rows. A run that is
    continued inside a task draws the same ones again.
    """
    keep, codec, earlier = self.options.pseudo_examples, study.codec, study.stream[: study.index]
    if not earlier:
      return []
    drawn = math.ceil(keep * study.sampling.oversample)
    asking = [Row(marker(codec, task.index), [codec.eos_id], task.index) for task in earlier]
    asked = [row for row in asking for _ in range(drawn)]
    texts = study.sample(learned, asked)
    separator = codec.frame[1].strip()
    recalled = [
      sort_out(
        texts[task.index * drawn : (task.index + 1) * drawn],
        separator,
        closed_answers(task.task),
        keep,
      )
      for task in earlier
    ]
    lines = (
      {
        "task": task.name,
        "definition": task.definition,
        "input": example.input,
        "output": example.references[0],
      }
      for task, pseudo in zip(earlier, recalled, strict=True)
      for example in pseudo.examples
    )
    study.leave("pseudo_examples", lines, [pseudo.counts for pseudo in recalled])
    return recalled

  def loss_sums(
    self, model: Model, params: Any, learned: Lfpt5Learned, now: Lfpt5Learned, batch: Batch
  ) -> tuple[Terms, jax.Array]:
    logits, mixture = self.answer_logits(model, params, now, batch)
    taught, _ = self.answer_logits(model, params, learned, batch.replace(dropout=None))
    earlier = batch.task < learned.tasks - 1
    written = batch.companions[WRITTEN]
    written_logits, _ = self.answer_logits(model, params, now, written)
    sums = {
      "cross_entropy": jnp.sum(token_losses(logits, batch.target, batch.target_mask)),
      "lm_cross_entropy": jnp.sum(
        token_losses(written_logits, written.target, written.target_mask)
      ),
      "distillation": distillation_loss(logits, taught, batch.target_mask & earlier[:, None]),
    }
    return sums, mixture

  def loss_sizes(self, batch: Batch) -> dict[str, Any]:
    written = batch.companions[WRITTEN]
    sizes = {
      "lm_cross_entropy": jnp.sum(written.target_mask),
      "distillation": batch.task.shape[0],
    }
    return super().loss_sizes(batch) | sizes

  def loss(self, terms: Terms) -> jax.Array:
    learning = terms["cross_entropy"] + self.options.lm_weight * terms["lm_cross_entropy"]
    kept = self.options.kd_weight
    return (1 - kept) * learning + kept * terms["distillation"]

  def longest_row(self, source: int, target: int, generated: int) -> Row:
    row = super().longest_row(source, target, generated)
    return dataclasses.replace(row, companions={WRITTEN: Row([0], [0] * generated, 0)})


def with_written(study: Study, rows: Sequence[Row], examples: Sequence[Example]) -> list[Row]:
  """The rows of these examples, each with the companion in which the example is written."""
  longest = study.sampling.max_length
  return [
    dataclasses.replace(
      row, companions={WRITTEN: example_row(study.codec, row.task, example, longest)}
    )
    for row, example in zip(rows, examples, strict=True)
  ]
