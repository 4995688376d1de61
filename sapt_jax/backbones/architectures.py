"""The architectures that a config.json may name: how each is configured and built, and where
Hugging Face keeps each of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sapt_jax.backbones.config_values import activation_of, token_id
from sapt_jax.backbones.families import FAMILIES, decoder_config, decoder_weights
from sapt_jax.backbones.llama import Llama
from sapt_jax.backbones.t5 import T5
from sapt_jax.backbones.t5_config import T5Config
from sapt_jax.backbones.weights import Weight


def t5_weights(c: T5Config) -> list[Weight]:
  """The table of T5's weights."""
  head = [] if c.tied_head else [Weight("head/kernel", "lm_head.weight", True, None)]
  return [
    Weight("embedding/table", "shared.weight", False, None),
    *head,
    *_t5_stack(c, "encoder", c.encoder_layers, {"self": "SelfAttention"}),
    *_t5_stack(
      c, "decoder", c.decoder_layers, {"self": "SelfAttention", "cross": "EncDecAttention"}
    ),
  ]


def _t5_stack(c: T5Config, stack: str, depth: int, attentions: dict[str, str]) -> list[Weight]:
  """One of T5's two stacks; `attentions` are the kinds in a layer, our name -> theirs."""

  def kernel(place: int, ours: str, theirs: str) -> Weight:
    name = f"{stack}.block.{{}}.layer.{place}.{theirs}.weight"
    return Weight(f"{stack}/{ours}/kernel", name, True, depth)

  def norm(place: int, ours: str) -> Weight:
    name = f"{stack}.block.{{}}.layer.{place}.layer_norm.weight"
    return Weight(f"{stack}/{ours}/scale", name, False, depth)

  table = []
  for place, (ours, theirs) in enumerate(attentions.items()):
    table += [kernel(place, f"{ours}_attention/{x}", f"{theirs}.{x}") for x in "qkvo"]
    table.append(norm(place, f"{ours}_norm"))
  last = len(attentions)
  kernels = {"wi_0": "wi_0", "wi_1": "wi_1"} if c.gated else {"wi_0": "wi"}
  for ours, theirs in (kernels | {"wo": "wo"}).items():
    table.append(kernel(last, f"feed_forward/{ours}", f"DenseReluDense.{theirs}"))
  bias = "{}.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
  if c.layer_bias:
    table.append(Weight(f"{stack}/position_bias/table", bias.format(stack, "{}"), False, depth))
  else:
    table.append(Weight(f"{stack}_bias/table", bias.format(stack, 0), False, None))
  return [
    *table,
    norm(last, "feed_forward_norm"),
    Weight(f"{stack}_norm/scale", f"{stack}.final_layer_norm.weight", False, None),
  ]


def t5_config(raw: dict[str, Any]) -> T5Config:
  """config.json of a T5 -> T5Config;
  keys that may be absent take the defaults that Hugging Face documents.
  """
  kind = raw.get("model_type")
  if kind in ("mt5", "umt5"):  # their own defaults
    raw = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": kind == "umt5"} | raw
  projection = raw.get("feed_forward_proj") or "relu"
  gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
  return T5Config(
    vocab_size=raw["vocab_size"],
    width=raw["d_model"],
    head_width=raw["d_kv"],
    heads=raw["num_heads"],
    mlp_width=raw["d_ff"],
    encoder_layers=raw["num_layers"],
    decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
    gated=gated,
    activation=activation_of("gelu_new" if gated and activation == "gelu" else activation),
    tied_head=raw.get("tie_word_embeddings", True),
    scaled_head=kind != "mt5"
    and raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", True)),
    buckets=raw.get("relative_attention_num_buckets", 32),
    max_distance=raw.get("relative_attention_max_distance", 128),
    epsilon=raw.get("layer_norm_epsilon", 1e-6),
    pad_id=token_id(raw, "pad_token_id", 0),
    eos_id=token_id(raw, "eos_token_id", 1),
    start_id=token_id(raw, "decoder_start_token_id", 0),
    layer_bias=kind == "umt5",
  )


class Architecture(NamedTuple):
  """How one `model_type` of config.json is read, built and named."""

  config: Callable[[dict[str, Any]], Any]
  model: Callable[[Any], Any]
  weights: Callable[[Any], list[Weight]]
  # Second names of tensors: the last part of a name that a folder may hold -> what it must equal.
  tied: dict[str, str]
  # Last parts of names that say nothing: buffers of old library versions.
  ignored: tuple[str, ...]


_T5_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_T5 = Architecture(
  t5_config,
  T5,
  t5_weights,
  tied=dict.fromkeys(_T5_EMBEDDINGS, "shared.weight"),
  ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
_DECODER = Architecture(
  decoder_config,
  Llama,
  decoder_weights,
  tied={"lm_head.weight": "model.embed_tokens.weight"},
  ignored=("rotary_emb.inv_freq",),
)
ARCHITECTURES = {"t5": _T5, "mt5": _T5, "umt5": _T5} | dict.fromkeys(FAMILIES, _DECODER)
