"""SAPT as a method: what its attention learns in a short budget, what a new block starts from, what
a task takes from earlier ones, and its ablations.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import config
from sapt_jax.errors import InputError
from sapt_jax.methods.relatives import first_row
from sapt_jax.methods.sapt import Sapt, SaptOptions
from sapt_jax.pet import blocks
from sapt_jax.sharding import make_mesh
from sapt_jax.training.mixture_losses import MixtureLosses
from tests.classroom import (
  WIDTH,
  Study,
  backbone,
  build,
  clusters,
  same,
  some_batch,
  studied,
  through,
)


def learned_by(method, tasks=4):
  """What the method has learned after so many tasks, half of whose inputs it saw."""
  learned = method.start(jax.random.key(0))
  for index, pooled in enumerate(clusters(tasks)):
    study = Study(pooled[:12], dev=pooled[12:], pseudo=pooled[:12])
    learned = method.begin(learned, jax.random.key(index), study)
    learned = method.remember(learned, study)
  return learned


def own_weights(method, learned):
  mixtures = [
    method.mixture(learned, pooled[12:], jnp.zeros(12, jnp.int32)) for pooled in clusters(4)
  ]
  return [float(mixture[:, index].mean()) for index, mixture in enumerate(mixtures)]


def test_routed_attention_finds_the_block_of_every_task_without_the_backbone():
  weights = {
    attention: own_weights(
      build("sapt", attention=attention), learned_by(build("sapt", attention=attention))
    )
    for attention in ("routed", "published")
  }
  assert min(weights["routed"]) > 0.9
  assert min(weights["published"]) < 0.5


def test_draws_hold_the_attention_as_pseudo_inputs_do_and_need_none():
  method = build("sapt", attention="routed", remembered="draws")
  learned = method.start(jax.random.key(0))
  for index, pooled in enumerate(clusters(4)):
    study = Study(pooled[:12], dev=pooled[12:], index=index)  # without pseudo inputs
    study.sampling = config.Generator(keep=0.25 * (index + 1))
    method.check_task(study)
    learned = method.remember(method.begin(learned, jax.random.key(index), study), study)
  assert min(own_weights(method, learned)) > 0.9
  # As many as pseudo inputs would be kept of the task, however many the stream has room for.
  room = learned.memory.valid.shape[1]
  assert learned.memory.valid[:4].sum(axis=1).tolist() == [min(n, room) for n in (3, 6, 9, 12)]


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_first_task_whose_inputs_are_all_alike_leaves_numbers(value):
  method, other = build("sapt", attention="routed"), clusters(1)[0]
  learned = method.start(jax.random.key(0))
  for index, pooled in enumerate((jnp.full((12, WIDTH), value), other)):
    study = Study(pooled, dev=pooled, pseudo=pooled)
    learned = method.remember(method.begin(learned, jax.random.key(index), study), study)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned))
  assert float(method.mixture(learned, other, jnp.zeros(24, jnp.int32))[:, 1].mean()) > 0.8


def test_without_reflection_routing_forgets_earlier_tasks():
  kept, lost = (
    build("sapt", attention="routed", reflection_weight=weight) for weight in (0.5, 0.0)
  )
  blind = lost.start(jax.random.key(0))
  for index, pooled in enumerate(clusters(4)):
    study = Study(pooled[:12], dev=pooled[12:])  # pseudo inputs are not asked for
    lost.check_task(study)
    blind = lost.remember(lost.begin(blind, jax.random.key(index), study), study)
  with pytest.raises(AssertionError, match="no pseudo inputs"):
    kept.check_task(study)
  leaked = [1 - min(own_weights(*pair)) for pair in ((lost, blind), (kept, learned_by(kept)))]
  assert leaked[0] > 5 * leaked[1]


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_a_new_block_can_start_as_what_the_pool_says_of_the_new_inputs(kind):
  method = build("sapt", kind=kind, attention="routed", new_block="mixture")
  pooled = clusters(3)
  learned = method.remember(through(method, pooled[:2]), studied(pooled[1]))
  said = method.mixture(learned, pooled[0], jnp.zeros(24, jnp.int32)).mean(axis=0)
  assert said[0] > 0.9
  begun = method.begin(learned, jax.random.key(9), studied(pooled[0]))
  expected = blocks.merged(learned.blocks, said, method.setting.pet)
  jax.tree.map(
    lambda new, wanted: np.testing.assert_allclose(new, wanted, atol=1e-6),
    blocks.read(begun.blocks, 2),
    expected,
  )
  assert [
    same(blocks.read(begun.blocks, slot), blocks.read(learned.blocks, slot)) for slot in (0, 1)
  ] == [True, True]


def test_a_new_block_can_read_what_the_pool_reads_and_add_nothing():
  method = build("sapt", attention="routed", new_block="directions")
  pooled = clusters(3)
  learned = method.remember(through(method, pooled[:2]), studied(pooled[1]))
  begun = method.begin(learned, jax.random.key(9), studied(pooled[0]))
  said = method.mixture(learned, pooled[0], jnp.zeros(24, jnp.int32)).mean(axis=0)

  def of_site(x):
    return "a" in x

  new, old = (
    jax.tree.leaves(tree["lora"], is_leaf=of_site)
    for tree in (blocks.read(begun.blocks, 2), learned.blocks)
  )
  for site, pool in zip(new, old, strict=True):
    assert not np.any(site["b"])
    whole = np.einsum("t,ldtr,ltro->ldo", said, pool["a"], pool["b"])
    unit = np.asarray(site["a"]) * np.sqrt(3)
    for columns in unit:
      np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-5)
    # What these directions miss of the mixture is what any so many must miss.
    missed = whole - unit @ (np.swapaxes(unit, 1, 2) @ whole)
    least = np.linalg.svd(whole, compute_uv=False)[:, unit.shape[2] :]
    np.testing.assert_allclose(
      np.linalg.norm(missed, axis=(1, 2)), np.sqrt((least**2).sum(axis=1)), atol=1e-5
    )


def test_a_new_block_can_start_as_the_relatives_that_halve_its_loss():
  method, rng = build("per_task", new_block="relatives"), jax.random.key(9)
  [pooled, *_] = clusters(3)
  learned = through(method, [pooled] * 2)

  def of_second(learned, mixtures):
    return np.where(mixtures[:, 1] > 0, 0.3, 1.0)

  def started(method, compare):
    begun = method.begin(learned, rng, Study(pooled, pseudo=pooled, compare=compare))
    return blocks.read(begun.blocks, 2)

  new, old = (
    blocks.at_sites(lambda x: x["a"] @ x["b"], block)
    for block in (started(method, of_second), blocks.read(learned.blocks, 1))
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), new, old)
  directed = started(build("per_task", new_block="directions"), None)
  assert same(started(method, None), directed)
  assert (method.label, build("n_lora", new_block="relatives").label.split(", ")[-1]) == (
    "per_task, relatives start",
    "directions start",
  )


def test_a_soft_prompt_has_no_directions_to_start_from():
  fresh, *others = (
    learned_by(build("sapt", kind="prompt", new_block=how), tasks=2)
    for how in ("fresh", "directions", "relatives")
  )
  assert [same(fresh.blocks, other.blocks) for other in others] == [True, True]


@pytest.mark.parametrize(
  ("uniform", "learning", "answering"),
  [("never", False, False), ("answering", False, True), ("always", True, True)],
)
def test_blocks_can_be_mixed_alike_to_see_what_the_attention_is_worth(uniform, learning, answering):
  method = build("sapt", attention="routed", uniform=uniform)
  learned = learned_by(method, tasks=2)
  study = studied(clusters(4)[2])

  def alike(tree):
    return bool(
      np.allclose(
        method.mixture(tree, study.train, jnp.zeros(24, jnp.int32)),
        [1 / 3, 1 / 3, 1 / 3, 0],
        atol=1e-3,
      )
    )

  begun = method.begin(learned, jax.random.key(2), study)
  assert [alike(begun), alike(method.remember(begun, study))] == [learning, answering]


def sharing_pool():
  """A method that shares, and three tasks of its with shares drawn by hand."""
  method = build("sapt", attention="routed", sharing=True)
  learned = through(method, clusters(3))
  for row in (jnp.array([9.0, 9.0, 9.0, 9.0]), jnp.array([0.5, -0.25, 9.0, 9.0])):
    trainable = method.trainable(learned)
    learned = method.merge(learned, trainable | {"shares": row})
  return method, learned


def test_a_task_takes_from_earlier_blocks_by_its_own_row_alone():
  method, learned = sharing_pool()
  expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0.5, -0.25, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_allclose(learned.shares, expected)
  plain = build("sapt", attention="routed")
  for pooled in clusters(3):
    task = jnp.zeros(len(pooled), jnp.int32)
    which = plain.mixture(learned.replace(shares=None), pooled, task)
    np.testing.assert_allclose(
      method.mixture(learned, pooled, task), which @ np.array(expected), atol=1e-6
    )


def test_what_the_attention_says_of_tasks_is_read_out_of_weights_of_blocks():
  method, learned = sharing_pool()
  said = [0.2, 0.1, 0.7]
  weights = np.array(said) @ np.asarray(learned.shares)[:3, :3]
  assert method.by_task(learned, weights.tolist()) == pytest.approx(said)
  # A run that will learn a fourth task has an empty place for it.
  assert method.by_task(learned, [*weights, 0.0]) == pytest.approx([*said, 0.0])
  assert method.by_task(learned.replace(shares=None), said) == said


def test_a_task_begins_with_those_that_halve_its_loss():
  shares = np.array([[1, 0, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 2, 1]], np.float32)
  none, second, fourth = (0.0,) * 4, tuple(shares[1].tolist()), tuple(shares[3].tolist())
  both = tuple((shares[1] + shares[3]).tolist())
  left = {none: 8.0, second: 3.0, fourth: 3.5, both: 1.4}
  asked = []

  def losses(learned, mixtures):
    asked.extend(map(tuple, mixtures.tolist()))
    return np.array([left.get(one, 5.0) for one in asked[-len(mixtures) :]])

  def found(tasks, most):
    study.begun = None
    return tuple(first_row(None, study, np.zeros(4, np.float32), shares, tasks, most)), study.begun

  study = Study(None, compare=losses)
  assert found(4, 1) == (second, ({1: 3.0}, 8.0))
  assert len(asked) == 1 + 4
  assert found(4, 2) == (both, ({1: 3.0, 3: 1.4}, 8.0))
  assert len(asked) == 2 * (1 + 4) + 3
  left[both] = 1.6  # less than half remains of none, but more than half of what the second leaves
  assert found(4, 2) == (second, ({1: 3.0}, 8.0))
  assert found(1, 2) == (none, ({}, 8.0))  # 5 are left
  left[tuple(shares[0].tolist())] = np.nan  # a block that is too much for this backbone's dtype
  assert found(4, 1) == (second, ({1: 3.0}, 8.0))
  for one in left:
    left[one] = np.inf
  assert found(1, 1) == (none, ({}, np.inf))  # nobody halves what is no number
  asked.clear()
  assert found(4, 0) == (none, None)
  assert not asked


def test_a_new_task_begins_with_its_relatives_row_and_later_ones_do_not_change_it():
  method = build("sapt", attention="routed", sharing=True)
  learned = method.start(jax.random.key(0))
  # The row of the task before, and the new block's own, which is there when learning starts.
  best = {0: [1, 0, 0, 0], 1: [1, 1, 0, 0], 2: [1, 1, 1, 0]}

  def compare(learned, mixtures):
    wanted = np.array(best[int(learned.count) - 1], np.float32)
    return np.where(np.all(mixtures == wanted, axis=1), 0.1, 1.0)

  for index, pooled in enumerate(clusters(3)):
    study = Study(pooled, pseudo=pooled, compare=compare)
    learned = method.begin(learned, jax.random.key(index), study)
    learned = method.remember(learned, study)
    assert study.begun == (None if not index else ({index - 1: 0.1}, 1.0))
  expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(learned.shares, expected)


def test_losses_are_those_of_answers_with_the_mixtures_that_are_given():
  method, learned = sharing_pool()
  model, params = backbone()
  place, mesh = SimpleNamespace(model=model, params=params), make_mesh()
  batch = some_batch()
  losses, each = MixtureLosses(place, method, mesh), np.eye(4, dtype=np.float32)[:2]
  found = losses(learned, batch, each)
  np.testing.assert_allclose(losses(learned, batch, each, parts=2), found, rtol=1e-6)
  tokens = (batch.source, batch.source_mask, batch.target, batch.target_mask)
  for slot in (0, 1):
    fixed = method.adapters(learned, jnp.tile(jax.nn.one_hot(slot, 4), (4, 1)))
    said = jax.nn.log_softmax(model.apply({"params": params}, *tokens, fixed))
    right = jnp.take_along_axis(said, batch.target[..., None], axis=-1)
    np.testing.assert_allclose(found[slot], -jnp.mean(right), rtol=1e-5)
  assert abs(found[0] - found[1]) > 1e-3


def test_the_row_gets_the_gradient_that_moves_the_loss():
  method, learned = sharing_pool()
  model, params = backbone()
  trainable, batch = method.trainable(learned), some_batch()

  def loss(row):
    now = method.merge(learned, trainable | {"shares": row})
    return method.loss_sums(model, params, learned, now, batch)[0]["cross_entropy"]

  row = trainable["shares"]
  gradient = jax.grad(loss)(row)
  assert np.all(gradient[:2] != 0)
  np.testing.assert_array_equal(gradient[2:], 0.0)
  for slot in (0, 1):
    step = 1e-2 * jax.nn.one_hot(slot, 4)
    slope = (loss(row + step) - loss(row - step)) / 2e-2
    np.testing.assert_allclose(gradient[slot], slope, rtol=0.05, atol=1e-3)


def test_a_block_that_others_take_from_is_not_forgotten_and_pools_are_joined_side_by_side():
  method, learned = sharing_pool()
  assert [method.takers(learned, slot) for slot in range(3)] == [[2], [2], []]
  less = method.without(learned, 2)
  np.testing.assert_allclose(less.shares[:2], np.eye(4)[:2])
  both = blocks.squares_beside(learned.shares, 3, less.shares, 5)
  expected = np.eye(5)
  expected[2, :2] = [0.5, -0.25]
  np.testing.assert_allclose(both, expected)


def test_sharing_needs_the_routed_attention():
  with pytest.raises(InputError, match=r"attention published: .* --method.attention routed"):
    Sapt.check(SaptOptions(sharing=True), config.Pet())
  with pytest.raises(InputError, match=r"uniform always: .* --method.uniform never"):
    Sapt.check(SaptOptions(sharing=True, attention="routed", uniform="always"), config.Pet())
