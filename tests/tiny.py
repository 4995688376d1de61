"""Tiny real things for tests: a model folder with a byte tokenizer, a benchmark folder, and options
of a run on them.
"""

import json
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from sapt_jax import cli
from sapt_jax.backbones import hf

T5 = {
  "model_type": "t5",
  "vocab_size": 272,
  "d_model": 32,
  "d_kv": 8,
  "d_ff": 48,
  "num_layers": 2,
  "num_decoder_layers": 2,
  "num_heads": 4,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "decoder_start_token_id": 0,
}
LLAMA = {
  "model_type": "llama",
  "vocab_size": 272,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "tie_word_embeddings": True,
  "pad_token_id": 0,
  "eos_token_id": 1,
}


def byte_tokenizer(ends: bool) -> Tokenizer:
  """One id per byte after <pad> and </s>; `ends`: prompts end with </s>, as T5's do."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", *alphabet])}
  tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "</s>")])
  if ends:
    tokenizer.post_processor = processors.TemplateProcessing(
      single="$A </s>", special_tokens=[("</s>", 1)]
    )
  return tokenizer


def random_model(raw: dict, seed: int = 0) -> tuple[hf.Model, dict]:
  """A model with random weights; asked for again, the same arrays, which nobody may donate."""
  return _random_model(json.dumps(raw), seed)


@cache
def _random_model(raw: str, seed: int) -> tuple[hf.Model, dict]:
  model = hf.build_model(json.loads(raw))
  # One program: layer by layer, each of a hundred operations would be compiled by itself.
  init = jax.jit(partial(hf.init_params, model))
  return model, nn.meta.unbox(init(jax.random.key(seed)))


def model_folder(folder: Path, raw: dict, seed: int = 0, scale: float = 1.0) -> Path:
  """Writes a random model, its weights times scale, and a tokenizer as Hugging Face has them."""
  model, params = random_model(raw, seed)
  hf.save_backbone(folder, model, raw, jax.tree.map(lambda x: np.asarray(x) * scale, params))
  byte_tokenizer(raw["model_type"] == "t5").save(str(folder / "tokenizer.json"))
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "eos_token": "</s>",
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


def split(definition: str, rows: list[tuple[str, str]]) -> dict:
  """The content of one file of a benchmark."""
  return {
    "Definition": [definition],
    "Instances": [{"input": text, "output": answer} for text, answer in rows],
  }


def benchmark_folder(root: Path, tasks: dict[str, tuple[str, list[tuple[str, str]]]]) -> Path:
  """Writes root/SuperNI/TASK/{train,dev,test}.json; dev and test are the first rows of train."""
  for name, (definition, rows) in tasks.items():
    folder = root / "SuperNI" / name
    folder.mkdir(parents=True)
    for part, content in (("train", rows), ("dev", rows[:4]), ("test", rows[:5])):
      (folder / f"{part}.json").write_text(json.dumps(split(definition, content)))
  return root


TASKS = {
  "task001_colour": (
    "Name the colour.",
    [(f"thing {i} is {colour}", colour) for i, colour in enumerate(["red", "blue", "green"] * 4)],
  ),
  "task002_count": (
    "Count the letters.",
    [(f"{'o' * (i % 3 + 1)} here in row {i}", str(i % 3 + 1)) for i in range(12)],
  ),
}


# A run of seconds over these tasks, with a part of every kind in it. All batches have one shape.
RUN = (
  "--data.benchmark superni --data.protocol published --data.max-source-length 128 "
  "--data.max-target-length 8 --fit.steps 6 --fit.batch-size 4 --fit.checkpoint-every 2 "
  "--fit.log-every 1 --evaluation.batch-size 8 --pet.rank 2 --generator.steps 2 "
  "--generator.batch-size 4 --generator.rank 2 --generator.max-length 48 --generator.keep 0.2 "
  "--generator.oversample 2"
).split()


def world(root: Path, options: Sequence[str] = RUN) -> list[str]:
  """These options of a run and, below root, a T5 and two tasks for it."""
  model = model_folder(root / "t5", T5)
  benchmark_folder(root / "data", TASKS)
  return [*options, "--backbone.path", str(model), "--data.root", str(root / "data")]


def run_program(
  program: ModuleType,
  arguments: Sequence[str | Path],
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> tuple[int, str]:
  """Exit code and stderr of a program that does not end well."""
  monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
  with pytest.raises(SystemExit) as stop:
    cli.run(program.main)
  return int(stop.value.code or 0), capsys.readouterr().err
