"""ProgPrompt (Progressive Prompts, Razdaibiedina et al., ICLR 2023): a soft prompt per task, put
before those of all earlier tasks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sapt_jax import config
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned, Setting
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters


@dataclasses.dataclass(frozen=True)
class ProgPromptOptions(config.MethodOptions):
  """A prompt per task before those of all earlier tasks (Razdaibiedina et al., ICLR 2023)."""

  name: str = "prog_prompt"
  task_known: bool = False
  """Tell it the task when answering, as its paper does: task k then reads the prompts of tasks 1 to
  k alone.
  """


class ProgPrompt(Method):
  """Input: [p_t; ...; p_1; embeddings of x], only p_t trained.

  The paper gives task k its own stack [p_k; ...; p_1] and so has to know the task
  (method.task_known). Without that there is only the whole stack, which is how SAPT compares with
  it: earlier tasks then read prompts that they were not learned with. Prompts start at embeddings
  of random tokens, as in the public code; its optional residual MLP, off there by default, is not
  here. Prompts take no room from the input's tokens. The mixture is 1 for every prompt in the
  stack. Slots that later tasks will fill stand leftmost and are masked out.
  """

  Options = ProgPromptOptions
  kinds = ("prompt",)

  def __init__(self, options: ProgPromptOptions, setting: Setting):
    super().__init__(options, setting)
    self.knows_task = options.task_known

  def forms(self) -> list[str]:
    return ["task known"] if self.knows_task else []

  def mixture(self, learned: Learned, features: jax.Array, task: jax.Array) -> jax.Array:
    newest = task if self.knows_task else jnp.full(task.shape, learned.count - 1)
    slots = jnp.arange(blocks.capacity(learned.blocks))
    return jnp.where(slots <= newest[:, None], 1.0, 0.0)

  def adapters(self, learned: Learned, mixture: jax.Array) -> Adapters:
    prompts = jnp.flip(learned.blocks["prompt"], axis=0)
    slots, length, width = prompts.shape
    one_stack = prompts.reshape(slots * length, width)
    there = jnp.repeat(jnp.flip(mixture > 0, axis=1), length, axis=1)
    return Adapters(
      prompts=jnp.broadcast_to(one_stack, (mixture.shape[0], *one_stack.shape)), prompts_mask=there
    )
