"""O-LoRA (Wang et al., Findings of EMNLP 2023): a LoRA block per task, its A kept orthogonal to
those of earlier tasks, all added up.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.methods.base import StepView
from sapt_jax.methods.lesson import Learned
from sapt_jax.methods.summed import Summed, site_factors
from sapt_jax.precision import exact


@dataclasses.dataclass(frozen=True)
class OLoraOptions(config.MethodOptions):
  """Blocks in orthogonal directions, all added up (Wang et al., Findings of EMNLP 2023)."""

  name: str = "o_lora"
  orthogonality_weight: float = 0.5
  """Weight of the overlap between the new block's A and the earlier ones; the authors give up to 5
  for fifteen tasks.
  """

  def __post_init__(self) -> None:
    checks.at_least(self, "method", 0, "orthogonality_weight")


class OLora(Summed):
  """Loss: cross-entropy + orthogonality_weight * sum over sites and layers of sum |A_old A_new^T|.

  That is the public code's form; the paper squares the entries. The sum is raw, as published: with
  many tasks it dwarfs the cross-entropy, and making A small satisfies it too. The authors' scripts
  give 0.5 for few tasks and up to 5 for fifteen. Their second term (the norms of A and B), which
  most of those scripts switch off, is not here; their dropout of 0.1 before A is pet.dropout.
  """

  Options = OLoraOptions
  options: OLoraOptions

  def penalty(self, now: Learned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    sites = site_factors(now.blocks["lora"])
    loss = sum((overlap(factors["a"], now.count - 1) for factors in sites), jnp.zeros(()))
    return self.options.orthogonality_weight * loss, {"overlap": loss}


@exact
def overlap(a: jax.Array, newest: jax.Array) -> jax.Array:
  """sum |A_t A_newest^T| over layers and earlier tasks t, () float32; a: (layers, D_in, T, R) of
  one site, newest: () int32.
  """
  new = jax.lax.dynamic_index_in_dim(a, newest, axis=2, keepdims=False)
  products = jnp.einsum("ldtr,lds->tlrs", a, new)
  earlier = jnp.arange(a.shape[2]) < newest
  return jnp.sum(jnp.where(earlier, jnp.sum(jnp.abs(products), axis=(1, 2, 3)), 0.0))
