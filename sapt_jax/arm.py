"""The attentive reflection module (ARM):
keeps the attention of earlier tasks where it was when they were learned.

SAPT section 3.3. Only pooled embeddings of pseudo inputs are kept, or draws in their place: token
embeddings are frozen, so these never change, and the whole term is one small product per step
whatever the number of tasks.
Letters: N tasks remembered, M pseudo inputs each, D width, T capacity.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax.pet.blocks import put_beside, squares_beside, take_out


class ReflectionMemory(flax.struct.PyTreeNode):
  """What is remembered of each task, in pool order.

  Attributes:
    pooled: (N, M, D) float32, pooled embeddings of pseudo inputs.
    valid: (N, M) bool, which of them are there.
    target: (N, T) float32, the task's mean mixture on held-out inputs when it had just been
      learned; zeros for tasks that came later.
  """

  pooled: jax.Array
  valid: jax.Array
  target: jax.Array


def empty_memory(tasks: int, inputs: int, width: int) -> ReflectionMemory:
  """Room for `tasks` tasks with up to `inputs` pseudo inputs each."""
  return ReflectionMemory(
    jnp.zeros((tasks, inputs, width)), jnp.zeros((tasks, inputs), bool), jnp.zeros((tasks, tasks))
  )


@jax.jit
def remember(
  memory: ReflectionMemory, task: int, pooled: jax.Array, target: jax.Array
) -> ReflectionMemory:
  """The memory with one task written: pooled (m, D) with m <= M (more are cut), target (T,)."""
  m = min(pooled.shape[0], memory.pooled.shape[1])
  return ReflectionMemory(
    memory.pooled.at[task, :m].set(pooled[:m]),
    memory.valid.at[task].set(jnp.arange(memory.valid.shape[1]) < m),
    memory.target.at[task].set(target),
  )


def without(memory: ReflectionMemory, task: int) -> ReflectionMemory:
  """The memory without a task. What the others' targets gave to its block goes to theirs, in
  proportion, as the softmax over the blocks that are left has it.
  """
  target = take_out(take_out(memory.target, task, 0), task, 1)
  total = jnp.sum(target, axis=1, keepdims=True)
  return ReflectionMemory(
    take_out(memory.pooled, task, 0),
    take_out(memory.valid, task, 0),
    target / jnp.where(total > 0, total, 1.0),
  )


def beside(
  memory: ReflectionMemory, taken: int, other: ReflectionMemory, size: int, inputs: int
) -> ReflectionMemory:
  """The first `taken` tasks of a memory, and behind them those of another, with room for `size`
  tasks of `inputs` pseudo inputs. Neither's inputs give weight to the other's blocks.
  """
  wide = [
    put_beside(x, x.shape[1], x[:, :0], 1, inputs)
    for x in (memory.pooled, other.pooled, memory.valid, other.valid)
  ]
  return ReflectionMemory(
    put_beside(wide[0], taken, wide[1], 0, size),
    put_beside(wide[2], taken, wide[3], 0, size),
    squares_beside(memory.target, taken, other.target, size),
  )


# How much of a draw's covariance is the same in all directions, as inputs do not span the width.
ROUND = 0.1


def draws(rng: jax.Array, pooled: jax.Array, count: int) -> jax.Array:
  """Draws (count, D) from a normal distribution with the mean of pooled embeddings (n, D), and a
  covariance between theirs and one that is alike in all directions.

  They can stand for pseudo inputs: after HiDe-Prompt (Wang et al., NeurIPS 2023), which keeps the
  attention of earlier tasks by draws from a distribution of each class.
  """
  rows, width = pooled.shape
  mean = jnp.mean(pooled, axis=0)
  away = pooled - mean
  of_rows, of_width = jax.random.split(rng)
  # A sum of the rows with normal weights has their covariance.
  along = jax.random.normal(of_rows, (count, rows)) @ away / math.sqrt(rows)
  spread = jnp.sqrt(jnp.mean(jnp.square(away)))
  around = spread * jax.random.normal(of_width, (count, width))
  return mean + math.sqrt(1 - ROUND) * along + math.sqrt(ROUND) * around


def divergence(target: jax.Array, log_mixture: jax.Array) -> jax.Array:
  """KL(target || mixture) per row: (..., T), (..., T) -> (...);
  entries with target 0 count nothing (SAPT Eq. 8).
  """
  there = target > 0
  log_ratio = jnp.log(jnp.where(there, target, 1.0)) - jnp.where(there, log_mixture, 0.0)
  return jnp.sum(jnp.where(there, target * log_ratio, 0.0), axis=-1)


def reflection_loss(memory: ReflectionMemory, log_mixture: jax.Array) -> jax.Array:
  """sum over tasks of the mean over their pseudo inputs of KL(target || mixture); log_mixture is
  (N, M, T), of memory.pooled.
  """
  per_input = jnp.where(memory.valid, divergence(memory.target[:, None, :], log_mixture), 0.0)
  return jnp.sum(jnp.sum(per_input, axis=1) / jnp.maximum(jnp.sum(memory.valid, axis=1), 1))
