"""TreeLoRA (Qian et al., ICML 2025): one LoRA through all tasks, drawn at every site towards what
it was for the earlier task that is nearest there, found by a search in a tree of tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import checks, config
from sapt_jax.methods.base import Pool, StepView, Trainable
from sapt_jax.methods.lesson import Learned, Study
from sapt_jax.methods.sequential import Sequential
from sapt_jax.methods.summed import site_factors
from sapt_jax.pet import blocks

Factors = list[jax.Array]  # A of every site, (layers, D_in, R) each


@dataclasses.dataclass(frozen=True)
class TreeLoraOptions(config.MethodOptions):
  """One block, drawn at each site towards the nearest earlier task (Qian et al., ICML 2025)."""

  name: str = "tree_lora"
  alignment_weight: float = 0.5
  """Weight of the alignment with earlier tasks at the last step, in shares of the cross-entropy."""
  exploration: float = 1.0
  """How much the search prefers branches that it has seldom tried; 0: not at all."""

  def __post_init__(self) -> None:
    checks.at_least(self, "method", 0, "alignment_weight", "exploration")


class TreeLoraLearned(Pool):
  """What is kept of earlier tasks besides the one block.

  Attributes:
    directions: A of every site, the mean over the steps of each task, (layers, D_in, T, R) each.
    leaves: (T,) int32, the task at each leaf of the tree; -1 at empty ones.
    tasks: () int32, tasks begun.
  """

  directions: Factors
  leaves: jax.Array
  tasks: jax.Array


class TreeLora(Sequential):
  """Loss: cross-entropy - alignment_weight * (step / steps) * sg(CE) * R / sg|R|.

  R is the sum over sites and layers of <A, G_i>, i the earlier task that the search is at there.

  G_i is the mean over task i's steps of A itself, which the public code calls a gradient. The tree
  is binary: a group of tasks is split in halves by their similarity to the group's mean. At every
  step the search goes from the root to a leaf, at each site and layer on its own, always to the
  child with the lower confidence bound of the distance |A - G| / (|A| + |G|) (sums of absolute
  values); the distance found counts for all nodes on the way.

  Differences from the public code: it divides by sg(R), which turns the term's sign around where R
  is negative and so pushes A away from G, and it adds the term once for every site; here the sign
  stays, and the term is added once. The mean is over the task's steps, one epoch there. Its
  dropout of 0.1 before A is pet.dropout.
  """

  Options = TreeLoraOptions
  options: Any
  kinds = ("lora",)

  def start(self, rng: jax.Array) -> TreeLoraLearned:
    pool, capacity = super().start(rng), self.setting.capacity
    room = [jnp.zeros((*a.shape[:2], capacity, a.shape[3])) for a in stacked_a(pool)]
    leaves = jnp.full(capacity, -1, jnp.int32)
    return TreeLoraLearned(pool.blocks, pool.count, room, leaves, jnp.zeros((), jnp.int32))

  def begin(self, learned: TreeLoraLearned, rng: jax.Array, study: Study) -> TreeLoraLearned:
    tasks = int(learned.tasks)
    flat = [np.moveaxis(np.asarray(g), 2, 0).reshape(g.shape[2], -1) for g in learned.directions]
    leaves = tree_of(np.concatenate(flat, axis=1)[:tasks], self.setting.capacity)
    return learned.replace(leaves=jnp.asarray(leaves, jnp.int32), tasks=learned.tasks + 1)

  def penalty(self, now: TreeLoraLearned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    chosen = view.running["chosen"]
    pairs = zip(newest_a(now), now.directions, chosen, strict=True)
    alignment = sum((jnp.sum(a * at_tasks(g, tasks)) for a, g, tasks in pairs), jnp.zeros(()))
    size = jax.lax.stop_gradient(jnp.abs(alignment)) + 1e-12
    share = view.step / view.running["steps"]
    loss = -self.options.alignment_weight * share * view.terms["cross_entropy"] * alignment / size
    return jnp.where(now.tasks > 1, loss, 0.0), {"alignment": alignment}

  def running(self, learned: TreeLoraLearned, steps: int) -> dict[str, Any]:
    """The steps to make, the sum of A so far, and the search: visits and distances of every node
    of the tree (layers, 2 T), and the task that each layer is at (layers,), for every site.
    """
    a = newest_a(learned)
    unknown = [jnp.zeros((x.shape[0], 2 * self.setting.capacity)) for x in a]
    running = {
      "steps": jnp.asarray(max(steps, 1), jnp.float32),
      "sum": [jnp.zeros_like(x) for x in a],
      "visits": unknown,
      "distances": [jnp.copy(x) for x in unknown],
    }
    return running | {"chosen": self.chosen(learned, running)}

  def observe(self, running: Any, now: TreeLoraLearned, step: jax.Array) -> dict[str, Any]:
    """Counts the distances that the search has found, and lets it go on."""
    a = newest_a(now)
    found = [
      distance(x, at_tasks(g, tasks))
      for x, g, tasks in zip(a, now.directions, running["chosen"], strict=True)
    ]
    paths = self.paths(now, running)
    add = jax.vmap(lambda nodes, path, value: nodes.at[path].add(value))
    counted = running | {
      "sum": [total + x for total, x in zip(running["sum"], a, strict=True)],
      "visits": [
        add(nodes, path, jnp.ones(path.shape[0]))
        for nodes, path in zip(running["visits"], paths, strict=True)
      ],
      "distances": [
        add(nodes, path, value)
        for nodes, path, value in zip(running["distances"], paths, found, strict=True)
      ],
    }
    return counted | {"chosen": self.chosen(now, counted)}

  def settle(self, learned: TreeLoraLearned, trainable: Trainable, running: Any) -> TreeLoraLearned:
    task = learned.tasks - 1
    means = [total / running["steps"] for total in running["sum"]]
    directions = [
      g.at[:, :, task].set(mean) for g, mean in zip(learned.directions, means, strict=True)
    ]
    return self.merge(learned, trainable).replace(directions=directions)

  def paths(self, learned: TreeLoraLearned, running: Any) -> list[jax.Array]:
    """The nodes from root to leaf where each layer's search goes, (layers, depth), every site."""
    there = occupied(learned.leaves)
    walk = jax.vmap(partial(path_to_leaf, there=there, exploration=self.options.exploration))
    return list(map(walk, running["visits"], running["distances"]))

  def chosen(self, learned: TreeLoraLearned, running: Any) -> list[jax.Array]:
    """The task at the leaf where each layer's search ends, (layers,) int32, for every site."""
    capacity = self.setting.capacity
    return [learned.leaves[path[:, -1] - capacity] for path in self.paths(learned, running)]


def stacked_a(learned: Learned) -> Factors:
  """A of every site of the pool, (layers, D_in, T, R) each."""
  return [factors["a"] for factors in site_factors(learned.blocks["lora"])]


def newest_a(learned: Learned) -> Factors:
  """A of every site of the one block."""
  return [factors["a"] for factors in site_factors(blocks.read(learned.blocks, 0)["lora"])]


def at_tasks(directions: jax.Array, tasks: jax.Array) -> jax.Array:
  """Of (layers, D_in, T, R) the task (layers,) that each layer asks for, (layers, D_in, R)."""
  return jax.vmap(lambda one, task: one[:, jnp.maximum(task, 0)])(directions, tasks)


def distance(a: jax.Array, g: jax.Array) -> jax.Array:
  """sum |A - G| / sum (|A| + |G|) of each layer, (layers, D_in, R) both -> (layers,), in [0, 1]."""
  size = jnp.sum(jnp.abs(a) + jnp.abs(g), axis=(1, 2))
  return jnp.sum(jnp.abs(a - g), axis=(1, 2)) / jnp.maximum(size, 1e-12)


def tree_of(vectors: np.ndarray, capacity: int) -> np.ndarray:
  """The task at each leaf of a binary tree with `capacity` (a power of two) leaves; -1: none.

  Args:
    vectors: (n, size), one per task, n at most the capacity. A group is split in halves by how
      similar (cosine) its vectors are to their mean: the more similar ones stand on the left.
  """
  leaves = np.full(capacity, -1)

  def place(tasks: Sequence[int], start: int, size: int) -> None:
    if size == 1 or not len(tasks):
      leaves[start : start + len(tasks)] = tasks
      return
    group = vectors[list(tasks)]
    mean = group.mean(axis=0)
    lengths = np.linalg.norm(group, axis=1) * np.linalg.norm(mean) + 1e-12
    order = np.argsort(-(group @ mean) / lengths, kind="stable")
    half = -(-len(tasks) // 2)
    place([tasks[i] for i in order[:half]], start, size // 2)
    place([tasks[i] for i in order[half:]], start + size // 2, size // 2)

  place(range(len(vectors)), 0, capacity)
  return leaves


def occupied(leaves: jax.Array) -> jax.Array:
  """Which nodes (2 T,) of the tree have a task below them; node n's children are 2 n and 2 n + 1,
  the root is 1.
  """
  levels = [leaves >= 0]
  while levels[0].shape[0] > 1:
    levels.insert(0, jnp.any(levels[0].reshape(-1, 2), axis=1))
  return jnp.concatenate([jnp.zeros(1, bool), *levels])


def path_to_leaf(
  visits: jax.Array, distances: jax.Array, there: jax.Array, exploration: float
) -> jax.Array:
  """The nodes (depth,) int32 from the root to a leaf, always by the child whose distance has the
  lower confidence bound: mean - exploration * sqrt(2 log(parent's visits) / visits).

  Args:
    visits, distances: (2 T,) float32, how often each node was passed, and the distances found then.
    there: (2 T,) bool, see `occupied`.
  """
  path = [jnp.ones((), jnp.int32)]
  for _ in range((visits.shape[0] // 2).bit_length() - 1):
    children = 2 * path[-1] + jnp.arange(2)
    tried = jnp.maximum(visits[children], 1.0)
    doubt = jnp.sqrt(2 * jnp.log(jnp.maximum(visits[path[-1]], 1.0)) / tried)
    bound = distances[children] / tried - exploration * doubt
    bound = jnp.where(visits[children] == 0, -jnp.inf, bound)
    path.append(children[jnp.argmin(jnp.where(there[children], bound, jnp.inf))])
  return jnp.stack(path)
