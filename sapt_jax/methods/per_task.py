"""One block per task, trained alone and chosen by the task's identity: the upper reference without
transfer, and the a0 of FWT.
"""

from __future__ import annotations

import jax

from sapt_jax.methods.base import Learned, Method
from sapt_jax.pet import blocks


class PerTask(Method):
  """The task is known when answering."""

  knows_task = True

  def mixture(self, learned: Learned, pooled: jax.Array, task: jax.Array) -> jax.Array:
    return jax.nn.one_hot(task, blocks.capacity(learned.blocks))
