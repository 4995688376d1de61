"""Goldens: what the authors' PyTorch code computes on a small random model, in one .npz file.

    param/NAME                         every parameter, by its name in that code
    {eq,pad,leftpad}/in/..., out/...   batches and what comes out of them; grad/NAME: the gradient
                                       of the loss
    replay/{i}/in/..., out/kl, grad/   pseudo inputs of earlier task i, their KL and its gradient

Pools are newest first there, oldest first here. Sizes are read off the arrays; what these do not
show, off the golden's entry in an index*.json beside it, if there is one.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sapt_jax import config
from sapt_jax.backbones import hf
from sapt_jax.backbones.architectures import ARCHITECTURES
from sapt_jax.errors import InputError
from sapt_jax.interop import public
from sapt_jax.methods.lesson import Learned, Setting
from sapt_jax.methods.sapt import Sapt, SaptOptions
from sapt_jax.text_files import read_object

Arrays = dict[str, np.ndarray]


# Equal to itself alone, so that compiled functions can tell it from others.
@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
  """A golden file and the library's side of it.

  Attributes:
    arrays: all of the file.
    tasks: T, blocks in the pool.
    prefix: of the attention's parameters, "encoder" or "model".
    learned: the pool, in a method with room for one task more, so that an empty slot is always
      there.
  """

  arrays: Arrays
  tasks: int
  prefix: str
  model: hf.Model
  params: Any
  method: Sapt
  learned: Learned

  def newest_first(self, x: jax.Array) -> jax.Array:
    """(..., capacity) in the order of the pool -> (..., T) in that of goldens."""
    return x[..., : self.tasks][..., ::-1]

  def oldest_first(self, x: np.ndarray) -> np.ndarray:
    """(..., T) in the order of goldens -> (..., capacity) in that of the pool."""
    empty = self.method.setting.capacity - self.tasks
    return np.pad(x[..., ::-1], [(0, 0)] * (x.ndim - 1) + [(0, empty)])


def read_arrays(path: Path) -> Arrays:
  """All arrays of an .npz file."""
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise InputError(f"{path}: not an .npz file of arrays ({error})") from None
  if not any(name.startswith("param/") for name in arrays):
    raise InputError(f"{path}: not a golden: no arrays param/...")
  return arrays


def index_entry(path: Path) -> dict[str, Any]:
  """What an index*.json beside a golden says of it; nothing if there is none."""
  for index in sorted(path.parent.glob("index*.json")):
    entry = read_object(index).get(path.name)
    if entry is not None:
      return entry
  return {}


def layer_count(arrays: Arrays, stack: str) -> int:
  """1 + the largest layer number of the parameters param/{stack}.{number}..."""
  start = f"param/{stack}."
  inside = [name.removeprefix(start) for name in arrays if name.startswith(start)]
  return 1 + max(int(name.split(".")[0]) for name in inside)


def t5_config(arrays: Arrays) -> dict[str, Any]:
  """config.json of the T5 that these parameters belong to."""
  attention = "param/encoder.block.0.layer.0.SelfAttention"
  buckets, heads = arrays[f"{attention}.relative_attention_bias.weight"].shape
  vocabulary, width = arrays["param/shared.weight"].shape
  feed_forward = "param/encoder.block.0.layer.1.DenseReluDense"
  return {
    "model_type": "t5",
    "vocab_size": vocabulary,
    "d_model": width,
    "num_heads": heads,
    "d_kv": arrays[f"{attention}.q.weight"].shape[0] // heads,
    "d_ff": arrays[f"{feed_forward}.wo.weight"].shape[1],
    "num_layers": layer_count(arrays, "encoder.block"),
    "num_decoder_layers": layer_count(arrays, "decoder.block"),
    "feed_forward_proj": "gated-gelu" if f"{feed_forward}.wi_0.weight" in arrays else "relu",
    "tie_word_embeddings": "param/lm_head.weight" not in arrays,
    "relative_attention_num_buckets": buckets,
  }


def llama_config(arrays: Arrays) -> dict[str, Any]:
  """config.json of the LLaMA that these parameters belong to, but for num_attention_heads."""
  vocabulary, width = arrays["param/model.embed_tokens.weight"].shape
  return {
    "model_type": "llama",
    "vocab_size": vocabulary,
    "hidden_size": width,
    "eos_token_id": 2,
    "pad_token_id": padding_id(arrays, default=1),
    "intermediate_size": arrays["param/model.layers.0.mlp.up_proj.weight"].shape[0],
    "num_hidden_layers": layer_count(arrays, "model.layers"),
    "tie_word_embeddings": "param/lm_head.weight" not in arrays,
  }


def padding_id(arrays: Arrays, default: int) -> int:
  """The id that stands at masked places of a golden's batches, the default if they have none."""
  batches = [f"{name}/in" for name in batch_names(arrays)]
  masked = [arrays[f"{x}/input_ids"][arrays[f"{x}/attention_mask"] == 0] for x in batches]
  ids = np.concatenate(masked)
  return int(ids[0]) if ids.size else default


def with_heads(raw: dict[str, Any], arrays: Arrays, heads: int) -> dict[str, Any]:
  """A LLaMA's config.json with this number of heads, and what follows from it."""
  attention = "param/model.layers.0.self_attn"
  width, key_width = (arrays[f"{attention}.{x}_proj.weight"].shape[0] for x in "qk")
  if width % (2 * heads) or key_width % (width // heads):
    raise InputError(f"{heads} heads do not fit q_proj and k_proj of {width} and {key_width} rows")
  head_width = width // heads
  return raw | {
    "num_attention_heads": heads,
    "head_dim": head_width,
    "num_key_value_heads": key_width // head_width,
  }


def all_heads(raw: dict[str, Any], arrays: Arrays) -> Iterator[dict[str, Any]]:
  """A LLaMA's config.json with every number of heads that its shapes allow."""
  for heads in range(1, arrays["param/model.layers.0.self_attn.q_proj.weight"].shape[0] // 2 + 1):
    try:
      yield with_heads(raw, arrays, heads)
    except InputError:
      continue


def make_golden(arrays: Arrays, raw: dict[str, Any], alpha: float, quirks: bool) -> Golden:
  """The model, pool and method that a golden's parameters make up."""
  start = "param/"
  given = {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}
  model = hf.build_model(raw)
  params = {}
  for weight in ARCHITECTURES[raw["model_type"]].weights(model.config):
    parts = [given[name].T if weight.transpose else given[name] for name in weight.names()]
    params[weight.path] = jnp.asarray(parts[0] if weight.layers is None else np.stack(parts))
  prefix = "model" if model.config.is_decoder_only else "encoder"
  keys = given[f"{prefix}.prompt_key"]
  if f"{prefix}.previous_prompts_keys" in given:
    keys = np.concatenate([keys, given[f"{prefix}.previous_prompts_keys"]])
  tasks = len(keys)
  pool = [public.block_from(given, model.config, age) for age in public.ages(tasks)]
  rank = min(given[name].shape[0] for name in given if name.endswith("lora_A"))
  pet = config.Pet(rank=rank, alpha=alpha)
  setting = Setting(pet, model.config.lora_sites(), params["embedding/table"], tasks + 1, 0)
  method = Sapt(SaptOptions(reference_quirks=quirks), setting)
  query = public.query_from(given, f"{prefix}.trans_input.")
  learned = public.make_learned(method, pool, keys[::-1], query)
  params = traverse_util.unflatten_dict(params, sep="/")
  return Golden(arrays, tasks, prefix, model, params, method, learned)


def batch_names(arrays: Arrays) -> list[str]:
  """The batches of a golden: "eq", "pad", ..."""
  return sorted({name.split("/")[0] for name in arrays if name.endswith("/in/labels")})


def candidates(path: Path, heads: int | None = None, quirks: bool = True) -> Iterator[Golden]:
  """Reads a golden and builds the library's side of it.

  One, but for a LLaMA whose number of heads is given neither by `heads` nor by an index: then one
  for every number that the shapes allow.

  Raises:
    InputError: not a golden, or one of a form that is not known.
  """
  arrays, entry = read_arrays(path), index_entry(path)
  if entry.get("attn_temperature", 1) != 1:
    raise InputError(
      f"{path}: attn_temperature {entry['attn_temperature']}: only 1, scores / sqrt(d_model), "
      "is known"
    )
  known, alpha = entry.get("config", {}), entry.get("lora_alpha", 32)
  try:
    if "param/shared.weight" in arrays:
      raws = [t5_config(arrays) | known | {"model_type": "t5"}]
    else:
      raw, heads = llama_config(arrays) | known, heads or known.get("num_attention_heads")
      raws = [with_heads(raw, arrays, heads)] if heads else list(all_heads(raw, arrays))
    for raw in raws:
      yield make_golden(arrays, raw, alpha, quirks)
  except KeyError as error:
    raise InputError(f"{path}: no array {error.args[0]}") from None
