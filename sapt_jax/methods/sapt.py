"""SAPT (Zhao et al., ACL 2024): shared attention over all blocks (SALS), kept right for earlier
tasks by reflection (ARM).

Two forms of the attention (config.Method.attention):
  published  a new key is random, and query and key learn from the language-model loss and the reflection term alone.
  routed     for short budgets. Max-pooled embeddings of different tasks are nearly one vector, so they are centred on the running mean over
             tasks; a new key starts at its task's mean query; and before the backbone is touched,
             query and key are fitted on pooled embeddings alone: the new task's inputs to their own
             block, remembered inputs to their remembered mixtures.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapt_jax import arm, config, sals
from sapt_jax.methods.base import Learned, Method, Pool, Setting, TaskInputs, Trainable
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters

ROUTING_INPUTS = (
  512  # most inputs of the new task in a routing step; more add cost and nothing else
)


class SaptLearned(Pool):
  """The pool, its keys (T, D), the query projection all tasks share, the centre of pooled
  embeddings, and the reflection memory.
  """

  keys: jax.Array
  query: sals.QueryProjection
  centre: sals.Centre
  memory: arm.ReflectionMemory


class Sapt(Method):
  """Shared attention and reflection over a pool of LoRA blocks or soft prompts."""

  def __init__(self, options: config.Method, setting: Setting):
    super().__init__(options, setting)
    self.wants_pseudo_inputs = options.reflection_weight > 0
    self.new_block_from = {"mixture": blocks.merged, "directions": blocks.reading_alike}.get(
      options.new_block
    )
    if options.new_block == "directions" and setting.pet.kind == "prompt":
      self.new_block_from = None  # a soft prompt reads nothing

  @property
  def label(self) -> str:
    departures = {
      f"{self.options.new_block} start": self.new_block_from is not None,
      "no reflection": not self.wants_pseudo_inputs,
      f"uniform {self.options.uniform}": self.options.uniform != "never",
    }
    return ", ".join(
      [
        self.options.name,
        self.options.attention,
        *(words for words, there in departures.items() if there),
      ]
    )

  def start(self, rng: jax.Array) -> SaptLearned:
    pool, width, capacity = super().start(rng), self.setting.width, self.setting.capacity
    return SaptLearned(
      pool.blocks,
      pool.count,
      keys=jnp.zeros((capacity, width)),
      query=sals.init_query(jax.random.fold_in(rng, 1), width),
      centre=sals.no_centre(width),
      memory=arm.empty_memory(capacity, self.setting.memory_inputs, width),
    )

  def open(self, learned: SaptLearned, rng: jax.Array, inputs: TaskInputs) -> SaptLearned:
    slot, before = learned.count, learned
    learned = super().open(learned, rng, inputs)
    if self.new_block_from is not None and int(slot):
      weights = jnp.mean(self.mixture(before, inputs.train, slot), axis=0)
      block = self.new_block_from(before.blocks, weights, self.setting.pet)
      learned = learned.replace(blocks=blocks.write(learned.blocks, block, slot))
    if self.options.attention == "published":
      return learned.replace(
        keys=learned.keys.at[slot].set(
          sals.init_key(jax.random.fold_in(rng, 1), self.setting.width)
        )
      )
    learned = learned.replace(centre=running_centre(learned.centre, inputs.train, slot))
    return self.route(learned, inputs.train[:ROUTING_INPUTS])

  def trainable(self, learned: SaptLearned) -> Trainable:
    return super().trainable(learned) | {
      "attention": {"query": learned.query, "key": learned.keys[learned.count - 1]}
    }

  def merge(self, learned: SaptLearned, trainable: Trainable) -> SaptLearned:
    return self.with_attention(super().merge(learned, trainable), trainable["attention"])

  def with_attention(self, learned: SaptLearned, attention: dict[str, Any]) -> SaptLearned:
    """`learned` with this query projection, and this key for the newest task."""
    return learned.replace(
      query=attention["query"], keys=learned.keys.at[learned.count - 1].set(attention["key"])
    )

  def log_mixture(self, learned: SaptLearned, pooled: jax.Array) -> jax.Array:
    """log of the mixture, (..., D) -> (..., T)."""
    return sals.log_mixture(
      learned.query,
      learned.keys,
      learned.count,
      pooled,
      learned.centre,
      self.options.paper_nonlinearity,
    )

  def mixture(self, learned: SaptLearned, pooled: jax.Array, task: jax.Array) -> jax.Array:
    mixture = jnp.exp(self.log_mixture(learned, pooled))
    if self.options.uniform == "never":
      return mixture
    alike = jnp.broadcast_to(
      (jnp.arange(mixture.shape[-1]) < learned.count) / learned.count, mixture.shape
    )
    learning = (
      jnp.sum(learned.memory.target[learned.count - 1]) == 0
    )  # the newest task has not been closed
    return jnp.where(learning & (self.options.uniform == "answering"), mixture, alike)

  def adapters(self, learned: SaptLearned, mixture: jax.Array) -> Adapters:
    newest = learned.count - 1
    earlier = jnp.arange(mixture.shape[1]) != newest if self.options.reference_quirks else None
    return blocks.mixed(learned.blocks, mixture, self.setting.pet, detached=earlier, newest=newest)

  def reflection(self, learned: SaptLearned) -> jax.Array:
    """The reflection loss of all remembered tasks, before its weight."""
    return arm.reflection_loss(learned.memory, self.log_mixture(learned, learned.memory.pooled))

  def penalty(
    self, learned: SaptLearned, pooled: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    loss = self.reflection(learned)
    return self.options.reflection_weight * loss, {"reflection": loss}

  def close(self, learned: SaptLearned, inputs: TaskInputs) -> SaptLearned:
    target = jnp.mean(jnp.exp(self.log_mixture(learned, inputs.held_out)), axis=0)
    return learned.replace(
      memory=arm.remember(learned.memory, int(learned.count) - 1, inputs.pseudo, target)
    )

  def route(self, learned: SaptLearned, pooled: jax.Array) -> SaptLearned:
    """The routing phase on pooled embeddings (n, D) of the newest task."""
    queries = sals.query(
      learned.query,
      (pooled - learned.centre.mean) / learned.centre.scale,
      self.options.paper_nonlinearity,
    )
    mean = jnp.mean(queries, axis=0)
    key = mean * jnp.sqrt(mean.size) / jnp.linalg.norm(mean)
    attention = fit_routing(self, learned, {"query": learned.query, "key": key}, pooled)
    return self.with_attention(learned, attention)


def running_centre(centre: sals.Centre, pooled: jax.Array, tasks_before: jax.Array) -> sals.Centre:
  """The centre with one more task counted: the mean over tasks of their mean pooled embedding, and
  the mean distance (RMS) to it.
  """
  share = 1.0 / (tasks_before + 1)
  mean = centre.mean + share * (jnp.mean(pooled, axis=0) - centre.mean)
  spread = jnp.sqrt(jnp.mean(jnp.square(pooled - mean)))
  return sals.Centre(
    mean, jnp.where(tasks_before == 0, spread, centre.scale + share * (spread - centre.scale))
  )


@partial(jax.jit, static_argnums=0)
def fit_routing(
  method: Sapt, learned: Learned, attention: dict[str, Any], pooled: jax.Array
) -> dict[str, Any]:
  """Adam on query and newest key: cross-entropy of the new inputs to their own block, plus the
  reflection loss.
  """
  optimizer = optax.adam(method.options.routing_learning_rate)

  def loss(attention: dict[str, Any]) -> jax.Array:
    current = method.with_attention(learned, attention)
    own = method.log_mixture(current, pooled)[:, current.count - 1]
    return method.reflection(current) - jnp.mean(own)

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    attention, state = carry
    updates, state = optimizer.update(jax.grad(loss)(attention), state)
    return (optax.apply_updates(attention, updates), state), None

  (attention, _), _ = jax.lax.scan(
    step, (attention, optimizer.init(attention)), length=method.options.routing_steps
  )
  return attention
