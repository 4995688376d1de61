"""InfLoRA (Liang and Li, CVPR 2024): LoRA blocks that cannot act on the inputs of earlier tasks,
all added up.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.methods.base import Pool, Trainable
from sapt_jax.methods.lesson import Learned, Study
from sapt_jax.methods.summed import Summed
from sapt_jax.pet import blocks
from sapt_jax.pet.site_inputs import at_inputs, at_sites
from sapt_jax.precision import exact


@dataclasses.dataclass(frozen=True)
class InfLoraOptions(config.MethodOptions):
  """Blocks that cannot act on earlier tasks' inputs, all added up (Liang and Li, CVPR 2024)."""

  name: str = "inflora"
  kept_energy: float = 0.995
  """Share of the energy of a task's second moments (the sum of their squared singular values) in
  the directions that later blocks leave alone; it rises towards 1 over the stream, by equal steps
  that would reach it as the pool's capacity (the next power of two) is full.
  """

  def __post_init__(self) -> None:
    checks.share(self, "method", "kept_energy")


class InfLoraLearned(Pool):
  """The pool, and for each input of the sites (site_inputs.at_inputs), (layers, D_in, D_in)
  float32: projectors onto the directions that earlier tasks' inputs fill.
  """

  spaces: Any


class InfLora(Summed):
  """A of a new block is designed and fixed, and B alone is trained: A's rows are the first
  directions of the new task's inputs outside the space that earlier tasks' inputs fill, divided by
  sqrt 3, so that on those inputs the new block adds nothing whatever B is.

  The space grows after each task until it holds kept_energy of the task's input energy, a share
  that rises to 1 over the pool's slots. Second moments are taken over real tokens, and at every
  site from that site's own input: the T5 port counts padding and takes the decoder's states for
  what cross-attention values read. It also draws A at random outside the space; this is the paper's
  design. Spaces are kept as projectors, D_in^2 numbers each, where the paper's DualGPM keeps the
  smaller of a basis and its complement: the same spaces, in arrays of fixed shape. As many
  directions as a block's rank are always left free.
  """

  Options: ClassVar[type[config.MethodOptions]] = InfLoraOptions
  designs_blocks = True
  options: Any

  def start(self, rng: jax.Array) -> InfLoraLearned:
    pool = super().start(rng)
    spaces = at_inputs(self.setting.sites, lambda site: jnp.zeros((site[0], site[1], site[1])))
    return InfLoraLearned(pool.blocks, pool.count, spaces)

  def begin(self, learned: Learned, rng: jax.Array, study: Study) -> Learned:
    moments, rank = study.moments(learned), self.setting.pet.rank
    designed = jax.tree.map(
      lambda moment, space: main_directions(moment, space, rank) / math.sqrt(3),
      moments,
      learned.spaces,
    )
    factors = at_sites(designed, self.setting.sites)
    return self.with_factors(super().begin(learned, rng, study), "a", factors)

  def trainable(self, learned: Learned) -> Trainable:
    newest = blocks.read(learned.blocks, learned.count - 1)["lora"]
    b = jax.tree.map(lambda factors: factors["b"], newest, is_leaf=lambda node: "b" in node)
    return {"block": b}

  def merge(self, learned: Learned, trainable: Trainable) -> Learned:
    return self.with_factors(learned, "b", trainable["block"])

  def with_factors(self, learned: Learned, name: str, factors: Any) -> Learned:
    """`learned` with one of the two factors of the newest block, given for every site."""
    newest = blocks.read(learned.blocks, learned.count - 1)["lora"]
    lora = jax.tree.map(lambda new, old: old | {name: new}, factors, newest)
    pool = blocks.write(learned.blocks, {"lora": lora}, learned.count - 1)
    return learned.replace(blocks=pool)

  def remember(self, learned: Learned, study: Study) -> Learned:
    energy, free = self.energy(learned), self.setting.pet.rank
    spaces = jax.tree.map(
      lambda moment, space: widened_space(moment, space, energy, free),
      study.moments(learned),
      learned.spaces,
    )
    return learned.replace(spaces=spaces)

  def energy(self, learned: Learned) -> jax.Array:
    """The share of the newest task's energy that the spaces must hold."""
    kept = self.options.kept_energy
    return kept + (1 - kept) * (learned.count - 1) / self.setting.capacity


@exact
def main_directions(moment: jax.Array, space: jax.Array, rank: int) -> jax.Array:
  """The first left singular vectors of (I - P) C: C, P (layers, D, D) -> (layers, D, rank),
  orthonormal, orthogonal to P.
  """
  outside = jnp.eye(space.shape[-1]) - space
  left, _, _ = jnp.linalg.svd(outside @ moment, full_matrices=False)
  return outside @ left[:, :, :rank]


@exact
def widened_space(
  moment: jax.Array, space: jax.Array, energy: jax.Array | float, free: int
) -> jax.Array:
  """P with the first left singular vectors of (I - P) C added that it takes to hold a share
  `energy` of C's energy, the sum of its squared singular values (DualGPM); (layers, D, D).

  Args:
    free: how many directions stay outside at least.
  """
  width = space.shape[-1]
  outside = jnp.eye(width) - space
  vectors, values, _ = jnp.linalg.svd(outside @ moment, full_matrices=False)
  energies = jnp.square(values)  # the strongest first
  total = jnp.sum(jnp.square(moment), axis=(1, 2))[:, None]
  # What is outside before each direction is added: summed from the smallest, as the difference of
  # two large sums would lose it. Below the resolution of float32 there is nothing to add.
  missing = jnp.flip(jnp.cumsum(jnp.flip(energies, axis=1), axis=1), axis=1)
  allowed = jnp.maximum(1.0 - energy, 1e-12) * total
  room = width - free - jnp.trace(space, axis1=1, axis2=2)[:, None]
  needed = (missing > allowed) & (jnp.arange(width) < room - 0.5)
  added = vectors * needed[:, None, :]
  return space + added @ jnp.swapaxes(added, 1, 2)
