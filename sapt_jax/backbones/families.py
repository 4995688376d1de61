"""The decoder-only families: what config.json says of each, as the parts of one module (llama.py),
and where Hugging Face keeps its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from sapt_jax.backbones.config_values import activation_of, token_id
from sapt_jax.backbones.llama_config import LlamaConfig
from sapt_jax.backbones.rotary import KINDS, Rope
from sapt_jax.backbones.weights import Weight
from sapt_jax.errors import InputError

Raw = dict[str, Any]


class Family(NamedTuple):
  """What tells a family from plain LLaMA.

  Attributes:
    parts: config.json -> LlamaConfig's fields that are otherwise than LLaMA's.
    usual: values of keys that its config.json may leave out, where they are not LLaMA's.
  """

  parts: Callable[[Raw], dict[str, Any]]
  usual: Raw


def _llama(raw: Raw) -> dict[str, Any]:
  bias = bool(raw.get("attention_bias"))
  return {"qkv_bias": bias, "o_bias": bias, "mlp_bias": bool(raw.get("mlp_bias"))}


def _qwen2(raw: Raw) -> dict[str, Any]:
  return {"qkv_bias": True, **_window(raw, _qwen_layers(raw))}


def _qwen3(raw: Raw) -> dict[str, Any]:
  bias = bool(raw.get("attention_bias"))
  return {"qk_norm": True, "qkv_bias": bias, "o_bias": bias, **_window(raw, _qwen_layers(raw))}


def _qwen_layers(raw: Raw) -> list[bool]:
  first, on = raw.get("max_window_layers", 28), bool(raw.get("use_sliding_window"))
  return [on and layer >= first for layer in range(raw["num_hidden_layers"])]


def _mistral(raw: Raw) -> dict[str, Any]:
  return _window(raw, [True] * raw["num_hidden_layers"])


def _smollm3(raw: Raw) -> dict[str, Any]:
  depth, every = raw["num_hidden_layers"], raw.get("no_rope_layer_interval", 4)
  turned = raw.get("no_rope_layers") or [(layer + 1) % every != 0 for layer in range(depth)]
  if len(turned) != depth:
    raise InputError(f"no_rope_layers has {len(turned)} entries for {depth} layers")
  ropes = tuple(0 if there else -1 for there in turned)
  on = bool(raw.get("use_sliding_window"))
  parts = _llama(raw) | _window(raw, [on and not there for there in turned])
  return parts | {"rope_of_layer": ropes if -1 in ropes else ()}


def _phi3(raw: Raw) -> dict[str, Any]:
  return {"fused": True, **_window(raw, [True] * raw["num_hidden_layers"])}


def _gemma(raw: Raw) -> dict[str, Any]:
  if raw.get("use_bidirectional_attention"):
    raise InputError("use_bidirectional_attention is not supported: it is not for writing text")
  bias = bool(raw.get("attention_bias"))
  return {
    "activation": activation_of(raw.get("hidden_activation") or "gelu_pytorch_tanh"),
    "post_norms": True,
    "norm_offset": 1.0,
    "embedding_scale": math.sqrt(raw["hidden_size"]),
    "attention_scale": raw.get("query_pre_attn_scalar", 256) ** -0.5,
    "logit_cap": raw.get("final_logit_softcapping") or 0.0,
    "qkv_bias": bias,
    "o_bias": bias,
  }


def _gemma2(raw: Raw) -> dict[str, Any]:
  depth = raw["num_hidden_layers"]
  parts = _gemma(raw) | _window(raw, [layer % 2 == 0 for layer in range(depth)])
  return parts | {"attention_cap": raw.get("attn_logit_softcapping") or 0.0}


def _gemma3(raw: Raw) -> dict[str, Any]:
  depth, every = raw["num_hidden_layers"], raw.get("sliding_window_pattern") or 6
  parts = _window(raw, [(layer + 1) % every != 0 for layer in range(depth)])
  windowed = parts.get("windowed") or [parts.get("window") is not None] * depth
  given = raw.get("rope_parameters") or {}
  if "full_attention" in given or "sliding_attention" in given:
    ropes = [given.get(f"{kind}_attention") or {} for kind in ("full", "sliding")]
  else:
    ropes = [raw.get("rope_scaling") or given, {}]
  full = rope_of(ropes[0], raw, raw.get("rope_theta") or 1_000_000.0)
  local = rope_of(ropes[1], raw, raw.get("rope_local_base_freq") or 10_000.0)
  return (
    _gemma(raw)
    | parts
    | {
      "qk_norm": True,
      "ropes": (full, local),
      "rope_of_layer": tuple(int(there) for there in windowed),
    }
  )


def _window(raw: Raw, usual: list[bool]) -> dict[str, Any]:
  """The window of each layer: as layer_types says, else as is usual for the family."""
  types = raw.get("layer_types")
  if types is not None:
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown or len(types) != raw["num_hidden_layers"]:
      raise InputError(
        f"layer_types must name full_attention or sliding_attention for each of "
        f"{raw['num_hidden_layers']} layers"
      )
    usual = [kind == "sliding_attention" for kind in types]
  size = raw.get("sliding_window")
  if size is None or not any(usual):
    return {}
  if not isinstance(size, int) or size < 1:
    raise InputError(f"sliding_window {size!r} is no number of tokens")
  return {"window": size, "windowed": () if all(usual) else tuple(usual)}


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}
_GEMMA |= {"sliding_window": 4096, "eos_token_id": 1, "bos_token_id": 2}
_SMOLLM3 = {"tie_word_embeddings": True, "rope_theta": 2_000_000.0}
_SMOLLM3 |= {"bos_token_id": 128_000, "eos_token_id": 128_001, "pad_token_id": 128_004}
FAMILIES = {
  "llama": Family(_llama, {}),
  "qwen2": Family(_qwen2, {"sliding_window": 4096}),
  "qwen3": Family(_qwen3, {"sliding_window": 4096, "head_dim": 128}),
  "mistral": Family(_mistral, {"sliding_window": 4096}),
  "smollm3": Family(_smollm3, _SMOLLM3),
  "phi3": Family(_phi3, {"rms_norm_eps": 1e-5, "eos_token_id": 32000, "pad_token_id": 32000}),
  "gemma2": Family(
    _gemma2, _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
  ),
  "gemma3_text": Family(_gemma3, _GEMMA),
}


def decoder_config(raw: Raw) -> LlamaConfig:
  """config.json of a decoder-only model -> LlamaConfig; rope settings are read in the old and the
  new place.
  """
  family = FAMILIES[raw["model_type"]]
  raw = family.usual | raw
  width, heads = raw["hidden_size"], raw["num_attention_heads"]
  head_width = raw.get("head_dim") or width // heads
  key_heads = raw.get("num_key_value_heads") or heads
  if heads % key_heads:
    raise InputError(f"{heads} heads cannot share {key_heads} key heads")
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  share = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
  if share != 1 and raw["model_type"] != "phi3":
    raise InputError(f"partial_rotary_factor {share}: only phi3 turns a part of each head")
  parts = family.parts(raw)
  if "ropes" not in parts:
    parts["ropes"] = (rope_of(rope, raw, raw.get("rope_theta") or 10000.0),)
  parts.setdefault("activation", activation_of(raw.get("hidden_act") or "silu"))
  return LlamaConfig(
    vocab_size=raw["vocab_size"],
    width=width,
    mlp_width=raw["intermediate_size"],
    layers=raw["num_hidden_layers"],
    heads=heads,
    key_heads=key_heads,
    head_width=head_width,
    rotary_width=None if share == 1 else int(head_width * share),
    tied_head=raw.get("tie_word_embeddings", False),
    epsilon=raw.get("rms_norm_eps", 1e-6),
    pad_id=token_id(raw, "pad_token_id", 0),
    eos_id=token_id(raw, "eos_token_id", 2),
    bos_id=token_id(raw, "bos_token_id", 1),
    **parts,
  )


def rope_of(values: Raw, raw: Raw, theta: float) -> Rope:
  """Rotary positions as config.json gives them.

  Raises:
    InputError: a kind that is not known.
  """
  kind = values.get("rope_type", values.get("type", "default"))
  if kind == "su" or (kind == "yarn" and raw["model_type"] == "phi3"):  # its older names
    kind = "longrope"
  if kind not in KINDS:
    raise InputError(f"rope type {kind!r} is not supported: {', '.join(KINDS)}")
  theta = values.get("rope_theta") or theta
  if kind == "default":
    return Rope(theta)
  most = raw.get("max_position_embeddings") or 0
  length = values.get("original_max_position_embeddings") or raw.get(
    "original_max_position_embeddings"
  )
  if kind == "llama3":
    length = values["original_max_position_embeddings"]
    slow, fast = values["low_freq_factor"], values["high_freq_factor"]
    return Rope(theta, "llama3", values["factor"], length, slow, fast)
  if kind == "longrope":
    length = length or most
    factor = values.get("factor") or most / length
    magnitude = values.get("attention_factor")
    if magnitude is None:
      magnitude = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    short, long = (tuple(values[f"{name}_factor"]) for name in ("short", "long"))
    return Rope(theta, "longrope", factor, length, short=short, long=long, magnitude=magnitude)
  factor = values["factor"]
  if kind == "yarn":
    factor = factor or most / (length or most)
    magnitude = values.get("attention_factor") or _yarn_magnitude(values, factor)
    slow, fast = values.get("beta_slow") or 1.0, values.get("beta_fast") or 32.0
    whole = values.get("truncate", True)
    return Rope(theta, "yarn", factor, length or most, slow, fast, whole, magnitude=magnitude)
  return Rope(theta, kind, factor, most)


def _yarn_magnitude(values: Raw, factor: float) -> float:
  def of(share: float) -> float:
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0

  one, all_dims = values.get("mscale"), values.get("mscale_all_dim")
  return of(one) / of(all_dims) if one and all_dims else of(1.0)


def decoder_weights(c: LlamaConfig) -> list[Weight]:
  """The table of a decoder's weights."""
  inner, key_inner = c.heads * c.head_width, c.key_heads * c.head_width
  where: dict[str, tuple[str, tuple[int, int, int] | None]]
  where = {x: (f"self_attn.{x}_proj", None) for x in "qkvo"}
  where |= {x: (f"mlp.{x}_proj", None) for x in ("gate", "up", "down")}
  if c.fused:
    both = 2 * c.mlp_width
    rows = {"q": (0, inner), "k": (inner, key_inner), "v": (inner + key_inner, key_inner)}
    total = inner + 2 * key_inner
    where |= {x: ("self_attn.qkv_proj", (*place, total)) for x, place in rows.items()}
    where |= {
      x: ("mlp.gate_up_proj", (start, c.mlp_width, both))
      for x, start in (("gate", 0), ("up", c.mlp_width))
    }
  biases = dict.fromkeys("qkv", c.qkv_bias) | {"o": c.o_bias}
  biases |= dict.fromkeys(("gate", "up", "down"), c.mlp_bias)
  norms = {"attention_norm": "input_layernorm"}
  if c.post_norms:
    norms |= {
      "attention_post_norm": "post_attention_layernorm",
      "mlp_norm": "pre_feedforward_layernorm",
      "mlp_post_norm": "post_feedforward_layernorm",
    }
  else:
    norms["mlp_norm"] = "post_attention_layernorm"
  if c.qk_norm:
    norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

  def of_layers(ours: str, theirs: str, transpose: bool, rows: Any = None) -> Weight:
    return Weight(f"layers/{ours}", f"model.layers.{{}}.{theirs}", transpose, c.layers, rows)

  head = [] if c.tied_head else [Weight("head/kernel", "lm_head.weight", True, None)]
  return [
    Weight("embedding/table", "model.embed_tokens.weight", False, None),
    Weight("norm/scale", "model.norm.weight", False, None),
    *head,
    *(of_layers(f"{x}/kernel", f"{name}.weight", True, rows) for x, (name, rows) in where.items()),
    *(
      of_layers(f"{x}/bias", f"{name}.bias", False, rows)
      for x, (name, rows) in where.items()
      if biases[x]
    ),
    *(of_layers(f"{ours}/scale", f"{name}.weight", False) for ours, name in norms.items()),
  ]
