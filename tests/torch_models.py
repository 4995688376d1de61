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
# mT5 is v1.1; umT5 has position biases in every layer.
T5_RELATIVES: dict[str, str] = {"mt5": "mt5", "umt5": "umt5"}
T5 |= {
  name: {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 8}
  for name in T5_RELATIVES
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
# Windows are shorter than the tests' inputs.
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0}
RELATIVES: dict[str, tuple[str, dict[str, Any]]] = {
  "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
  "llama-linear": (
    "llama",
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5}},
  ),
  "llama-dynamic": (
    "llama",
    {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}},
  ),
  "llama-yarn": (
    "llama",
    {"rope_parameters": YARN | {"original_max_position_embeddings": 64}},
  ),
  "qwen2": (
    "qwen2",
    {
      "use_sliding_window": True,
      "sliding_window": 5,
      "max_window_layers": 1,
      "num_key_value_heads": 2,
    },
  ),
  "qwen3": ("qwen3", {"head_dim": 12, "num_key_value_heads": 1, "rope_theta": 500.0}),
  "mistral": ("mistral", {"sliding_window": 4, "head_dim": 12, "num_key_value_heads": 2}),
  "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "num_hidden_layers": 3}),
  "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
  "phi3-longrope": (
    "phi3",
    {
      "sliding_window": 6,
      "original_max_position_embeddings": 128,
      "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "short_factor": [1.0, 1.1, 1.3, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
      },
    },
  ),
  "gemma2": (
    "gemma2",
    {
      "sliding_window": 5,
      "head_dim": 12,
      "query_pre_attn_scalar": 20,
      "attn_logit_softcapping": 3.0,
      "final_logit_softcapping": 4.0,
    },
  ),
  "gemma3": (
    "gemma3_text",
    {
      "sliding_window": 5,
      "head_dim": 12,
      "query_pre_attn_scalar": 20,
      "num_hidden_layers": 4,
      "layer_types": ["sliding_attention", "full_attention"] * 2,
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
      },
    },
  ),
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
NAMES = [*T5, *LLAMA, *RELATIVES]


def make(name: str, seed: int = 0, **options: Any) -> Any:
  """A torch model in evaluation mode, float32, its weights large enough that its answers differ."""
  import torch
  import transformers

  torch.manual_seed(seed)
  if name in T5:
    kind = T5_RELATIVES.get(name, "t5")
    config: Any = transformers.AutoConfig.for_model(kind, **(T5_SIZES | T5[name] | options))
    model: Any = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if not T5[name]["tie_word_embeddings"]:  # transformers 5 ties every T5's head when it is made
      model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(96, 32))
    scale = 1.0
  else:
    kind, own = RELATIVES.get(name) or ("llama", LLAMA[name])
    config = transformers.AutoConfig.for_model(kind, **(LLAMA_SIZES | own | options))
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    scale = 8.0  # initial weights have std 0.02
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
