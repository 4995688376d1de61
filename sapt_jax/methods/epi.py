"""EPI (Wang et al., ACL 2023): a block per task, and the task of an input found by its distance to
what is remembered of each task.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch
from sapt_jax.data.labels import LABELS, classes_of
from sapt_jax.methods.base import Method, Pool
from sapt_jax.methods.features import FEATURES, Feature
from sapt_jax.methods.lesson import Study
from sapt_jax.pet import blocks
from sapt_jax.precision import exact


@dataclasses.dataclass(frozen=True)
class EpiOptions(config.MethodOptions):
  """A block per task, found by an input's distance to each task (Wang et al., ACL 2023)."""

  name: str = "epi"
  feature: Feature = "states"
  """What the look-up sees of an input: the mean state of a plain pass, as published, or the
  max-pooled token embeddings, which cost no pass.
  """
  lookup_shrinkage: float = 0.1
  """How far the covariance of the look-up is drawn towards a multiple of the identity, above 0 and
  up to 1.
  """

  def __post_init__(self) -> None:
    checks.share(self, "method", "lookup_shrinkage")


class EpiLearned(Pool):
  """What the look-up remembers. C is data.labels.LABELS, the most classes of a task.

  Attributes:
    means: (T, C, D) float32, the mean feature of each class of each task.
    present: (T, C) bool, which of them are there.
    covariance: (D, D), of features within a class, the mean over classes and tasks.
    whitening: (D, D), turns a difference so that its squared length is the Mahalanobis distance.
    known: () int32, how many tasks these stand for: count, or one less while a task is being
      learned.
  """

  means: jax.Array
  present: jax.Array
  covariance: jax.Array
  whitening: jax.Array
  known: jax.Array


class Epi(Method):
  """A task's block is learned on its own. Afterwards the task of an input q is
  argmin_t min_c (q - mu_tc)' Sigma^-1 (q - mu_tc), over the classes c of each task.

  A task with free-text answers has one class. The mixture is one-hot, so its mean over a task's
  test inputs is the share that was sent to each block: the diagonal is the accuracy of the look-up.

  Differences from the paper: a block is LoRA or a soft prompt, not keys and values in every layer;
  and Sigma is drawn towards a multiple of the identity (lookup_shrinkage), because a few hundred
  inputs do not span D dimensions and a pseudo-inverse is blind to all differences between tasks
  outside their span.
  """

  Options = EpiOptions
  options: EpiOptions

  def start(self, rng: jax.Array) -> EpiLearned:
    pool, width, capacity = super().start(rng), self.setting.width, self.setting.capacity
    square = jnp.zeros((width, width))
    return EpiLearned(
      pool.blocks,
      pool.count,
      means=jnp.zeros((capacity, LABELS, width)),
      present=jnp.zeros((capacity, LABELS), bool),
      covariance=square,
      whitening=square,
      known=jnp.zeros((), jnp.int32),
    )

  def without(self, learned: EpiLearned, slot: int) -> EpiLearned:
    """The covariance, a mean over all tasks, stays as it is."""
    return learned.pool_without(slot).replace(
      means=blocks.take_out(learned.means, slot, 0),
      present=blocks.take_out(learned.present, slot, 0),
      known=learned.known - 1,
    )

  def joined(self, learned: EpiLearned, other: EpiLearned) -> EpiLearned:
    size, taken = self.setting.capacity, int(learned.count)
    share = other.count / (learned.count + other.count)
    covariance = learned.covariance + share * (other.covariance - learned.covariance)
    return learned.pool_beside(other, size).replace(
      means=blocks.put_beside(learned.means, taken, other.means, 0, size),
      present=blocks.put_beside(learned.present, taken, other.present, 0, size),
      covariance=covariance,
      whitening=whitening(covariance, self.options.lookup_shrinkage),
      known=learned.known + other.known,
    )

  def features(self, model: Model, params: Any, batch: Batch) -> jax.Array:
    return FEATURES[self.options.feature](model, params, batch)

  def mixture(self, learned: EpiLearned, features: jax.Array, task: jax.Array) -> jax.Array:
    learning = learned.known < learned.count  # a task that is being learned uses its own block
    nearest = jnp.argmin(distances(learned, features), axis=1)
    slot = jnp.where(learning, learned.count - 1, nearest)
    return jax.nn.one_hot(slot, blocks.capacity(learned.blocks))

  def remember(self, learned: EpiLearned, study: Study) -> EpiLearned:
    newest = learned.count - 1
    classes = jnp.asarray(classes_of(study.task.task))
    means, present, within = class_moments(study.features("train"), classes)
    covariance = learned.covariance + (within - learned.covariance) / learned.count
    return learned.replace(
      means=learned.means.at[newest].set(means),
      present=learned.present.at[newest].set(present),
      covariance=covariance,
      whitening=whitening(covariance, self.options.lookup_shrinkage),
      known=learned.count,
    )


@exact
def class_moments(
  features: jax.Array, classes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Means (C, D), which classes there are (C,), and the mean over these of their covariance (D, D).

  Args:
    features: (n, D) float32.
    classes: (n,) int32.
  """
  member = jax.nn.one_hot(classes, LABELS)
  sizes = jnp.maximum(jnp.sum(member, axis=0), 1.0)
  means, present = (member.T @ features) / sizes[:, None], jnp.any(member > 0, axis=0)
  away = features - member @ means
  # Not divided by n - 1: a class of one input would be NaN, and every task with it.
  share = member @ (1.0 / sizes) / jnp.sum(present)
  return means, present, away.T @ (share[:, None] * away)


@exact
def whitening(covariance: jax.Array, shrinkage: float) -> jax.Array:
  """L^-1 with L L' = (1 - shrinkage) Sigma + shrinkage * (trace / D) I, (D, D): |L^-1 v|^2 is the
  squared Mahalanobis length of v.
  """
  width = covariance.shape[0]
  target = (jnp.trace(covariance) / width + 1e-6) * jnp.eye(width)
  lower = jnp.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * target)
  return jax.scipy.linalg.solve_triangular(lower, jnp.eye(width), lower=True)


@exact
def distances(learned: EpiLearned, features: jax.Array) -> jax.Array:
  """Squared Mahalanobis distance of every input (B, D) to the nearest class of every task, (B, T)
  float32, infinite at empty slots.
  """
  # Both sides less one vector, so that the difference of two large ones is not taken.
  origin = jnp.mean(features, axis=0)
  inputs = (features - origin) @ learned.whitening.T
  means = (learned.means - origin) @ learned.whitening.T
  # |a|^2 - 2 a b + |b|^2: the differences themselves would be an array (B, T, C, D).
  both = jnp.einsum("bd,tcd->btc", inputs, means)
  lengths = jnp.sum(jnp.square(inputs), axis=-1)[:, None, None] + jnp.sum(means**2, axis=-1)
  away = jnp.maximum(lengths - 2 * both, 0.0)
  return jnp.min(jnp.where(learned.present, away, jnp.inf), axis=2)
