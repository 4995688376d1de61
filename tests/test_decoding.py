"""Answers: decoding with a cache, sampling, and what padding and neighbours must not change."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import sharding
from sapt_jax.evaluation.decode import (
  PART,
  begin,
  generate,
  go_on,
  greedy,
  part_here,
  pays_apart,
  sampler,
)
from sapt_jax.evaluation.stepwise import lengths_of, rows_to_take, sizes_of
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from tests.classroom import (
  FIRST,
  NOWHERE,
  WIDTH,
  backbone,
  build,
  joined,
  logits,
  sapt,
  studied,
  uneven_batch,
)

EACH = pytest.mark.parametrize("on", ["t5", "llama"])


def prompts():
  return Adapters(prompts=0.3 * jax.random.normal(jax.random.key(3), (4, 3, WIDTH)))


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "prompt"])
@EACH
def test_cached_decoding_writes_what_the_whole_forward_pass_prefers(on, adapted):
  (model, params), batch = backbone(on), uneven_batch(on)
  adapters = prompts() if adapted else None
  written = np.array(
    jax.jit(partial(generate, model, max_new=6))(params, batch.source, batch.source_mask, adapters)
  )
  mask = np.ones_like(written, bool)
  said = jax.jit(model.apply)(
    {"params": params}, batch.source, batch.source_mask, written, mask, adapters
  )
  for row, ids in enumerate(written):
    length = ids.tolist().index(1) + 1 if 1 in ids else len(ids)
    assert np.argmax(said[row, :length], axis=-1).tolist() == ids[:length].tolist()
    assert set(ids[length:].tolist()) <= {0}


@pytest.mark.parametrize(("apart", "part"), [(False, 0), (True, 0), (True, 1)])
@EACH
def test_what_is_written_in_steps_is_what_is_written_at_once(on, apart, part):
  (model, params), batch = backbone(on), uneven_batch(on)
  source, adapters = (batch.source, batch.source_mask), prompts()
  whole = np.array(jax.jit(partial(generate, model, max_new=7))(params, *source, adapters))
  first = jax.jit(partial(begin, model, max_new=7, apart=apart, part=part))
  writing = first(params, *source, adapters)
  more = jax.jit(partial(go_on, model, apart=apart))
  count = 1
  for further in (0, 2, 3, 4):
    writing, count = more(params, writing, adapters, np.int32(further)), min(count + further, 7)
    there = int(writing.count.max())
    assert there == count or np.all(writing.ended)
    np.testing.assert_array_equal(writing.written[:, :there], whole[:, :there])
  np.testing.assert_array_equal(writing.written, whole)


@pytest.mark.parametrize("kind", ["all blocks", "chosen blocks", "prompts with a mask"])
@EACH
def test_every_row_keeps_its_own_adapters_when_sources_are_read_in_parts(on, kind):
  (model, params), batch = backbone(on), uneven_batch(on)
  method, learned = sapt(on)
  pool = jax.tree.map(
    lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), learned.blocks
  )
  slots = blocks.capacity(pool)
  mixture = jax.random.dirichlet(jax.random.key(1), jnp.ones(slots), (len(batch.source),))
  pet = dataclasses.replace(method.setting.pet, top_k=(slots - 1) * (kind == "chosen blocks"))
  adapters = blocks.mixed(pool, mixture, pet)
  if kind == "prompts with a mask":
    there = jnp.arange(3) >= jnp.arange(len(batch.source))[:, None] % 3
    adapters = prompts().replace(prompts_mask=there)
  read_at_once = []

  class Watched:
    config, apart = model.config, staticmethod(model.apart)

    @staticmethod
    def apply(variables, tokens, *rest, method):
      read_at_once.append(len(tokens))
      return model.apply(variables, tokens, *rest, method=method)

  def read(part):
    given = (params, batch.source, batch.source_mask, adapters, 5)
    return jax.jit(lambda: begin(Watched, *given, apart=True, part=part))()

  (rows, length), expected = batch.source.shape, read(0)
  assert read_at_once == [rows]
  for part, most in [(2 * length, 2), (length, 1), (1, 1)]:
    found = read(part)
    assert read_at_once.pop() == most
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), found, expected)


def test_few_shapes_are_compiled_and_none_is_missing():
  assert sizes_of(64, 1) == [1, 4, 16, 32, 64]
  assert sizes_of(100, 1) == [1, 6, 25, 50, 100]
  assert sizes_of(16, 4) == [4, 8, 16]
  assert sizes_of(2, 1) == [1, 2]
  assert sizes_of(1, 1) == [1]
  taken = {count: rows_to_take(count, [1, 4, 16, 32, 64]) for count in (1, 2, 5, 6, 34, 48, 99)}
  assert taken == {1: 1, 2: 2, 5: 4, 6: 6, 34: 32, 48: 48, 99: 64}
  assert rows_to_take(2, [4, 8]) == 2
  assert lengths_of(128) == [32, 48, 64, 96, 128]
  assert lengths_of(1000) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
  assert lengths_of(20) == [32]
  assert lengths_of(40) == [32, 48]
  assert lengths_of(150) == [32, 48, 64, 96, 128, 160]


def test_a_soft_prompt_stands_before_joined_rows_too():
  (model, params), batch, adapters = backbone("llama"), uneven_batch("llama"), prompts()
  apart, together = (
    jax.jit(partial(model.apply, method=method))(
      {"params": params}, b.source, b.source_mask, b.target, b.target_mask, adapters
    )
    for method, b in (("hidden", batch), ("hidden_joined", joined(batch)))
  )
  np.testing.assert_allclose(together[batch.target_mask], apart[batch.target_mask], atol=1e-5)


@EACH
def test_answers_do_not_depend_on_padding_or_neighbours(on):
  (model, params), (method, learned), batch = backbone(on), sapt(on), uneven_batch(on)

  @jax.jit
  def answers(part):
    return method.answer_logits(model, params, learned, part)[0]

  together = answers(batch)
  for row in (1, 3):
    alone = jax.tree.map(lambda x, r=row: x[r : r + 1], batch)
    keep = np.asarray(alone.source_mask[0])
    bare = alone.replace(source=alone.source[:, keep], source_mask=alone.source_mask[:, keep])
    real = np.asarray(batch.target_mask[row])
    np.testing.assert_allclose(answers(bare)[0][real], together[row][real], atol=2e-5)


def test_the_most_likely_token_is_the_one_that_argmax_finds():
  logits = np.random.default_rng(0).integers(0, 9, (50, 300)).astype(np.float32)  # with equal ones
  logits[0], logits[1], logits[2, 7:9] = 0, -np.inf, np.inf
  found = jax.jit(greedy)(logits, None, None, None)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
  assert 0 <= int(greedy(jnp.full((1, 5), jnp.nan), None, None, None)[0]) < 5


def test_sampling_keeps_to_the_top_k_and_away_from_what_was_written():
  logits = jnp.asarray([[4.0, 3.0, 2.0, -1.0, -5.0]] * 200)
  written = jnp.asarray([[0, 3, 4]] * 200)  # the last place is not written yet
  there = jnp.full(200, 2)
  drawn = np.array(sampler(2, 100.0, 1.0)(logits, written, there, jax.random.key(0)))
  assert set(drawn.tolist()) == {1, 2}
  # More than there are: all.
  assert sampler(50, 1.0, 1.0)(logits, written, there, jax.random.key(0)).max() < 5


def test_the_first_block_of_a_lora_pool_adds_nothing():
  method = build("per_task")
  learned = method.begin(method.start(jax.random.key(0)), jax.random.key(1), studied(NOWHERE))
  adapters = method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
  assert np.array_equal(logits(None), logits(adapters))


@pytest.mark.parametrize(
  ("platform", "devices", "memory", "pays"),
  [
    ("cpu", 1, None, True),
    ("cpu", 8, None, True),
    ("gpu", 1, 4 * 1000, True),
    ("gpu", 1, 4 * 1000 - 1, False),
    ("gpu", 1, None, False),
    ("gpu", 2, 4 * 1000, False),
    ("tpu", 1, 4 * 1000, False),
  ],
)
def test_layers_stand_apart_where_it_pays_and_fits(platform, devices, memory, pays, monkeypatch):
  """Of 1,000 bytes of weights."""
  monkeypatch.setattr(sharding, "device_memory", lambda: memory)
  mesh = SimpleNamespace(
    devices=np.array([SimpleNamespace(platform=platform)] * devices), size=devices
  )
  assert pays_apart(mesh, {"a": jnp.zeros(200), "b": jnp.zeros(100, jnp.bfloat16)}) == pays
  assert part_here(mesh) == (PART if (platform, devices) == ("cpu", 1) else 0)
