"""TreeLoRA: the tree, the search in it, the alignment, and what is kept from step to step."""

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.methods import tree_lora
from sapt_jax.methods.base import StepView
from sapt_jax.methods.tree_lora import occupied, path_to_leaf, tree_of
from tests import classroom


def test_a_group_of_tasks_is_split_by_similarity_to_its_mean():
  rng = np.random.default_rng(0)
  common, other = rng.normal(size=20), rng.normal(size=20)
  alike = [common + 0.05 * rng.normal(size=20) for _ in range(2)]
  vectors = np.array([alike[0], 0.5 * other, alike[1], 0.5 * other + 0.02 * rng.normal(size=20)])
  leaves = tree_of(vectors, 4)
  assert {frozenset(leaves[:2]), frozenset(leaves[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
  assert list(tree_of(vectors[:3], 8)).count(-1) == 5
  assert sorted(tree_of(vectors[:0], 2)) == [-1, -1]


def test_the_search_takes_the_child_with_the_lower_confidence_bound():
  there = occupied(jnp.array([0, 1, 2, -1]))
  np.testing.assert_array_equal(there, [False, True, True, True, True, True, True, False])
  visits = jnp.array([0, 10, 6, 4, 4, 2, 4, 0], jnp.float32)
  distances = jnp.array([0, 5.0, 2.4, 2.0, 1.2, 1.2, 2.0, 0], jnp.float32)

  def bound(node, parent, exploration):
    doubt = np.sqrt(2 * np.log(visits[parent]) / visits[node])
    return distances[node] / visits[node] - exploration * doubt

  for exploration in (0.0, 1.0):
    first = min((2, 3), key=lambda node: bound(node, 1, exploration))
    second = 6 if first == 3 else min((4, 5), key=lambda node: bound(node, 2, exploration))
    path = path_to_leaf(visits, distances, there, exploration)
    assert list(path) == [1, first, second]
  # A child that was never tried comes first; one with no task below it never comes.
  assert list(path_to_leaf(jnp.zeros(8), jnp.zeros(8), there, 1.0)) == [1, 2, 4]
  assert list(path_to_leaf(visits.at[3].set(0).at[6].set(0), distances, there, 1.0)) == [1, 3, 6]


def after_tasks(method, count):
  """What is learned when the last of `count` tasks has been begun, each earlier one with its A."""
  learned = method.start(jax.random.key(0))
  for task in range(count):
    learned = method.begin(learned, jax.random.key(task), classroom.Study(jnp.zeros((1, 32))))
    if task == count - 1:
      return learned
    trainable = classroom.noisy(method.trainable(learned), task)
    now = method.merge(learned, trainable)
    running = method.observe(method.running(learned, 1), now, jnp.zeros((), jnp.int32))
    learned = method.settle(learned, trainable, running)
  return None


def test_what_is_kept_of_a_task_is_the_mean_of_a_over_its_steps():
  method = classroom.build("tree_lora")
  learned = after_tasks(method, 1)
  running, seen = method.running(learned, 3), []
  for step in range(3):
    trainable = classroom.noisy(method.trainable(learned), step)
    now = method.merge(learned, trainable)
    seen.append(tree_lora.newest_a(now))
    running = method.observe(running, now, jnp.asarray(step))
  learned = method.settle(learned, trainable, running)
  for site, kept in enumerate(learned.directions):
    mean = np.mean([np.asarray(a[site]) for a in seen], axis=0)
    np.testing.assert_allclose(kept[:, :, 0], mean, rtol=1e-5, atol=1e-7)
    assert not kept[:, :, 1:].any()


def test_the_search_settles_on_the_nearest_earlier_task_at_every_site_and_layer():
  method = classroom.build("tree_lora", exploration=0.2)
  learned = after_tasks(method, 4)
  nearest = [np.arange(g.shape[0]) % 3 for g in learned.directions]
  factors = jax.tree.leaves(method.trainable(learned), is_leaf=lambda node: "a" in node)
  for one, g, tasks in zip(factors, learned.directions, nearest, strict=True):
    one["a"] = tree_lora.at_tasks(g, jnp.asarray(tasks)) * 1.01
  structure = jax.tree.structure(method.trainable(learned), is_leaf=lambda node: "a" in node)
  now = method.merge(learned, jax.tree.unflatten(structure, factors))
  running, chosen = method.running(learned, 200), []
  observe = jax.jit(method.observe)
  for step in range(200):
    running = observe(running, now, jnp.asarray(step))
    chosen.append([np.asarray(tasks) for tasks in running["chosen"]])
  for site, tasks in enumerate(nearest):
    late = np.array([at[site] for at in chosen[100:]])
    assert (np.mean(late == tasks, axis=0) > 0.7).all()


def test_the_penalty_pulls_a_towards_the_chosen_directions_more_with_every_step():
  method = classroom.build("tree_lora", alignment_weight=0.5)
  learned = after_tasks(method, 3)
  now = method.merge(learned, classroom.noisy(method.trainable(learned), 9))
  running = method.running(learned, 10)
  chosen = zip(tree_lora.newest_a(now), now.directions, running["chosen"], strict=True)
  pairs = [(np.asarray(a), np.asarray(tree_lora.at_tasks(g, tasks))) for a, g, tasks in chosen]
  inner = sum((a * g).sum() for a, g in pairs)
  for step in (0, 5):
    view = StepView(
      jnp.zeros((4, 32)), {"cross_entropy": jnp.asarray(2.0)}, jnp.asarray(step), running
    )
    loss, figures = method.penalty(now, view)
    np.testing.assert_allclose(figures["alignment"], inner, rtol=1e-4)
    np.testing.assert_allclose(loss, -0.5 * step / 10 * 2.0 * np.sign(inner), rtol=1e-5)
    gradient = jax.grad(lambda pool, view=view: method.penalty(now.replace(blocks=pool), view)[0])(
      now.blocks
    )
    found = [factors["a"][:, :, 0] for factors in tree_lora.site_factors(gradient["lora"])]
    for one, (_, g) in zip(found, pairs, strict=True):
      np.testing.assert_allclose(one, -0.5 * step / 10 * 2.0 * g / abs(inner), rtol=1e-4, atol=1e-8)


def test_the_first_task_is_learned_by_its_cross_entropy_alone():
  method = classroom.build("tree_lora")
  learned = after_tasks(method, 1)
  view = StepView(
    jnp.zeros((4, 32)), {"cross_entropy": jnp.ones(())}, jnp.asarray(5), method.running(learned, 10)
  )
  assert float(method.penalty(learned, view)[0]) == 0.0
