"""What methods share that add up the LoRA blocks of all tasks, each with full weight:
W x + alpha/r sum_i B_i A_i x.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned
from sapt_jax.pet import blocks


class Summed(Method):
  """No selection: every block is always on.

  Adding means nothing for soft prompts, so there are LoRA blocks only.
  """

  kinds = ("lora",)
  weights_differ = False

  def mixture(self, learned: Learned, features: jax.Array, task: jax.Array) -> jax.Array:
    slots = jnp.arange(blocks.capacity(learned.blocks))
    weights = jnp.where(slots < learned.count, 1.0, 0.0)
    return jnp.broadcast_to(weights, (features.shape[0], slots.size))


def site_factors(lora: Any) -> list[dict[str, jax.Array]]:
  """The factors {"a", "b"} of every site, in one fixed order."""
  return jax.tree.leaves(lora, is_leaf=lambda node: "a" in node)
