"""MoCL: what it looks at, how it composes blocks, and what draws its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax.methods.base import StepView
from sapt_jax.methods.features import mean_states
from tests import classroom


def cosine(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("on", ["t5", "llama"])
def test_features_are_the_mean_of_the_last_states_over_real_tokens_and_padding_changes_nothing(on):
  model, params = classroom.backbone(on)
  batch = classroom.some_batch(on)
  found = np.asarray(mean_states(model, params, batch))
  real = np.asarray(batch.source_mask[1])  # 5 of 8 places
  tokens = batch.source[1:2, real]
  states = model.apply({"params": params}, tokens, jnp.ones(tokens.shape, bool), method="states")
  np.testing.assert_allclose(found[1], np.asarray(states)[0].mean(axis=0), rtol=2e-5, atol=2e-6)


def test_the_mixture_is_the_sharp_softmax_of_cosines_with_the_keys_of_tasks_so_far():
  method = classroom.build("mocl", sharpness=5.0)
  tasks = classroom.clusters(3)
  learned = classroom.through(method, tasks)
  mixture = np.asarray(method.mixture(learned, tasks[1], jnp.zeros(24, jnp.int32)))
  weights = np.exp(5.0 * cosine(tasks[1], learned.keys[:3]))
  np.testing.assert_allclose(
    mixture[:, :3], weights / weights.sum(axis=1, keepdims=True), rtol=1e-4
  )
  assert not mixture[:, 3].any()


def test_the_penalty_draws_the_new_key_to_its_tasks_inputs_and_no_other():
  method = classroom.build("mocl", match_weight=2.0)
  tasks = classroom.clusters(2)
  learned = classroom.through(method, tasks)
  learned = learned.replace(keys=jax.random.normal(jax.random.key(1), learned.keys.shape))
  view = StepView(tasks[1], {}, jnp.zeros((), jnp.int32), None)
  loss, figures = method.penalty(learned, view)
  expected = cosine(tasks[1], learned.keys[1:2]).mean()
  np.testing.assert_allclose(loss, 2.0 * (1 - expected), rtol=1e-5)
  np.testing.assert_allclose(figures["key_cosine"], expected, rtol=1e-5)
  gradient = jax.grad(lambda keys: method.penalty(learned.replace(keys=keys), view)[0])(
    learned.keys
  )
  assert [bool(row.any()) for row in gradient] == [False, True, False, False]


def test_a_new_key_starts_where_its_own_loss_is_least():
  method, [task] = classroom.build("mocl"), classroom.clusters(1)
  key = method.begin(
    method.start(jax.random.key(0)), jax.random.key(0), classroom.Study(task)
  ).keys[0]
  view = StepView(task, {}, jnp.zeros((), jnp.int32), None)
  learned = classroom.through(method, [task])
  gradient = jax.grad(lambda k: method.penalty(learned.replace(keys=k), view)[0])(learned.keys)[0]
  assert float(jnp.linalg.norm(gradient)) < 1e-3 * float(1 / jnp.linalg.norm(key))


def test_inputs_compose_the_blocks_of_near_tasks_and_leave_far_ones_out():
  """The effect that the paper is about: modules are shared between tasks that are alike."""
  method = classroom.build("mocl")
  rng = np.random.default_rng(0)
  near, far = rng.normal(size=classroom.WIDTH), rng.normal(size=classroom.WIDTH)

  def rows(centre):
    return jnp.asarray(centre + 0.3 * rng.normal(size=(24, classroom.WIDTH)))

  tasks = [rows(near), rows(far), rows(near + 0.3 * rng.normal(size=classroom.WIDTH))]
  learned = classroom.through(method, [jnp.float32(task) for task in tasks])
  weights = np.asarray(method.mixture(learned, tasks[2], jnp.zeros(24, jnp.int32))).mean(axis=0)
  assert weights[0] > 0.25
  assert weights[2] > 0.4
  assert weights[1] < 0.01
