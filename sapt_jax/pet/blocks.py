"""PET blocks of either kind, and the pool they are stacked in.

A block is {"lora": nested factors} or {"prompt": (P, D)}. A stack of blocks has the same nesting
with a task axis T in every array: "a" (layers, D_in, T, R), "b" (layers, T, R, D_out), "prompt"
(T, P, D). The pool's capacity is fixed while it lasts, so that a new task does not recompile the
step; empty slots hold zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.config import Pet
from sapt_jax.pet import lora
from sapt_jax.pet.adapters import Adapters
from sapt_jax.precision import exact

Block = dict[str, Any]
Blocks = dict[str, Any]

TASK_AXIS = {"a": 2, "b": 1, "prompt": 0}


def task_axis(path: tuple) -> int:
  """Where the task axis stands in the array at this place of a stack of blocks."""
  return TASK_AXIS[path[-1].key]


def init_block(
  rng: jax.Array, pet: Pet, sites: lora.Sites, embedding_table: jax.Array, scale: float = 1.0
) -> Block:
  """A fresh block: LoRA starts by adding nothing;
  a soft prompt starts at token embeddings (V, D) drawn at random, times scale.
  """
  if pet.kind == "lora":
    return {"lora": lora.init_block(rng, sites, pet.rank)}
  rows = jax.random.randint(rng, (pet.prompt_length,), 0, embedding_table.shape[0])
  return {"prompt": embedding_table[rows].astype(jnp.float32) * scale}


def stack(block: Block) -> Blocks:
  """A pool of just this block (T = 1)."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.expand_dims(x, task_axis(path)), block
  )


@partial(jax.jit, static_argnames="capacity")
def empty_pool(block: Block, capacity: int) -> Blocks:
  """Zeros with room for `capacity` blocks of this one's shape."""

  def empty(path: tuple, x: jax.Array) -> jax.Array:
    axis = task_axis(path)
    return jnp.zeros((*x.shape[:axis], capacity, *x.shape[axis:]), x.dtype)

  return jax.tree_util.tree_map_with_path(empty, block)


@jax.jit
def write(pool: Blocks, block: Block, slot: jax.Array | int) -> Blocks:
  """The pool with `block` in its slot; gradients reach the block and no other slot."""

  def put(path: tuple, stacked: jax.Array, one: jax.Array) -> jax.Array:
    axis = task_axis(path)
    return jax.lax.dynamic_update_slice_in_dim(stacked, jnp.expand_dims(one, axis), slot, axis)

  return jax.tree_util.tree_map_with_path(put, pool, block)


@jax.jit
def read(pool: Blocks, slot: jax.Array | int) -> Block:
  """The block in a slot."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.lax.dynamic_index_in_dim(x, slot, task_axis(path), keepdims=False), pool
  )


def capacity_for(tasks: int) -> int:
  """Slots of the pool of a stream of so many tasks: the next power of two, so that streams of alike
  length share a compiled step.
  """
  return 1 << (tasks - 1).bit_length()


def capacity(pool: Blocks) -> int:
  """How many blocks the pool has room for."""
  path, leaf = jax.tree_util.tree_leaves_with_path(pool)[0]
  return leaf.shape[task_axis(path)]


def grow(pool: Blocks, size: int) -> Blocks:
  """The pool with room for `size` blocks, those it holds unchanged."""

  return jax.tree_util.tree_map_with_path(lambda path, x: _widened(x, size, task_axis(path)), pool)


def take_out(x: jax.Array, slot: int, axis: int) -> jax.Array:
  """An array without what stands in a slot of an axis; what is behind it moves up, and zeros come
  in at the end.
  """
  size = x.shape[axis]
  rest = jnp.delete(x, slot, axis)
  return _widened(rest, size, axis)


def put_beside(x: jax.Array, taken: int, y: jax.Array, axis: int, size: int) -> jax.Array:
  """The first `taken` slots of x's axis, behind them those of y, `size` in all: as many as fit, the
  others zero.
  """
  both = jnp.concatenate([jax.lax.slice_in_dim(x, 0, taken, axis=axis), y], axis)
  return _widened(jax.lax.slice_in_dim(both, 0, min(size, both.shape[axis]), axis=axis), size, axis)


def squares_beside(x: jax.Array, taken: int, y: jax.Array, size: int) -> jax.Array:
  """The first `taken` rows and columns of a square x, behind them those of y, on the diagonal of a
  square of `size`, which is zero elsewhere.
  """
  wide = [_widened(x, size + taken, 1), _widened(jnp.pad(y, ((0, 0), (taken, 0))), size + taken, 1)]
  return put_beside(wide[0], taken, wide[1], 0, size)[:, :size]


def _widened(x: jax.Array, size: int, axis: int) -> jax.Array:
  padding = [(0, 0)] * x.ndim
  padding[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, padding)


def without(pool: Blocks, slot: int) -> Blocks:
  """The pool without the block in a slot."""
  return jax.tree_util.tree_map_with_path(lambda path, x: take_out(x, slot, task_axis(path)), pool)


def beside(pool: Blocks, taken: int, other: Blocks, size: int) -> Blocks:
  """A pool of `size` slots: the first `taken` blocks of one, and behind them those of another."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x, y: put_beside(x, taken, y, task_axis(path), size), pool, other
  )


@exact
def merged(pool: Blocks, weights: jax.Array, pet: Pet) -> Block:
  """The one block that comes nearest to the pool mixed by weights (T,): sum_i w_i P_i, and for LoRA
  the best product of rank pet.rank (in the Frobenius norm, at each site) to sum_i w_i B_i A_i.
  """
  if "prompt" in pool:
    return {"prompt": jnp.einsum("t,tpd->pd", weights, pool["prompt"])}
  return {"lora": at_sites(partial(lora.best_of_rank, weights=weights, rank=pet.rank), pool)}


def reading_alike(pool: Blocks, weights: jax.Array, pet: Pet) -> Block:
  """A block of LoRA that adds nothing yet and reads what the pool mixed
  by weights (T,) reads (lora.main_directions).
  """
  return {"lora": at_sites(partial(lora.main_directions, weights=weights, rank=pet.rank), pool)}


def at_sites(function: Callable[[Any], Any], pool: Blocks) -> Any:
  """What a function gives of the factors {"a": ..., "b": ...} of each site, nested as the sites."""
  return jax.tree.map(function, pool["lora"], is_leaf=lambda x: "a" in x)


@exact
def mixed(
  pool: Blocks,
  mixture: jax.Array,
  pet: Pet,
  detached: jax.Array | None = None,
  newest: jax.Array | None = None,
) -> Adapters:
  """The pool as a backbone applies it,
  each example with its own mixture (B, T) float32 (SAPT Eq. 4).

  LoRA: sum_i a_i (alpha / r) B_i A_i x at every site, over the pet.top_k blocks with the largest
  weights if that is set. Soft prompts: sum_i a_i P_i before the input embeddings.

  Args:
    detached, newest: see lora.mixed_product.
  """
  if "lora" not in pool:
    return Adapters(prompts=jnp.einsum("bt,tpd->bpd", mixture, pool["prompt"]))
  chosen = None
  if 0 < pet.top_k < mixture.shape[1]:
    mixture, chosen = jax.lax.top_k(mixture, pet.top_k)
  gates, factors = mixture * pet.lora_scale, pool["lora"]
  if newest is not None:
    own = read(pool, newest)["lora"]
    factors = jax.tree.map(
      lambda all_blocks, one: all_blocks | {"newest_a": one["a"], "newest_b": one["b"]},
      factors,
      own,
      is_leaf=lambda x: "a" in x,
    )
  return Adapters(
    factors, gates, chosen=chosen, newest=newest, detached=detached, dropout=pet.dropout
  )


# What a new block can start as, besides fresh, by the name that config.Pet.new_block gives it.
STARTS = {"mixture": merged, "directions": reading_alike}
