"""EPI (Wang et al., ACL 2023): a block per task, and the task of an input found by its distance to
what is remembered of each task.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.methods.base import Learned, Method, Pool, Study
from sapt_jax.pet import blocks


@dataclasses.dataclass(frozen=True)
class EpiOptions(config.MethodOptions):
  """A block per task, found by an input's distance to each task (Wang et al., ACL 2023)."""

  name: str = "epi"
  lookup_shrinkage: float = 0.1
  """How far the covariance of the look-up is drawn towards a multiple of the identity, above 0 and
  up to 1.
  """

  def __post_init__(self) -> None:
    checks.share(self, "method", "lookup_shrinkage")


class EpiLearned(Pool):
  """What the look-up remembers.

  Attributes:
    means: (T, D) float32, each task's mean pooled embedding.
    covariance: (D, D), of pooled embeddings within a task, the mean over tasks.
    whitening: (D, D), turns a difference so that its squared length is the Mahalanobis distance.
    known: () int32, how many tasks these stand for: count, or one less while a task is being
      learned.
  """

  means: jax.Array
  covariance: jax.Array
  whitening: jax.Array
  known: jax.Array


class Epi(Method):
  """A task's block is learned on its own; afterwards argmin_t (e - mu_t)' Sigma^-1 (e - mu_t)
  chooses one block for every input.

  The mixture is one-hot, so its mean over a task's test inputs is the share that was sent to each
  block: the diagonal is the accuracy of the look-up. Differences from the paper: e is the
  max-pooled token embedding, not the mean of BERT's last states; a task has one mean, since a
  text-to-text task has no classes; a block is LoRA or a soft prompt, not keys and values in every
  layer; and Sigma is drawn towards a multiple of the identity (lookup_shrinkage), because a few
  hundred inputs do not span D dimensions and a pseudo-inverse is blind to all differences between
  tasks outside their span.
  """

  Options = EpiOptions
  options: EpiOptions

  def start(self, rng: jax.Array) -> EpiLearned:
    pool, width = super().start(rng), self.setting.width
    square = jnp.zeros((width, width))
    return EpiLearned(
      pool.blocks,
      pool.count,
      means=jnp.zeros((self.setting.capacity, width)),
      covariance=square,
      whitening=square,
      known=jnp.zeros((), jnp.int32),
    )

  def mixture(self, learned: EpiLearned, features: jax.Array, task: jax.Array) -> jax.Array:
    learning = learned.known < learned.count  # a task that is being learned uses its own block
    nearest = jnp.argmin(distances(learned, features), axis=1)
    slot = jnp.where(learning, learned.count - 1, nearest)
    return jax.nn.one_hot(slot, blocks.capacity(learned.blocks))

  def remember(self, learned: EpiLearned, study: Study) -> EpiLearned:
    features = study.features("train")
    mean = jnp.mean(features, axis=0)
    away = features - mean
    # Not divided by n - 1: a task of one input would be NaN, and every task with it.
    own = away.T @ away / away.shape[0]
    covariance = learned.covariance + (own - learned.covariance) / learned.count
    return learned.replace(
      means=learned.means.at[learned.count - 1].set(mean),
      covariance=covariance,
      whitening=whitening(covariance, self.options.lookup_shrinkage),
      known=learned.count,
    )


def whitening(covariance: jax.Array, shrinkage: float) -> jax.Array:
  """L^-1 with L L' = (1 - shrinkage) Sigma + shrinkage * (trace / D) I, (D, D): |L^-1 v|^2 is the
  squared Mahalanobis length of v.
  """
  width = covariance.shape[0]
  target = (jnp.trace(covariance) / width + 1e-6) * jnp.eye(width)
  lower = jnp.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * target)
  return jax.scipy.linalg.solve_triangular(lower, jnp.eye(width), lower=True)


def distances(learned: Learned, features: jax.Array) -> jax.Array:
  """Squared Mahalanobis distance of every input (B, D) to every task's mean, (B, T) float32,
  infinite at empty slots.
  """
  away = (features[:, None] - learned.means) @ learned.whitening.T
  taken = jnp.arange(learned.means.shape[0]) < learned.count
  return jnp.where(taken, jnp.sum(jnp.square(away), axis=-1), jnp.inf)
