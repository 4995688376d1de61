"""config.json of each family as the hub has it, with smaller sizes: read as transformers reads
it.
"""

import json

import jax
import numpy as np
import pytest
import tiny

from sapt_jax.backbones import hf
from sapt_jax.backbones.families import FAMILIES
from sapt_jax.errors import InputError

SIZES = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "num_hidden_layers": 4,
  "max_position_embeddings": 512,
  "initializer_range": 0.2,
  "rms_norm_eps": 1e-06,
  "use_cache": True,
  "torch_dtype": "bfloat16",
  "bos_token_id": 1,
  "eos_token_id": 2,
  "attention_dropout": 0.0,
}
QWEN = {"hidden_act": "silu", "use_sliding_window": False, "max_window_layers": 3}
GEMMA = {
  "head_dim": 12,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 12,
  "sliding_window": 6,
  "attention_bias": False,
  "cache_implementation": "hybrid",
  "pad_token_id": 0,
}
FOLDERS = {
  "Llama-3.1": {
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "eos_token_id": [2, 3, 4],
    "rope_theta": 500000.0,
    "rope_scaling": {
      "factor": 8.0,
      "high_freq_factor": 4.0,
      "low_freq_factor": 1.0,
      "original_max_position_embeddings": 64,
      "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
  },
  "Qwen2.5": QWEN
  | {
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "sliding_window": 8,
    "tie_word_embeddings": True,
  },
  "Qwen3": QWEN
  | {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 16,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
  },
  "Mistral-v0.1": {
    "model_type": "mistral",
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "sliding_window": 5,
    "tie_word_embeddings": False,
  },
  "Mistral-v0.3": {
    "model_type": "mistral",
    "hidden_act": "silu",
    "rope_theta": 1000000.0,
    "sliding_window": None,
  },
  "gemma-2": GEMMA
  | {
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rope_theta": 10000.0,
  },
  "gemma-3-1b": GEMMA
  | {
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window_pattern": 2,
  },
  "gemma-3-270m": GEMMA
  | {
    "model_type": "gemma3_text",
    "_sliding_window_pattern": 6,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "use_bidirectional_attention": False,
  },
  "SmolLM3": {
    "model_type": "smollm3",
    "attention_bias": False,
    "layer_types": ["full_attention"] * 4,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "pad_token_id": 4,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
  },
  "Phi-3.5-mini": {
    "model_type": "phi3",
    "embd_pdrop": 0.0,
    "original_max_position_embeddings": 64,
    "pad_token_id": 4,
    "resid_pdrop": 0.0,
    "rope_scaling": {
      "long_factor": [1.0, 2.0, 3.0, 4.0],
      "short_factor": [1.0, 1.1, 1.2, 1.3],
      "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "attention_bias": False,
  },
  "Phi-4-mini": {
    "model_type": "phi3",
    "original_max_position_embeddings": 64,
    "pad_token_id": 4,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
      "long_factor": [1.0, 2.0, 3.0],
      "short_factor": [1.0, 1.1, 1.2],
      "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
  },
}


# What is left out, or has another place than that which counts.
SHORT = {f"least {name}": {"model_type": name, "pad_token_id": 0} for name in FAMILIES} | {
  "gemma2, hidden_act": {"model_type": "gemma2", "hidden_act": "relu"},
  "gemma3, caps": {"model_type": "gemma3_text", "attn_logit_softcapping": 3.0},
  "llama, yarn's factor": {
    "model_type": "llama",
    "rope_scaling": {
      "rope_type": "yarn",
      "factor": None,
      "original_max_position_embeddings": 128,
    },
  },
}


@pytest.mark.parametrize("name", [*FOLDERS, *SHORT])
def test_a_config_as_the_hub_has_it_is_read_as_transformers_reads_it(name, torch, tmp_path):
  import transformers

  raw = SIZES | (FOLDERS | SHORT)[name]
  (tmp_path / "config.json").write_text(json.dumps(raw))
  torch.manual_seed(0)
  config = transformers.AutoConfig.from_pretrained(tmp_path)
  config._attn_implementation = "eager"
  theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  theirs.save_pretrained(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(raw))  # not as this version would write it
  ours = hf.load_backbone(str(tmp_path))
  ids = np.random.default_rng(0).integers(5, 96, (2, 12)).astype(np.int32)
  there = np.ones((2, 6), bool)
  with torch.no_grad():
    expected = theirs(input_ids=torch.from_numpy(ids.astype(np.int64))).logits.numpy()
  found = jax.jit(ours.model.apply)({"params": ours.params}, ids[:, :6], there, ids[:, 6:], there)
  np.testing.assert_allclose(found, expected[:, 5:-1], atol=1e-4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"model_type": "gemma3"},
      r"model_type 'gemma3' is not supported: t5, mt5, umt5, llama, qwen2",
    ),
    ({"model_type": "qwen3_moe"}, r"model_type 'qwen3_moe' is not supported"),
    ({"model_type": "llama", "rope_scaling": {"type": "ntk"}}, r"rope type 'ntk' is not supported"),
    ({"model_type": "qwen3", "layer_types": ["full_attention"]}, r"layer_types must name"),
    ({"model_type": "mistral", "sliding_window": "all"}, r"sliding_window 'all' is no number"),
    (
      {"model_type": "smollm3", "no_rope_layers": [1]},
      r"no_rope_layers has 1 entries for 4 layers",
    ),
    ({"model_type": "llama", "num_key_value_heads": 3}, r"4 heads cannot share 3 key heads"),
    (
      {"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
      r"'long_factor' is missing",
    ),
    (
      {"model_type": "llama", "partial_rotary_factor": 0.5},
      r"partial_rotary_factor 0.5: only phi3 turns a part of each head",
    ),
    (
      {"model_type": "gemma3_text", "use_bidirectional_attention": True},
      r"use_bidirectional_attention is not supported",
    ),
  ],
)
def test_what_cannot_be_read_is_named(change, message, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(SIZES | change))
  tiny.byte_tokenizer(False).save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(InputError, match=message):
    hf.build_model(hf.read_config(tmp_path))
