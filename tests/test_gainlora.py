"""GainLoRA: gates that are shut on earlier tasks' inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.pet.site_inputs import at_inputs
from tests.classroom import Study, build, clusters, noisy, teach


def gated(tasks):
  """GainLoRA at the second of two tasks, whose gate has been moved at random; and what it was like
  after the first.
  """
  method = build("gainlora", kept_energy=1.0)
  moments = at_inputs(
    method.setting.sites,
    lambda site: jnp.broadcast_to(jnp.eye(site[1]), (site[0], site[1], site[1])),
  )
  studies = [Study(features, measure=lambda _: moments) for features in tasks]

  def learn(learned, index, scale):
    learned = method.begin(learned, jax.random.key(index + 1), studies[index])
    return method.merge(learned, noisy(method.trainable(learned), index + 1, scale))

  first = method.remember(learn(method.start(jax.random.key(0)), 0, 0.02), studies[0])
  return method, first, learn(first, 1, 0.1)


def test_gainlora_gates_are_shut_on_earlier_inputs_and_open_on_new_ones():
  tasks = [pooled[:12] for pooled in clusters(2)]
  method, first, second = gated(tasks)
  before, after = (
    np.asarray(method.mixture(learned, tasks[0], None)) for learned in (first, second)
  )
  assert np.array_equal(before[:, 0], after[:, 0])
  assert before[:, 0].min() > 0.5
  assert after[:, 1].max() < 1e-3
  assert np.asarray(method.mixture(second, tasks[1], None))[:, 1].min() > 0.1
  assert not np.any(after[:, 2:])


def test_gainlora_gates_are_those_of_the_formula_and_are_trained():
  tasks = [pooled[:12] for pooled in clusters(2)]
  method, _, second = gated(tasks)

  def silu(x):
    return x / (1 + np.exp(-x))

  e = np.asarray(tasks[1], np.float64)
  z = silu(silu(e @ np.asarray(second.down[1])) @ np.asarray(second.up[1]))
  cosine = (
    z @ np.asarray(second.keys[1]) / np.linalg.norm(z, axis=1) / np.linalg.norm(second.keys[1])
  )
  np.testing.assert_allclose(
    method.mixture(second, tasks[1], None)[:, 1],
    np.abs(2 / (1 + np.exp(-4 * cosine)) - 1),
    rtol=1e-3,
  )
  taught, _, _ = teach(method, second, steps=1)
  for name in ("down", "up", "keys"):
    assert np.array_equal(getattr(taught, name)[0], getattr(second, name)[0])
    assert not np.array_equal(getattr(taught, name)[1], getattr(second, name)[1])
