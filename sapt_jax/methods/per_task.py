"""One block per task, trained alone and chosen by the task's identity: the upper reference without
transfer, and the a0 of FWT.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sapt_jax import config
from sapt_jax.methods.base import Method, Pool
from sapt_jax.methods.lesson import Learned, Study
from sapt_jax.pet import blocks


@dataclasses.dataclass(frozen=True)
class PerTaskOptions(config.MethodOptions):
  """One block each, the task known when answering: the upper reference."""

  name: str = "per_task"


class PerTask(Method):
  """The task is known when answering."""

  Options = PerTaskOptions
  knows_task = True

  def earlier_weights(self, learned: Learned, study: Study) -> jax.Array:
    """All blocks alike: a block of its own is all that it knows of a task."""
    return jnp.where(jnp.arange(blocks.capacity(learned.blocks)) < learned.count, 1.0, 0.0)

  def without(self, learned: Pool, slot: int) -> Pool:
    return learned.pool_without(slot)

  def joined(self, learned: Pool, other: Pool) -> Pool:
    return learned.pool_beside(other, self.setting.capacity)

  def mixture(self, learned: Learned, features: jax.Array, task: jax.Array) -> jax.Array:
    return jax.nn.one_hot(task, blocks.capacity(learned.blocks))
