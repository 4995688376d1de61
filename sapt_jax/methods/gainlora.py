"""GainLoRA (Liang and Li, 2025) on InfLoRA: every block has a gate of its own that is shut on the
inputs of earlier tasks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax import sals
from sapt_jax.methods.base import TaskInputs, Trainable
from sapt_jax.methods.inflora import InfLora, InfLoraLearned, grown
from sapt_jax.pet import blocks

GATE = ("down", "up", "keys")  # in the order that an input meets them


class GainLoraLearned(InfLoraLearned):
  """What InfLoRA learns, and the gates.

  Attributes: down, up, keys: (T, D, 100), (T, 100, D), (T, D) float32, the gate of each block.
    gate_spaces: projectors (D, D), (100, 100), (D, D) onto what earlier tasks' inputs fill before
    down, before up, and before the key.
  """

  down: jax.Array
  up: jax.Array
  keys: jax.Array
  gate_spaces: tuple[jax.Array, jax.Array, jax.Array]


class GainLora(InfLora):
  """W x + alpha/r sum_i g_i B_i A_i x with g_i = |2 sigmoid(4 cos(z_i, k_i)) - 1| and z_i =
  SiLU(up_i SiLU(down_i e)), not normalised.

  down and up of a new gate start as the last gate's; its key as the first direction of the new
  task's z outside the earlier tasks' space. Only what lies outside the spaces of earlier inputs is
  ever added to the three, so that an earlier input meets the z it had and a key at right angles to
  it: its new gate is 0 and its old gates do not change. A, B and the growth of spaces are InfLoRA's
  (inflora.py).

  Differences from the public code: the projection is part of how the gate is computed from what is
  trained, so it holds exactly, where the code projects after each step and then restores norms,
  which tilts the result back into the spaces; and e is the max-pooled token embedding over real
  tokens, not the sum of embeddings over the padded length.
  """

  selects = True

  def start(self, rng: jax.Array) -> GainLoraLearned:
    learned, width, capacity = super().start(rng), self.setting.width, self.setting.capacity
    query = sals.init_query(jax.random.fold_in(rng, 1), width)

    def first(x):
      return jnp.zeros((capacity, *x.shape)).at[0].set(x)

    def square(size):
      return jnp.zeros((size, size))

    return GainLoraLearned(
      learned.blocks,
      learned.count,
      learned.spaces,
      down=first(query.down),
      up=first(query.up),
      keys=jnp.zeros((capacity, width)),
      gate_spaces=(square(width), square(sals.BOTTLENECK), square(width)),
    )

  def open(self, learned: GainLoraLearned, rng: jax.Array, inputs: TaskInputs) -> GainLoraLearned:
    slot = int(learned.count)
    learned = super().open(learned, rng, inputs)
    copied = {
      name: getattr(learned, name).at[slot].set(getattr(learned, name)[max(slot - 1, 0)])
      for name in ("down", "up")
    }
    learned = learned.replace(**copied)
    _, _, z = gate_states(learned.down[slot], learned.up[slot], inputs.train)
    outside = z - z @ learned.gate_spaces[2]
    _, directions = jnp.linalg.eigh(outside.T @ outside)  # from the weakest to the strongest
    length = jnp.mean(jnp.linalg.norm(z, axis=1))
    return learned.replace(keys=learned.keys.at[slot].set(length * directions[:, -1]))

  def trainable(self, learned: GainLoraLearned) -> Trainable:
    nothing = {name: jnp.zeros(getattr(learned, name).shape[1:]) for name in GATE}
    return super().trainable(learned) | {"attention": nothing}

  def merge(self, learned: GainLoraLearned, trainable: Trainable) -> GainLoraLearned:
    """The gate's trainable part is what is added to it since `learned`, before projection."""
    learned = super().merge(learned, trainable)
    added: dict[str, Any] = {}
    for name, space in zip(GATE, learned.gate_spaces, strict=True):
      change = trainable["attention"][name]
      added[name] = getattr(learned, name).at[learned.count - 1].add(change - space @ change)
    return learned.replace(**added)

  def mixture(self, learned: GainLoraLearned, pooled: jax.Array, task: jax.Array) -> jax.Array:
    _, _, z = jax.vmap(gate_states, in_axes=(0, 0, None), out_axes=1)(
      learned.down, learned.up, pooled
    )

    def unit(x):
      return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

    gates = jnp.abs(
      2 * jax.nn.sigmoid(4 * jnp.einsum("btd,td->bt", unit(z), unit(learned.keys))) - 1
    )
    return jnp.where(jnp.arange(blocks.capacity(learned.blocks)) < learned.count, gates, 0.0)

  def close(self, learned: GainLoraLearned, inputs: TaskInputs) -> GainLoraLearned:
    learned, newest = super().close(learned, inputs), learned.count - 1
    states = gate_states(learned.down[newest], learned.up[newest], inputs.train)

    def widen(x, space):
      return grown((x.T @ x)[None], space[None], self.energy(learned), 1)[0]

    return learned.replace(gate_spaces=tuple(map(widen, states, learned.gate_spaces)))


def gate_states(
  down: jax.Array, up: jax.Array, pooled: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What enters down, up and the cosine with the key: pooled (B, D) -> (B, D), (B, 100), (B, D)."""
  middle = jax.nn.silu(pooled @ down)
  return pooled, middle, jax.nn.silu(middle @ up)
