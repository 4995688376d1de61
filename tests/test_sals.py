"""Shared attention: what must hold of the mixture whatever the pool,
and the formulas against plain numpy.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import sals

D, T = 24, 6


def draw(seed=0):
  """A projection, keys and pooled embeddings that are not at their start values."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  down, up = normal(D, sals.BOTTLENECK) / 5, normal(sals.BOTTLENECK, D) / 5
  projection = sals.QueryProjection(down, up, 1 + normal(D) / 3, normal(D) / 3)
  return projection, normal(T, D), normal(5, D)


def mixture(projection, keys, count, pooled, centre=None, **options):
  given = keys, jnp.asarray(count), pooled, centre or sals.no_centre(D)
  return jnp.exp(sals.log_mixture(projection, *given, **options))


@pytest.mark.parametrize("count", range(1, T + 1))
def test_the_mixture_sums_to_one_over_the_slots_that_are_taken(count):
  projection, keys, pooled = draw()
  weights = mixture(projection, keys, count, pooled)
  np.testing.assert_allclose(jnp.sum(weights, axis=1), 1.0, rtol=1e-6)
  assert np.all(np.asarray(weights[:, :count]) > 0)
  assert not np.any(np.asarray(weights[:, count:]))


@pytest.mark.parametrize("between", [False, True])
def test_the_mixture_is_the_papers_formula(between):
  projection, keys, pooled = draw(1)
  down, up, scale, bias, k, e = (
    np.asarray(x, np.float64) for x in (*jax.tree.leaves(projection), keys, pooled)
  )

  def silu(x):
    return x / (1 + np.exp(-x))

  h = silu(e @ down) @ up if between else silu(e @ down @ up)
  q = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5) * scale + bias
  s = np.exp(q @ k[:4].T / math.sqrt(D))
  weights = mixture(projection, keys, 4, pooled, between=between)
  np.testing.assert_allclose(weights[:, :4], s / s.sum(1, keepdims=True), rtol=1e-5)


def test_the_order_of_the_slots_does_not_matter():
  projection, keys, pooled = draw()
  order = jnp.array([3, 0, 4, 1, 2, 5])  # the last slot is empty
  shuffled, plain = (mixture(projection, given, 5, pooled) for given in (keys[order], keys))
  np.testing.assert_allclose(shuffled, plain[:, order], rtol=1e-6)


def test_what_an_empty_slot_holds_does_not_matter():
  projection, keys, pooled = draw()
  np.testing.assert_array_equal(
    mixture(projection, keys.at[4:].set(1e4), 4, pooled),
    mixture(projection, keys.at[4:].set(0), 4, pooled),
  )


def test_one_block_gets_all_the_weight_and_no_gradient():
  projection, keys, pooled = draw()

  def own(projection, keys):
    return jnp.sum(mixture(projection, keys, 1, pooled)[:, 0])

  value, gradient = jax.value_and_grad(own, argnums=(0, 1))(projection, keys)
  assert value == 5.0
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_gradient_is_finite_and_reaches_taken_keys_alone():
  projection, keys, pooled = draw()

  def log_own(projection, keys):
    given = keys, jnp.asarray(3), pooled, sals.no_centre(D)
    return jnp.mean(sals.log_mixture(projection, *given)[:, 2])

  query_gradient, key_gradient = jax.grad(log_own, argnums=(0, 1))(projection, keys)
  assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves(query_gradient))
  assert np.all(np.isfinite(key_gradient))
  np.testing.assert_array_equal(np.any(np.asarray(key_gradient), axis=1), np.arange(T) < 3)


def test_the_centre_is_taken_off_before_the_projection():
  projection, keys, pooled = draw()
  centre = sals.Centre(jnp.mean(pooled, axis=0), jnp.asarray(2.5))
  centred = mixture(projection, keys, 4, pooled, centre)
  by_hand = mixture(projection, keys, 4, (pooled - centre.mean) / 2.5)
  np.testing.assert_allclose(centred, by_hand, rtol=1e-5)
  assert not np.allclose(centred, mixture(projection, keys, 4, pooled), atol=1e-3)


def test_pooling_takes_the_largest_value_over_real_tokens_in_any_order():
  rng = np.random.default_rng(0)
  embedded, mask = rng.normal(size=(3, 8, D)), rng.random((3, 8)) < 0.5
  mask[:, 2] = True
  pooled = sals.pool_embeddings(jnp.asarray(embedded, jnp.bfloat16), jnp.asarray(mask))
  assert pooled.dtype == jnp.float32
  exact = np.asarray(jnp.asarray(embedded, jnp.bfloat16), np.float32)
  np.testing.assert_array_equal(pooled, [exact[row][mask[row]].max(0) for row in range(3)])
  order = rng.permutation(8)
  shuffled = jnp.asarray(embedded[:, order], jnp.bfloat16), jnp.asarray(mask[:, order])
  np.testing.assert_array_equal(pooled, sals.pool_embeddings(*shuffled))


def test_a_fresh_projection_and_key_are_drawn_as_a_linear_layer_is():
  query = sals.init_query(jax.random.key(0), 400)
  for matrix in (query.down, query.up):
    bound = 1 / math.sqrt(matrix.shape[0])
    assert 0.99 * bound < np.max(np.abs(matrix)) <= bound
    np.testing.assert_allclose(np.std(matrix), bound / math.sqrt(3), rtol=0.02)
  assert np.all(query.scale == 1)
  assert not np.any(query.bias)
  key = sals.init_key(jax.random.key(1), 4000)
  assert -1 <= np.min(key) < -0.99 < 0.99 < np.max(key) <= 1
