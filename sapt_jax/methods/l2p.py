"""L2P (Wang et al., CVPR 2022): a pool of soft prompts that all tasks share and train, chosen for
each input by keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax import checks, config
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch
from sapt_jax.methods.base import Method, Pool, StepView, Trainable
from sapt_jax.methods.features import FEATURES, Feature, unit
from sapt_jax.methods.lesson import Learned, Study
from sapt_jax.pet.adapters import Adapters
from sapt_jax.precision import exact
from sapt_jax.streams import stream


@dataclasses.dataclass(frozen=True)
class L2pOptions(config.MethodOptions):
  """A shared pool of prompts, chosen for each input by keys (Wang et al., CVPR 2022)."""

  name: str = "l2p"
  feature: Feature = "states"
  """What keys are compared with: the mean state of a plain pass, as text ports have it, or the
  max-pooled token embeddings, which cost no pass. Both less the first task's mean.
  """
  pool_prompts: int = 10
  """Soft prompts in the pool, each of pet.prompt_length."""
  chosen_prompts: int = 4
  """Prompts that are put before an input."""
  key_weight: float = 1.0
  """Weight of the cosines that draw chosen keys towards the inputs; text ports give 0.5."""
  key_learning_rate: float | None = None
  """Of the keys; none: fit.learning_rate."""

  def __post_init__(self) -> None:
    checks.at_least(self, "method", 0, "key_weight")
    checks.positive(self, "method", "key_learning_rate")
    checks.require(
      0 < self.chosen_prompts <= self.pool_prompts,
      f"method.chosen_prompts {self.chosen_prompts}: must be at least 1 and at most "
      f"method.pool_prompts {self.pool_prompts}",
    )


class L2pLearned(Pool):
  """The pool of N prompts, their keys (N, D), what is taken off pooled embeddings (D,), and how
  many tasks there were. count is N.
  """

  keys: jax.Array
  centre: jax.Array
  tasks: jax.Array


class L2p(Method):
  """Input: [P_i1; ...; P_ik; embeddings of x] with the k prompts whose keys are nearest to the
  input's feature in cosine.

  Loss: cross-entropy - key_weight * mean over inputs of the sum of their k cosines. The choice
  passes no gradient, so prompts learn from the cross-entropy and keys from their cosines. The
  chosen prompts stand in the order of the pool, so that a set of prompts is one input. The mixture
  is 1/k at the chosen ones; its mean over inputs is how often each is used.

  What the paper leaves open for text: the feature must be frozen. The first task's mean is taken
  off, because features of different tasks are almost one vector and every input would choose the
  same prompts. (That mean stays in all later
  tasks' features with the same sign; a mean over tasks would separate them better, but the feature
  would not be frozen.) The choice is each example's own: choosing by a batch's majority, as the
  public code does, tells the test batch's task. The paper's optional frequency penalty is in no
  public code and not here.
  """

  Options = L2pOptions
  options: L2pOptions
  kinds = ("prompt",)
  block_per_task = False

  def start(self, rng: jax.Array) -> L2pLearned:
    size, width = self.options.pool_prompts, self.setting.width
    prompts = jax.vmap(self.new_block)(jax.random.split(stream(rng, "block"), size))
    keys = jax.random.uniform(stream(rng, "key"), (size, width), minval=-1.0, maxval=1.0)
    return L2pLearned(
      prompts,
      jnp.asarray(size, jnp.int32),
      keys=keys,
      centre=jnp.zeros(width),
      tasks=jnp.zeros((), jnp.int32),
    )

  def features(self, model: Model, params: Any, batch: Batch) -> jax.Array:
    return FEATURES[self.options.feature](model, params, batch)

  def begin(self, learned: L2pLearned, rng: jax.Array, study: Study) -> L2pLearned:
    mean = jnp.mean(study.features("train"), axis=0)
    centre = jnp.where(learned.tasks == 0, mean, learned.centre)
    return learned.replace(centre=centre, tasks=learned.tasks + 1)

  def trainable(self, learned: L2pLearned) -> Trainable:
    return {"block": learned.blocks, "keys": learned.keys}

  def rates(self, block: float) -> dict[str, float]:
    keys = self.options.key_learning_rate
    return {"block": block, "keys": block if keys is None else keys}

  def merge(self, learned: L2pLearned, trainable: Trainable) -> L2pLearned:
    return learned.replace(blocks=trainable["block"], keys=trainable["keys"])

  @exact
  def cosines(self, learned: L2pLearned, features: jax.Array) -> jax.Array:
    """Cosine of every input's feature with every key: (B, D) -> (B, N)."""
    return unit(features - learned.centre) @ unit(learned.keys).T

  def mixture(self, learned: L2pLearned, features: jax.Array, task: jax.Array) -> jax.Array:
    cosines = jax.lax.stop_gradient(self.cosines(learned, features))
    _, chosen = jax.lax.top_k(cosines, self.options.chosen_prompts)
    return jnp.mean(jax.nn.one_hot(chosen, self.options.pool_prompts), axis=1)

  @exact
  def adapters(self, learned: L2pLearned, mixture: jax.Array) -> Adapters:
    # Of equal weights top_k takes the lower number first.
    _, chosen = jax.lax.top_k(mixture, self.options.chosen_prompts)
    which = jax.nn.one_hot(chosen, self.options.pool_prompts)
    prompts = jnp.einsum("bkn,npd->bkpd", which, learned.blocks["prompt"])
    return Adapters(prompts=prompts.reshape(prompts.shape[0], -1, prompts.shape[-1]))

  def penalty(self, now: Learned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    no_task = jnp.zeros(view.features.shape[0], jnp.int32)
    chosen = self.mixture(now, view.features, no_task) > 0
    cosines = self.cosines(now, view.features)
    match = jnp.mean(jnp.sum(jnp.where(chosen, cosines, 0.0), axis=1))
    figures = {
      "key_cosine": match / self.options.chosen_prompts,
      "prompts_used": jnp.sum(jnp.any(chosen, axis=0)).astype(jnp.float32),
    }
    return -self.options.key_weight * match, figures
