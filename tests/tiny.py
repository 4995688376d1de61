"""Tiny real things for tests: a model folder with a byte tokenizer, and a benchmark folder."""
import json
from pathlib import Path

import flax.linen as nn
import jax
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from sapt_jax.backbones import hf

T5 = {"model_type": "t5", "vocab_size": 272, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
      "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
LLAMA = {"model_type": "llama", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1}


def byte_tokenizer(ends: bool) -> Tokenizer:
  """One id per byte after <pad> and </s>; `ends`: prompts end with </s>, as T5's do."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", *alphabet])}
  tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "</s>")])
  if ends:
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
  return tokenizer


def model_folder(folder: Path, raw: dict, seed: int = 0, scale: float = 1.0) -> Path:
  """Writes a random model, its weights times scale, with its tokenizer, as a Hugging Face folder."""
  model = hf.build_model(raw)
  params = nn.meta.unbox(hf.init_params(model, jax.random.key(seed)))
  hf.save_backbone(folder, model, raw, jax.tree.map(lambda x: x * scale, params))
  byte_tokenizer(raw["model_type"] == "t5").save(str(folder / "tokenizer.json"))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


def split(definition: str, rows: list[tuple[str, str]]) -> dict:
  """The content of one file of a benchmark."""
  return {"Definition": [definition], "Instances": [{"input": text, "output": answer} for text, answer in rows]}


def benchmark_folder(root: Path, tasks: dict[str, tuple[str, list[tuple[str, str]]]]) -> Path:
  """Writes root/SuperNI/TASK/{train,dev,test}.json; dev and test are the first rows of train."""
  for name, (definition, rows) in tasks.items():
    folder = root / "SuperNI" / name
    folder.mkdir(parents=True)
    for part, content in (("train", rows), ("dev", rows[:4]), ("test", rows[:5])):
      (folder / f"{part}.json").write_text(json.dumps(split(definition, content)))
  return root


TASKS = {
  "task001_colour": ("Name the colour.", [(f"thing {i} is {colour}", colour) for i, colour in enumerate(["red", "blue", "green"] * 4)]),
  "task002_count": ("Say how many.", [(f"{'o' * (i % 3 + 1)} here in row {i}", str(i % 3 + 1)) for i in range(12)]),
}
