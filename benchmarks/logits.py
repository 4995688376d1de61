"""Logits of a model folder, for other programs to be held against.

    python benchmarks/logits.py FOLDER IN.npz OUT.npz

FOLDER is a Hugging Face model folder. IN.npz holds `source`, `source_mask` (B, L), `target` and
`target_mask` (B, M): token ids and which of them are real. Sources of decoder-only models are
padded on the left, all else on the right. OUT.npz gets `logits` (B, M, V) float32 of each target
token given all before it. No adapters; float32, highest precision.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import zipfile
from collections.abc import Sequence

import jax
import numpy as np

from sapt_jax import cli
from sapt_jax.backbones import hf
from sapt_jax.errors import InputError

NAMES = ("source", "source_mask", "target", "target_mask")


def read_inputs(file: pathlib.Path, vocabulary: int) -> list[np.ndarray]:
  """The four arrays, in the order of NAMES.

  Raises:
    InputError: the file is none of NumPy's, an array is missing, or they do not fit together.
  """
  try:
    with np.load(file) as found:
      arrays = [found[name] for name in NAMES]
  except FileNotFoundError:
    raise InputError(f"{file}: no such file") from None
  except KeyError as error:
    raise InputError(f"{file}: {error.args[0]}; it needs {', '.join(NAMES)}") from None
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise InputError(f"{file}: cannot be read ({error})") from None
  for name, array, mask in zip(NAMES[::2], arrays[::2], arrays[1::2], strict=True):
    if array.ndim != 2 or array.shape != mask.shape or array.shape[0] != arrays[0].shape[0]:
      raise InputError(f"{file}: {name} {array.shape} and its mask {mask.shape} do not fit")
    if array.size and not 0 <= array.min() <= array.max() < vocabulary:
      raise InputError(f"{file}: {name} holds an id beyond the {vocabulary} tokens of the model")
  ids = [array.astype(np.int32) for array in arrays[::2]]
  masks = [array.astype(bool) for array in arrays[1::2]]
  return [ids[0], masks[0], ids[1], masks[1]]


def main(arguments: Sequence[str]) -> None:
  """Reads, computes, writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ("folder", "input", "output"):
    parser.add_argument(name, type=pathlib.Path)
  options = parser.parse_args(arguments)
  if not options.folder.is_dir():
    raise InputError(f"{options.folder}: no such folder")
  raw = hf.read_config(options.folder)
  model = hf.build_model(raw, where=str(options.folder / "config.json"))
  arrays = read_inputs(options.input, model.config.vocab_size)
  jax.config.update("jax_default_matmul_precision", "highest")
  backbone = hf.load_backbone(str(options.folder))
  logits = jax.jit(backbone.model.apply)({"params": backbone.params}, *arrays)
  np.savez(options.output, logits=np.asarray(logits, np.float32))
  print(f"{options.output}: logits {logits.shape}", file=sys.stderr)


if __name__ == "__main__":
  cli.run(main)
