"""Pools of random blocks for tests of what goes to other programs and comes from them."""

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import arm, config
from sapt_jax.methods.lesson import Setting
from sapt_jax.methods.sapt import Sapt, SaptOptions
from sapt_jax.pet import blocks

CAPACITY, TASKS = 4, 3
PET = config.Pet()

RAW = {
  "t5": {
    "model_type": "t5",
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
  },
  "llama": {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
  },
}


def random_like(tree, seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), tree)


def make_method(backbone, pet=PET, **options):
  table = jnp.asarray(np.random.default_rng(9).normal(size=(96, 32)), jnp.float32)
  sites = backbone.lora_sites(pet.targets)
  setting = Setting(pet, sites, table, CAPACITY, memory_inputs=2)
  return Sapt(SaptOptions(**options), setting)


def make_learned(method, tasks=TASKS):
  """A pool of random blocks with a remembered mean mixture for each."""
  learned = method.start(jax.random.key(0))
  block = method.new_block(jax.random.key(1))
  for task in range(tasks):
    pool = blocks.write(learned.blocks, random_like(block, task, 0.1), task)
    slots = jnp.arange(CAPACITY)
    target = jnp.where(slots <= task, 1 / (task + 1), 0.0) * (1 + 0.1 * slots)
    memory = arm.remember(learned.memory, task, jnp.ones((1, 32)), target)
    learned = learned.replace(blocks=pool, memory=memory)
  keys = random_like(learned.keys, 7) * (jnp.arange(CAPACITY) < tasks)[:, None]
  query, count = random_like(learned.query, 8), jnp.asarray(tasks, jnp.int32)
  return learned.replace(keys=keys, query=query, count=count)
