"""SeqLoRA: one block, trained through all tasks and never reset. The measure of forgetting."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from sapt_jax import config
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned, Study
from sapt_jax.pet import blocks


@dataclasses.dataclass(frozen=True)
class SequentialOptions(config.MethodOptions):
  """One block, trained on and on."""

  name: str = "sequential"


class Sequential(Method):
  """One block for everything; stores nothing else."""

  Options: ClassVar[type[config.MethodOptions]] = SequentialOptions
  block_per_task = False
  weights_differ = False

  def start(self, rng: jax.Array) -> Learned:
    learned = super().start(rng)
    one = blocks.stack(self.new_block(rng))
    return learned.replace(blocks=one, count=jnp.ones((), jnp.int32))

  def begin(self, learned: Learned, rng: jax.Array, study: Study) -> Learned:
    return learned

  def mixture(self, learned: Learned, features: jax.Array, task: jax.Array) -> jax.Array:
    return jnp.ones((features.shape[0], 1))
