"""PET blocks: the mixed product against the sum it stands for,
and what must hold of pools of either kind.
"""

import dataclasses
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import config
from sapt_jax.interop.peft import fixed_mixture
from sapt_jax.pet import blocks, lora

SITES = {
  "encoder": {"self": {"q": (2, 12, 10), "v": (2, 12, 6)}},
  "decoder": {"cross": {"q": (3, 12, 10)}},
}
T = 5
KINDS = [config.Pet(rank=3, alpha=12.0), config.Pet(kind="prompt", prompt_length=4)]
EACH = pytest.mark.parametrize("pet", KINDS, ids=lambda pet: pet.kind)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_block(pet, seed):
  block = blocks.init_block(jax.random.key(0), pet, SITES, normal(0, 20, 12))
  leaves, structure = jax.tree.flatten(block)
  drawn = [normal(100 * seed + i, *x.shape) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(structure, drawn)


def random_pool(pet, taken=T):
  pool = blocks.empty_pool(random_block(pet, 0), T)
  for slot in range(taken):
    pool = blocks.write(pool, random_block(pet, slot), slot)
  return pool


def random_mixture(rows=4):
  return jax.nn.softmax(normal(7, rows, T), axis=1)


def product_site(seed=0, d_in=12, d_out=10, rank=3):
  return {"a": normal(seed, d_in, T, rank), "b": normal(seed + 1, T, rank, d_out)}


def naive_product(x, factors, gates):
  """sum_i gate_i B_i A_i x, block by block, in float64."""
  x, a, b, gates = (np.asarray(y, np.float64) for y in (x, factors["a"], factors["b"], gates))
  return sum(gates[:, i, None, None] * (x @ a[:, i] @ b[i]) for i in range(a.shape[1]))


def test_the_mixed_product_is_the_sum_over_blocks():
  x, factors, gates = normal(3, 4, 7, 12), product_site(), normal(5, 4, T)
  found, expected = lora.mixed_product(x, factors, gates), naive_product(x, factors, gates)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_mixed_product_keeps_the_type_of_its_input_and_never_widens_over_tasks():
  x = normal(3, 4, 7, 12).astype(jnp.bfloat16)
  factors, gates = product_site(d_out=50), normal(5, 4, T)
  assert lora.mixed_product(x, factors, gates).dtype == jnp.bfloat16
  equations = jax.make_jaxpr(lora.mixed_product)(x, factors, gates).eqns
  sizes = [math.prod(out.aval.shape) for equation in equations for out in equation.outvars]
  assert max(sizes) <= 4 * 7 * 50  # a task axis beside a full width would be T times that


def test_detached_blocks_pass_their_value_and_no_gradient_to_the_input():
  x, factors, gates = normal(3, 2, 4, 12), product_site(), normal(5, 2, T)
  weight = normal(6, 2, 4, 10)
  detached = jnp.arange(T) != 2

  def total(x, factors, gates, detached=None):
    return jnp.sum(weight * lora.mixed_product(x, factors, gates, detached))

  values = [lora.mixed_product(x, factors, gates, d) for d in (detached, None)]
  np.testing.assert_array_equal(*values)
  alone = jax.grad(total)(x, factors, gates * (jnp.arange(T) == 2))
  through = jax.grad(total)(x, factors, gates, detached)
  np.testing.assert_allclose(through, alone, rtol=1e-4, atol=1e-4)
  through_gates = [jax.grad(total, argnums=2)(x, factors, gates, d) for d in (detached, None)]
  np.testing.assert_allclose(*through_gates, rtol=1e-6)
  own = [jax.grad(total, argnums=1)(x, factors, gates, d)["a"][:, 2] for d in (detached, None)]
  np.testing.assert_allclose(*own, rtol=1e-6)


def test_a_fresh_lora_block_adds_nothing_and_is_drawn_as_kaiming_uniform():
  block = lora.init_block(jax.random.key(0), {"q": (2, 400, 30)}, 8)
  assert not np.any(block["q"]["b"])
  assert block["q"]["b"].shape == (2, 8, 30)
  assert 0.99 / 20 < np.max(np.abs(block["q"]["a"])) <= 1 / 20  # 1 / sqrt(D_in)
  assert not np.array_equal(block["q"]["a"][0], block["q"]["a"][1])


def test_a_fresh_prompt_is_made_of_token_embeddings():
  table = normal(0, 20, 12).astype(jnp.bfloat16)
  prompt = blocks.init_block(jax.random.key(0), KINDS[1], SITES, table)["prompt"]
  assert prompt.dtype == jnp.float32
  rows = np.asarray(table, np.float32)
  assert all(np.any(np.all(rows == row, axis=1)) for row in np.asarray(prompt))


@EACH
def test_a_block_written_is_read_back_and_the_others_stay(pet):
  pool, block = random_pool(pet), random_block(pet, 9)
  changed = blocks.write(pool, block, 3)
  for slot in range(T):
    expected = block if slot == 3 else blocks.read(pool, slot)
    jax.tree.map(np.testing.assert_array_equal, blocks.read(changed, slot), expected)


@EACH
def test_gradients_reach_the_written_slot_and_no_other(pet):
  pool, block = random_pool(pet), random_block(pet, 9)

  def loss(pool, block):
    written = blocks.write(pool, block, jnp.asarray(1))
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(written))

  pool_gradient, block_gradient = jax.grad(loss, argnums=(0, 1))(pool, block)
  jax.tree.map(lambda g, x: np.testing.assert_allclose(g, 2 * x), block_gradient, block)
  for slot in range(T):
    expected = jax.tree.map(lambda x, s=slot: 0 * x if s == 1 else 2 * x, blocks.read(pool, slot))
    jax.tree.map(np.testing.assert_allclose, blocks.read(pool_gradient, slot), expected)


@EACH
def test_a_pool_grows_without_changing_what_it_holds(pet):
  pool = random_pool(pet)
  grown = blocks.grow(pool, 8)
  assert (blocks.capacity(pool), blocks.capacity(grown)) == (T, 8)
  for slot in range(T):
    jax.tree.map(np.testing.assert_array_equal, blocks.read(grown, slot), blocks.read(pool, slot))
  for slot in range(T, 8):
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(blocks.read(grown, slot)))


@EACH
def test_a_stack_is_a_pool_of_one(pet):
  block = random_block(pet, 2)
  assert blocks.capacity(blocks.stack(block)) == 1
  jax.tree.map(np.testing.assert_array_equal, blocks.read(blocks.stack(block), 0), block)


def effect(pool, mixture, pet):
  """What a pool does under a mixture: the added output at one site, or the prompts."""
  adapters = blocks.mixed(pool, mixture, pet)
  if pet.kind == "prompt":
    return adapters.prompts
  factors = jax.tree.map(lambda x: x[1], adapters.lora["encoder"]["self"]["q"])
  x = normal(11, mixture.shape[0], 6, 12)
  return lora.mixed_product(x, factors, adapters.gates, adapters.detached)


@EACH
def test_the_order_of_the_slots_does_not_matter(pet):
  pool, mixture, order = random_pool(pet), random_mixture(), jnp.array([2, 0, 4, 3, 1])
  shuffled = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.take(x, order, blocks.task_axis(path)), pool
  )
  found, expected = effect(shuffled, mixture[:, order], pet), effect(pool, mixture, pet)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@EACH
def test_empty_slots_add_nothing(pet):
  pool, mixture = random_pool(pet, taken=3), random_mixture()
  without = mixture * (jnp.arange(T) < 3)
  np.testing.assert_allclose(effect(pool, mixture, pet), effect(pool, without, pet), rtol=1e-6)


@EACH
def test_one_block_alone_is_a_mixture_with_all_weight_on_it(pet):
  pool = random_pool(pet)
  chosen = effect(pool, jnp.tile(jax.nn.one_hot(3, T), (4, 1)), pet)
  alone = effect(blocks.stack(blocks.read(pool, 3)), jnp.ones((4, 1)), pet)
  np.testing.assert_allclose(chosen, alone, rtol=1e-4, atol=1e-4)


def test_lora_is_scaled_by_alpha_over_rank():
  gates = blocks.mixed(random_pool(KINDS[0]), random_mixture(), KINDS[0]).gates
  np.testing.assert_allclose(gates, random_mixture() * 12 / 3, rtol=1e-6)


@EACH
def test_a_fixed_mixture_is_one_block(pet):
  pool, mixture = random_pool(pet), random_mixture(1)[0]
  merged = fixed_mixture(pool, mixture)
  if pet.kind == "lora":
    assert merged["lora"]["encoder"]["self"]["q"]["a"].shape == (2, 12, T * pet.rank)
  one = effect(blocks.stack(merged), jnp.ones((4, 1)), pet)
  pooled = effect(pool, jnp.tile(mixture, (4, 1)), pet)
  np.testing.assert_allclose(one, pooled, rtol=1e-4, atol=1e-4)


def test_merged_blocks_are_the_best_of_their_rank():
  generator = np.random.default_rng(3)
  shapes = (2, 6, 3, 2), (2, 3, 2, 5)
  a, b = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)
  weights = jnp.array([0.5, 0.0, 0.5])
  whole = np.einsum("t,ldtr,ltro->ldo", weights, a, b)
  errors = []
  for rank in (1, 2, 4):
    best = lora.best_of_rank({"a": a, "b": b}, weights, rank)
    assert best["a"].shape == (2, 6, rank)
    assert best["b"].shape == (2, rank, 5)
    left = np.linalg.svd(whole, compute_uv=False)[:, rank:]
    errors.append(np.linalg.norm(whole - best["a"] @ best["b"]))
    np.testing.assert_allclose(errors[-1], np.sqrt((left**2).sum()), atol=1e-4)
  assert errors[0] > errors[1] > errors[2]
  assert errors[2] < 1e-4  # two blocks of rank two


# jaxlib 0.10.2 waits for ever in two batches of decompositions at once on two cores, from about a
# dozen layers on.
DECOMPOSED = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from sapt_jax.methods import inflora
from sapt_jax.pet import lora
pool = {"a": jnp.ones((30, 576, 4, 4)), "b": jnp.ones((30, 4, 4, 576))}
moments = [jnp.eye(96) + jnp.ones((12, 96, 96)) * i for i in range(4)]
for _ in range(5):
  jax.block_until_ready([
    lora.main_directions(pool, jnp.ones(4), 4),
    lora.best_of_rank(pool, jnp.ones(4), 4),
    [inflora.widened_space(moment, 0 * moment, 0.9, 4) for moment in moments],
    [inflora.main_directions(moment, 0 * moment, 4) for moment in moments],
  ])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_decompositions_of_many_layers_end_on_two_cores():
  one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  subprocess.run([sys.executable, "-c", DECOMPOSED], check=True, timeout=120, env=one_device)


@pytest.mark.parametrize("chosen", [None, jnp.array([[2, 0], [1, 2], [2, 1]])])
@pytest.mark.parametrize("detached", [None, jnp.array([True, True, False])])
def test_the_newest_blocks_gradient_is_the_true_one_and_the_others_get_none(chosen, detached):
  x, factors = normal(1, 3, 5, 8), {"a": normal(2, 8, 3, 2), "b": normal(3, 3, 2, 6)}
  gates, weight = normal(4, 3, 3 if chosen is None else 2), normal(5, 3, 5, 6)

  def total(x, factors, gates, newest):
    own = {} if newest is None else {"newest_a": factors["a"][:, 2], "newest_b": factors["b"][2]}
    factors = factors | own
    return jnp.sum(weight * lora.mixed_product(x, factors, gates, detached, chosen, newest))

  gradient = jax.grad(total, (0, 1, 2))
  dx, d_factors, d_gates = gradient(x, factors, gates, jnp.array(2))
  dx_all, d_all, d_gates_all = gradient(x, factors, gates, None)
  np.testing.assert_allclose(dx, dx_all, atol=1e-5)
  np.testing.assert_allclose(d_gates, d_gates_all, atol=1e-5)
  np.testing.assert_allclose(d_factors["a"][:, 2], d_all["a"][:, 2], atol=1e-5)
  np.testing.assert_allclose(d_factors["b"][2], d_all["b"][2], atol=1e-5)
  assert not np.any(d_factors["a"][:, :2])
  assert not np.any(d_factors["b"][:2])
  assert np.all(np.abs(d_all["b"]).sum((1, 2)) > 0)


def test_choosing_blocks_is_exact_where_all_are_chosen_and_near_where_the_rest_weighs_little():
  pool = random_pool(KINDS[0])
  taken = pool["lora"]["a"].shape[2] if "a" in pool["lora"] else blocks.capacity(pool)
  mixture = jax.nn.softmax(8 * normal(6, 4, taken))
  x = normal(11, 4, 6, 12)

  def product(top_k):
    adapters = blocks.mixed(pool, mixture, dataclasses.replace(KINDS[0], top_k=top_k))
    site = jax.tree.leaves(adapters.lora, is_leaf=lambda node: "a" in node)[0]
    factors = {name: site[name][0] for name in ("a", "b")}
    return lora.mixed_product(x, factors, adapters.gates, chosen=adapters.chosen), adapters.chosen

  (whole, everything), (covered, _) = product(0), product(taken)
  (two, chosen), (one, _) = product(2), product(1)
  assert everything is None
  np.testing.assert_allclose(covered, whole, atol=1e-5)
  np.testing.assert_array_equal(np.sort(chosen), np.sort(np.argsort(mixture)[:, -2:]))
  left_out = 1 - np.sort(mixture)[:, -2:].sum(axis=1).min()
  assert np.abs(two - whole).max() < 3 * left_out * np.abs(whole).max()
  assert np.abs(two - whole).max() < np.abs(one - whole).max()
