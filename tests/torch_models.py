"""Small random T5 and LLaMA models of Hugging Face's torch modules,
in the forms that differ from each other.
"""

from __future__ import annotations

import pathlib
from typing import Any

# "untied" T5s have heads * d_kv != d_model, as T5-3B and 11B do.
T5: dict[str, dict[str, Any]] = {
  "t5-v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True, "d_kv": 8},
  "t5-v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 12},
}
T5_SIZES: dict[str, Any] = {
  "vocab_size": 96,
  "d_model": 32,
  "d_ff": 64,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "num_heads": 4,
  "decoder_start_token_id": 0,
}
LLAMA3_ROPE = {
  "rope_type": "llama3",
  "rope_theta": 1000.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
LLAMA: dict[str, dict[str, Any]] = {
  "llama-gqa": {"num_key_value_heads": 2, "tie_word_embeddings": False},
  "llama-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True, "head_dim": 12},
  "llama3-rope": {
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "rope_parameters": LLAMA3_ROPE,
  },
}
LLAMA_SIZES: dict[str, Any] = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "pad_token_id": 3,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "max_position_embeddings": 256,
}
NAMES = [*T5, *LLAMA]


def make(name: str, seed: int = 0, **options: Any) -> Any:
  """A torch model in evaluation mode, float32, its weights large enough that its answers differ."""
  import torch
  import transformers

  torch.manual_seed(seed)
  if name in T5:
    config: Any = transformers.T5Config(**(T5_SIZES | T5[name] | options))
    model: Any = transformers.T5ForConditionalGeneration(config)
    if not T5[name]["tie_word_embeddings"]:  # transformers 5 ties every T5's head when it is made
      model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(96, 32))
    scale = 1.0
  else:
    config = transformers.LlamaConfig(**(LLAMA_SIZES | LLAMA[name] | options))
    model, scale = transformers.LlamaForCausalLM(config), 8.0  # its initial weights have std 0.02
  with torch.no_grad():
    for path, parameter in model.named_parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
      elif "relative_attention_bias" not in path:
        parameter.mul_(scale)
  return model.eval()


def save(model: Any, folder: pathlib.Path) -> str:
  """Writes the model as Hugging Face does; returns the folder's name."""
  model.save_pretrained(folder)
  return str(folder)
