"""LFPT5 (Qin and Joty, ICLR 2022): one soft prompt that learns to answer and to write examples, and
so rehearses what it wrote itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sapt_jax.methods.base import Learned, Pool, TaskInputs
from sapt_jax.methods.sequential import Sequential


class Lfpt5Learned(Pool):
  """The one block, and how many tasks there were (() int32)."""

  tasks: jax.Array


class Lfpt5(Sequential):
  """Loss: (1 - kd_weight) (CE of answers + lm_weight CE of examples) + kd_weight KL(block before
  the task || block now).

  One block is trained through all tasks. Every example is also learned as "Task 3:" -> input,
  "Output:", answer, so that before a task the block can be asked for examples of each earlier one
  (sapt_jax/recall.py). These stand among the task's own, and on their answers alone KL compares,
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

  writes_examples = True

  def start(self, rng: jax.Array) -> Lfpt5Learned:
    pool = super().start(rng)
    return Lfpt5Learned(pool.blocks, pool.count, tasks=jnp.zeros((), jnp.int32))

  def open(self, learned: Lfpt5Learned, rng: jax.Array, inputs: TaskInputs) -> Lfpt5Learned:
    return learned.replace(tasks=learned.tasks + 1)

  def teacher(self, learned: Lfpt5Learned, task: jax.Array) -> tuple[Learned, jax.Array]:
    return learned, task < learned.tasks - 1

  def loss(self, terms: dict[str, jax.Array]) -> jax.Array:
    kept, learning = (
      terms["distillation"],
      terms["cross_entropy"] + self.options.lm_weight * terms["lm_cross_entropy"],
    )
    return (1 - self.options.kd_weight) * learning + self.options.kd_weight * kept
