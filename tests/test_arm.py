"""Reflection: what must hold of the divergence and the memory, and the formula in plain numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import arm

N, M, D, T = 4, 3, 8, 4


def test_draws_have_the_mean_and_nearly_the_covariance_of_what_was_seen():
  pooled = jax.random.normal(jax.random.key(0), (500, 6)) * jnp.arange(1.0, 7.0) + 3
  found = np.asarray(arm.draws(jax.random.key(1), pooled, 20_000))
  mean_square = np.mean(np.var(pooled, axis=0))
  expected = 0.9 * np.cov(np.asarray(pooled).T, bias=True) + 0.1 * mean_square * np.eye(6)
  np.testing.assert_allclose(found.mean(axis=0), pooled.mean(axis=0), atol=0.2)
  np.testing.assert_allclose(np.cov(found.T), expected, atol=0.04 * expected.max())


def simplex(rng, *shape):
  x = rng.exponential(size=shape)
  return x / x.sum(-1, keepdims=True)


def test_divergence_is_kullback_leiblers_and_zero_only_for_the_same():
  rng = np.random.default_rng(0)
  target, other = simplex(rng, 50, T), simplex(rng, 50, T)
  found = arm.divergence(jnp.asarray(target, jnp.float32), jnp.log(jnp.asarray(other, jnp.float32)))
  np.testing.assert_allclose(found, (target * np.log(target / other)).sum(1), rtol=1e-4)
  assert np.all(np.asarray(found) > 0)
  same = arm.divergence(jnp.asarray(target, jnp.float32), jnp.log(jnp.asarray(target, jnp.float32)))
  np.testing.assert_allclose(same, 0, atol=1e-6)


def test_blocks_that_came_later_and_empty_slots_count_nothing():
  """A target of 0 where the mixture has weight, and where it has none (log 0)."""
  target = jnp.array([0.25, 0.75, 0.0, 0.0])
  log_mixture = jnp.log(jnp.array([0.2, 0.5, 0.3, 0.0]))
  value, gradient = jax.value_and_grad(lambda x: arm.divergence(target, x))(log_mixture)
  expected = 0.25 * np.log(0.25 / 0.2) + 0.75 * np.log(0.75 / 0.5)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_array_equal(gradient, -target)


def memory_of(rng, counts):
  memory = arm.empty_memory(N, M, D)
  for task, count in enumerate(counts):
    target = jnp.asarray(np.pad(simplex(rng, task + 1), (0, T - task - 1)), jnp.float32)
    memory = arm.remember(memory, task, jnp.asarray(rng.normal(size=(count, D))), target)
  return memory


def test_the_loss_is_the_sum_over_tasks_of_the_mean_over_their_inputs():
  rng = np.random.default_rng(1)
  memory, other = memory_of(rng, [3, 1, 2]), simplex(rng, N, M, T)
  loss = arm.reflection_loss(memory, jnp.log(jnp.asarray(other, jnp.float32)))
  expected = 0.0
  for task, count in enumerate([3, 1, 2]):
    p, q = np.asarray(memory.target[task, : task + 1]), other[task, :count, : task + 1]
    expected += np.mean((p * np.log(p / q)).sum(1))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_empty_memory_costs_nothing_and_gives_no_gradient():
  log_mixture = jnp.full((N, M, T), -jnp.inf).at[:, :, 0].set(0.0)
  loss = partial(arm.reflection_loss, arm.empty_memory(N, M, D))
  value, gradient = jax.value_and_grad(loss)(log_mixture)
  assert value == 0
  assert not np.any(gradient)


def test_no_gradient_comes_from_inputs_that_are_not_there():
  rng = np.random.default_rng(2)
  memory = memory_of(rng, [2, 1])
  log_mixture = jnp.log(jnp.asarray(simplex(rng, N, M, T), jnp.float32))
  gradient = jax.grad(partial(arm.reflection_loss, memory))(log_mixture)
  np.testing.assert_array_equal(np.any(np.asarray(gradient), axis=2), memory.valid)


def test_remembering_a_task_leaves_the_others_and_cuts_what_has_no_room():
  rng = np.random.default_rng(3)
  before = memory_of(rng, [3, 2])
  inputs = jnp.asarray(rng.normal(size=(M + 2, D)), jnp.float32)
  target = jnp.asarray(simplex(rng, T), jnp.float32)
  after = arm.remember(before, 2, inputs, target)
  np.testing.assert_array_equal(after.pooled[2], inputs[:M])
  np.testing.assert_array_equal(after.target[2], target)
  np.testing.assert_array_equal(np.sum(after.valid, axis=1), [3, 2, M, 0])
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:2], y[:2]), after, before)


def test_a_task_without_pseudo_inputs_is_remembered_and_costs_nothing():
  memory = arm.remember(arm.empty_memory(N, M, D), 0, jnp.zeros((0, D)), jnp.array([1.0, 0, 0, 0]))
  log_mixture = jnp.log(jnp.asarray(simplex(np.random.default_rng(4), N, M, T), jnp.float32))
  assert arm.reflection_loss(memory, log_mixture) == 0
  np.testing.assert_array_equal(memory.target[0], [1, 0, 0, 0])
