"""A small classroom for methods: tiny backbones, inputs of tasks, and a few steps of learning."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import config, methods
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batch
from sapt_jax.methods.base import Setting, TaskInputs
from sapt_jax.training.state import TrainState, make_optimizer
from sapt_jax.training.step import train_step
from tests import tiny

WIDTH = 32


@cache
def backbone(name="t5"):
  model = hf.build_model({"t5": tiny.T5, "llama": tiny.LLAMA}[name])
  return model, nn.meta.unbox(jax.jit(partial(hf.init_params, model))(jax.random.key(0)))


def build(name, on="t5", kind="lora", **options):
  """A method with room for four blocks of rank 2 or two soft tokens."""
  model, params = backbone(on)
  setting = Setting(
    config.Pet(kind=kind, rank=2, prompt_length=2),
    model.config.lora_sites(),
    params["embedding"]["table"],
    4,
    3,
  )
  return methods.build(config.Method(name=name, **options), setting)


def noisy(tree, seed):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(
    structure,
    [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)],
  )


def through(method, tasks):
  """What the method has learned when it is at the last of these tasks (pooled embeddings each);
  every block is moved by noise.
  """
  learned = method.start(jax.random.key(0))
  for index, pooled in enumerate(tasks):
    inputs = TaskInputs(pooled, pooled, pooled[:0])
    learned = method.open(learned, jax.random.key(index), inputs)
    trainable = method.trainable(learned)
    learned = method.merge(learned, trainable | {"block": noisy(trainable["block"], index)})
    if index < len(tasks) - 1:
      learned = method.close(learned, inputs)
  return learned


def clusters(tasks, seed=0, rows=24):
  """Pooled embeddings that are nearly one vector, with a small part of their own per task: what
  real prompts look like.
  """
  rng = np.random.default_rng(seed)
  common, own = 3 * rng.normal(size=WIDTH), 0.3 * rng.normal(size=(tasks, WIDTH))
  return [
    jnp.asarray(common + own[t] + 0.05 * rng.normal(size=(rows, WIDTH)), jnp.float32)
    for t in range(tasks)
  ]


def some_batch(on="t5", task=0):
  rng = np.random.default_rng(0)
  source, target = rng.integers(2, 270, (4, 8)), rng.integers(2, 270, (4, 4))
  places = np.arange(8)[::-1] if on == "llama" else np.arange(8)
  mask = places < np.array([8, 5, 7, 3])[:, None]
  return Batch(
    *map(
      jnp.asarray,
      (np.where(mask, source, 0), mask, target, np.ones((4, 4), bool), np.full(4, task, np.int32)),
    )
  )


def teach(method, learned, on="t5", steps=5, rate=1e-2):
  """`learned` after a few steps on one batch, and the figures of the first and the last step."""
  model, params = backbone(on)
  optimizer = make_optimizer(config.Fit(learning_rate=rate))
  state = TrainState(
    jnp.zeros((), jnp.int32), method.trainable(learned), optimizer.init(method.trainable(learned))
  )
  step = jax.jit(partial(train_step, model, method, optimizer, 1))
  figures = []
  for _ in range(steps):
    state, metrics = step(state, params, learned, some_batch(on))
    figures.append(metrics)
  return method.merge(learned, state.trainable), figures[0], figures[-1]


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch, adapters):
  return model.apply(
    {"params": params}, batch.source, batch.source_mask, batch.target, batch.target_mask, adapters
  )


def logits(adapters, on="t5"):
  model, params = backbone(on)
  return logits_of(model, params, some_batch(on), adapters)


def same(left, right):
  return jax.tree.all(jax.tree.map(np.array_equal, left, right))


NOWHERE = jnp.zeros((4, WIDTH))  # pooled embeddings for methods that do not look at them
FIRST = jnp.zeros(4, jnp.int32)  # four inputs of the first task
