"""LoRA blocks: their shapes, their start, and the mixed low-rank product of a whole pool.

Factors of a pool carry a task axis T next to the rank axis R, in the layout (D_in, T, R) and (T, R, D_out), so that the sum over blocks is
two plain matrix products and never needs an array with both a task axis and a full width per token.
"""
from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

# Where LoRA sits: nested names (as the backbone takes them) -> (layers, D_in, D_out).
Sites = dict[str, Any]


def init_block(rng: jax.Array, sites: Sites, rank: int) -> Any:
  """One fresh block: A ~ U(-1/sqrt(D_in), 1/sqrt(D_in)) (Kaiming uniform, a = sqrt 5), B = 0, so that it starts by adding nothing.

  Returns:
    the nesting of `sites` with {"a": (layers, D_in, rank), "b": (layers, rank, D_out)} float32 at each site.
  """
  leaves, structure = jax.tree.flatten(sites, is_leaf=lambda s: isinstance(s, tuple))

  def one(key: jax.Array, site: tuple[int, int, int]) -> dict[str, jax.Array]:
    layers, d_in, d_out = site
    bound = 1 / math.sqrt(d_in)
    return {"a": jax.random.uniform(key, (layers, d_in, rank), minval=-bound, maxval=bound), "b": jnp.zeros((layers, rank, d_out))}

  return jax.tree.unflatten(structure, [one(key, site) for key, site in zip(jax.random.split(rng, len(leaves)), leaves, strict=True)])


def mixed_product(x: jax.Array, factors: dict[str, jax.Array], gates: jax.Array, detached: jax.Array | None = None) -> jax.Array:
  """sum_i gate_i B_i A_i x (SAPT Eq. 4, with gate_i = a_i * alpha / r).

  Args:
    x: (B, L, D_in) in the compute dtype.
    factors: {"a": (D_in, T, R), "b": (T, R, D_out)} of one layer, any float dtype.
    gates: (B, T), one weight per example and block.
    detached: (T,) bool; blocks through which no gradient reaches x, as in the public code for earlier blocks. None: the true gradient.

  Returns:
    (B, L, D_out) in x's dtype.
  """
  d_in, tasks, rank = factors["a"].shape
  a, b = (factors[name].astype(x.dtype) for name in ("a", "b"))
  u = (x @ a.reshape(d_in, tasks * rank)).reshape(*x.shape[:-1], tasks, rank)
  if detached is not None:
    u = jnp.where(detached[:, None], jax.lax.stop_gradient(u), u)
  u = u * gates[:, None, :, None].astype(x.dtype)
  return u.reshape(*x.shape[:-1], tasks * rank) @ b.reshape(tasks * rank, b.shape[-1])


def best_of_rank(factors: dict[str, jax.Array], weights: jax.Array, rank: int) -> dict[str, jax.Array]:
  """The best product of this rank (in the Frobenius norm) to sum_i w_i B_i A_i, its singular values shared evenly between both factors.

  Args:
    factors: {"a": (layers, D_in, T, R), "b": (layers, T, R, D_out)} of one site; T * R is at least `rank`.
    weights: (T,).

  Returns:
    {"a": (layers, D_in, rank), "b": (layers, rank, D_out)}.
  """
  a = (factors["a"] * weights[:, None]).reshape(*factors["a"].shape[:2], -1)
  b = factors["b"].reshape(a.shape[0], -1, factors["b"].shape[-1])
  # The product of two thin matrices has the singular values of the small product of their triangular parts.
  (a_basis, a_rest), (b_basis, b_rest) = jnp.linalg.qr(a), jnp.linalg.qr(jnp.swapaxes(b, 1, 2))
  left, values, right = jnp.linalg.svd(a_rest @ jnp.swapaxes(b_rest, 1, 2))
  share = jnp.sqrt(values[:, :rank])
  return {"a": a_basis @ (left[:, :, :rank] * share[:, None, :]),
          "b": (right[:, :rank] * share[:, :, None]) @ jnp.swapaxes(b_basis, 1, 2)}
