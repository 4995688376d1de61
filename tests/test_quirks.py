"""What reference_quirks changes: the correct mode has the true gradient and looks past padding, the
quirky one does neither.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sapt_jax import arm, config
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batch
from sapt_jax.evaluation.decode import greedy
from sapt_jax.evaluation.evaluate import answer_batch
from sapt_jax.methods.lesson import Setting
from sapt_jax.methods.sapt import Sapt, SaptOptions
from sapt_jax.pet import blocks
from sapt_jax.training.step import batch_gradient
from tests.classroom import at_start

TASKS, CAPACITY, SOURCE, TARGET = 3, 4, 7, 4
EACH = pytest.mark.parametrize("raw", [tiny.T5, tiny.LLAMA], ids=["t5", "llama"])


@dataclasses.dataclass
class Case:
  """A random model with a pool of three random blocks that remembers two tasks, with quirks or
  without.
  """

  model: hf.Model
  params: dict
  learned: object
  setting: Setting

  def method(self, quirks):
    return Sapt(SaptOptions(reference_quirks=quirks, reflection_weight=0.7), self.setting)


def make_case(raw, dtype=jnp.float32):
  rng = np.random.default_rng(0)

  def noise(x, scale):
    return jnp.asarray(scale * rng.normal(size=x.shape), dtype)

  model = hf.build_model(raw, dtype)
  params = nn.meta.unbox(jax.jit(partial(hf.init_params, model))(jax.random.key(0)))
  if model.config.is_decoder_only:
    # Its initial weights are too small for anything to depend on anything.
    params = jax.tree.map(lambda x: x if x.ndim == 1 else 6 * x, params)
  setting = Setting(
    config.Pet(rank=2),
    model.config.lora_sites(),
    params["embedding"]["table"],
    CAPACITY,
    memory_inputs=2,
  )
  learned = Sapt(SaptOptions(), setting).start(jax.random.key(1))
  there = jnp.arange(CAPACITY) < TASKS
  pool = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      noise(x, 0.1)
      * there.reshape([-1 if axis == blocks.task_axis(path) else 1 for axis in range(x.ndim)])
    ),
    learned.blocks,
  )
  memory = learned.memory
  for task in range(TASKS - 1):
    target = jax.nn.softmax(noise(jnp.zeros(task + 1), 1.0))
    memory = arm.remember(
      memory,
      task,
      noise(jnp.zeros((2, setting.width)), 1.0),
      jnp.pad(target, (0, CAPACITY - task - 1)),
    )
  learned = dataclasses.replace(
    learned,
    blocks=pool,
    count=jnp.asarray(TASKS, jnp.int32),
    keys=noise(learned.keys, 1.0) * there[:, None],
    memory=memory,
    query=jax.tree.map(lambda x: x.astype(dtype), learned.query),
  )
  return Case(model, params, learned, setting)


def make_batch(case):
  """Two rows, of 7 and 4 source tokens, and 4 and 2 target tokens."""
  rng, places = np.random.default_rng(1), np.arange(SOURCE)
  source_mask = (places[::-1] if case.model.config.is_decoder_only else places) < np.array(
    [[SOURCE], [4]]
  )
  target_mask = np.arange(TARGET) < np.array([[TARGET], [2]])

  def fill(mask):
    return jnp.asarray(
      np.where(mask, rng.integers(2, 270, mask.shape), case.model.config.pad_id), jnp.int32
    )

  return Batch(
    fill(source_mask),
    jnp.asarray(source_mask),
    fill(target_mask),
    jnp.asarray(target_mask),
    jnp.zeros(2, jnp.int32),
  )


def compiled_step(case, quirks):
  """(trainable, batch) -> (gradient, metrics)"""
  gradient = partial(batch_gradient, case.model, case.method(quirks), 1, case.params, case.learned)
  return jax.jit(lambda trainable, batch: gradient(at_start(trainable), batch))


def distance(tree, other):
  """Norm of the difference, relative to the norm of `tree`."""

  def norm(x):
    return np.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(x)))

  return norm(jax.tree.map(jnp.subtract, tree, other)) / norm(tree)


def alone(batch, row):
  """One row of a batch without its padding."""
  keep, one = np.asarray(batch.source_mask[row]), jax.tree.map(lambda x: x[row : row + 1], batch)
  return one.replace(source=one.source[:, keep], source_mask=one.source_mask[:, keep])


@EACH
def test_an_answer_alone_is_the_answer_in_a_batch(raw):
  case, batch = make_case(raw), make_batch(make_case(raw))
  answer = jax.jit(
    partial(
      answer_batch,
      case.model,
      case.method(quirks=False),
      False,
      0,
      5,
      greedy,
      case.params,
      case.learned,
    )
  )
  (ids, mixture), (ids_alone, mixture_alone) = (
    answer(part, jax.random.key(0)) for part in (batch, alone(batch, 1))
  )
  np.testing.assert_allclose(mixture_alone[0], mixture[1], atol=1e-6)
  np.testing.assert_array_equal(ids_alone[0], ids[1])


@EACH
def test_with_quirks_the_mixture_depends_on_padding(raw):
  case, batch = make_case(raw), make_batch(make_case(raw))
  for quirks in (False, True):
    method = case.method(quirks)
    mixture, mixture_alone = (
      method.mixture(case.learned, method.features(case.model, case.params, part), part.task)
      for part in (batch, alone(batch, 1))
    )
    assert bool(np.max(np.abs(mixture[1] - mixture_alone[0])) > 1e-3) == quirks


@pytest.fixture
def double_precision(monkeypatch):
  """float64 everywhere: also where the library asks for float32 by name, since it means "not
  bfloat16" by that.
  """
  with jax.enable_x64(True):
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    yield


@EACH
def test_the_gradient_is_the_true_one_whatever_stands_at_masked_places_and_with_quirks_another(
  double_precision, raw
):
  case = make_case(raw, jnp.float64)
  batch, trainable = make_batch(case), case.method(quirks=False).trainable(case.learned)
  correct, quirky = (compiled_step(case, quirks) for quirks in (False, True))
  gradient, metrics = correct(trainable, batch)

  rng, step = np.random.default_rng(2), 1e-6
  for part in ("block", "attention"):  # each by itself: the block's gradient is far larger
    direction = jax.tree.map(jnp.zeros_like, trainable) | {
      part: jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), trainable[part])
    }
    moved = [
      jax.tree.map(lambda x, y, size=size: x + size * y, trainable, direction)
      for size in (step, -step)
    ]
    numeric = np.subtract(*(correct(each, batch)[1]["loss"] for each in moved)) / (2 * step)
    along = sum(
      jnp.vdot(x, y)
      for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(along, numeric, rtol=1e-6)

  other = batch.replace(
    source=jnp.where(batch.source_mask, batch.source, 99),
    target=jnp.where(batch.target_mask, batch.target, 99),
  )
  assert np.any(other.source != batch.source)
  assert np.any(other.target != batch.target)
  other_gradient, other_metrics = correct(trainable, other)
  np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-12)
  assert distance(gradient, other_gradient) < 1e-10

  assert distance(gradient, quirky(trainable, batch)[0]) > 0.05
