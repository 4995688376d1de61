"""EPI: the task of an input is found by its distance to what is remembered of each."""

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.methods import epi
from sapt_jax.methods.features import mean_states, pooled_embeddings
from tests.classroom import (
  NOWHERE,
  WIDTH,
  Study,
  backbone,
  build,
  clusters,
  some_batch,
  studied,
  through,
)


def long_clouds(tasks, rows=200):
  """Inputs that vary a hundred times more along one direction than tasks differ: the nearest mean
  says nothing, a cloud's shape does.
  """
  rng = np.random.default_rng(0)
  direction = rng.normal(size=WIDTH)
  spread = [30 * rng.normal(size=(rows, 1)) * direction for _ in range(tasks)]
  return [
    pooled + jnp.asarray(wide, jnp.float32)
    for pooled, wide in zip(clusters(tasks, rows=rows), spread, strict=True)
  ]


def test_epi_finds_the_task_by_mahalanobis_distance_where_the_nearest_mean_does_not():
  method = build("epi", lookup_shrinkage=1e-6)
  tasks = long_clouds(3)
  learned = through(method, [pooled[:150] for pooled in tasks])
  learned = method.remember(learned, studied(tasks[2][:150]))
  held_out = jnp.concatenate([pooled[150:] for pooled in tasks])

  def right(slots):
    return np.mean(np.asarray(slots) == np.repeat(np.arange(3), 50))

  mixture = method.mixture(learned, held_out, None)
  assert np.array_equal(np.asarray(mixture).max(1), np.ones(150))
  assert right(jnp.argmax(mixture, 1)) > 0.95
  assert (
    right(jnp.argmin(jnp.linalg.norm(held_out[:, None] - learned.means[:3, 0], axis=-1), 1)) < 0.6
  )


def test_epi_measures_distances_as_the_formula_does_and_stands_a_task_of_one_input():
  method = build("epi", lookup_shrinkage=0.1)
  tasks = [*clusters(2), jnp.ones((1, WIDTH))]
  learned = method.remember(through(method, tasks), studied(tasks[2]))
  pooled = clusters(1, seed=5)[0]
  sigma = sum(np.cov(np.asarray(task, np.float64).T, bias=True) for task in tasks[:2]) / 3
  sigma = 0.9 * sigma + 0.1 * np.trace(sigma) / WIDTH * np.eye(WIDTH)
  away = np.asarray(pooled, np.float64)[:, None] - np.stack(
    [np.asarray(task, np.float64).mean(0) for task in tasks]
  )
  expected = np.einsum("btd,de,bte->bt", away, np.linalg.inv(sigma), away)
  distances = np.asarray(epi.distances(learned, pooled))
  np.testing.assert_allclose(distances[:, :3], expected, rtol=5e-3)
  assert np.isinf(distances[:, 3]).all()


def test_epi_learns_a_task_with_its_own_block_whatever_the_look_up_would_say():
  method = build("epi")
  first, second = clusters(2)
  learned = through(method, [first, second])
  assert np.asarray(method.mixture(learned, first, None))[:, 1].all()
  learned = method.remember(learned, studied(second))
  assert np.asarray(method.mixture(learned, first, None))[:, 0].mean() > 0.95


def test_a_task_with_few_labels_is_known_by_the_mean_of_each_class():
  """By the paper's formula in NumPy: the nearest class, and the mean over classes and tasks of the
  covariance within a class.
  """
  rng = np.random.default_rng(1)
  centres = 3 * rng.normal(size=(3, WIDTH))
  clouds = [centre + rng.normal(size=(20, WIDTH)) for centre in centres]
  first, second = np.concatenate(clouds[:2]), clouds[2]
  method = build("epi", lookup_shrinkage=0.2)
  learned = method.begin(method.start(jax.random.key(0)), jax.random.key(0), Study(NOWHERE))
  answers = ["no"] * 20 + ["yes"] * 20
  learned = method.remember(learned, Study(jnp.float32(first), answers=answers))
  learned = method.begin(learned, jax.random.key(1), Study(NOWHERE))
  learned = method.remember(learned, Study(jnp.float32(second)))

  within = [np.cov(cloud.T, bias=True) for cloud in clouds]
  sigma = ((within[0] + within[1]) / 2 + within[2]) / 2
  sigma = 0.8 * sigma + 0.2 * np.trace(sigma) / WIDTH * np.eye(WIDTH)
  inputs = 3 * rng.normal(size=(10, WIDTH))
  away = inputs[:, None] - np.stack([cloud.mean(axis=0) for cloud in clouds])
  each = np.einsum("bcd,de,bce->bc", away, np.linalg.inv(sigma), away)
  expected = np.stack([each[:, :2].min(axis=1), each[:, 2]], axis=1)
  found = np.asarray(epi.distances(learned, jnp.float32(inputs)))
  np.testing.assert_allclose(found[:, :2], expected, rtol=2e-3)


def test_what_it_looks_at_is_an_option():
  model, params = backbone()
  batch = some_batch()
  seen = {
    name: np.asarray(build("epi", feature=name).features(model, params, batch))
    for name in ("states", "embeddings")
  }
  np.testing.assert_array_equal(seen["embeddings"], pooled_embeddings(model, params, batch))
  np.testing.assert_array_equal(seen["states"], mean_states(model, params, batch))
