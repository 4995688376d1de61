"""LoRA blocks: their shapes, their start, and the mixed low-rank product of a whole pool.

Factors of a pool carry a task axis T next to the rank axis R, in the layout (D_in, T, R) and
(T, R, D_out), so that the sum over blocks is two plain matrix products and never needs an array
with both a task axis and a full width per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.precision import exact

# Where LoRA sits: nested names (as the backbone takes them) -> (layers, D_in, D_out).
Sites = dict[str, Any]


def sites_at(targets: Sequence[str], shapes: dict[str, tuple[int, int, int]], part: str) -> Sites:
  """The sites of one part of a layer: {part: {target: shape}} for those of its maps that are
  targets; nothing where none is.
  """
  chosen = {name: shape for name, shape in shapes.items() if name in targets}
  return {part: chosen} if chosen else {}


def factors_at(factors: Any, *path: str) -> Any:
  """What stands at a path of nested factors; None where nothing does."""
  for name in path:
    factors = None if factors is None else factors.get(name)
  return factors


def init_block(rng: jax.Array, sites: Sites, rank: int) -> Any:
  """One fresh block: A ~ U(-1/sqrt(D_in), 1/sqrt(D_in)) (Kaiming uniform, a = sqrt 5), B = 0, so
  that it starts by adding nothing.

  Returns:
    the nesting of `sites` with {"a": (layers, D_in, rank), "b": (layers, rank, D_out)} float32 at
    each site.
  """
  leaves, structure = jax.tree.flatten(sites, is_leaf=lambda s: isinstance(s, tuple))

  def one(key: jax.Array, site: tuple[int, int, int]) -> dict[str, jax.Array]:
    layers, d_in, d_out = site
    bound = 1 / math.sqrt(d_in)
    return {
      "a": jax.random.uniform(key, (layers, d_in, rank), minval=-bound, maxval=bound),
      "b": jnp.zeros((layers, rank, d_out)),
    }

  keys = jax.random.split(rng, len(leaves))
  return jax.tree.unflatten(structure, map(one, keys, leaves))


@jax.named_scope("lora")
def mixed_product(
  x: jax.Array,
  factors: dict[str, jax.Array],
  gates: jax.Array,
  detached: jax.Array | None = None,
  chosen: jax.Array | None = None,
  newest: jax.Array | None = None,
) -> jax.Array:
  """sum_i gate_i B_i A_i x (SAPT Eq. 4, with gate_i = a_i * alpha / r).

  Args:
    x: (B, L, D_in) in the compute dtype.
    factors: {"a": (D_in, T, R), "b": (T, R, D_out)} of one layer, any float dtype; where there is a
      newest block, its own too, {"newest_a": (D_in, R), "newest_b": (R, D_out)}.
    gates: (B, T), one weight per example and block; (B, K) of the chosen blocks where there is a
      choice.
    detached: (T,) bool; blocks through which no gradient reaches x, as in the public code for
      earlier blocks. None: the true gradient.
    chosen: (B, K) int32, the blocks that each example uses. None: all.
    newest: () int32, the only block whose factors get a gradient, through newest_a and newest_b:
      one of the whole pool would be T times as large, for zeros that nobody asks for. None: all get
      theirs.

  Returns:
    (B, L, D_out) in x's dtype.
  """
  a, b = factors["a"], factors["b"]
  slots = jnp.arange(a.shape[1])[None] if chosen is None else chosen
  stopped = None if detached is None else detached[slots]
  if newest is None:
    return _product(x, a, b, gates, stopped, chosen)[0]
  own = factors["newest_a"], factors["newest_b"]
  a, b = jax.lax.stop_gradient((a, b))
  return _product_newest(x, a, b, *own, gates, stopped, chosen, slots == newest)


def _matrices(
  dtype: jnp.dtype, a: jax.Array, b: jax.Array, chosen: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Both factors as matrices (D_in, T * R) and (T * R, D_out), or one pair per example,
  (B, D_in, K * R) and (B, K * R, D_out).
  """
  a, b = a.astype(dtype), b.astype(dtype)
  if chosen is None:
    return a.reshape(a.shape[0], -1), b.reshape(-1, b.shape[-1])
  batch = chosen.shape[0]
  a, b = jnp.moveaxis(jnp.take(a, chosen, axis=1), 1, 0), jnp.take(b, chosen, axis=0)
  return a.reshape(batch, a.shape[1], -1), b.reshape(batch, -1, b.shape[-1])


def _product(
  x: jax.Array,
  a: jax.Array,
  b: jax.Array,
  gates: jax.Array,
  stopped: jax.Array | None,
  chosen: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """The product and u = A_i x of every block, (B, L, T, R)."""
  a_matrix, b_matrix = _matrices(x.dtype, a, b, chosen)
  u = (x @ a_matrix).reshape(*x.shape[:2], -1, a.shape[2])
  if stopped is not None:
    u = jnp.where(stopped[:, None, :, None], jax.lax.stop_gradient(u), u)
  gated = u * gates[:, None, :, None].astype(x.dtype)
  return gated.reshape(*x.shape[:2], -1) @ b_matrix, u


# Autodiff would make the gradient of every block's factors, T times the work and memory of the
# newest one's, for `Method.merge` to drop. Its values stand in a and b, as those of all blocks do.
@jax.custom_vjp
def _product_newest(
  x: jax.Array,
  a: jax.Array,
  b: jax.Array,
  newest_a: jax.Array,
  newest_b: jax.Array,
  gates: jax.Array,
  stopped: jax.Array | None,
  chosen: jax.Array | None,
  is_newest: jax.Array,
) -> jax.Array:
  return _product(x, a, b, gates, stopped, chosen)[0]


def _forward(
  x: jax.Array,
  a: jax.Array,
  b: jax.Array,
  newest_a: jax.Array,
  newest_b: jax.Array,
  gates: jax.Array,
  stopped: jax.Array | None,
  chosen: jax.Array | None,
  is_newest: jax.Array,
) -> tuple[jax.Array, tuple]:
  y, u = _product(x, a, b, gates, stopped, chosen)
  # XLA computes x W and x A as one array, and would keep all of it until u has been read.
  u = jax.lax.optimization_barrier(u)
  return y, (x, u, a, b, gates, stopped, chosen, is_newest)


def _backward(saved: tuple, dy: jax.Array) -> tuple:
  x, u, a, b, gates, stopped, chosen, is_newest = saved
  a_matrix, b_matrix = _matrices(x.dtype, a, b, chosen)
  d_gated = (dy @ jnp.swapaxes(b_matrix, -1, -2)).reshape(u.shape)
  gate = gates[:, None, :, None].astype(x.dtype)
  du = d_gated * gate
  d_gates = jnp.sum(d_gated * u, axis=(1, 3), dtype=jnp.float32).astype(gates.dtype)
  through = du if stopped is None else jnp.where(stopped[:, None, :, None], 0, du)
  dx = through.reshape(*x.shape[:2], -1) @ jnp.swapaxes(a_matrix, -1, -2)

  def of_newest(per_block: jax.Array) -> jax.Array:
    """(B, L, T, R) -> (B, L, R)."""
    only = jnp.broadcast_to(is_newest, gates.shape).astype(x.dtype)
    return jnp.einsum("bltr,bt->blr", per_block, only)

  product = partial(jnp.einsum, preferred_element_type=jnp.float32)
  da = product("bld,blr->dr", x, of_newest(du))
  db = product("blr,blo->ro", of_newest(u * gate), dy)
  return dx, None, None, da.astype(a.dtype), db.astype(b.dtype), d_gates, None, None, None


_product_newest.defvjp(_forward, _backward)


def best_of_rank(
  factors: dict[str, jax.Array], weights: jax.Array, rank: int
) -> dict[str, jax.Array]:
  """The best product of this rank (in the Frobenius norm) to sum_i w_i B_i A_i, its singular values
  shared evenly between both factors.

  Args:
    factors: {"a": (layers, D_in, T, R), "b": (layers, T, R, D_out)} of one site; T * R is at least
      `rank`.
    weights: (T,).

  Returns:
    {"a": (layers, D_in, rank), "b": (layers, rank, D_out)}.
  """
  left, values, right = _singular(factors, weights, rank)
  share = jnp.sqrt(values)
  return {"a": left * share[:, None, :], "b": right * share[:, :, None]}


def main_directions(
  factors: dict[str, jax.Array], weights: jax.Array, rank: int
) -> dict[str, jax.Array]:
  """A block that adds nothing yet but reads what sum_i w_i B_i A_i reads: A has its `rank` main
  input directions, B is 0.

  They are as long as a fresh block's are on average (init_block), 1/sqrt(3), so that a learning
  rate means the same to both. Arguments and result as in best_of_rank.
  """
  left, _, right = _singular(factors, weights, rank)
  return {"a": left / math.sqrt(3), "b": jnp.zeros_like(right)}


@partial(jax.jit, static_argnames="rank")
@exact
def _singular(
  factors: dict[str, jax.Array], weights: jax.Array, rank: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The first `rank` singular vectors and values of sum_i w_i B_i A_i: (layers, D_in, rank),
  (layers, rank), (layers, rank, D_out).
  """

  def of_layer(matrices: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    # The product of two thin matrices has the singular values of the small product of their
    # triangular parts.
    (a_basis, a_rest), (b_basis, b_rest) = jnp.linalg.qr(matrices[0]), jnp.linalg.qr(matrices[1].T)
    left, values, right = jnp.linalg.svd(a_rest @ b_rest.T)
    return a_basis @ left[:, :rank], values[:rank], right[:rank] @ b_basis.T

  a = (factors["a"] * weights[:, None]).reshape(*factors["a"].shape[:2], -1)
  b = factors["b"].reshape(a.shape[0], -1, factors["b"].shape[-1])
  # Layer by layer: on a CPU, a batch of decompositions waits inside the threads that it needs. Two
  # batches at once, a's and b's, would wait for ever where there are two threads (jaxlib 0.10.2).
  return jax.lax.map(of_layer, (a, b))
