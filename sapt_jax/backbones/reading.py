"""Weights from safetensors files to their places on the mesh, part by part, quantised on the way
where that is asked for.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from sapt_jax.backbones import quantize
from sapt_jax.backbones.architectures import Weight
from sapt_jax.errors import InputError


class WeightFiles:
  """Tensors of all safetensors files of a folder, read by name.

  A file is opened for each tensor anew: its pages stay in memory for as long as it is open.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    self.paths = [folder / name for name in names]
    for path in self.paths:
      if not path.is_file():
        raise InputError(
          f"{path}: no such file; weights are read from safetensors alone; a model that comes as "
          "pytorch_model.bin: load it with transformers, save_pretrained it to a folder, and name "
          "that"
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
          f"{self.folder}: {name} has shape {tuple(tensor.get_shape())}, "
          f"config.json asks for {shape}"
        )
      return tensor[index]


def check_names(files: WeightFiles, table: list[Weight], ignored: tuple[str, ...]) -> None:
  """Every name of the table is in the files and the other way round,
  but for names that say nothing new.
  """
  wanted = {name for weight in table for name in weight.names()}
  missing = sorted(wanted - files.where.keys())
  unused = sorted(name for name in files.where.keys() - wanted if not name.endswith(ignored))
  if missing or unused:
    raise InputError(
      f"{files.folder}: weights do not fit config.json; missing: {_listed(missing)}; "
      f"not used: {_listed(unused)}"
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
    if weight.transpose:
      yield files.read(name, shape[::-1], index[::-1]).T
    else:
      yield files.read(name, shape, index)


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
