"""One update, on one device and on many, and the weights that a task's learning ends with."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sapt_jax import config, learner, sharding
from sapt_jax.backbones import hf
from sapt_jax.continual import advice_of
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.methods.sapt import SaptOptions
from sapt_jax.pet import blocks
from sapt_jax.training import fit
from sapt_jax.training.fit import Plan, Trainer
from sapt_jax.training.saver import Checkpoints, Saver
from sapt_jax.training.state import make_optimizer, make_schedule
from sapt_jax.training.step import train_step
from tests.classroom import (
  Study,
  backbone,
  build,
  joined,
  one_step,
  program,
  same,
  sapt,
  some_batch,
  state_of,
  uneven_batch,
)

EACH = pytest.mark.parametrize("on", ["t5", "llama"])


def split(on, mesh):
  """The backbone's parameters, each part on the devices of a mesh that it belongs to."""
  model, params = backbone(on)
  abstract = sharding.abstract_params(partial(hf.init_params, model, jax.random.key(0)), mesh)
  return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), params, abstract)


@EACH
def test_a_step_lowers_the_loss_and_changes_the_newest_block_and_the_attention_alone(on):
  (_, params), (method, learned), batch = backbone(on), sapt(on), uneven_batch(on)
  before = jax.tree.map(np.array, (params, learned))
  state, first = one_step(batch, on)
  assert same(before, (params, learned))
  merged = method.merge(learned, state.trainable)
  _, second = one_step(batch, on, learned=merged)
  assert second["loss"] < first["loss"]

  assert same(*(blocks.read(tree.blocks, 0) for tree in (learned, merged)))
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
  batch = uneven_batch("llama")
  apart, apart_metrics = one_step(batch, "llama", accumulation)
  together, together_metrics = one_step(joined(batch), "llama", accumulation)
  for name, value in apart_metrics.items():
    np.testing.assert_allclose(together_metrics[name], value, rtol=1e-5, err_msg=name)
  assert jax.tree.all(
    jax.tree.map(partial(np.allclose, rtol=1e-3, atol=1e-5), apart.trainable, together.trainable)
  )


def test_long_gradients_are_cut_over_all_that_is_trained_and_short_ones_are_not():
  # Of length 5.
  block, attention = {"a": jnp.asarray([3.0, 0.0])}, {"key": jnp.asarray([0.0, 4.0])}
  gradient = {"block": block, "attention": attention}

  def scaled(factor):
    return jax.tree.map(lambda x: factor * x, gradient)

  def second_update(first, **options):
    optimizer = make_optimizer(build("sapt"), config.Fit(**options))
    # Adam alone would forget the scale of its first gradient.
    _, state = optimizer.update(first, optimizer.init(gradient), gradient)
    return optimizer.update(scaled(0.1), state, gradient)[0]

  def alike(one, other):
    return jax.tree.all(jax.tree.map(partial(np.allclose, rtol=1e-5), one, other))

  assert alike(second_update(scaled(100), max_gradient_norm=1.0), second_update(scaled(0.2)))
  assert not alike(second_update(scaled(100)), second_update(scaled(0.2)))
  assert alike(second_update(scaled(0.1), max_gradient_norm=1.0), second_update(scaled(0.1)))


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
  whole, whole_metrics = one_step(uneven_batch())
  parts, parts_metrics = one_step(uneven_batch(), accumulation=2)
  assert jax.tree.all(
    jax.tree.map(partial(np.allclose, rtol=1e-4, atol=1e-5), whole.trainable, parts.trainable)
  )
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)


@EACH
@pytest.mark.parametrize(
  "shape", [{"data": 4}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2}], ids=str
)
def test_four_devices_compute_what_one_computes(on, shape):
  batch = joined(uneven_batch(on)) if on == "llama" else uneven_batch(on)
  alone, alone_metrics = one_step(batch, on)
  mesh = sharding.make_mesh(**shape)
  step, state = program.__wrapped__(on)  # traced on this mesh, and only here
  with jax.set_mesh(mesh):
    state, learned = jax.device_put((state, sapt(on)[1]), sharding.replicated(mesh))
    there = jax.device_put(batch, sharding.batch_sharded(mesh))
    together, together_metrics = step(state, split(on, mesh), learned, there)
  for name, value in alone_metrics.items():
    np.testing.assert_allclose(together_metrics[name], value, rtol=1e-5, err_msg=name)
  assert jax.tree.all(
    jax.tree.map(partial(np.allclose, rtol=1e-3, atol=1e-4), alone.trainable, together.trainable)
  )


@pytest.mark.parametrize("shape", [{}, {"fsdp": 4}], ids=["one", "four"])
def test_a_step_is_compiled_once_and_leaves_its_state_whole_on_every_device(shape):
  mesh = sharding.make_mesh(**shape)
  with jax.set_mesh(mesh):
    placed = split("llama", mesh)
    whole = hf.Backbone(backbone("llama")[0], placed, Path(), tiny.LLAMA)
    options = config.Config(SaptOptions(), pet=config.Pet(rank=2), fit=config.Fit(batch_size=4))
    built = learner.put_together(options, mesh, whole, capacity=2, memory_inputs=3)
    trainer = Trainer(whole, built.method, options.fit, built.batcher, mesh)
    pooled = jnp.ones((5, built.setting.width))
    learned = built.method.begin(built.start(0), jax.random.key(1), Study(pooled))
    batch, state = (
      jax.device_put(uneven_batch("llama"), trainer.placement),
      trainer.start(learned, 3),
    )
    for _ in range(3):
      state, _ = trainer.step(state, placed, learned, batch)
  assert trainer.step._cache_size() == 1
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_the_weights_with_the_best_dev_score_are_kept_and_scored_as_often_as_asked(
  monkeypatch, capsys
):
  (model, params), (method, learned) = backbone("llama"), sapt("llama")
  options, batcher = config.Fit(batch_size=2, validate_epochs=1, log_every=2), Batcher(True, 0, 2)
  whole = hf.Backbone(model, params, Path(), tiny.LLAMA)
  trainer = Trainer(whole, method, options, batcher, sharding.make_mesh())
  rows = [Row([2 + i, 3, 4], [5, 6 + i], 1) for i in range(4)]
  seen, log = [], []

  def validate(now):
    seen.append(blocks.read(now.blocks, 1))
    return [1.0, 5.0, 5.0, 3.0][len(seen) - 1]

  monkeypatch.setattr(fit, "LINE_EVERY", 0.0)
  kept = trainer.fit(learned, rows, Plan("task", 7, None, log.append, validate))
  lines = capsys.readouterr().err.splitlines()  # of a file: no bar
  assert [line.split(", ")[0] for line in lines] == [f"task: step {n} of 7" for n in (2, 4, 6, 7)]
  assert [(line["step"], line["dev"]) for line in log if "dev" in line] == [
    (2, 1.0),
    (4, 5.0),
    (6, 5.0),
    (7, 3.0),
  ]
  assert [
    jax.tree.all(jax.tree.map(np.array_equal, blocks.read(kept.blocks, 1), block)) for block in seen
  ] == [False, True, False, False]


def test_the_next_batch_is_on_the_devices_before_a_step_is_waited_for(monkeypatch):
  (model, params), (method, learned) = backbone("llama"), sapt("llama")
  whole = hf.Backbone(model, params, Path(), tiny.LLAMA)
  options, batcher = config.Fit(batch_size=2, log_every=1), Batcher(True, 0, 2)
  trainer = Trainer(whole, method, options, batcher, sharding.make_mesh())
  happened = []

  class Metric:
    """A figure of a step; to read it is to wait for the step."""

    def __init__(self, step, value):
      self.step, self.value = step, value

    def __float__(self):
      happened.append(("read", self.step))
      return float(self.value)

  def step(state, *given, original=trainer.step):
    number = int(state.step) + 1
    state, metrics = original(state, *given)
    happened.append(("step", number))
    return state, {name: Metric(number, value) for name, value in metrics.items()}

  def to_devices(tree, placement, original=sharding.to_devices):
    if isinstance(tree, Batch):
      happened.append(("batch", 1 + sum(what == "batch" for what, _ in happened)))
    return original(tree, placement)

  monkeypatch.setattr(trainer, "step", step)
  monkeypatch.setattr(sharding, "to_devices", to_devices)
  rows = [Row([2 + i, 3, 4], [5, 6 + i], 1) for i in range(4)]
  trainer.fit(learned, rows, Plan("task", 4, None, lambda _: None))
  expected = [("batch", 1), ("step", 1)]
  for number in (1, 2, 3):
    expected += [("batch", number + 1), ("step", number + 1), ("read", number)]
  assert list(dict.fromkeys(happened)) == [*expected, ("read", 4)]


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


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"warmup": 0.5}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    ({"decay": "linear"}, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
    ({"warmup": 0.25, "decay": "linear"}, [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ({"decay": "cosine"}, [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(8)]),
  ],
)
def test_rates_rise_and_fall_over_the_steps_of_a_task(options, expected):
  schedule = make_schedule(config.Fit(steps=8, **options))
  found = [float(schedule(jnp.int32(step), jnp.int32(8))) for step in range(8)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_step_changes_by_its_part_of_the_rate_and_constant_rates_need_no_total():
  method, learned = sapt()
  model, params = backbone()
  trainable = method.trainable(learned)
  moved = {}
  for decay, total in (("none", None), ("linear", jnp.int32(4))):
    options = config.Fit(steps=4, learning_rate=1e-2, decay=decay)
    optimizer = make_optimizer(method, options)
    state = state_of(method, learned, optimizer).replace(step=jnp.int32(3), total=total)
    step = partial(train_step, model, method, optimizer, 1, schedule=make_schedule(options))
    after = step(state, params, learned, some_batch())[0]
    assert after.total is total
    moved[decay] = jax.tree.map(jnp.subtract, after.trainable, trainable)
  jax.tree.map(
    lambda whole, part: np.testing.assert_allclose(part, whole / 4, rtol=1e-3, atol=1e-6),
    moved["none"],
    moved["linear"],
  )


@pytest.mark.parametrize(
  ("losses", "rise"),
  [
    ([2.0] * 5 + [0.003] * 20 + [0.35, 1.4, 0.9, 0.4, 0.4], (0.003, 0.4)),  # as on three own tasks
    ([2.0] * 5 + [0.003] * 20 + [0.003, 1.4, 0.003, 0.4, 0.003], None),  # single batches
    ([2.0] * 5 + [0.003] * 20 + [0.05] * 5, None),  # too little to matter
    ([2.0, 1.0, 0.1, 3.0], None),  # too few to tell
  ],
)
def test_a_loss_that_ends_far_above_where_it_was_is_named_with_the_way_out(losses, rise, capsys):
  assert fit.rise_of(losses) == rise
  batch = Batch(*(np.ones((1, 1), bool) for _ in range(4)), np.zeros(1, int))
  for advice, before in (("--from-task 3", 0), ("--from-task 3", len(losses) - 2), ("", 0)):
    plan = Plan("3/3 task", len(losses), None, lambda row: None, advice=advice)
    plan.losses.extend(losses[:before])  # as a checkpoint has them
    with fit.Meter(plan, before, 1) as meter:
      for step, loss in enumerate(losses[before:], before + 1):
        figures = {"loss": loss, "gradient_norm": 1.0, "own_weight": 1.0}
        meter.add(step, batch, figures)
    said = capsys.readouterr().err
    words = (
      "warning: 3/3 task: the loss was 0.003 once, and is 0.4 at the end; learn the task again: "
    )
    assert (words + "--from-task 3\n" in said) == bool(advice and rise)


def test_the_losses_of_before_a_stop_are_in_its_checkpoint(tmp_path):
  (model, params), (method, learned) = backbone("llama"), sapt("llama")
  whole = hf.Backbone(model, params, Path(), tiny.LLAMA)
  options = config.Fit(batch_size=2)
  trainer = Trainer(whole, method, options, Batcher(True, 0, 2), sharding.make_mesh())
  kept = Checkpoints(tmp_path / "learn", Saver(), lambda: None, 1)
  plan, later = (Plan("task", 7, kept, print) for _ in range(2))
  plan.losses.extend([2.0, 1.0])
  state = trainer.start(learned, 7)
  trainer.save(plan, state, fit.Best(state.trainable, 0.0))
  plan.losses.append(9.0)  # which is of a later step
  kept.saver.wait()
  trainer.restored(state, later)
  assert later.losses == [2.0, 1.0]


@pytest.mark.parametrize(
  ("options", "advice"),
  [
    ({}, "--from-task 3, and --fit.decay cosine, or --fit.validate-epochs 5"),
    ({"decay": "cosine"}, "--from-task 3, and --fit.validate-epochs 5"),  # it has that already
    ({"validate_epochs": 5}, ""),
  ],
)
def test_what_to_do_about_a_rising_loss_fits_the_options(options, advice):
  words = advice_of(config.Fit(**options), 2)
  assert words.removesuffix(", which keeps the best weights") == advice
