"""A backbone with one mixture of blocks added to its weights: a Hugging Face folder that needs no
adapter any more.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sapt_jax import config
from sapt_jax.backbones import hf
from sapt_jax.backbones.architectures import ARCHITECTURES
from sapt_jax.errors import InputError
from sapt_jax.interop.peft import fixed_mixture
from sapt_jax.interop.sites import get, sites
from sapt_jax.pet import blocks

# What of a model folder is its weights; all else goes along, but for what is said of the old ones.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")


def export_merged(
  folder: Path, pool: blocks.Blocks, mixture: jax.Array, pet: config.Pet, backbone: hf.Backbone
) -> None:
  """Writes the backbone with W + alpha / r * sum_i a_i B_i A_i in place of each W that LoRA sits
  on, in the backbone's dtype, and its tokenizer.

  Args:
    mixture: (T,) float32, the same for all inputs.

  Raises:
    InputError: soft prompts; a backbone that is quantised; the folder is not empty.
  """
  if "lora" not in pool:
    raise InputError("a soft prompt changes no weights; export a block or a mixture for peft")
  if folder.exists() and any(folder.iterdir()):
    raise InputError(f"{folder}: is not empty; name another folder")
  block = fixed_mixture(pool, mixture)
  model, flat = backbone.model, traverse_util.flatten_dict(backbone.params, sep="/")
  table = ARCHITECTURES[backbone.raw_config["model_type"]].weights(model.config)
  paths = {(weight.name, weight.rows): weight.path for weight in table}
  for site in sites(model.config, block["lora"]):
    path = paths[f"{site.module}.{site.linear}.weight", site.rows]
    factors = get(block["lora"], site.path)
    if path in flat:  # a quantised one is not, and is refused below
      flat[path] = added(flat[path], factors["a"], factors["b"], pet.lora_scale)
  hf.save_backbone(folder, model, backbone.raw_config, traverse_util.unflatten_dict(flat, sep="/"))
  for file in backbone.folder.iterdir():
    others = file.name not in ("config.json", "README.md") and not file.name.endswith(WEIGHTS)
    if file.is_file() and others:
      shutil.copyfile(file, folder / file.name)


def added(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> np.ndarray:
  """(layers, D_in, D_out) kernels with scale * A B added in float32, layer by layer."""
  whole = np.array(kernel)
  with jax.default_matmul_precision("highest"):
    for layer in range(len(whole)):
      product = scale * (jnp.asarray(a[layer]) @ jnp.asarray(b[layer]))
      whole[layer] = np.asarray(whole[layer], np.float32) + np.asarray(product)
  return whole
