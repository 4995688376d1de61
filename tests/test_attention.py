"""The attention core against softmax written plainly, whose gradient is autodiff's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax.backbones import attention

B, H, L, S, K = 2, 4, 5, 7, 8


def plainly(q, k, v, *biases, scale=1.0, cap=0.0):
  k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
  scores = jnp.einsum("bhlk,bhsk->bhls", q, k) * scale
  scores = cap * jnp.tanh(scores / cap) if cap else scores
  weights = jax.nn.softmax(scores + sum(biases), axis=-1)
  return jnp.einsum("bhls,bhsk->blhk", weights, v).reshape(q.shape[0], q.shape[2], -1)


def inputs(groups, dtype=jnp.float32):
  """Queries, keys, values, a position bias,
  and a mask under which the second row sees three places.
  """
  shapes = (B, H, L, K), (B, groups, S, K), (B, groups, S, K), (1, H, L, S)
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, position = map(jax.random.normal, keys, shapes)
  mask = attention.mask_bias(jnp.arange(S)[None] < jnp.array([[S], [3]]))[:, None, None, :]
  return *(x.astype(dtype) for x in (q, k, v)), position, mask


@pytest.mark.parametrize("cap", [0.0, 0.7])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_values_and_gradients_are_those_of_softmax(groups, cap):
  given = inputs(groups)
  weights = jnp.cos(jnp.arange(B * L * H * K)).reshape(B, L, H * K)

  def of(form):
    def total(*x):
      return jnp.sum(weights * form(*x, scale=0.4, cap=cap))

    return jax.value_and_grad(total, argnums=(0, 1, 2, 3, 4))(*given)

  (ours, our_gradients), (plain, plain_gradients) = of(attention.attend), of(plainly)
  np.testing.assert_allclose(ours, plain, rtol=1e-5)
  for found, expected in zip(our_gradients, plain_gradients, strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("groups", [4, 2])
def test_one_query_alone_gets_what_it_gets_beside_others(groups):
  q, k, v, position, mask = inputs(groups)
  for place in range(L):
    one = slice(place, place + 1)
    found = attention.attend(q[:, :, one], k, v, position[:, :, one], mask, scale=0.4)
    expected = plainly(q, k, v, position, mask, scale=0.4)[:, one]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_scores_far_apart_are_no_overflow():
  q, *others = inputs(H)
  found, expected = attention.attend(100 * q, *others), plainly(100 * q, *others)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_values_behind_the_mask_do_not_matter():
  q, k, v, *biases = inputs(H)
  changed = v.at[1, :, 3:].set(1e6)
  before, after = (attention.attend(q, k, values, *biases) for values in (v, changed))
  assert np.array_equal(before, after)


def test_halves_lose_no_more_than_their_own_rounding():
  narrow = inputs(2, jnp.bfloat16)
  exact = plainly(*(x.astype(jnp.float32) for x in narrow))
  found = attention.attend(*narrow)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=2**-7)


def test_biases_that_are_added_one_by_one_give_the_attention_of_their_sum_bit_for_bit():
  q, k, v, position, mask = inputs(H, jnp.bfloat16)
  one_by_one = attention.attend(q, k, v, position, mask)
  assert np.array_equal(one_by_one, attention.attend(q, k, v, position + mask))
