"""MoCL (Wang et al., NAACL 2024): blocks composed by how near an input is to each task's key."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch
from sapt_jax.methods.base import Method, Pool, StepView, Trainable
from sapt_jax.methods.features import mean_states, unit
from sapt_jax.methods.lesson import Study
from sapt_jax.pet import blocks
from sapt_jax.precision import exact


@dataclasses.dataclass(frozen=True)
class MoclOptions(config.MethodOptions):
  """Blocks composed by an input's nearness to each task's key (Wang et al., NAACL 2024)."""

  name: str = "mocl"
  sharpness: float = 8.0
  """What cosines are multiplied by before the softmax."""
  match_weight: float = 1.0
  """Weight of the cosine that draws the new key towards its task's inputs."""
  key_learning_rate: float | None = None
  """Of the new key; none: fit.learning_rate."""

  def __post_init__(self) -> None:
    checks.at_least(self, "method", 0, "match_weight")
    checks.positive(self, "method", "sharpness", "key_learning_rate")


class MoclLearned(Pool):
  """The pool, and a key for each task, (T, D) float32."""

  keys: jax.Array


class Mocl(Method):
  """Mixture: softmax(sharpness * cos(q, k_1..t)), with q the mean state of a plain pass.

  Loss: cross-entropy + match_weight * (1 - mean over inputs of cos(q, k_t)). Trained are the new
  block and its key; earlier ones are frozen.

  Differences from the public code: it lets a test input compose the blocks up to its own task,
  and so knows the task; here all blocks are composed, for every input alike. q is a mean over real
  tokens alone, where the code counts padding. A key starts at the mean of its task's q, each at
  length 1, which is where its own loss term draws it. A block is LoRA or a soft prompt before the
  input, not keys and values in every layer.
  """

  Options = MoclOptions
  options: MoclOptions

  def start(self, rng: jax.Array) -> MoclLearned:
    pool, setting = super().start(rng), self.setting
    return MoclLearned(pool.blocks, pool.count, jnp.zeros((setting.capacity, setting.width)))

  def begin(self, learned: MoclLearned, rng: jax.Array, study: Study) -> MoclLearned:
    key = jnp.mean(unit(study.features("train")), axis=0)
    keys = learned.keys.at[learned.count].set(key)
    return super().begin(learned.replace(keys=keys), rng, study)

  def without(self, learned: MoclLearned, slot: int) -> MoclLearned:
    keys = blocks.take_out(learned.keys, slot, 0)
    return learned.pool_without(slot).replace(keys=keys)

  def joined(self, learned: MoclLearned, other: MoclLearned) -> MoclLearned:
    size = self.setting.capacity
    keys = blocks.put_beside(learned.keys, int(learned.count), other.keys, 0, size)
    return learned.pool_beside(other, size).replace(keys=keys)

  def features(self, model: Model, params: Any, batch: Batch) -> jax.Array:
    return mean_states(model, params, batch)

  @exact
  def cosines(self, learned: MoclLearned, features: jax.Array) -> jax.Array:
    """Cosine of every input's feature with every key: (B, D) -> (B, T)."""
    return unit(features) @ unit(learned.keys).T

  def mixture(self, learned: MoclLearned, features: jax.Array, task: jax.Array) -> jax.Array:
    nearness = self.options.sharpness * self.cosines(learned, features)
    taken = jnp.arange(blocks.capacity(learned.blocks)) < learned.count
    return jax.nn.softmax(jnp.where(taken, nearness, -jnp.inf), axis=1)

  def trainable(self, learned: MoclLearned) -> Trainable:
    return super().trainable(learned) | {"key": learned.keys[learned.count - 1]}

  def rates(self, block: float) -> dict[str, float]:
    key = self.options.key_learning_rate
    return {"block": block, "key": block if key is None else key}

  def merge(self, learned: MoclLearned, trainable: Trainable) -> MoclLearned:
    keys = learned.keys.at[learned.count - 1].set(trainable["key"])
    return super().merge(learned.replace(keys=keys), trainable)

  def penalty(self, now: MoclLearned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    match = jnp.mean(self.cosines(now, view.features)[:, now.count - 1])
    return self.options.match_weight * (1 - match), {"key_cosine": match}
