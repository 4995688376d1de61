"""L2P: prompts of a shared pool, chosen for each input by keys."""

import jax.numpy as jnp
import numpy as np

from tests.classroom import WIDTH, build, clusters, teach, through, view_of

L2P = {"kind": "prompt", "pool_prompts": 6, "chosen_prompts": 2}


def test_l2p_chooses_the_nearest_keys_for_each_input_by_itself():
  method = build("l2p", **L2P)
  first, second = clusters(2)
  learned = through(method, [first, second])
  feature, keys = np.asarray(second - first.mean(0)), np.asarray(learned.keys)
  cosines = (
    feature @ keys.T / np.linalg.norm(feature, axis=1, keepdims=True) / np.linalg.norm(keys, axis=1)
  )
  chosen = np.sort(np.argsort(-cosines, axis=1)[:, :2], axis=1)
  mixture = np.asarray(method.mixture(learned, second, None))
  assert np.array_equal(np.stack([np.flatnonzero(row) for row in mixture]), chosen)
  assert np.allclose(mixture.sum(1), 1)
  given = method.adapters(learned, jnp.asarray(mixture)).prompts
  for row in range(3):
    np.testing.assert_allclose(
      given[row], np.asarray(learned.blocks["prompt"])[chosen[row]].reshape(4, WIDTH), rtol=1e-6
    )
  _, figures = method.penalty(learned, view_of(second))
  np.testing.assert_allclose(
    figures["key_cosine"], np.take_along_axis(cosines, chosen, 1).mean(), rtol=1e-4
  )
  assert figures["prompts_used"] == len(np.unique(chosen))


def test_l2p_draws_the_chosen_keys_to_the_inputs_and_trains_the_chosen_prompts_alone():
  method = build("l2p", **L2P)
  learned = through(method, clusters(1))
  taught, first, _ = teach(method, learned, steps=1)

  def moved(name, tree):
    return np.any(np.asarray(tree(taught)) != np.asarray(tree(learned)), axis=name)

  prompts, keys = (
    moved((1, 2), lambda tree: tree.blocks["prompt"]),
    moved(1, lambda tree: tree.keys),
  )
  assert np.array_equal(prompts, keys)
  assert prompts.sum() == first["prompts_used"] < 6
  _, second, _ = teach(method, taught, steps=1)
  assert second["key_cosine"] > first["key_cosine"]


def test_l2p_gives_different_prompts_to_tasks_that_are_nearly_one_vector():
  method = build("l2p", kind="prompt", pool_prompts=20, chosen_prompts=2)
  tasks = clusters(5)
  learned = through(method, tasks)

  def favourites(tree):
    return {
      frozenset(np.argsort(-np.asarray(method.mixture(tree, pooled, None)).mean(0))[:2])
      for pooled in tasks
    }

  assert len(favourites(learned.replace(centre=jnp.zeros(WIDTH)))) <= 2
  assert len(favourites(learned)) >= 4
