"""The architectures that a config.json may name: how each is configured and built, and where
Hugging Face keeps each of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sapt_jax.backbones.layers import ACTIVATIONS
from sapt_jax.backbones.llama import Llama, LlamaConfig, RopeScaling
from sapt_jax.backbones.t5 import T5, T5Config
from sapt_jax.errors import InputError


class Weight(NamedTuple):
  """One of our parameters and where Hugging Face keeps it.

  Attributes:
    path: our parameter, e.g. "encoder/attention/q/kernel".
    name: theirs; "{}" stands for the layer, whose parameters we stack on a leading axis.
    transpose: theirs is (D_out, D_in), as torch's linear layers keep it; ours (D_in, D_out).
    layers: how many layers are stacked; None where there is no layer axis.
  """

  path: str
  name: str
  transpose: bool
  layers: int | None

  def names(self) -> list[str]:
    """Their name, or that of every layer."""
    if self.layers is None:
      return [self.name]
    return [self.name.format(layer) for layer in range(self.layers)]


def t5_weights(c: T5Config) -> list[Weight]:
  """The table of T5's weights."""
  head = [] if c.tied_head else [Weight("head/kernel", "lm_head.weight", True, None)]
  return [
    Weight("embedding/table", "shared.weight", False, None),
    *head,
    *_t5_stack("encoder", c.encoder_layers, {"self": "SelfAttention"}, c.gated),
    *_t5_stack(
      "decoder", c.decoder_layers, {"self": "SelfAttention", "cross": "EncDecAttention"}, c.gated
    ),
  ]


def _t5_stack(stack: str, depth: int, attentions: dict[str, str], gated: bool) -> list[Weight]:
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
  kernels = {"wi_0": "wi_0", "wi_1": "wi_1"} if gated else {"wi_0": "wi"}
  for ours, theirs in (kernels | {"wo": "wo"}).items():
    table.append(kernel(last, f"feed_forward/{ours}", f"DenseReluDense.{theirs}"))
  bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  return [
    *table,
    norm(last, "feed_forward_norm"),
    Weight(f"{stack}_bias/table", bias, False, None),
    Weight(f"{stack}_norm/scale", f"{stack}.final_layer_norm.weight", False, None),
  ]


def llama_weights(c: LlamaConfig) -> list[Weight]:
  """The table of LLaMA's weights."""
  head = [] if c.tied_head else [Weight("head/kernel", "lm_head.weight", True, None)]
  attention = {x: f"self_attn.{x}_proj" for x in "qkvo"}
  kernels = attention | {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}
  norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
  return [
    Weight("embedding/table", "model.embed_tokens.weight", False, None),
    Weight("norm/scale", "model.norm.weight", False, None),
    *head,
    *(
      Weight(f"layers/{ours}/kernel", f"model.layers.{{}}.{theirs}.weight", True, c.layers)
      for ours, theirs in kernels.items()
    ),
    *(
      Weight(f"layers/{ours}/scale", f"model.layers.{{}}.{theirs}.weight", False, c.layers)
      for ours, theirs in norms.items()
    ),
  ]


def token_id(raw: dict[str, Any], name: str, usual: int) -> int:
  """A special token's id; null means the usual one, of a list the first counts.

  Raises:
    InputError: it is no id of the vocabulary, and so would read no row of the embedding.
  """
  value = raw.get(name)
  if isinstance(value, list):
    value = value[0] if value else None
  if value is None:
    return usual
  if not isinstance(value, int) or not 0 <= value < raw["vocab_size"]:
    raise InputError(
      f"{name} {value!r} is no token of a vocabulary of {raw['vocab_size']}: mend it in config.json"
    )
  return value


def activation_of(name: str) -> str:
  """The name of an activation that the backbones can compute.

  Raises:
    InputError: it is none.
  """
  if name not in ACTIVATIONS:
    raise InputError(f"activation {name!r} is not supported: {', '.join(ACTIVATIONS)}")
  return name


def t5_config(raw: dict[str, Any]) -> T5Config:
  """config.json of a T5 -> T5Config;
  keys that may be absent take the defaults that Hugging Face documents.
  """
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
    scaled_head=raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", True)),
    buckets=raw.get("relative_attention_num_buckets", 32),
    max_distance=raw.get("relative_attention_max_distance", 128),
    epsilon=raw.get("layer_norm_epsilon", 1e-6),
    pad_id=token_id(raw, "pad_token_id", 0),
    eos_id=token_id(raw, "eos_token_id", 1),
    start_id=token_id(raw, "decoder_start_token_id", 0),
  )


def llama_config(raw: dict[str, Any]) -> LlamaConfig:
  """config.json of a LLaMA -> LlamaConfig; rope settings are read in the old and the new place."""
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "llama3"):
    raise InputError(f"rope type {kind!r} is not supported: default, llama3")
  if raw.get("attention_bias") or raw.get("mlp_bias"):
    raise InputError("LLaMA models with attention_bias or mlp_bias are not supported")
  scaling = None
  if kind == "llama3":
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    scaling = RopeScaling(rope["factor"], low, high, rope["original_max_position_embeddings"])
  return LlamaConfig(
    vocab_size=raw["vocab_size"],
    width=raw["hidden_size"],
    mlp_width=raw["intermediate_size"],
    layers=raw["num_hidden_layers"],
    heads=raw["num_attention_heads"],
    key_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
    head_width=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
    activation=activation_of(raw.get("hidden_act") or "silu"),
    rope_theta=rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
    rope_scaling=scaling,
    tied_head=raw.get("tie_word_embeddings", False),
    epsilon=raw.get("rms_norm_eps", 1e-6),
    pad_id=token_id(raw, "pad_token_id", 0),
    eos_id=token_id(raw, "eos_token_id", 2),
    bos_id=token_id(raw, "bos_token_id", 1),
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
ARCHITECTURES = {
  "t5": Architecture(
    t5_config,
    T5,
    t5_weights,
    tied=dict.fromkeys(_T5_EMBEDDINGS, "shared.weight"),
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
  ),
  "llama": Architecture(
    llama_config,
    Llama,
    llama_weights,
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    ignored=("rotary_emb.inv_freq",),
  ),
}
