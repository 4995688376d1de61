"""Pools saved by the authors' PyTorch code (circle-hit/SAPT), read and written.

That code leaves a folder per task, `outputs/{1, 2, ...}-{task}/saved_weights/`, with these files:

    lora_weights_A.pt, lora_weights_B.pt
        state dicts: `{attention}.lora_{q,v}.lora_A` (R, D_in) and `.lora_B` (D_out, R) of this
        task's block, and `{attention}.previous_lora_weights_{q,v}.{i}.lora_A` and `.lora_B` of all
        earlier ones
    prompts_keys_till_now.pt
        (T, D), one key per task so far
    trans_input.pt
        state dict of the query projection: `0.weight` (100, D), `1.weight` (D, 100), `3.weight`
        (D,), `3.bias` (D,)
    attention_weights.pkl
        (T,), the mean mixture on held-out inputs, a pickled numpy array; only there once answers
        have been given

{attention} is named as in Hugging Face's modules. Everything stands in order of age, newest task
first; pools here hold the oldest first. `X.safetensors` and `X.npz` are read and written in place
of `X.pt` (and `X.pkl`); a lone array is called X in them. PyTorch's own files need torch. Neither
alpha (32 in that code) nor pseudo inputs are in these files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import arm, sals
from sapt_jax.backbones.hf import ModelConfig
from sapt_jax.errors import InputError
from sapt_jax.interop.files import read_arrays, write_arrays
from sapt_jax.interop.sites import Site, get, misfit, put, sites
from sapt_jax.methods.sapt import Sapt, SaptLearned
from sapt_jax.pet import blocks

Arrays = Mapping[str, np.ndarray]

FACTORS = {"a": "lora_A", "b": "lora_B"}
QUERY = {"down": "0.weight", "up": "1.weight", "scale": "3.weight", "bias": "3.bias"}


def factor_names(site: Site, factor: str, age: int | None) -> list[str]:
  """What factor "a" or "b" of a site is called in each layer; age None:
  the newest block, 0: the one before, ...
  """
  linear = site.path[-1]
  module = f"lora_{linear}" if age is None else f"previous_lora_weights_{linear}.{age}"
  return [f"{site.module.format(layer)}.{module}.{FACTORS[factor]}" for layer in range(site.layers)]


def ages(count: int) -> list[int | None]:
  """The age of each of `count` blocks, oldest first."""
  return [*reversed(range(count - 1)), None]


def block_from(arrays: Arrays, config: ModelConfig, age: int | None = None) -> blocks.Block:
  """One LoRA block out of the arrays of a state dict.

  Raises:
    InputError: an array is missing.
  """
  block: blocks.Block = {}
  for site in sites(config, config.lora_sites()):
    for factor in FACTORS:
      names = factor_names(site, factor, age)
      missing = [name for name in names if name not in arrays]
      if missing:
        raise InputError(f"no array {missing[0]} among {len(arrays)}: not a pool of this backbone")
      layers = [np.asarray(arrays[name], np.float32).T for name in names]
      put(block, ("lora", *site.path, factor), jnp.asarray(np.stack(layers)))
  return block


def block_arrays(
  block: blocks.Block, config: ModelConfig, age: int | None = None
) -> dict[str, np.ndarray]:
  """The arrays of a LoRA block under their names in a state dict."""
  if "lora" not in block:
    raise InputError("the public code's files hold LoRA blocks, not soft prompts")
  if jax.tree.map(lambda _: 0, block["lora"], is_leaf=lambda x: "a" in x) != jax.tree.map(
    lambda _: 0, config.lora_sites(), is_leaf=lambda x: isinstance(x, tuple)
  ):
    raise InputError("the public code's files hold LoRA of q and v alone (pet.targets q v)")
  arrays: dict[str, np.ndarray] = {}
  for site in sites(config, block["lora"]):
    for factor in FACTORS:
      layers = np.asarray(get(block["lora"], (*site.path, factor)))
      names = factor_names(site, factor, age)
      arrays |= {name: np.ascontiguousarray(x.T) for name, x in zip(names, layers, strict=True)}
  return arrays


def query_from(arrays: Arrays, prefix: str = "") -> sals.QueryProjection:
  """The query projection out of its state dict, whose names may have a prefix.

  Raises:
    InputError: an array is missing.
  """
  missing = [name for name in QUERY.values() if prefix + name not in arrays]
  if missing:
    raise InputError(f"no array {prefix + missing[0]} among {len(arrays)}: not a query projection")
  ours = {
    name: jnp.asarray(np.asarray(arrays[prefix + theirs], np.float32).T)
    for name, theirs in QUERY.items()
  }
  return sals.QueryProjection(**ours)


def query_arrays(query: sals.QueryProjection, prefix: str = "") -> dict[str, np.ndarray]:
  """The arrays of a query projection under their names in its state dict."""
  return {
    prefix + theirs: np.ascontiguousarray(np.asarray(getattr(query, ours)).T)
    for ours, theirs in QUERY.items()
  }


def make_learned(
  method: Sapt,
  pool: Sequence[blocks.Block],
  keys: np.ndarray,
  query: sals.QueryProjection,
  targets: Sequence[np.ndarray | None] = (),
) -> SaptLearned:
  """What `method` holds once it has learned these blocks.

  Args:
    pool: the blocks, oldest first.
    keys: (T, D), oldest first.
    targets: for the first tasks, their mean mixture over the blocks of then, oldest first; None
      where it is not known.

  Raises:
    InputError: more blocks than the method has room for, or shapes that do not fit it.
  """
  setting, count = method.setting, len(pool)
  learned: SaptLearned = method.start(jax.random.key(0))
  if count > setting.capacity:
    raise InputError(f"{count} blocks, and room for {setting.capacity}")
  if keys.shape != (count, setting.width):
    raise InputError(
      f"keys have shape {keys.shape}; those of {count} blocks have {count, setting.width}"
    )
  for slot, block in enumerate(pool):
    if words := misfit(block, blocks.read(learned.blocks, slot)):
      raise InputError(f"block {slot + 1} {words}")
    learned = replace(learned, blocks=blocks.write(learned.blocks, block, slot))
  memory, nothing = learned.memory, jnp.zeros((0, setting.width))
  for task, target in enumerate(targets):
    if target is not None:
      padded = jnp.pad(jnp.asarray(target), (0, setting.capacity - len(target)))
      memory = arm.remember(memory, task, nothing, padded)
  return replace(
    learned,
    count=jnp.asarray(count, jnp.int32),
    query=query,
    memory=memory,
    keys=learned.keys.at[:count].set(jnp.asarray(keys, jnp.float32)),
  )


def read_pool(folders: Sequence[Path], method: Sapt, config: ModelConfig) -> SaptLearned:
  """The pool that the public code has saved, as `method` would hold it.

  Its reflection memory has the mean mixtures, where they were saved, and no pseudo inputs yet.

  Args:
    folders: the `saved_weights` of all tasks, in the order they were learned; or that of the last
      task alone, whose files repeat the earlier blocks but not their mean mixtures.
    method: says the rank, and how much room there is.
    config: of the backbone.

  Raises:
    InputError: a file or an array is missing, or does not fit.
  """
  keys = saved_keys(folders[-1])
  query = query_from(read_arrays(folders[-1], "trans_input"))
  if len(folders) not in (1, len(keys)):
    raise InputError(
      f"{folders[-1]} has {len(keys)} tasks, {len(folders)} folders were named: "
      "name all, or the last"
    )
  states = [
    read_arrays(folder, "lora_weights_A") | read_arrays(folder, "lora_weights_B")
    for folder in folders
  ]
  if len(folders) < len(keys):
    pool = [block_from(states[0], config, age) for age in ages(len(keys))]
    return make_learned(method, pool, keys[::-1], query)
  targets = [lone_array(folder, "attention_weights") for folder in folders]
  oldest_first = [None if x is None else x.reshape(-1)[::-1] for x in targets]
  pool = [block_from(state, config) for state in states]
  return make_learned(method, pool, keys[::-1], query, oldest_first)


def saved_keys(folder: Path) -> np.ndarray:
  """The keys (T, D) of all tasks up to the folder's, newest first.

  Raises:
    InputError: they are not there.
  """
  keys = lone_array(folder, "prompts_keys_till_now")
  if keys is None:
    raise InputError(f"{folder}: no file prompts_keys_till_now.*")
  return keys


def lone_array(folder: Path, stem: str) -> np.ndarray | None:
  """The one array of a file, None if there is no such file."""
  return read_arrays(folder, stem, optional=True).get(stem)


def write_pool(
  learned: SaptLearned, config: ModelConfig, folders: Sequence[Path], suffix: str = ".pt"
) -> None:
  """Writes a pool as the public code would have: a folder per task,
  with what was known when the task had been learned.

  Of the query projection only the newest form is kept, so that it stands in every folder.

  Args:
    suffix: ".pt" (needs torch), ".safetensors" or ".npz".

  Raises:
    InputError: not one folder per task; soft prompts; centred embeddings, which those files have no
      place for.
  """
  count = int(learned.count)
  if len(folders) != count:
    raise InputError(
      f"a pool of {count} tasks goes into as many folders, {len(folders)} were named"
    )
  if np.any(np.asarray(learned.centre.mean)) or float(learned.centre.scale) != 1.0:
    raise InputError(
      "the public code has no centre of pooled embeddings: "
      "it takes method.attention published alone"
    )
  for task, folder in enumerate(folders):
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for slot, age in enumerate(ages(task + 1)):
      arrays |= block_arrays(blocks.read(learned.blocks, slot), config, age)
    for name in FACTORS.values():
      of_factor = {x: y for x, y in arrays.items() if x.endswith(name)}
      write_arrays(folder, f"lora_weights_{name[-1]}", of_factor, suffix)
    write_arrays(folder, "trans_input", query_arrays(learned.query), suffix)
    write_arrays(folder, "prompts_keys_till_now", np.asarray(learned.keys)[task::-1], suffix)
    target = np.asarray(learned.memory.target)[task, task::-1]
    if np.any(target):
      write_arrays(folder, "attention_weights", target, ".pkl" if suffix == ".pt" else suffix)
