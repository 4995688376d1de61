"""Sizes of known backbones, as their config.json gives them,
so that a plan needs no file of theirs.
"""

from __future__ import annotations

from typing import Any


def _t5(width: int, mlp_width: int, heads: int) -> dict[str, Any]:
  """T5 v1.1, whose sizes Flan-T5 shares: 24 layers in either stack, gated gelu, an untied head."""
  return {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": width,
    "d_kv": 64,
    "d_ff": mlp_width,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": heads,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
  }


def _llama2(
  width: int, mlp_width: int, layers: int, heads: int, key_heads: int, vocab_size: int = 32000
) -> dict[str, Any]:
  return {
    "model_type": "llama",
    "vocab_size": vocab_size,
    "hidden_size": width,
    "intermediate_size": mlp_width,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": key_heads,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }


# Name -> config.json. XuanYuan-70B is LLaMA-2-70B with Chinese words added to its vocabulary,
# 39,438 in all as its authors report it; a few hundred rows more or less change no figure of a plan
# in its first three digits.
SIZES: dict[str, dict[str, Any]] = {
  "t5-large": _t5(1024, 2816, 16),
  "t5-xl": _t5(2048, 5120, 32),
  "t5-xxl": _t5(4096, 10240, 64),
  "llama2-7b": _llama2(4096, 11008, 32, 32, 32),
  "llama2-13b": _llama2(5120, 13824, 40, 40, 40),
  "llama2-70b": _llama2(8192, 28672, 80, 64, 8),
  "xuanyuan-70b": _llama2(8192, 28672, 80, 64, 8, vocab_size=39438),
  "llama3-8b": _llama2(4096, 14336, 32, 32, 8, vocab_size=128256)
  | {"rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": 128001},
  "qwen3-8b": _llama2(4096, 12288, 36, 32, 8, vocab_size=151936)
  | {
    "model_type": "qwen3",
    "head_dim": 128,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
  },
  "gemma2-9b": _llama2(3584, 14336, 42, 16, 8, vocab_size=256000)
  | {
    "model_type": "gemma2",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
  },
}
