"""One update, cached decoding, saved trees."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sapt_jax import config, learner, methods, sharding
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.evaluation.decode import generate, sampler
from sapt_jax.methods.base import Setting, TaskInputs
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from sapt_jax.training import checkpoint
from sapt_jax.training.fit import Plan, Trainer
from sapt_jax.training.state import TrainState, make_optimizer
from sapt_jax.training.step import train_step


def random_model(raw):
  model = hf.build_model(raw)
  return model, nn.meta.unbox(hf.init_params(model, jax.random.key(0)))


def random_batch(model, rows=4):
  """Rows of different lengths, padded on the side that the backbone asks for."""
  rng = np.random.default_rng(0)
  lengths = np.array([8, 5, 7, 3] * rows)[:rows, None]
  places = np.arange(8)[::-1] if model.config.is_decoder_only else np.arange(8)
  source_mask, target_mask = (
    places[None] < lengths,
    np.arange(4)[None] < np.array([1, 3, 2, 4] * rows)[:rows, None],
  )
  source, target = rng.integers(2, 270, (rows, 8)), rng.integers(2, 270, (rows, 4))
  return Batch(
    *map(
      jnp.asarray,
      (
        np.where(source_mask, source, 0),
        source_mask,
        np.where(target_mask, target, 0),
        target_mask,
        np.zeros(rows, np.int32),
      ),
    )
  )


def joined(batch):
  """The same rows, each computed in 9 places; the longest has 8 tokens without its answer's last,
  source and answer apart take 11.
  """

  def one_more(x):
    return jnp.pad(x, ((0, 0), (1, 0)))

  return batch.replace(
    source=one_more(batch.source), source_mask=one_more(batch.source_mask), joined=True
  )


def learned_sapt(model, params, tasks=2, **options):
  """A SAPT pool that holds `tasks` blocks, none of them zero."""
  setting = Setting(
    config.Pet(rank=2), model.config.lora_sites(), params["embedding"]["table"], 4, 3
  )
  method = methods.build(config.Method(**options), setting)
  learned = method.start(jax.random.key(0))
  pooled = jax.random.normal(jax.random.key(1), (5, setting.width))
  for index in range(tasks):
    inputs = TaskInputs(pooled + index, pooled + index, pooled[:3] + index)
    learned = method.open(learned, jax.random.key(10 + index), inputs)
    if index < tasks - 1:
      learned = method.close(learned, inputs)

  def noise(x):
    return x + 0.05 * jax.random.normal(jax.random.key(2), x.shape)

  return method, learned.replace(blocks=jax.tree.map(noise, learned.blocks))


def one_step(model, method, params, learned, batch, accumulation=1):
  optimizer = make_optimizer(config.Fit(learning_rate=1e-2))
  trainable = method.trainable(learned)
  state = TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))
  return jax.jit(partial(train_step, model, method, optimizer, accumulation))(
    state, params, learned, batch
  )


@pytest.mark.parametrize("raw", [tiny.T5, tiny.LLAMA], ids=["t5", "llama"])
def test_a_step_lowers_the_loss_and_changes_the_newest_block_and_the_attention_alone(raw):
  model, params = random_model(raw)
  method, learned = learned_sapt(model, params)
  batch = random_batch(model)
  before = jax.tree.map(np.array, (params, learned))
  state, first = one_step(model, method, params, learned, batch)
  assert jax.tree.all(jax.tree.map(np.array_equal, before, (params, learned)))
  merged = method.merge(learned, state.trainable)
  _, second = one_step(model, method, params, merged, batch)
  assert second["loss"] < first["loss"]

  def kept(tree):
    return blocks.read(tree.blocks, 0)

  assert jax.tree.all(jax.tree.map(np.array_equal, kept(learned), kept(merged)))
  assert np.array_equal(learned.keys[0], merged.keys[0])
  assert not np.array_equal(learned.keys[1], merged.keys[1])
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b),
    blocks.read(learned.blocks, 1),
    blocks.read(merged.blocks, 1),
  )
  assert jax.tree.all(moved)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_source_and_answer_joined_in_one_row_give_the_same_gradient(accumulation):
  model, params = random_model(tiny.LLAMA)
  method, learned = learned_sapt(model, params)
  batch = random_batch(model)
  apart, apart_metrics = one_step(model, method, params, learned, batch, accumulation)
  together, together_metrics = one_step(model, method, params, learned, joined(batch), accumulation)
  for name, value in apart_metrics.items():
    np.testing.assert_allclose(together_metrics[name], value, rtol=1e-5, err_msg=name)
  assert jax.tree.all(
    jax.tree.map(partial(np.allclose, rtol=1e-3, atol=1e-5), apart.trainable, together.trainable)
  )


def test_long_gradients_are_cut_over_all_that_is_trained_and_short_ones_are_not():
  gradient = {
    "block": {"a": jnp.asarray([3.0, 0.0])},
    "attention": {"key": jnp.asarray([0.0, 4.0])},
  }  # length 5

  def scaled(factor):
    return jax.tree.map(lambda x: factor * x, gradient)

  def second_update(first, **options):
    optimizer = make_optimizer(config.Fit(**options))
    _, state = optimizer.update(
      first, optimizer.init(gradient), gradient
    )  # Adam alone would forget the scale of its first gradient
    return optimizer.update(scaled(0.1), state, gradient)[0]

  def same(one, other):
    return jax.tree.all(jax.tree.map(partial(np.allclose, rtol=1e-5), one, other))

  assert same(second_update(scaled(100), max_gradient_norm=1.0), second_update(scaled(0.2)))
  assert not same(second_update(scaled(100)), second_update(scaled(0.2)))
  assert same(second_update(scaled(0.1), max_gradient_norm=1.0), second_update(scaled(0.1)))


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
  model, params = random_model(tiny.T5)
  method, learned = learned_sapt(model, params)
  batch = random_batch(model, rows=8)
  whole, whole_metrics = one_step(model, method, params, learned, batch)
  parts, parts_metrics = one_step(model, method, params, learned, batch, accumulation=4)
  assert jax.tree.all(
    jax.tree.map(partial(np.allclose, rtol=1e-4, atol=1e-5), whole.trainable, parts.trainable)
  )
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("raw", [tiny.T5, tiny.LLAMA], ids=["t5", "llama"])
@pytest.mark.parametrize(
  "shape", [{"data": 4}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2}], ids=str
)
def test_four_devices_compute_what_one_computes(raw, shape):
  model, params = random_model(raw)
  method, learned = learned_sapt(model, params)
  batch = joined(random_batch(model)) if model.config.is_decoder_only else random_batch(model)
  alone, alone_metrics = one_step(model, method, params, learned, batch)
  mesh = sharding.make_mesh(**shape)
  abstract = sharding.abstract_params(lambda: hf.init_params(model, jax.random.key(0)), mesh)
  with jax.set_mesh(mesh):
    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), params, abstract)
    together, together_metrics = one_step(
      model,
      method,
      placed,
      jax.device_put(learned, sharding.replicated(mesh)),
      jax.device_put(batch, sharding.batch_sharded(mesh)),
    )
  for name, value in alone_metrics.items():
    np.testing.assert_allclose(together_metrics[name], value, rtol=1e-5, err_msg=name)
  assert jax.tree.all(
    jax.tree.map(partial(np.allclose, rtol=1e-3, atol=1e-4), alone.trainable, together.trainable)
  )


@pytest.mark.parametrize("shape", [{}, {"fsdp": 4}], ids=["one", "four"])
def test_a_step_is_compiled_once_and_leaves_its_state_whole_on_every_device(shape):
  mesh = sharding.make_mesh(**shape)
  model, params = random_model(tiny.LLAMA)
  abstract = sharding.abstract_params(lambda: hf.init_params(model, jax.random.key(0)), mesh)
  with jax.set_mesh(mesh):
    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), params, abstract)
    backbone = hf.Backbone(model, placed, Path(), tiny.LLAMA)
    options = config.Config(pet=config.Pet(rank=2), fit=config.Fit(batch_size=4))
    built = learner.put_together(options, mesh, backbone, capacity=2, memory_inputs=3)
    trainer = Trainer(backbone, built.method, options.fit, built.batcher, mesh)
    pooled = jnp.ones((5, built.setting.width))
    learned = built.method.open(
      built.start(0), jax.random.key(1), TaskInputs(pooled, pooled, pooled[:0])
    )
    batch, state = jax.device_put(random_batch(model), trainer.placement), trainer.start(learned)
    for _ in range(3):
      state, _ = trainer.step(state, placed, learned, batch)
  assert trainer.step._cache_size() == 1
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_the_weights_with_the_best_dev_score_are_kept_and_scored_as_often_as_asked():
  model, params = random_model(tiny.T5)
  method, learned = learned_sapt(model, params)
  options, batcher = config.Fit(batch_size=2, validate_epochs=1), Batcher(False, 0, 2)
  trainer = Trainer(
    hf.Backbone(model, params, Path(), tiny.T5), method, options, batcher, sharding.make_mesh()
  )
  rows = [Row([2 + i, 3, 4], [5, 6 + i], 1) for i in range(4)]
  seen, log = [], []

  def validate(now):
    seen.append(blocks.read(now.blocks, 1))
    return [1.0, 5.0, 5.0, 3.0][len(seen) - 1]

  kept = trainer.fit(learned, rows, Plan("task", 7, None, log.append, validate))
  assert [(line["step"], line["dev"]) for line in log if "dev" in line] == [
    (2, 1.0),
    (4, 5.0),
    (6, 5.0),
    (7, 3.0),
  ]
  assert [
    jax.tree.all(jax.tree.map(np.array_equal, blocks.read(kept.blocks, 1), block)) for block in seen
  ] == [False, True, False, False]


def test_every_parameter_has_a_place_on_the_mesh():
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  for raw in (tiny.T5, tiny.LLAMA):
    model = hf.build_model(raw)
    for leaf in jax.tree.leaves(
      sharding.abstract_params(partial(hf.init_params, model, jax.random.key(0)), mesh)
    ):
      matrix = (
        leaf.ndim - (leaf.shape[0] == 2) == 2 and 32 in leaf.shape
      )  # stacked kernels and tables of model width
      assert (not matrix) or not leaf.sharding.is_fully_replicated


def prompts(model, rows):
  return Adapters(prompts=0.3 * jax.random.normal(jax.random.key(3), (rows, 3, 32)))


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "prompt"])
@pytest.mark.parametrize("raw", [tiny.T5, tiny.LLAMA], ids=["t5", "llama"])
def test_cached_decoding_writes_what_the_whole_forward_pass_prefers(raw, adapted):
  model, params = random_model(raw)
  batch = random_batch(model)
  adapters = prompts(model, 4) if adapted else None
  written = np.array(
    jax.jit(partial(generate, model, max_new=6))(params, batch.source, batch.source_mask, adapters)
  )
  mask = np.ones_like(written, bool)
  logits = jax.jit(model.apply)(
    {"params": params}, batch.source, batch.source_mask, written, mask, adapters
  )
  for row, ids in enumerate(written):
    length = ids.tolist().index(1) + 1 if 1 in ids else len(ids)
    assert np.argmax(logits[row, :length], axis=-1).tolist() == ids[:length].tolist()
    assert set(ids[length:].tolist()) <= {0}


def test_a_soft_prompt_stands_before_joined_rows_too():
  model, params = random_model(tiny.LLAMA)
  batch, adapters = random_batch(model), prompts(model, 4)
  apart, together = (
    jax.jit(partial(model.apply, method=method))(
      {"params": params}, b.source, b.source_mask, b.target, b.target_mask, adapters
    )
    for method, b in (("hidden", batch), ("hidden_joined", joined(batch)))
  )
  np.testing.assert_allclose(together[batch.target_mask], apart[batch.target_mask], atol=1e-5)


@pytest.mark.parametrize("raw", [tiny.T5, tiny.LLAMA], ids=["t5", "llama"])
def test_answers_do_not_depend_on_padding_or_neighbours(raw):
  model, params = random_model(raw)
  method, learned = learned_sapt(model, params)
  batch = random_batch(model)

  def pooled(b):
    return jnp.max(
      jnp.where(b.source_mask[:, :, None], params["embedding"]["table"][b.source], -jnp.inf), axis=1
    )

  @jax.jit
  def answers(part):
    adapters = method.adapters(learned, method.mixture(learned, pooled(part), part.task))
    return model.apply(
      {"params": params}, part.source, part.source_mask, part.target, part.target_mask, adapters
    )

  together = answers(batch)
  for row in (1, 3):
    alone = jax.tree.map(lambda x, r=row: x[r : r + 1], batch)
    keep = np.asarray(alone.source_mask[0])
    bare = alone.replace(source=alone.source[:, keep], source_mask=alone.source_mask[:, keep])
    real = np.asarray(batch.target_mask[row])
    np.testing.assert_allclose(answers(bare)[0][real], together[row][real], atol=2e-5)


def test_sampling_keeps_to_the_top_k_and_away_from_what_was_written():
  logits = jnp.asarray([[4.0, 3.0, 2.0, -1.0, -5.0]] * 200)
  written = jnp.asarray([[0, 3, 4]] * 200)  # the last place is not written yet
  drawn = np.array(sampler(2, 100.0, 1.0)(logits, written, jnp.asarray(2), jax.random.key(0)))
  assert set(drawn.tolist()) == {1, 2}
  assert (
    sampler(50, 1.0, 1.0)(logits, written, jnp.asarray(2), jax.random.key(0)).max() < 5
  )  # more than there are: all


def test_the_first_block_of_a_lora_pool_adds_nothing():
  model, params = random_model(tiny.T5)
  setting = Setting(config.Pet(), model.config.lora_sites(), params["embedding"]["table"], 2, 1)
  method = methods.build(config.Method(name="per_task"), setting)
  learned = method.open(method.start(jax.random.key(0)), jax.random.key(1), None)
  batch = random_batch(model)
  apply = jax.jit(model.apply)
  plain = apply(
    {"params": params}, batch.source, batch.source_mask, batch.target, batch.target_mask
  )
  adapters = method.adapters(learned, method.mixture(learned, jnp.zeros((4, 32)), batch.task))
  adapted = apply(
    {"params": params}, batch.source, batch.source_mask, batch.target, batch.target_mask, adapters
  )
  assert np.array_equal(plain, adapted)


TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"count": jnp.asarray(3, jnp.int32)}}


def test_a_saved_tree_comes_back_bit_for_bit(tmp_path):
  checkpoint.save(tmp_path / "s", TREE, {"scores": [1.5]})
  tree, record = checkpoint.load(tmp_path / "s", jax.tree.map(jnp.zeros_like, TREE))
  assert jax.tree.all(jax.tree.map(np.array_equal, tree, TREE))
  assert record == {"scores": [1.5]}


@pytest.mark.parametrize("harm", ["truncate", "empty", "delete", "flip"])
def test_any_harm_to_any_file_is_noticed_and_named(tmp_path, harm):
  checkpoint.save(tmp_path / "s", TREE, {})
  files = [
    path.relative_to(tmp_path)
    for path in (tmp_path / "s").rglob("*")
    if path.is_file() and path.stat().st_size
  ]
  assert len(files) > 5
  for file in files:
    whole = (tmp_path / file).read_bytes()
    middle = len(whole) // 2
    if harm == "delete":
      (tmp_path / file).unlink()
    else:
      (tmp_path / file).write_bytes(
        {
          "truncate": whole[:middle],
          "empty": b"",
          "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        }[harm]
      )
    with pytest.raises(checkpoint.DamagedError):
      checkpoint.load(tmp_path / "s", TREE)
    (tmp_path / file).write_bytes(whole)


def test_an_unfinished_save_is_not_finished(tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint, "_hashes", stop)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.save(tmp_path / "s", TREE, {})
  assert not checkpoint.is_finished(tmp_path / "s")


def test_what_is_saved_anew_stays_until_the_new_one_is_written(tmp_path, monkeypatch):
  checkpoint.save(tmp_path / "s", TREE, {"step": 1})
  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, "_hashes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      checkpoint.save(tmp_path / "s", TREE, {"step": 2})
  assert checkpoint.load(tmp_path / "s", TREE)[1] == {"step": 1}
  checkpoint.save(tmp_path / "s", TREE, {"step": 3})
  assert checkpoint.load(tmp_path / "s", TREE)[1] == {"step": 3}
