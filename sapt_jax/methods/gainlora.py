"""GainLoRA (Liang and Li, 2025) on InfLoRA: every block has a gate of its own that is shut on the
inputs of earlier tasks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax import checks, sals
from sapt_jax.methods.base import Trainable
from sapt_jax.methods.features import unit
from sapt_jax.methods.inflora import InfLora, InfLoraLearned, InfLoraOptions, widened_space
from sapt_jax.methods.lesson import Study
from sapt_jax.pet import blocks
from sapt_jax.precision import exact
from sapt_jax.streams import stream

GATE = ("down", "up", "keys")  # in the order that an input meets them


@dataclasses.dataclass(frozen=True)
class GainLoraOptions(InfLoraOptions):
  """InfLoRA with a gate for each block, shut on earlier tasks' inputs (Liang and Li, 2025)."""

  name: str = "gainlora"
  gate_learning_rate: float | None = None
  """Of a new block's gate; none: fit.learning_rate."""

  def __post_init__(self) -> None:
    super().__post_init__()
    checks.positive(self, "method", "gate_learning_rate")


class GainLoraLearned(InfLoraLearned):
  """What InfLoRA learns, and the gates.

  Attributes:
    down, up, keys: (T, D, 100), (T, 100, D), (T, D) float32, the gate of each block.
    gate_spaces: projectors (D, D), (100, 100), (D, D) onto what earlier tasks' inputs fill before
      down, before up, and before the key.
  """

  down: jax.Array
  up: jax.Array
  keys: jax.Array
  gate_spaces: tuple[jax.Array, ...]


class GainLora(InfLora):
  """W x + alpha/r sum_i g_i B_i A_i x with gates g_i = |2 sigmoid(4 cos(z_i, k_i)) - 1|, where
  z_i = SiLU(up_i SiLU(down_i e)); they are not normalised.

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

  Options = GainLoraOptions
  options: GainLoraOptions
  weights_differ = True

  def start(self, rng: jax.Array) -> GainLoraLearned:
    learned, width, capacity = super().start(rng), self.setting.width, self.setting.capacity
    query = sals.init_query(stream(rng, "gate"), width)

    return GainLoraLearned(
      learned.blocks,
      learned.count,
      learned.spaces,
      down=jnp.zeros((capacity, *query.down.shape)).at[0].set(query.down),
      up=jnp.zeros((capacity, *query.up.shape)).at[0].set(query.up),
      keys=jnp.zeros((capacity, width)),
      gate_spaces=tuple(jnp.zeros((size, size)) for size in (width, sals.BOTTLENECK, width)),
    )

  @exact
  def begin(self, learned: GainLoraLearned, rng: jax.Array, study: Study) -> GainLoraLearned:
    slot = int(learned.count)
    last = max(slot - 1, 0)
    learned = super().begin(learned, rng, study)
    learned = learned.replace(
      down=learned.down.at[slot].set(learned.down[last]),
      up=learned.up.at[slot].set(learned.up[last]),
    )
    _, _, z = gate_states(learned.down[slot], learned.up[slot], study.features("train"))
    outside = z - z @ learned.gate_spaces[2]
    _, directions = jnp.linalg.eigh(outside.T @ outside)  # from the weakest to the strongest
    length = jnp.mean(jnp.linalg.norm(z, axis=1))
    return learned.replace(keys=learned.keys.at[slot].set(length * directions[:, -1]))

  def trainable(self, learned: GainLoraLearned) -> Trainable:
    nothing = {name: jnp.zeros(getattr(learned, name).shape[1:]) for name in GATE}
    return super().trainable(learned) | {"gate": nothing}

  def rates(self, block: float) -> dict[str, float]:
    gate = self.options.gate_learning_rate
    return {"block": block, "gate": block if gate is None else gate}

  @exact
  def merge(self, learned: GainLoraLearned, trainable: Trainable) -> GainLoraLearned:
    """The gate's trainable part is what is added to it since `learned`, before projection."""
    learned = super().merge(learned, trainable)
    added: dict[str, Any] = {}
    for name, space in zip(GATE, learned.gate_spaces, strict=True):
      change = trainable["gate"][name]
      added[name] = getattr(learned, name).at[learned.count - 1].add(change - space @ change)
    return learned.replace(**added)

  @exact
  def mixture(self, learned: GainLoraLearned, features: jax.Array, task: jax.Array) -> jax.Array:
    of_all_gates = jax.vmap(gate_states, in_axes=(0, 0, None), out_axes=1)
    _, _, z = of_all_gates(learned.down, learned.up, features)
    cosines = jnp.einsum("btd,td->bt", unit(z), unit(learned.keys))
    gates = jnp.abs(2 * jax.nn.sigmoid(4 * cosines) - 1)
    return jnp.where(jnp.arange(blocks.capacity(learned.blocks)) < learned.count, gates, 0.0)

  @exact
  def remember(self, learned: GainLoraLearned, study: Study) -> GainLoraLearned:
    learned, newest = super().remember(learned, study), learned.count - 1
    states = gate_states(learned.down[newest], learned.up[newest], study.features("train"))
    spaces = [
      widened_space((x.T @ x)[None], space[None], self.energy(learned), 1)[0]
      for x, space in zip(states, learned.gate_spaces, strict=True)
    ]
    return learned.replace(gate_spaces=tuple(spaces))


@exact
def gate_states(
  down: jax.Array, up: jax.Array, features: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What enters down, up and the cosine with the key: (B, D) -> (B, D), (B, 100), (B, D)."""
  middle = jax.nn.silu(features @ down)
  return features, middle, jax.nn.silu(middle @ up)
