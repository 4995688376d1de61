"""InfLoRA: new blocks add nothing to what earlier tasks' inputs put in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.methods.inflora import main_directions, widened_space
from sapt_jax.pet import blocks
from sapt_jax.pet.site_inputs import at_inputs, at_sites
from sapt_jax.training.site_moments import batch_moments
from tests.classroom import (
  FIRST,
  NOWHERE,
  WIDTH,
  Study,
  backbone,
  build,
  factors_of,
  logits_of,
  noisy,
  some_batch,
  teach,
)


def moments_of(method, learned, on="t5", counted=(True,) * 4, batch=None):
  model, params = backbone(on)
  measure = jax.jit(partial(batch_moments, model, method))
  return measure(params, learned, some_batch(on) if batch is None else batch, jnp.asarray(counted))


def squares(x, mask):
  x = np.asarray(x, np.float64)[np.asarray(mask)]
  return x.T @ x


def test_moments_are_those_of_real_tokens_at_each_site():
  method = build("o_lora")
  (model, params), batch = backbone(), some_batch()
  moments = moments_of(method, method.start(jax.random.key(0)), counted=(True, True, True, False))
  mask = np.asarray(batch.source_mask) & np.array([True, True, True, False])[:, None]
  embedded = np.asarray(params["embedding"]["table"])[np.asarray(batch.source)]
  # The first layer's norm; fresh scales are 1.
  normed = embedded / np.sqrt(np.mean(embedded**2, -1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    moments["encoder"]["self"]["states"][0], squares(normed, mask), rtol=1e-4, atol=1e-4
  )
  encoded, _ = model.apply({"params": params}, batch.source, batch.source_mask, method="encode")
  np.testing.assert_allclose(
    moments["decoder"]["cross"]["encoded"][1], squares(encoded, mask), rtol=1e-4, atol=1e-4
  )
  # 12 answer tokens, each of rms 1.
  np.testing.assert_allclose(
    np.trace(moments["decoder"]["cross"]["states"][0]), 12 * WIDTH, rtol=1e-4
  )
  on_llama = build("o_lora", on="llama")
  total = np.trace(
    moments_of(on_llama, on_llama.start(jax.random.key(0)), "llama")["self"]["states"][0]
  )
  np.testing.assert_allclose(total, (23 + 12) * WIDTH, rtol=1e-2)


def test_sites_that_read_the_same_states_share_what_is_known_of_them():
  sites = build("inflora").setting.sites
  inputs = at_inputs(sites, lambda site: site[:2])
  assert inputs == {
    "encoder": {"self": {"states": (2, WIDTH)}},
    "decoder": {
      "self": {"states": (2, WIDTH)},
      "cross": {"states": (2, WIDTH), "encoded": (2, WIDTH)},
    },
  }
  decoder = {"self": {"states": 2}, "cross": {"states": 3, "encoded": 4}}
  read = at_sites({"encoder": {"self": {"states": 1}}, "decoder": decoder}, sites)
  assert read["encoder"]["self"] == {"q": 1, "v": 1}
  assert read["decoder"] == {"self": {"q": 2, "v": 2}, "cross": {"q": 3, "v": 4}}


def test_inflora_adds_nothing_to_what_earlier_tasks_put_in_whatever_is_learned():
  method = build("inflora", kept_energy=1.0)
  batch = some_batch()
  other = batch.replace(source=jnp.flip(batch.source, 0) % 97 + 2)
  tasks = [
    Study(NOWHERE, measure=partial(moments_of, method, batch=inputs)) for inputs in (batch, other)
  ]

  def learn(learned, index):
    learned = method.begin(learned, jax.random.key(index), tasks[index])
    return method.merge(learned, noisy(method.trainable(learned), index))

  first = learn(method.start(jax.random.key(0)), 0)
  second = learn(method.remember(first, tasks[0]), 1)

  def answer(learned, of):
    return logits_of(
      *backbone(), of, method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
    )

  np.testing.assert_allclose(answer(second, batch), answer(first, batch), atol=1e-3)
  assert np.abs(answer(second, other) - answer(first, other)).max() > 0.1
  taught, _, _ = teach(method, second, steps=1)
  for (a, b), (old_a, old_b) in zip(
    factors_of(blocks.read(taught.blocks, 1)),
    factors_of(blocks.read(second.blocks, 1)),
    strict=True,
  ):
    assert np.array_equal(a, old_a)
    assert not np.array_equal(b, old_b)


def test_the_space_of_earlier_inputs_holds_the_energy_asked_for_and_leaves_room():
  rng = np.random.default_rng(0)
  x, y = (
    rng.normal(size=(1, 60, 8)) * np.logspace(0, -2, 8)[order]
    for order in (slice(None), slice(None, None, -1))
  )

  def moment(z):
    return jnp.asarray(np.swapaxes(z, 1, 2) @ z, jnp.float32)

  one = widened_space(moment(x), jnp.zeros((1, 8, 8)), 0.9, 2)
  two = widened_space(moment(y), one, 0.9, 2)

  def share(space, z):
    return float(np.sum((z[0] @ np.asarray(space[0])) ** 2) / np.sum(z**2))

  def size(space):
    return round(float(jnp.trace(space[0])))

  assert share(one, x) >= 0.9 > share(one, y)
  assert min(share(two, x), share(two, y)) >= 0.9
  assert size(one) == np.argmax(np.cumsum(np.linalg.svd(x[0])[1] ** 2) >= 0.9 * np.sum(x**2)) + 1
  assert size(widened_space(moment(x), one, 1.0, 2)) == 6
  new = main_directions(moment(y), one, 2)[0]
  np.testing.assert_allclose(new.T @ new, np.eye(2), atol=1e-5)
  np.testing.assert_allclose(one[0] @ new, 0, atol=1e-5)
