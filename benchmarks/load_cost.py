"""What loading a backbone takes of the host's memory: the peak of a process that loads a sharded
folder, over the folder's bytes.

    python benchmarks/load_cost.py
    python benchmarks/load_cost.py --gigabytes 1 --bits 4 --json

Unless --gigabytes says otherwise, there are 5 GB of random bfloat16 weights in shards of 0.5 GB, in
a temporary folder.
The loaded model counts, as the CPU is the device, and so do Python and JAX themselves. It ends with
1 if the peak is above --limit.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import sizes
from safetensors.numpy import save_file

from sapt_jax import cli
from sapt_jax.backbones.families import decoder_config, decoder_weights

LOAD = """
import sys, jax
from sapt_jax.backbones import hf
backbone = hf.load_backbone(sys.argv[1], "bfloat16", bits=int(sys.argv[2]))
print(sum(x.nbytes for x in jax.tree.leaves(backbone.params)))
"""


def config_of(layers: int, width: int = 2048) -> dict:
  """A LLaMA of 51 M weights a layer at the full width."""
  return {
    "model_type": "llama",
    "vocab_size": 32000 * width // 2048,
    "hidden_size": width,
    "intermediate_size": width * 11 // 4,
    "num_hidden_layers": layers,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
  }


def write_folder(folder: pathlib.Path, raw: dict, shard_bytes: int, seed: int = 0) -> int:
  """Writes config.json, an index and shards of about shard_bytes of random weights, one shard in
  memory at a time; returns their bytes.
  """
  rng = np.random.default_rng(seed)
  (folder / "config.json").write_text(json.dumps(raw))
  width, mlp = raw["hidden_size"], raw["intermediate_size"]
  sides = {
    "embed_tokens": (raw["vocab_size"], width),
    "gate_proj": (mlp, width),
    "up_proj": (mlp, width),
    "down_proj": (width, mlp),
  }
  shard: dict[str, np.ndarray] = {}
  places: dict[str, str] = {}
  total = 0

  def write() -> None:
    name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
    save_file(shard, folder / name, metadata={"format": "pt"})
    places.update(dict.fromkeys(shard, name))
    shard.clear()

  # By layer, as published folders are, and not by parameter, as they are stacked.
  names = [name for weight in decoder_weights(decoder_config(raw)) for name in weight.names()]
  for name in sorted(names, key=lambda name: (name.split(".")[2].zfill(4), name)):
    shape = (width,) if "norm" in name else sides.get(name.split(".")[-2], (width, width))
    drawn = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    shard[name] = drawn.astype(ml_dtypes.bfloat16)
    total += shard[name].nbytes
    if sum(tensor.nbytes for tensor in shard.values()) >= shard_bytes:
      write()
  if shard:
    write()
  index = {"metadata": {"total_size": total}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return total


def measure(folder: pathlib.Path, bits: int) -> tuple[int, int, float]:
  """Peak resident bytes and seconds of a process that loads the folder, and the bytes of its
  parameters: (peak, parameters, seconds).
  """
  began = time.monotonic()
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", LOAD, str(folder), str(bits)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
  assert process.stdout is not None
  printed = process.stdout.read()
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit("loading failed")
  return usage.ru_maxrss * 1024, int(printed), time.monotonic() - began


def main(arguments: Sequence[str]) -> None:
  """Writes, measures, removes, prints."""
  parser = sizes.Parser(description=(__doc__ or "").split("\n\n")[0])
  parser.add_argument("--gigabytes", type=float, default=5.0, help="of weights, 10^9 bytes")
  parser.add_argument(
    "--bits", type=int, default=0, choices=(0, 8, 4), help="quantise while loading"
  )
  parser.add_argument("--limit", type=float, default=1.2, help="peak over bytes that is still well")
  parser.add_argument("--json", action="store_true")
  options = parser.parse_args(arguments)
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    layers = max(1, round(options.gigabytes * 1e9 / 103e6 - 1))
    total = write_folder(folder, config_of(layers), 500_000_000)
    peak, parameters, seconds = measure(folder, options.bits)
  found = {
    "bytes": total,
    "bits": options.bits,
    "parameters": parameters,
    "peak": peak,
    "peak_over_bytes": round(peak / total, 3),
    "s": round(seconds, 1),
  }
  if options.json:
    print(json.dumps(found))
  else:
    print(
      f"{total / 1e9:.2f} GB of weights, {parameters / 1e9:.2f} GB here: "
      f"peak {peak / 1e9:.2f} GB, {peak / total:.2f} x; {seconds:.0f} s"
    )
  if peak > options.limit * total:
    sys.exit(1)


if __name__ == "__main__":
  cli.run(main)
