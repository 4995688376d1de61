"""SeqLoRA: one block, trained through all tasks and never reset. The measure of forgetting."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sapt_jax.methods.base import Learned, Method, TaskInputs
from sapt_jax.pet import blocks


class Sequential(Method):
  """One block for everything; stores nothing else."""

  block_per_task = False

  def start(self, rng: jax.Array) -> Learned:
    learned = super().start(rng)
    return learned.replace(blocks=blocks.stack(self.new_block(rng)), count=jnp.ones((), jnp.int32))

  def open(self, learned: Learned, rng: jax.Array, inputs: TaskInputs) -> Learned:
    return learned

  def mixture(self, learned: Learned, pooled: jax.Array, task: jax.Array) -> jax.Array:
    return jnp.ones((pooled.shape[0], 1))
