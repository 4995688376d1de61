"""Weights from safetensors files to their places on the mesh, part by part, quantised on the way
where that is asked for.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from sapt_jax.backbones import quantize
from sapt_jax.backbones.architectures import Architecture
from sapt_jax.backbones.weights import Weight
from sapt_jax.errors import InputError
from sapt_jax.text_files import read_object

FLOATS = ("F64", "F32", "F16", "BF16")
QUANTISED = ("qweight", "qzeros", "absmax", "quant_map", "SCB", "weight_format")  # ends of names


class WeightFiles:
  """Tensors of all safetensors files of a folder, read by name.

  A file is opened for each tensor anew: its pages stay in memory for as long as it is open. Where a
  folder holds both a single file and shards with an index, the single file counts, as in
  transformers, and the shards must hold the same.

  Raises:
    InputError: a file is missing or not whole; weights that are no plain numbers; two sets of files
      that differ.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.stored: dict[str, str] = {}  # names that are kept under another one
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    whole = single.is_file()
    shards = _indexed_files(index) if index.exists() and not whole else []
    self.paths = [single] if whole or not shards else shards
    self.where, self.dtypes = _tensors_of(self.paths)
    if whole and index.exists():
      self._check_shards(index)

  def _check_shards(self, index: pathlib.Path) -> None:
    """Whether shards beside the single file, if they are all there, hold what it holds."""
    try:
      shards = _indexed_files(index)
    except InputError:  # the single file counts
      return
    if not all(path.is_file() for path in shards):
      return
    others, _ = _tensors_of(shards)
    differing = sorted(self.where.keys() ^ others.keys())
    differing = differing or [
      name for name in others if not _same_tensor(name, self.where[name], others[name])
    ]
    if differing:
      raise InputError(
        f"{self.folder}: model.safetensors and the shards of {index.name} hold different weights "
        f"({_listed(differing)}); remove those that are out of date"
      )

  def same(self, left: str, right: str) -> bool:
    """Whether two tensors of the files hold the same numbers."""
    one, other = (self.stored.get(name, name) for name in (left, right))
    return one == other or _same_tensor(one, self.where[one], self.where[other], other)

  def find_second_names(self, wanted: set[str], tied: dict[str, str]) -> None:
    """Takes tensors that are wanted and missing from where they are kept under a second name."""
    for second, name in tied.items():
      if name in wanted - self.where.keys() and second in self.where.keys() - wanted:
        self.stored[name], self.where[name] = second, self.where[second]

  def read(self, name: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a tensor that should have this shape."""
    with safe_open(self.where[name], "numpy") as file:
      tensor = file.get_slice(self.stored.get(name, name))
      if tuple(tensor.get_shape()) != shape:
        raise InputError(
          f"{self.folder}: {name} has shape {tuple(tensor.get_shape())}, "
          f"config.json asks for {shape}"
        )
      return tensor[index]


def _indexed_files(index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index names.

  Raises:
    InputError: it is none.
  """
  places = read_object(index).get("weight_map")
  names = list(places.values()) if isinstance(places, dict) else []
  here = (isinstance(name, str) and pathlib.PurePath(name).name == name for name in names)
  if not names or not all(here):
    raise InputError(f"{index}: its weight_map names no files of this folder; download it again")
  return [index.parent / name for name in sorted(set(names))]


def _tensors_of(paths: list[pathlib.Path]) -> tuple[dict[str, pathlib.Path], dict[str, str]]:
  """The names of all tensors in some files, with the file that each is in, and with its dtype."""
  where: dict[str, pathlib.Path] = {}
  dtypes: dict[str, str] = {}
  for path in paths:
    if not path.is_file():
      raise InputError(
        f"{path}: no such file; weights are read from safetensors alone; a model that comes as "
        "pytorch_model.bin: load it with transformers, save_pretrained it to a folder, and name "
        "that"
      )
    try:
      with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (the file itself cannot be iterated over)
          where[name], dtypes[name] = path, file.get_slice(name).get_dtype()
    except SafetensorError as error:
      raise InputError(
        f"{path}: not a whole safetensors file ({error}); was it downloaded in full?"
      ) from None
  return where, dtypes


def _same_tensor(
  name: str, one: pathlib.Path, other: pathlib.Path, its_name: str | None = None
) -> bool:
  """Whether a tensor holds the same numbers in two files, under another name in the other."""
  with safe_open(one, "numpy") as left, safe_open(other, "numpy") as right:
    a, b = left.get_slice(name), right.get_slice(its_name or name)
    if a.get_shape() != b.get_shape() or a.get_dtype() != b.get_dtype():
      return False
    return bool(np.array_equal(left.get_tensor(name), right.get_tensor(its_name or name)))


def check_names(files: WeightFiles, table: list[Weight], architecture: Architecture) -> None:
  """Every name of the table is in the files and the other way round, but for second names of tied
  tensors, which must hold the same numbers, and names that say nothing.
  """
  wanted = {name for weight in table for name in weight.names()}
  files.find_second_names(wanted, architecture.tied)
  missing = sorted(wanted - files.where.keys())
  extra = {name for name in files.where.keys() - wanted if not name.endswith(architecture.ignored)}
  tied = {name: architecture.tied[name] for name in extra & architecture.tied.keys()}
  unused = sorted(extra - tied.keys())
  for name in sorted((wanted | set(unused)) & files.dtypes.keys()):
    if files.dtypes[name] not in FLOATS and (name in wanted or name.endswith(QUANTISED)):
      raise InputError(
        f"{files.folder}: {name} is kept as {files.dtypes[name]}: a quantised model; name the "
        "full-precision one (--backbone.bits quantises it while it is loaded)"
      )
  if missing or unused:
    raise InputError(
      f"{files.folder}: weights do not fit config.json; missing: {_listed(missing)}; "
      f"not used: {_listed(unused)}"
    )
  for name, source in tied.items():
    if not files.same(name, source):
      raise InputError(
        f"{files.folder}: {name} differs from {source}, to which config.json ties it; set "
        "tie_word_embeddings to false there if it is a head of its own, else remove it"
      )


def _listed(names: list[str]) -> str:
  return f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "none"


def read_layers(
  files: WeightFiles, weight: Weight, shape: tuple[int, ...], index: tuple[slice, ...]
) -> Iterator[np.ndarray]:
  """The part `index` of one of our parameters of this shape, layer by layer;
  at once where there is no layer axis.
  """
  names = weight.names() if weight.layers is None else weight.names()[index[0]]
  if weight.layers is not None:
    shape, index = shape[1:], index[1:]
  for name in names:
    theirs, part = (shape[::-1], index[::-1]) if weight.transpose else (shape, index)
    if weight.rows is not None:
      start, count, total = weight.rows
      first, last, _ = part[0].indices(count)
      theirs, part = (total, *theirs[1:]), (slice(start + first, start + last), *part[1:])
    found = files.read(name, theirs, part)
    yield found.T if weight.transpose else found


def _places(shape: tuple[int, ...], index: tuple[slice, ...]) -> list[range]:
  """The places along each axis of an array that the part `index` takes."""
  return [range(size)[part] for size, part in zip(shape, index, strict=True)]


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
  shape = tuple(map(len, _places(leaf.shape, index)))
  whole = aligned(shape, leaf.dtype)
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
  """The part `index` of the codes of a kernel, and the scales that go with it;
  one layer's kernel is there at a time.
  """
  places, group = _places(codes.shape, index), quantize.group_of(codes.shape[-2])
  assert places[-2].start % group == places[-2].stop % group == 0
  *stacked, d_in, d_out = map(len, places)
  all_codes = aligned((*stacked, d_in, d_out), codes.dtype)
  all_scales = aligned((*stacked, d_in // group, d_out), scales.dtype)
  bits = 8 if codes.dtype == jnp.int8 else 4
  for layer, kernel in enumerate(read_layers(files, weight, codes.shape, index)):
    all_codes[layer], all_scales[layer] = quantize.quantize(kernel, bits, scales.dtype, group)
  return [all_codes, all_scales]


def place_arrays(
  leaves: list[jax.ShapeDtypeStruct], read: Callable[[tuple[slice, ...]], list[np.ndarray]]
) -> list[jax.Array]:
  """Arrays that stand together on the mesh, split alike:
  `read` gives the parts of all of them at an index of the first.

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
