"""N-LoRA (Yang et al., COLING 2025): a LoRA block per task, its update kept sparse so that updates
do not collide, all added up.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.methods.base import StepView
from sapt_jax.methods.lesson import Learned
from sapt_jax.methods.summed import Summed, site_factors
from sapt_jax.pet import blocks
from sapt_jax.precision import exact


@dataclasses.dataclass(frozen=True)
class NLoraOptions(config.MethodOptions):
  """Sparse blocks that do not collide, all added up (Yang et al., COLING 2025)."""

  name: str = "n_lora"
  sparsity_weight: float = 0.4
  """Weight of the L1 norm of the new block's update; the authors give 0.4 to 1.8."""

  def __post_init__(self) -> None:
    checks.at_least(self, "method", 0, "sparsity_weight")


class NLora(Summed):
  """Loss: cross-entropy + sparsity_weight * sum over sites and layers of ||B A||_1 / D_out, of the
  newest block.

  The paper asks for a sparse update B A (D_out x D_in); its code takes the norm of A B (r x r)
  instead, which says little about B A and exists only where D_in = D_out. Here it is B A. Divided
  by D_out it is of the size of the code's quantity, so that the published weights, 0.4 to 1.8, keep
  their meaning.
  """

  Options = NLoraOptions
  options: NLoraOptions

  def penalty(self, now: Learned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    newest = blocks.read(now.blocks, now.count - 1)
    loss = sum((update_norm(**factors) for factors in site_factors(newest["lora"])), jnp.zeros(()))
    return self.options.sparsity_weight * loss, {"update_norm": loss}


@exact
def update_norm(a: jax.Array, b: jax.Array) -> jax.Array:
  """sum |B A| / D_out over layers, () float32; a: (layers, D_in, R), b: (layers, R, D_out). One
  layer's product exists at a time.
  """
  one_layer = jax.checkpoint(lambda factors: jnp.sum(jnp.abs(factors[0] @ factors[1])))
  return jnp.sum(jax.lax.map(one_layer, (a, b))) / b.shape[-1]
