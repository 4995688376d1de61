"""Hugging Face folder <-> backbone:
config.json and safetensors (one file, or shards with an index).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from sapt_jax import sharding
from sapt_jax.backbones import quantize
from sapt_jax.backbones.architectures import ARCHITECTURES
from sapt_jax.backbones.attention import choose
from sapt_jax.backbones.llama import Llama
from sapt_jax.backbones.llama_config import LlamaConfig
from sapt_jax.backbones.reading import (
  WeightFiles,
  check_names,
  place_arrays,
  read_quantized,
  read_weight,
)
from sapt_jax.backbones.t5 import T5
from sapt_jax.backbones.t5_config import T5Config
from sapt_jax.backbones.weights import Weight
from sapt_jax.errors import InputError
from sapt_jax.text_files import give_usual_mode, read_object

Model = T5 | Llama
ModelConfig = T5Config | LlamaConfig


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
  """The local folder of a model:
  `path` itself, or the hub's snapshot when path is an id such as google/t5-v1_1-large.

  Raises:
    InputError: there is no such folder and the hub does not give one.
  """
  folder = pathlib.Path(path).expanduser()
  if folder.is_dir():
    return folder
  if folder.is_file() and folder.suffix == ".gguf":
    refuse_gguf(folder)
  if folder.is_file():
    raise InputError(f"backbone.path {path!r}: is a file; name the folder that a model is in")
  if path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1 or not path:
    raise InputError(f"backbone.path {path!r}: no such folder")
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

  patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.tiktoken", "*.txt"]
  unused = ["*/*", "consolidated*"]  # the same weights once more
  try:
    return pathlib.Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=unused))
  except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
      f"backbone.path {path!r}: neither a folder here nor a model that the hub gives ({reason})"
    ) from error


def refuse_gguf(file: pathlib.Path) -> NoReturn:
  """Says how a model that comes as GGUF is made one that can be read.

  Raises:
    InputError: always.
  """
  raise InputError(
    f"{file}: a model in GGUF; make a Hugging Face folder of it and name that: in Python, with "
    "transformers, torch and gguf installed, AutoModelForCausalLM.from_pretrained("
    f"{str(file.parent)!r}, gguf_file={file.name!r}, quantization_config=GgufConfig(dequantize=True"
    ")).save_pretrained(FOLDER), and AutoTokenizer likewise"
  )


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """config.json of a model folder, its architecture checked."""
  file = folder / "config.json"
  quantised = sorted(folder.glob("*.gguf"))
  if quantised and not any(folder.glob("*.safetensors")):
    refuse_gguf(quantised[0])
  if not file.exists():
    raise InputError(
      f"{file}: no such file; a model folder holds config.json, *.safetensors and a tokenizer"
    )
  raw = read_object(file)
  if raw.get("quantization_config"):
    quantised = raw["quantization_config"]
    kind = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
    raise InputError(
      f"{file}: a quantised model ({kind}); name the full-precision one (--backbone.bits quantises "
      "it while it is loaded)"
    )
  if str(raw.get("model_type")) not in ARCHITECTURES:
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
  dropout: float = 0.0,
  attention: str = "xla",
  platform: str = "",
) -> Model:
  """The Flax module that a config.json describes.

  Args:
    where: what an error calls the config.json.
    attention: a name that attention.choose knows.
    platform: of the devices that it will run on; empty: JAX's own.

  Raises:
    InputError: it describes no model, or one that this attention cannot do there.
  """
  architecture = ARCHITECTURES[raw["model_type"]]
  try:
    c = architecture.config(raw)
  except KeyError as error:
    raise InputError(f"{where}: {error.args[0]!r} is missing") from None
  except InputError as error:
    raise InputError(f"{where}: {error}") from None
  except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
    raise InputError(f"{where}: a value of the wrong kind ({error})") from None
  c = _checked(c, where)
  if ropes := tuple(_checked(rope, where, least=0) for rope in getattr(c, "ropes", ())):
    c = dataclasses.replace(c, ropes=ropes)
  for rope in ropes:
    if rope.kind not in ("default", "linear") and not rope.length:
      raise InputError(f"{where}: rope type {rope.kind!r} needs max_position_embeddings")
  remat = "dots" if remat == "auto" else remat  # where nothing is learned, it does not matter
  c = dataclasses.replace(c, dtype=jnp.dtype(dtype), bits=bits, remat=remat, unroll=unroll)
  if isinstance(c, T5Config):
    c = dataclasses.replace(c, dropout=dropout)
  elif dropout:
    raise InputError(
      f"backbone.dropout {dropout}: {raw['model_type']} models have none ({where}); give 0"
    )
  if attention != "xla":  # which needs no look at the devices
    asked = c.of_attention(platform or jax.default_backend())
    attention, _ = choose(attention, asked, here=not platform)
  return architecture.model(dataclasses.replace(c, attention=attention))


def _checked(values: Any, where: str, least: int = 1) -> Any:
  """What was made of a config.json, if its fields hold what their types say, sizes `least` at
  least; a whole number where any may stand is a float from here on.

  Raises:
    InputError: one does not.
  """
  floats = {}
  for field in dataclasses.fields(values):
    value = getattr(values, field.name)
    smallest = 0 if field.name.endswith("_id") else least
    if field.type == "int" and (type(value) is not int or not smallest <= value < 2**31):
      raise InputError(f"{where}: {field.name} would be {value!r}, which is no size")
    number = isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max)
    if field.type == "float" and (isinstance(value, bool) or not number):
      raise InputError(f"{where}: {field.name} would be {value!r}, which is no number")
    if field.name == "epsilon" and value < 0:  # it stands under a root
      raise InputError(f"{where}: {field.name} would be {value!r}, which is below 0")
    if field.type == "float":
      floats[field.name] = float(value)
    if field.type == "bool" and type(value) is not bool:
      raise InputError(f"{where}: {field.name} would be {value!r}, which is not true or false")
  return dataclasses.replace(values, **floats)


def init_params(model: Model, rng: jax.Array) -> Any:
  """Random parameters, boxed with their logical axes (flax.linen.meta.unbox gives plain arrays)."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return model.init(rng, tokens, tokens > 0, tokens, tokens > 0)["params"]


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


def load_backbone(
  path: str,
  dtype: Any = jnp.float32,
  mesh: jax.sharding.Mesh | None = None,
  remat: str = "dots",
  unroll: int = 1,
  bits: quantize.Bits = 0,
  dropout: float = 0.0,
  attention: str = "xla",
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
    dropout: of a T5 while it is learned with.
    attention: a name that attention.choose knows.

  Raises:
    InputError: no folder, no or unreadable config.json, another architecture, no safetensors, names
      or shapes that do not fit, an attention that these devices cannot do.
  """
  folder = find_folder(path)
  raw, files = read_config(folder), WeightFiles(folder)
  # transformers 5 calls every T5, mT5 and umT5 tied, also one whose files hold a head of its own;
  # of umT5 it then scales the states as well.
  relative = raw["model_type"] in ("mt5", "umt5")
  own_head = relative or raw.get("scale_decoder_outputs") is False
  if own_head and "lm_head.weight" in files.where:
    scaled = raw["model_type"] == "umt5" and raw.get("tie_word_embeddings", True)
    raw |= {"scale_decoder_outputs": scaled, "tie_word_embeddings": False}
  where = str(folder / "config.json")
  model = build_model(raw, dtype, remat, unroll, where, bits, dropout, attention)
  architecture = ARCHITECTURES[raw["model_type"]]
  table = architecture.weights(model.config)
  check_names(files, table, architecture)
  abstract = sharding.abstract_params(
    lambda: init_params(model, jax.random.key(0)), mesh or sharding.make_mesh()
  )
  return Backbone(model, read_params(files, table, abstract), folder, raw)


def read_params(files: WeightFiles, table: list[Weight], abstract: Any) -> Any:
  """The parameters that stand in the table, shaped and sharded as their abstract ones."""
  leaves, params = traverse_util.flatten_dict(abstract, sep="/"), {}
  for weight in table:
    if weight.path in leaves:
      leaf = leaves.pop(weight.path)
      [params[weight.path]] = place_arrays([leaf], partial(read_weight, files, weight, leaf))
    else:
      paths = [f"{weight.path.removesuffix('kernel')}{part}" for part in ("codes", "scales")]
      both = [leaves.pop(path) for path in paths]
      arrays = place_arrays(both, partial(read_quantized, files, weight, *both))
      params |= zip(paths, arrays, strict=True)
  if leaves:
    raise AssertionError(f"parameters without a row in the weight table: {sorted(leaves)}")
  return traverse_util.unflatten_dict(params, sep="/")


def torch_tensors(
  model: Model, raw: dict[str, Any], params: Any
) -> Iterator[tuple[str, np.ndarray]]:
  """(Hugging Face name, array in Hugging Face's layout) of every parameter
  of a model that is not quantised.
  """
  flat, fused = traverse_util.flatten_dict(params, sep="/"), dict[str, list[np.ndarray]]()
  for weight in ARCHITECTURES[raw["model_type"]].weights(model.config):
    value = np.asarray(flat[weight.path])
    parts = [value] if weight.layers is None else value
    for name, part in zip(weight.names(), parts, strict=True):
      tensor = np.ascontiguousarray(part.T if weight.transpose else part)
      if weight.rows is None:
        yield name, tensor
      else:  # in the table, those that are one of theirs stand in its order
        fused.setdefault(name, []).append(tensor)
  for name, tensors in fused.items():
    yield name, np.concatenate(tensors)


def _shards(
  tensors: Iterator[tuple[str, np.ndarray]], max_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
  """The tensors in their order, as many together as max_bytes hold; one at least."""
  shard: dict[str, np.ndarray] = {}
  for name, tensor in tensors:
    if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > max_bytes:
      yield shard
      shard = {}
    shard[name] = tensor
  yield shard


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
      f"{folder}: a backbone of {model.config.bits} bits is not written; "
      "load it with backbone.bits 0 to do so"
    )
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shards = list(_shards(torch_tensors(model, raw, params), max_shard_bytes))
  named = {"dtype", "torch_dtype"} & raw.keys() or {"torch_dtype"}  # newer and older folders
  raw = raw | dict.fromkeys(named, str(model.config.dtype))
  (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
  if len(shards) == 1:
    save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
    give_usual_mode(folder / "model.safetensors")
    return
  weight_map: dict[str, str] = {}
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    save_file(shard, folder / file, metadata={"format": "pt"})
    give_usual_mode(folder / file)
    weight_map |= dict.fromkeys(shard, file)
  total = sum(t.nbytes for shard in shards for t in shard.values())
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
  )
