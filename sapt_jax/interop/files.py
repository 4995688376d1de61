"""Named arrays in the files of other programs: safetensors, npz,
PyTorch state dicts, pickled numpy arrays.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (it has NumPy know bfloat16, which files may hold)
import numpy as np
import safetensors
import safetensors.numpy

from sapt_jax.errors import InputError
from sapt_jax.text_files import give_usual_mode

SUFFIXES = (".safetensors", ".npz", ".pt", ".bin", ".pkl")
# What a pickled numpy array is put together from: package.name, whichever module of the package.
_OF_NUMPY = ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer")
PICKLED = frozenset({"_codecs.encode", *(f"numpy.{name}" for name in _OF_NUMPY)})
UNREADABLE = (
  OSError,
  EOFError,
  ValueError,
  KeyError,
  RuntimeError,
  pickle.UnpicklingError,
  zipfile.BadZipFile,
  safetensors.SafetensorError,
)


class ArrayUnpickler(pickle.Unpickler):
  """Reads a pickled numpy array and nothing else: any other pickle could run code."""

  def find_class(self, module: str, name: str) -> Any:
    if f"{module.split('.')[0]}.{name}" not in PICKLED:
      raise pickle.UnpicklingError(f"{module}.{name} is no part of a numpy array")
    return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def import_torch(path: Path) -> Any:
  """PyTorch, or an error that says what to do without it."""
  try:
    import torch
  except ImportError:
    raise InputError(
      f"{path}: PyTorch's own files need torch; .safetensors and .npz do not"
    ) from None
  return torch


def read_file(path: Path) -> Any:
  """What a file holds: {name: array}, or a lone array."""
  if path.suffix == ".npz":
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  if path.suffix == ".safetensors":
    return safetensors.numpy.load_file(path)
  if path.suffix == ".pkl":
    with path.open("rb") as file:
      return ArrayUnpickler(file).load()
  value = import_torch(path).load(path, map_location="cpu", weights_only=True)
  if not isinstance(value, dict):
    return from_torch(value)
  return {name: from_torch(tensor) for name, tensor in value.items()}


def from_torch(tensor: Any) -> np.ndarray:
  """A PyTorch tensor of any float type as a float32 array."""
  return tensor.detach().float().numpy()


def read_arrays(folder: Path, stem: str, optional: bool = False) -> dict[str, np.ndarray]:
  """The arrays of the file `stem`.* of a folder, by name; a lone array is called `stem`.

  Raises:
    InputError: no such file (unless optional), several, or one that cannot be read.
  """
  found = [path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
  if optional and not found:
    return {}
  if len(found) != 1:
    listed = ", ".join(path.name for path in found) or "none is there"
    raise InputError(f"{folder}: wanted one file {stem} of {', '.join(SUFFIXES)}: {listed}")
  try:
    value = read_file(found[0])
  except InputError:
    raise
  except UNREADABLE as error:
    reason = str(error).partition("\n")[0]
    raise InputError(f"{found[0]}: cannot be read ({type(error).__name__}: {reason})") from error
  named = value if isinstance(value, dict) else {stem: value}
  return {name: np.asarray(x) for name, x in named.items()}


def write_arrays(
  folder: Path, stem: str, value: dict[str, np.ndarray] | np.ndarray, suffix: str
) -> None:
  """Writes named arrays, or a lone one, in the format of the suffix; ".pkl" takes a lone one.

  Raises:
    InputError: another suffix, or a PyTorch file without torch.
  """
  path = folder / f"{stem}{suffix}"
  named = value if isinstance(value, dict) else {stem: np.ascontiguousarray(value)}
  if suffix == ".npz":
    np.savez(path, allow_pickle=False, **named)
  elif suffix == ".safetensors":
    safetensors.numpy.save_file(named, path)
    give_usual_mode(path)
  elif suffix == ".pkl" and not isinstance(value, dict):
    path.write_bytes(pickle.dumps(np.ascontiguousarray(value)))
  elif suffix in (".pt", ".bin"):
    torch = import_torch(path)
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in named.items()}
    torch.save(tensors if isinstance(value, dict) else tensors[stem], path)
  else:
    raise InputError(f"{path}: cannot be written; formats: {', '.join(SUFFIXES)}")
