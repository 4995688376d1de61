"""Hugging Face folder <-> backbone: config.json and safetensors (one file, or shards with an
index); one table of names each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sapt_jax import sharding
from sapt_jax.backbones import quantize
from sapt_jax.backbones.llama import Llama, LlamaConfig, RopeScaling
from sapt_jax.backbones.t5 import T5, T5Config
from sapt_jax.errors import InputError

Model = T5 | Llama
ModelConfig = T5Config | LlamaConfig


class Weight(NamedTuple):
  """One of our parameters and where Hugging Face keeps it.

  Attributes:
    path: our parameter, e.g. "encoder/attention/q/kernel".
    name: theirs; "{}" stands for the layer, whose parameters we stack on a leading axis.
    transpose: theirs is (D_out, D_in), as torch's linear layers keep it; ours (D_in, D_out).
    layers: how many layers are stacked; None where there is no layer axis.
  """

  path: str
  name: str
  transpose: bool
  layers: int | None

  def names(self) -> list[str]:
    return (
      [self.name]
      if self.layers is None
      else [self.name.format(layer) for layer in range(self.layers)]
    )


def t5_weights(c: T5Config) -> list[Weight]:
  """The table of T5's weights."""
  table = [Weight("embedding/table", "shared.weight", False, None)]
  if not c.tied_head:
    table.append(Weight("head/kernel", "lm_head.weight", True, None))
  gates = {"wi_0": "wi_0", "wi_1": "wi_1"} if c.gated else {"wi_0": "wi"}
  attentions = {
    "encoder": [("self", "SelfAttention")],
    "decoder": [("self", "SelfAttention"), ("cross", "EncDecAttention")],
  }
  for stack, depth in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
    for place, (ours, theirs) in enumerate(attentions[stack]):
      prefix = f"{stack}.block.{{}}.layer.{place}"
      table += [
        Weight(f"{stack}/{ours}_attention/{x}/kernel", f"{prefix}.{theirs}.{x}.weight", True, depth)
        for x in "qkvo"
      ]
      table.append(
        Weight(f"{stack}/{ours}_norm/scale", f"{prefix}.layer_norm.weight", False, depth)
      )
    prefix = f"{stack}.block.{{}}.layer.{len(attentions[stack])}"
    kernels = gates | {"wo": "wo"}
    table += [
      Weight(f"{stack}/feed_forward/{x}/kernel", f"{prefix}.DenseReluDense.{y}.weight", True, depth)
      for x, y in kernels.items()
    ]
    table.append(
      Weight(f"{stack}/feed_forward_norm/scale", f"{prefix}.layer_norm.weight", False, depth)
    )
    table.append(
      Weight(
        f"{stack}_bias/table",
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        False,
        None,
      )
    )
    table.append(Weight(f"{stack}_norm/scale", f"{stack}.final_layer_norm.weight", False, None))
  return table


def llama_weights(c: LlamaConfig) -> list[Weight]:
  """The table of LLaMA's weights."""
  table = [
    Weight("embedding/table", "model.embed_tokens.weight", False, None),
    Weight("norm/scale", "model.norm.weight", False, None),
  ]
  if not c.tied_head:
    table.append(Weight("head/kernel", "lm_head.weight", True, None))
  kernels = {x: f"self_attn.{x}_proj" for x in "qkvo"} | {
    x: f"mlp.{x}_proj" for x in ("gate", "up", "down")
  }
  norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
  table += [
    Weight(f"layers/{ours}/kernel", f"model.layers.{{}}.{theirs}.weight", True, c.layers)
    for ours, theirs in kernels.items()
  ]
  return table + [
    Weight(f"layers/{ours}/scale", f"model.layers.{{}}.{theirs}.weight", False, c.layers)
    for ours, theirs in norms.items()
  ]


def t5_config(raw: dict[str, Any]) -> T5Config:
  """config.json of a T5 -> T5Config; keys that may be absent take the defaults that Hugging Face
  documents.
  """
  projection = raw.get("feed_forward_proj", "relu")
  gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
  return T5Config(
    vocab_size=raw["vocab_size"],
    width=raw["d_model"],
    head_width=raw["d_kv"],
    heads=raw["num_heads"],
    mlp_width=raw["d_ff"],
    encoder_layers=raw["num_layers"],
    decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
    gated=gated,
    activation="gelu_new" if gated and activation == "gelu" else activation,
    tied_head=raw.get("tie_word_embeddings", True),
    scaled_head=raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", True)),
    buckets=raw.get("relative_attention_num_buckets", 32),
    max_distance=raw.get("relative_attention_max_distance", 128),
    epsilon=raw.get("layer_norm_epsilon", 1e-6),
    pad_id=raw.get("pad_token_id", 0),
    eos_id=raw.get("eos_token_id", 1),
    start_id=raw.get("decoder_start_token_id", 0),
  )


def llama_config(raw: dict[str, Any]) -> LlamaConfig:
  """config.json of a LLaMA -> LlamaConfig; rope settings are read in the old and the new place."""
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "llama3"):
    raise InputError(f"rope type {kind!r} is not supported: default, llama3")
  if raw.get("attention_bias") or raw.get("mlp_bias"):
    raise InputError("LLaMA models with attention_bias or mlp_bias are not supported")
  scaling = None
  if kind == "llama3":
    scaling = RopeScaling(
      rope["factor"],
      rope["low_freq_factor"],
      rope["high_freq_factor"],
      rope["original_max_position_embeddings"],
    )
  eos = raw.get("eos_token_id", 2)
  return LlamaConfig(
    vocab_size=raw["vocab_size"],
    width=raw["hidden_size"],
    mlp_width=raw["intermediate_size"],
    layers=raw["num_hidden_layers"],
    heads=raw["num_attention_heads"],
    key_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
    head_width=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
    rope_theta=rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
    rope_scaling=scaling,
    tied_head=raw.get("tie_word_embeddings", False),
    epsilon=raw.get("rms_norm_eps", 1e-6),
    pad_id=raw.get("pad_token_id") or 0,
    eos_id=eos[0] if isinstance(eos, list) else eos,
    bos_id=raw.get("bos_token_id", 1),
  )


class Architecture(NamedTuple):
  """How one `model_type` of config.json is read, built and named."""

  config: Callable[[dict[str, Any]], Any]
  model: Callable[[Any], Any]
  weights: Callable[[Any], list[Weight]]
  # Names that a folder may hold and that say nothing new: second names of tied tensors, and buffers
  # of old library versions.
  ignored: tuple[str, ...]


ARCHITECTURES = {
  "t5": Architecture(
    t5_config,
    T5,
    t5_weights,
    (
      "encoder.embed_tokens.weight",
      "decoder.embed_tokens.weight",
      "lm_head.weight",
      "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
  ),
  "llama": Architecture(
    llama_config, Llama, llama_weights, ("lm_head.weight", "rotary_emb.inv_freq")
  ),
}


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A frozen model, its parameters, and where they came from."""

  model: Model
  params: Any
  folder: pathlib.Path
  raw_config: dict[str, Any]

  @property
  def config(self) -> ModelConfig:
    return self.model.config


def find_folder(path: str) -> pathlib.Path:
  """The local folder of a model: `path` itself, or the hub's snapshot when path is an id such as
  google/t5-v1_1-large.

  Raises:
    InputError: there is no such folder and the hub does not give one.
  """
  folder = pathlib.Path(path).expanduser()
  if folder.is_dir():
    return folder
  if path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
    raise InputError(f"backbone.path {path!r}: no such folder")
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

  try:
    return pathlib.Path(
      snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
    )
  except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
      f"backbone.path {path!r}: neither a folder here nor a model that the hub gives ({reason})"
    ) from error


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """config.json of a model folder, its architecture checked."""
  file = folder / "config.json"
  try:
    raw = json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise InputError(
      f"{file}: no such file; a model folder holds config.json, *.safetensors and a tokenizer"
    ) from None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise InputError(f"{file}: not JSON ({error})") from None
  if raw.get("model_type") not in ARCHITECTURES:
    raise InputError(
      f"{file}: model_type {raw.get('model_type')!r} is not supported: {', '.join(ARCHITECTURES)}"
    )
  return raw


def build_model(
  raw: dict[str, Any],
  dtype: Any = jnp.float32,
  remat: str = "dots",
  unroll: int = 1,
  where: str = "config.json",
  bits: quantize.Bits = 0,
) -> Model:
  """The Flax module that a config.json describes; `where` is what an error calls it."""
  architecture = ARCHITECTURES[raw["model_type"]]
  try:
    return architecture.model(
      dataclasses.replace(
        architecture.config(raw), dtype=jnp.dtype(dtype), bits=bits, remat=remat, unroll=unroll
      )
    )
  except KeyError as error:
    raise InputError(f"{where}: {error.args[0]!r} is missing") from None


def init_params(model: Model, rng: jax.Array) -> Any:
  """Random parameters, boxed with their logical axes (flax.linen.meta.unbox gives plain arrays)."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return model.init(rng, tokens, tokens > 0, tokens, tokens > 0)["params"]


class WeightFiles:
  """Tensors of all safetensors files of a folder, read by name.

  A file is opened for each tensor anew: its pages stay in memory for as long as it is open.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    index = folder / "model.safetensors.index.json"
    names = (
      sorted(set(json.loads(index.read_text())["weight_map"].values()))
      if index.exists()
      else ["model.safetensors"]
    )
    self.paths = [folder / name for name in names]
    for path in self.paths:
      if not path.is_file():
        raise InputError(
          f"{path}: no such file; weights are read from safetensors alone; a model that comes as pytorch_model.bin: load it "
          "with transformers, save_pretrained it to a folder, and name that"
        )
    self.where: dict[str, pathlib.Path] = {}
    for path in self.paths:
      try:
        with safe_open(path, "numpy") as file:
          self.where |= dict.fromkeys(file.keys(), path)
      except SafetensorError as error:
        raise InputError(
          f"{path}: not a whole safetensors file ({error}); was it downloaded in full?"
        ) from None

  def read(self, name: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a tensor that should have this shape."""
    with safe_open(self.where[name], "numpy") as file:
      tensor = file.get_slice(name)
      if tuple(tensor.get_shape()) != shape:
        raise InputError(
          f"{self.folder}: {name} has shape {tuple(tensor.get_shape())}, config.json asks for {shape}"
        )
      return tensor[index]


def fingerprint(folder: pathlib.Path) -> str:
  """Identity of a model's weights: SHA-256 (hex) over config.json, every file's size and header,
  and 64 samples of 64 KiB of each.
  """
  digest = hashlib.sha256((folder / "config.json").read_bytes())
  for path in WeightFiles(folder).paths:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
      for offset in np.linspace(0, max(0, size - 65536), 64).astype(int):
        file.seek(offset)
        digest.update(file.read(65536))
  return digest.hexdigest()


def check_names(files: WeightFiles, table: list[Weight], ignored: tuple[str, ...]) -> None:
  """Every name of the table is in the files and the other way round, but for names that say nothing
  new.
  """
  wanted = {name for weight in table for name in weight.names()}
  missing = sorted(wanted - files.where.keys())
  unused = sorted(name for name in files.where.keys() - wanted if not name.endswith(ignored))
  if missing or unused:

    def listed(names):
      return f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "none"

    raise InputError(
      f"{files.folder}: weights do not fit config.json; missing: {listed(missing)}; not used: {listed(unused)}"
    )


def read_layers(
  files: WeightFiles, weight: Weight, shape: tuple[int, ...], index: tuple[slice, ...]
) -> Iterator[np.ndarray]:
  """The part `index` of one of our parameters of this shape, layer by layer; at once where there is
  no layer axis.
  """
  names = weight.names() if weight.layers is None else weight.names()[index[0]]
  if weight.layers is not None:
    shape, index = shape[1:], index[1:]
  for name in names:
    if weight.transpose:
      yield files.read(name, shape[::-1], index[::-1]).T
    else:
      yield files.read(name, shape, index)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An empty array that begins where JAX can take it over on a CPU; others it copies."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)


def read_weight(
  files: WeightFiles, weight: Weight, leaf: jax.ShapeDtypeStruct, index: tuple[slice, ...]
) -> list[np.ndarray]:
  """The part `index` of a parameter, put together from the layers it needs and nothing else."""
  whole = aligned(
    tuple(len(range(size)[part]) for size, part in zip(leaf.shape, index, strict=True)), leaf.dtype
  )
  for place, part in enumerate(read_layers(files, weight, leaf.shape, index)):
    whole[place if weight.layers is not None else ...] = part
  return [whole]


def read_quantized(
  files: WeightFiles,
  weight: Weight,
  codes: jax.ShapeDtypeStruct,
  scales: jax.ShapeDtypeStruct,
  index: tuple[slice, ...],
) -> list[np.ndarray]:
  """The part `index` of the codes of a kernel, and the scales that go with it; one layer's kernel
  is there at a time.
  """
  sizes = [range(size)[part] for size, part in zip(codes.shape, index, strict=True)]
  group = quantize.group_of(codes.shape[-2])
  rows = sizes[-2]
  assert rows.start % group == rows.stop % group == 0
  both = [
    aligned(tuple(map(len, sizes)), codes.dtype),
    aligned((*map(len, sizes[:-2]), len(rows) // group, len(sizes[-1])), scales.dtype),
  ]
  for place, part in enumerate(read_layers(files, weight, codes.shape, index)):
    for whole, found in zip(
      both,
      quantize.quantize(part, 8 if codes.dtype == jnp.int8 else 4, scales.dtype, group),
      strict=True,
    ):
      whole[place] = found
  return both


def place_arrays(
  leaves: list[jax.ShapeDtypeStruct], read: Callable[[tuple[slice, ...]], list[np.ndarray]]
) -> list[jax.Array]:
  """Arrays that stand together on the mesh, split alike: `read` gives the parts of all of them at
  an index of the first.

  A part is read once for all the devices that get it, and gone before the next one is read.
  """
  places: dict[str, list[jax.Device]] = {}
  indices = leaves[0].sharding.addressable_devices_indices_map(leaves[0].shape)
  for device, index in indices.items():
    places.setdefault(str(index), []).append(device)
  parts: list[list[jax.Array]] = [[] for _ in leaves]
  for devices in places.values():
    for several, part in zip(parts, read(indices[devices[0]]), strict=True):
      several += [jax.device_put(part, device) for device in devices]
    jax.block_until_ready(parts)
  return [
    jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, several)
    for leaf, several in zip(leaves, parts, strict=True)
  ]


def load_backbone(
  path: str,
  dtype: Any = jnp.float32,
  mesh: jax.sharding.Mesh | None = None,
  remat: str = "dots",
  unroll: int = 1,
  bits: quantize.Bits = 0,
) -> Backbone:
  """Loads a frozen model, parameter by parameter, each straight to its place on the mesh.

  The host holds what one device gets of one parameter at a time.

  Args:
    path: a Hugging Face model folder, or a hub id.
    dtype: of weights and compute, float32 or bfloat16.
    mesh: from sharding.make_mesh; None: the first device alone.
    remat: "none" or a name in layers.REMAT_POLICIES.
    unroll: layers per iteration of the scan over layers.
    bits: 8 or 4 quantises the kernels of all layers (quantize.py) while they are read; embeddings,
      head, norms and position biases stay in dtype. 0: nothing is quantised.

  Raises:
    InputError: no folder, no or unreadable config.json, another architecture, no safetensors, names
      or shapes that do not fit.
  """
  folder = find_folder(path)
  raw, files = read_config(folder), WeightFiles(folder)
  if raw.get("scale_decoder_outputs") is False and "lm_head.weight" in files.where:
    raw["tie_word_embeddings"] = (
      False  # transformers 5 calls every T5 tied, also one whose files hold a head of its own
    )
  model = build_model(raw, dtype, remat, unroll, where=str(folder / "config.json"), bits=bits)
  architecture = ARCHITECTURES[raw["model_type"]]
  table = architecture.weights(model.config)
  check_names(files, table, architecture.ignored)
  abstract = traverse_util.flatten_dict(
    sharding.abstract_params(
      lambda: init_params(model, jax.random.key(0)), mesh or sharding.make_mesh()
    ),
    sep="/",
  )
  params = {}
  for weight in table:
    if weight.path in abstract:
      leaf = abstract.pop(weight.path)
      [params[weight.path]] = place_arrays([leaf], partial(read_weight, files, weight, leaf))
    else:
      paths = [f"{weight.path.removesuffix('kernel')}{part}" for part in ("codes", "scales")]
      codes, scales = map(abstract.pop, paths)
      params |= zip(
        paths,
        place_arrays([codes, scales], partial(read_quantized, files, weight, codes, scales)),
        strict=True,
      )
  if abstract:
    raise AssertionError(f"parameters without a row in the weight table: {sorted(abstract)}")
  return Backbone(model, traverse_util.unflatten_dict(params, sep="/"), folder, raw)


def torch_tensors(
  model: Model, raw: dict[str, Any], params: Any
) -> Iterator[tuple[str, np.ndarray]]:
  """(Hugging Face name, array in Hugging Face's layout) of every parameter of a model that is not
  quantised.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  for weight in ARCHITECTURES[raw["model_type"]].weights(model.config):
    value = np.asarray(flat[weight.path])
    for name, part in zip(
      weight.names(), value if weight.layers is not None else [value], strict=True
    ):
      yield name, np.ascontiguousarray(part.T if weight.transpose else part)


def save_backbone(
  folder: str | pathlib.Path,
  model: Model,
  raw: dict[str, Any],
  params: Any,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and safetensors as Hugging Face names them: one file, or shards of at most
  max_shard_bytes with an index.
  """
  if model.config.bits:
    raise InputError(
      f"{folder}: a backbone of {model.config.bits} bits is not written; load it with backbone.bits 0 to do so"
    )
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shards: list[dict[str, np.ndarray]] = [{}]
  for name, tensor in torch_tensors(model, raw, params):
    if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > max_shard_bytes:
      shards.append({})
    shards[-1][name] = tensor
  raw = raw | {"torch_dtype": str(model.config.dtype)}
  (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
  if len(shards) == 1:
    save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
    return
  weight_map: dict[str, str] = {}
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    save_file(shard, folder / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(shard, file)
  total = sum(t.nbytes for shard in shards for t in shard.values())
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
  )
