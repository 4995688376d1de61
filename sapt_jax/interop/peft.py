"""Blocks as peft adapters, and back: a folder with adapter_config.json,
adapter_model.safetensors and README.md.

peft has no mixture per input, so that a pool goes out as one of its blocks, or as the mixture fixed
once for all inputs, for instance a task's mean mixture. A fixed mixture of LoRA blocks is one LoRA
block again, exactly: the factors side by side, of rank T * r (peft's add_weighted_adapter with
combination_type "cat"). Layout: peft's developer guide "checkpoint".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from sapt_jax import config
from sapt_jax.backbones.hf import ModelConfig
from sapt_jax.errors import InputError
from sapt_jax.interop.files import read_arrays
from sapt_jax.interop.sites import Site, get, misfit, put, sites
from sapt_jax.pet import blocks
from sapt_jax.pet.lora import init_block
from sapt_jax.text_files import give_usual_mode, read_object

README = """---
base_model: {base}
library_name: peft
---
A PET block of sapt_jax for {base}: {what}. \
Load it with `peft.PeftModel.from_pretrained(model, folder)`.
"""


def fixed_mixture(pool: blocks.Blocks, mixture: jax.Array) -> blocks.Block:
  """The one block that does what the pool does under a mixture that is the same for all inputs.

  Args:
    pool: a stack of T blocks of either kind; empty slots are zeros and need weight 0.
    mixture: (T,) float32.

  Returns:
    LoRA: the blocks side by side, (layers, D_in, T * R) and (layers, T * R, D_out), each B times
    its weight; its scale stays alpha / R, where R is the rank of one block. Soft prompts: their
    weighted sum (P, D).
  """

  def one(path: tuple, x: jax.Array) -> jax.Array:
    name = path[-1].key
    if name == "prompt":
      return jnp.einsum("t,tpd->pd", mixture, x)
    if name == "b":
      x = x * mixture[None, :, None, None]
      return x.reshape(x.shape[0], -1, x.shape[-1])
    return x.reshape(*x.shape[:2], -1)

  return jax.tree_util.tree_map_with_path(one, pool)


def lora_arrays(block: blocks.Block, backbone: ModelConfig) -> dict[str, np.ndarray]:
  """A LoRA block's arrays as peft names them: lora_A (R, D_in), lora_B (D_out, R).

  R is the block's rank; but where other programs do several of our maps in one, the factors of
  these stand side by side in it, each with outputs of its own, and all others are filled up with
  zeros.
  """
  maps: dict[tuple[str, str], list[Site]] = {}
  for site in sites(backbone, block["lora"]):
    maps.setdefault((site.module, site.linear), []).append(site)
  most = max(map(len, maps.values()))
  arrays = {}
  for (module, linear), together in maps.items():
    for layer in range(together[0].layers):
      a, b = (
        [np.asarray(get(block["lora"], site.path)[x][layer], np.float32) for site in together]
        for x in "ab"
      )
      wide = [
        _among(x, site.rows, i, most) for i, (x, site) in enumerate(zip(b, together, strict=True))
      ]
      missing = most * a[0].shape[1] - sum(x.shape[1] for x in a)
      whole = np.pad(np.concatenate(a, axis=1), ((0, 0), (0, missing)))
      prefix = f"base_model.model.{module.format(layer)}.{linear}"
      arrays[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(whole.T)
      arrays[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(np.sum(wide, axis=0).T)
  return arrays


def _among(b: np.ndarray, rows: tuple[int, int, int] | None, place: int, most: int) -> np.ndarray:
  """A site's B (R, D_out) at its place among ranks and outputs of the map that it is part of."""
  rank, (start, count, total) = len(b), rows or (0, b.shape[1], b.shape[1])
  wide = np.zeros((most * rank, total), np.float32)
  wide[place * rank : (place + 1) * rank, start : start + count] = b
  return wide


def lora_config(arrays: dict[str, np.ndarray], pet: config.Pet) -> dict[str, Any]:
  """What adapter_config.json says of a LoRA block with these arrays."""
  rank = next(x.shape[0] for name, x in arrays.items() if "lora_A" in name)
  alpha = pet.lora_scale * rank  # peft scales by lora_alpha / r
  return {
    "peft_type": "LORA",
    "r": rank,
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "lora_dropout": pet.dropout,
    "bias": "none",
    "target_modules": sorted({name.split(".")[-3] for name in arrays}),
  }


def prompt_config(prompt: np.ndarray) -> dict[str, Any]:
  """What adapter_config.json says of a soft prompt (P, D)."""
  return {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": prompt.shape[0],
    "token_dim": prompt.shape[1],
    # One prompt, before the encoder's input: by default encoder-decoders get one more before the
    # decoder's.
    "num_transformer_submodules": 1,
    "prompt_tuning_init": "RANDOM",
  }


def export_block(
  folder: Path,
  block: blocks.Block,
  pet: config.Pet,
  backbone: ModelConfig,
  base: str,
  what: str = "one block",
) -> None:
  """Writes a block as a peft adapter folder.

  Args:
    block: LoRA, of any rank, with the scale pet.lora_scale; or a soft prompt.
    base: the backbone's folder or hub id, for peft to find it.
    what: one phrase for the README.

  Raises:
    InputError: the folder holds another adapter.
  """
  if (folder / "adapter_config.json").exists():
    raise InputError(f"{folder}: holds an adapter; name another folder")
  written: dict[str, Any] = {
    "base_model_name_or_path": base,
    "revision": None,
    "inference_mode": True,
    "task_type": "CAUSAL_LM" if backbone.is_decoder_only else "SEQ_2_SEQ_LM",
  }
  if "prompt" in block:
    arrays = {"prompt_embeddings": np.asarray(block["prompt"], np.float32)}
    written |= prompt_config(arrays["prompt_embeddings"])
  else:
    arrays = lora_arrays(block, backbone)
    written |= lora_config(arrays, pet)
  folder.mkdir(parents=True, exist_ok=True)
  weights = folder / "adapter_model.safetensors"
  safetensors.numpy.save_file(arrays, weights, metadata={"format": "pt"})
  give_usual_mode(weights)
  (folder / "README.md").write_text(README.format(base=base, what=what), encoding="utf-8")
  text = json.dumps(written, indent=2) + "\n"
  (folder / "adapter_config.json").write_text(text, encoding="utf-8")


# What an adapter can have and a block cannot.
PARTS = (
  *("use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"),
  "alora_invocation_tokens",  # acts behind these tokens only
)
# Starts of an adapter that also change the weights of the model below it.
OF_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq")


def read_block(folder: Path, pet: config.Pet, backbone: ModelConfig) -> blocks.Block:
  """The block that a peft adapter folder holds; a scale other than pet.lora_scale goes into B.

  Raises:
    InputError: it holds none, or one of another kind, size or place than pet asks for.
  """
  where = f"{folder}: adapter_config.json of a peft adapter"
  values = read_object(folder / "adapter_config.json", where)
  kind = {"LORA": "lora", "PROMPT_TUNING": "prompt"}.get(str(values.get("peft_type")))
  if kind != pet.kind:
    raise InputError(
      f"{folder}: holds {values.get('peft_type')}, where pet.kind {pet.kind} is asked for"
    )
  arrays = read_arrays(folder, "adapter_model")
  if kind == "prompt":
    return {"prompt": jnp.asarray(_prompt_of(folder, arrays, pet, backbone))}
  odd = [name for name in PARTS if values.get(name)]
  odd += ["bias"] if values.get("bias", "none") != "none" else []
  if str(values.get("init_lora_weights")).lower().startswith(OF_CHANGED_WEIGHTS):
    odd.append("init_lora_weights")
  if odd:
    raise InputError(f"{folder}: has {odd[0]} {values[odd[0]]!r}, which a block cannot have")
  block = _lora_block(folder, arrays, pet, backbone, _scale_of(folder, values) / pet.lora_scale)
  _check_shapes(folder, block, pet, backbone)
  return block


def _lora_block(
  folder: Path, arrays: dict[str, np.ndarray], pet: config.Pet, backbone: ModelConfig, scale: float
) -> blocks.Block:
  """The block of an adapter's arrays, B times scale.

  Raises:
    InputError: an array is missing, is no matrix or has no place in a block.
  """
  block: blocks.Block = {}
  left = {name: x.copy() for name, x in arrays.items()}  # what no site has taken
  of_backbone = list(sites(backbone, backbone.lora_sites(pet.targets)))
  fused = any(site.rows for site in of_backbone)
  for site in of_backbone:
    layers = []
    for layer in range(site.layers):
      name = f"base_model.model.{site.module.format(layer)}.{site.linear}"
      a, b = (_matrix(folder, arrays, f"{name}.lora_{x}.weight", pet) for x in "AB")
      start, count, total = site.rows or (0, len(b), len(b))
      if len(a) != b.shape[1] or len(b) != total:
        raise InputError(f"{folder}: {name} has lora_A {a.shape} and lora_B {b.shape}")
      left.pop(f"{name}.lora_A.weight", None)
      left[f"{name}.lora_B.weight"][start : start + count] = 0
      b = b[start : start + count]
      layers.append(_narrowed(a, b, pet.rank) if fused else (a, b))
    for ours, factors, times in zip("ab", zip(*layers, strict=True), (1, scale), strict=True):
      if len({x.shape for x in factors}) > 1:
        raise InputError(f"{folder}: {site.module}.{site.linear} has other shapes in some layers")
      factor = np.stack([x.T for x in factors]).astype(np.float32) * times
      put(block, ("lora", *site.path, ours), jnp.asarray(factor))
  others = sorted(name for name, x in left.items() if x.any())
  if others:
    raise InputError(
      f"{folder}: holds {others[0]}, which pet.targets {' '.join(pet.targets)} has no place for"
    )
  return block


def _narrowed(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """A (R, D_in) and B (D_out, R) without ranks that B has no number for, as far as that leaves
  `rank` of them.
  """
  used = b.any(axis=0)
  kept = np.sort(np.argsort(~used, kind="stable")[: max(rank, int(used.sum()))])
  return a[kept], b[:, kept]


def _matrix(folder: Path, arrays: dict[str, np.ndarray], name: str, pet: config.Pet) -> np.ndarray:
  """An array of those of an adapter."""
  if name not in arrays:
    raise InputError(
      f"{folder}: has no {name}, which the backbone and pet.targets {' '.join(pet.targets)} ask "
      "for; is it of another model?"
    )
  array = arrays[name]
  if array.ndim != 2 or not np.isfinite(array).all():
    raise InputError(f"{folder}: {name} is no matrix of finite numbers")
  return array


def _scale_of(folder: Path, values: dict[str, Any]) -> float:
  """What a LoRA adapter's product is multiplied by."""
  numbers = []
  for name in ("r", "lora_alpha"):
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
      raise InputError(f"{folder}: adapter_config.json: {name} {value!r} is no positive number")
    numbers.append(float(value))
  rank, alpha = numbers
  return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _check_shapes(
  folder: Path, block: blocks.Block, pet: config.Pet, backbone: ModelConfig
) -> None:
  sites_here = backbone.lora_sites(pet.targets)
  fresh = jax.eval_shape(lambda key: init_block(key, sites_here, pet.rank), jax.random.key(0))
  if words := misfit(block["lora"], fresh):
    raise InputError(f"{folder}: {words}")


def _prompt_of(
  folder: Path, arrays: dict[str, np.ndarray], pet: config.Pet, backbone: ModelConfig
) -> np.ndarray:
  wanted, prompt = (pet.prompt_length, backbone.width), arrays.get("prompt_embeddings")
  if prompt is None or prompt.shape != wanted or not np.isfinite(prompt).all():
    found = None if prompt is None else prompt.shape
    raise InputError(
      f"{folder}: prompt_embeddings has shape {found}; pet.prompt_length and the backbone ask for "
      f"{wanted}, of finite numbers"
    )
  return prompt.astype(np.float32)


def export_mixture(
  folder: Path,
  pool: blocks.Blocks,
  mixture: jax.Array,
  pet: config.Pet,
  backbone: ModelConfig,
  base: str,
) -> None:
  """Writes a pool under one mixture (T,) for all inputs as a peft adapter folder;
  blocks of weight 0 are left out.

  Raises:
    InputError: every weight is 0; the folder holds another adapter.
  """
  used = [slot for slot, weight in enumerate(np.asarray(mixture)) if weight != 0]
  if not used:
    raise InputError("every weight of the mixture is 0: there is nothing to export")
  slots = jnp.array(used)
  chosen = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.take(x, slots, blocks.task_axis(path)), pool
  )
  weights = ", ".join(f"{float(mixture[slot]):.4f} of block {slot + 1}" for slot in used)
  block = fixed_mixture(chosen, jnp.asarray(mixture)[slots])
  export_block(folder, block, pet, backbone, base, f"a fixed mixture, {weights}")
