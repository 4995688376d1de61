"""SAPT (Zhao et al., ACL 2024): shared attention over all blocks (SALS), kept right for earlier
tasks by reflection (ARM).

The attention has two forms (SaptOptions.attention). In the published one a new key is random, and
query and key learn from the language-model loss and the reflection term alone. The routed one is
for short budgets: max-pooled embeddings of different tasks are nearly one vector, so they are
centred on the running mean over tasks; a new key starts at its task's mean query; and before the
backbone is touched, query and key are fitted on pooled embeddings alone: the new task's inputs to
their own block, remembered inputs to their remembered mixtures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sapt_jax import arm, checks, config, sals, streams
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch
from sapt_jax.errors import InputError
from sapt_jax.methods.base import Method, Pool, StepView, Trainable, refuse_top_k
from sapt_jax.methods.features import pooled_embeddings
from sapt_jax.methods.lesson import Learned, Study
from sapt_jax.methods.relatives import first_row
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from sapt_jax.streams import stream

# Most inputs of the new task in a routing step; more add cost and nothing else.
ROUTING_INPUTS = 512


@dataclasses.dataclass(frozen=True)
class SaptOptions(config.MethodOptions):
  """Shared attention over all blocks, and reflection (Zhao et al., ACL 2024)."""

  name: str = "sapt"
  attention: Literal["published", "routed"] = "published"
  """published trains query and keys with the blocks alone; routed first fits query and new key on
  centred pooled embeddings, as short budgets need (docs/sharing.md).
  """
  attention_learning_rate: float | None = None
  """Of query and new key; none: fit's rate."""
  reflection_weight: float = 0.5
  """lambda, the weight of the reflection term (ARM); 0: no reflection and no pseudo inputs, for
  ablation.
  """
  remembered: Literal["pseudo_inputs", "draws"] = "pseudo_inputs"
  """Generated texts, or draws, of a task. Reflection holds the attention on inputs that a generator
  writes, as published, or on as many draws from a normal distribution of the task's pooled
  embeddings, which need no generator (docs/sharing.md).
  """
  routing_steps: int = 300
  """routed: Adam steps on query and new key before the blocks are trained."""
  routing_learning_rate: float = 3e-4
  """routed: learning rate of these steps."""
  sharing: bool = False
  """routed: a task takes from earlier blocks too, by weights that it learns (docs/sharing.md)."""
  sharing_learning_rate: float = 0.05
  """Of these weights."""
  sharing_relatives: int = 2
  """Most earlier tasks with whose weights they begin. Those are taken that each halve the loss
  before the task is learned; the weights begin at 0 where there are none.
  """
  uniform: Literal["never", "answering", "always"] = "never"
  """Mix all blocks alike, for ablation."""
  paper_nonlinearity: bool = False
  """SiLU between the two query matrices (the paper's Eq. 1) instead of after them (the public
  code).
  """
  reference_quirks: bool = False
  """Reproduce the public code's quirks: no gradient through earlier blocks to the hidden states,
  and max-pooling over padding. Its pooling over the answers of replayed inputs is in
  benchmarks/parity.py alone, as pseudo inputs have no answer here. For parity only.
  """

  def __post_init__(self) -> None:
    counts = ("reflection_weight", "routing_steps", "sharing_relatives")
    checks.at_least(self, "method", 0, *counts)
    checks.positive(self, "method", "routing_learning_rate", "attention_learning_rate")
    checks.positive(self, "method", "sharing_learning_rate")


class SaptLearned(Pool):
  """The pool, its keys (T, D), the query projection all tasks share, the centre of pooled
  embeddings, the reflection memory, and, with method.sharing, how much each task takes from each
  block (T, T): 1 from its own, of any sign from earlier ones.
  """

  keys: jax.Array
  query: sals.QueryProjection
  centre: sals.Centre
  memory: arm.ReflectionMemory
  shares: jax.Array | None = None

  def taken(self, task: int) -> jax.Array:
    """What a task took of each block when it had been learned, (T,) float32: the mean over its
    held-out inputs.
    """
    target = self.memory.target[task]
    return target if self.shares is None else sals.with_shares(target, self.shares)


class Sapt(Method):
  """Shared attention and reflection over a pool of LoRA blocks or soft prompts."""

  Options = SaptOptions
  options: SaptOptions

  def forms(self) -> list[str]:
    departures = {
      "no reflection": not self.options.reflection_weight,
      f"remembers {self.options.remembered}": self.options.remembered != "pseudo_inputs",
      f"uniform {self.options.uniform}": self.options.uniform != "never",
      "sharing": self.options.sharing and self.options.sharing_relatives,
      "sharing from 0": self.options.sharing and not self.options.sharing_relatives,
    }
    return [self.options.attention, *(words for words, there in departures.items() if there)]

  @classmethod
  def check(cls, options: SaptOptions, pet: config.Pet) -> None:
    super().check(options, pet)
    for name, needed in (("attention", "routed"), ("uniform", "never")):
      checks.require(
        not options.sharing or getattr(options, name) == needed,
        f"method.sharing with method.{name} {getattr(options, name)}: it learns what tasks that an "
        f"input is like take from each other; give --method.{name} {needed}",
      )
    if pet.top_k and (options.uniform != "never" or options.sharing):
      refuse_top_k(options, pet)
    if pet.top_k and options.attention == "published":
      raise InputError(
        f"pet.top_k {pet.top_k}: a new key of the published attention is random, so that a new "
        "block might never be chosen, and never learned; give --method.attention routed, or "
        "--pet.top-k 0"
      )

  def check_task(self, study: Study) -> None:
    if self.options.reflection_weight and self.options.remembered == "pseudo_inputs":
      study.check_pseudo_inputs()

  def start(self, rng: jax.Array) -> SaptLearned:
    pool, width, capacity = super().start(rng), self.setting.width, self.setting.capacity
    return SaptLearned(
      pool.blocks,
      pool.count,
      keys=jnp.zeros((capacity, width)),
      query=sals.init_query(stream(rng, "query"), width),
      centre=sals.no_centre(width),
      memory=arm.empty_memory(capacity, self.setting.memory_inputs, width),
      shares=jnp.zeros((capacity, capacity)) if self.options.sharing else None,
    )

  def begin(self, learned: SaptLearned, rng: jax.Array, study: Study) -> SaptLearned:
    features, slot = study.features("train"), learned.count
    learned = super().begin(learned, rng, study)
    if learned.shares is not None:
      shares, most = np.asarray(learned.shares), self.options.sharing_relatives
      own = np.eye(len(shares), dtype=np.float32)[int(slot)]
      row = first_row(learned, study, own, shares, int(slot), most)
      learned = learned.replace(shares=learned.shares.at[slot].set(row))
    if self.options.attention == "published":
      key = sals.init_key(stream(rng, "key"), self.setting.width)
      return learned.replace(keys=learned.keys.at[slot].set(key))
    learned = learned.replace(centre=running_centre(learned.centre, features, slot))
    return self.route(learned, features[:ROUTING_INPUTS])

  def remember(self, learned: SaptLearned, study: Study) -> SaptLearned:
    """Keeps the mean mixture of held-out inputs, and pseudo inputs to hold it to."""
    features = study.features("train")
    if not self.options.reflection_weight:
      pseudo = features[:0]
    elif self.options.remembered == "draws":
      rng = streams.of_seed(study.seed, "draws", study.index)
      kept = min(self.setting.memory_inputs, study.sampling.kept_of(len(features)))
      pseudo = arm.draws(rng, features, kept)
    else:
      pseudo = study.pseudo_inputs()
    target = jnp.mean(jnp.exp(self.log_mixture(learned, study.features("dev"))), axis=0)
    memory = arm.remember(learned.memory, int(learned.count) - 1, pseudo, target)
    return learned.replace(memory=memory)

  def takers(self, learned: SaptLearned, slot: int) -> list[int]:
    if learned.shares is None:
      return []
    return jnp.flatnonzero(learned.shares.at[slot].set(0.0)[:, slot]).tolist()

  def without(self, learned: SaptLearned, slot: int) -> SaptLearned:
    """Query projection and centre, which all tasks have shaped, stay as they are."""
    shares = learned.shares
    if shares is not None:
      shares = blocks.take_out(blocks.take_out(shares, slot, 0), slot, 1)
    return learned.pool_without(slot).replace(
      keys=blocks.take_out(learned.keys, slot, 0),
      memory=arm.without(learned.memory, slot),
      shares=shares,
    )

  def joined(self, learned: SaptLearned, other: SaptLearned) -> SaptLearned:
    """The query projection is the first pool's. The other's keys start at the mean queries of its
    pseudo inputs; then all keys and the projection are fitted to what both remember.
    """
    first, second = int(learned.count), int(other.count)
    share = second / (first + second)
    centre = jax.tree.map(lambda a, b: a + share * (b - a), learned.centre, other.centre)
    inputs = self.setting.memory_inputs
    memory = arm.beside(learned.memory, first, other.memory, self.setting.capacity, inputs)
    there = memory.valid.any(axis=1)[: first + second]
    if not bool(there.all()):
      number = int(jnp.argmin(there)) + 1
      raise InputError(
        f"task {number} of the two runs together has no pseudo inputs to fit the attention to; "
        "learn its run again with more --generator.steps or --generator.oversample, or, if it is a "
        "pool of the public code, import it again with --generator.folder"
      )
    shares = learned.shares
    if shares is not None and other.shares is not None:
      shares = blocks.squares_beside(shares, first, other.shares, self.setting.capacity)
    both = learned.pool_beside(other, self.setting.capacity).replace(
      centre=centre, memory=memory, shares=shares
    )
    weights = memory.valid / jnp.maximum(memory.valid.sum(axis=1, keepdims=True), 1)
    queries = jnp.einsum("nm,nmd->nd", weights, self.queries(both, memory.pooled))
    begun = jax.vmap(key_at)(queries[first : first + second])
    keys = blocks.put_beside(learned.keys, first, begun, 0, self.setting.capacity)
    return fit_joined(self, both.replace(keys=keys))

  def queries(self, learned: SaptLearned, features: jax.Array) -> jax.Array:
    """The queries of inputs with these features, (..., D) -> (..., D)."""
    centred = (features - learned.centre.mean) / learned.centre.scale
    return sals.query(learned.query, centred, self.options.paper_nonlinearity)

  def features(self, model: Model, params: Any, batch: Batch) -> jax.Array:
    return pooled_embeddings(model, params, batch, with_padding=self.options.reference_quirks)

  def log_mixture(self, learned: SaptLearned, features: jax.Array) -> jax.Array:
    """log of the mixture, (..., D) -> (..., T)."""
    between = self.options.paper_nonlinearity
    return sals.log_mixture(
      learned.query, learned.keys, learned.count, features, learned.centre, between
    )

  def mixture(self, learned: SaptLearned, features: jax.Array, task: jax.Array) -> jax.Array:
    mixture = jnp.exp(self.log_mixture(learned, features))
    if learned.shares is not None:
      return sals.with_shares(mixture, learned.shares)
    if self.options.uniform == "never":
      return mixture
    taken = jnp.arange(mixture.shape[-1]) < learned.count
    alike = jnp.broadcast_to(taken / learned.count, mixture.shape)
    # A task whose mean mixture is not remembered yet is being learned.
    learning = jnp.sum(learned.memory.target[learned.count - 1]) == 0
    return jnp.where(learning & (self.options.uniform == "answering"), mixture, alike)

  def by_task(self, learned: SaptLearned, mixture: Sequence[float]) -> Sequence[float]:
    if learned.shares is None:
      return mixture
    shares = np.array(learned.shares, np.float64)[: len(mixture), : len(mixture)]
    np.fill_diagonal(shares, 1.0)  # a place that is empty has none
    return np.maximum(np.linalg.solve(shares.T, mixture), 0.0).tolist()

  def adapters(self, learned: SaptLearned, mixture: jax.Array) -> Adapters:
    newest = learned.count - 1
    earlier = jnp.arange(mixture.shape[1]) != newest if self.options.reference_quirks else None
    return blocks.mixed(learned.blocks, mixture, self.setting.pet, detached=earlier, newest=newest)

  def trainable(self, learned: SaptLearned) -> Trainable:
    attention = {"query": learned.query, "key": learned.keys[learned.count - 1]}
    shared = {} if learned.shares is None else {"shares": learned.shares[learned.count - 1]}
    return super().trainable(learned) | {"attention": attention} | shared

  def rates(self, block: float) -> dict[str, float]:
    attention = self.options.attention_learning_rate
    shared = {"shares": self.options.sharing_learning_rate} if self.options.sharing else {}
    return {"block": block, "attention": block if attention is None else attention} | shared

  def merge(self, learned: SaptLearned, trainable: Trainable) -> SaptLearned:
    learned = self.with_attention(super().merge(learned, trainable), trainable["attention"])
    if learned.shares is None:
      return learned
    newest, slots = learned.count - 1, jnp.arange(len(learned.shares))
    # Its own block has the weight 1: it learns how large it is.
    row = jnp.where(slots < newest, trainable["shares"], slots == newest)
    return learned.replace(shares=learned.shares.at[newest].set(row))

  def with_attention(self, learned: SaptLearned, attention: dict[str, Any]) -> SaptLearned:
    """`learned` with this query projection, and this key for the newest task."""
    keys = learned.keys.at[learned.count - 1].set(attention["key"])
    return learned.replace(query=attention["query"], keys=keys)

  @jax.named_scope("reflection")
  def reflection(self, learned: SaptLearned) -> jax.Array:
    """The reflection loss of all remembered tasks, before its weight."""
    return arm.reflection_loss(learned.memory, self.log_mixture(learned, learned.memory.pooled))

  def penalty(self, now: SaptLearned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    loss = self.reflection(now)
    return self.options.reflection_weight * loss, {"reflection": loss}

  def route(self, learned: SaptLearned, features: jax.Array) -> SaptLearned:
    """The routing phase on features (n, D) of the newest task."""
    key = key_at(jnp.mean(self.queries(learned, features), axis=0))
    attention = fit_routing(self, learned, {"query": learned.query, "key": key}, features)
    return self.with_attention(learned, attention)


@jax.jit
def key_at(query: jax.Array) -> jax.Array:
  """The key that lies where a mean query (D,) points, as long as sqrt(D); zeros where it points
  nowhere.
  """
  length = jnp.linalg.norm(query)
  return query * jnp.sqrt(query.size) / jnp.where(length > 0, length, 1.0)


@partial(jax.jit, static_argnums=0)
def fit_joined(method: Sapt, learned: SaptLearned) -> SaptLearned:
  """Adam on the query projection and all keys, on the reflection loss alone; for each task that
  there is room for, as many steps as a task has for routing.
  """
  optimizer = optax.adam(method.options.routing_learning_rate)

  def loss(attention: dict[str, Any]) -> jax.Array:
    return method.reflection(learned.replace(**attention))

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    attention, state = carry
    updates, state = optimizer.update(jax.grad(loss)(attention), state)
    return (optax.apply_updates(attention, updates), state), None

  attention: dict[str, Any] = {"query": learned.query, "keys": learned.keys}
  steps = method.options.routing_steps * method.setting.capacity
  (attention, _), _ = jax.lax.scan(step, (attention, optimizer.init(attention)), length=steps)
  return learned.replace(**attention)


@jax.jit
def running_centre(centre: sals.Centre, pooled: jax.Array, tasks_before: jax.Array) -> sals.Centre:
  """The centre with one more task counted: the mean over tasks of their mean pooled embedding, and
  the mean distance (RMS) to it. Inputs of a first task that are all alike have none: then a
  thousandth of their length (RMS) counts.
  """
  share = 1.0 / (tasks_before + 1)
  mean = centre.mean + share * (jnp.mean(pooled, axis=0) - centre.mean)
  spread, length = (jnp.sqrt(jnp.mean(jnp.square(x))) for x in (pooled - mean, pooled))
  spread = jnp.maximum(spread, 1e-3 * length + 1e-12)
  scale = jnp.where(tasks_before == 0, spread, centre.scale + share * (spread - centre.scale))
  return sals.Centre(mean, scale)


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

  begun = (attention, optimizer.init(attention))
  (attention, _), _ = jax.lax.scan(step, begun, length=method.options.routing_steps)
  return attention
