"""Sizes of a LLaMA or a relative, and where LoRA sits in it.

Letters: K head width, W entries of a head that positions turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from sapt_jax.backbones import quantize
from sapt_jax.backbones.attention import SOME, Asked
from sapt_jax.backbones.rotary import Rope
from sapt_jax.pet.lora import Sites, sites_at


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Sizes of a LLaMA or a relative, and how it is computed.

  Attributes:
    qkv_bias, o_bias, mlp_bias: biases of these linear maps.
    qk_norm: queries and keys are normed, each head by itself.
    post_norms: what attention and mlp give is normed too.
    norm_offset: what is added to the weights of norms.
    embedding_scale: what embeddings are multiplied by.
    attention_scale: of the scores; None: 1 / sqrt(K).
    attention_cap, logit_cap: scores and logits x become cap * tanh(x / cap); 0: they stay.
    rotary_width: W; None: K.
    ropes: the ways of rotary positions that its layers have.
    rope_of_layer: which of them each layer has, -1: none; empty: the first.
    window: tokens, itself included, that a token sees in layers with a window; None: all.
    windowed: which layers have it; empty: all.
    fused: in Hugging Face's files q, k and v are one tensor, and gate and up are.
    attention: the implementation, as attention.choose says.
    apart: the layers are arrays of their own (Llama.apart).
  """

  vocab_size: int
  width: int
  mlp_width: int
  layers: int
  heads: int
  key_heads: int
  head_width: int
  activation: str = "silu"
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  norm_offset: float = 0.0
  embedding_scale: float = 1.0
  attention_scale: float | None = None
  attention_cap: float = 0.0
  logit_cap: float = 0.0
  rotary_width: int | None = None
  ropes: tuple[Rope, ...] = (Rope(),)
  rope_of_layer: tuple[int, ...] = ()
  window: int | None = None
  windowed: tuple[bool, ...] = ()
  fused: bool = False
  tied_head: bool = False
  epsilon: float = 1e-6
  pad_id: int = 0
  eos_id: int = 2
  bos_id: int = 1
  dtype: Any = jnp.float32
  bits: quantize.Bits = 0
  remat: str = "dots"
  unroll: int = 1
  attention: str = "xla"
  apart: bool = False

  is_decoder_only = True

  @property
  def windows_differ(self) -> bool:
    """Whether there are layers with a window and layers without."""
    return self.window is not None and bool(self.windowed)

  def of_attention(self, platform: str) -> Asked:
    """What attention is asked for, on devices of this platform."""
    return Asked(
      self.dtype,
      self.head_width,
      cap=self.attention_cap,
      window=SOME if self.windows_differ else self.window or 0,
      platform=platform,
    )

  def lora_sites(self, targets: Sequence[str] = ("q", "v")) -> Sites:
    """Where LoRA sits in every layer, by the names that config.Pet.targets gives the maps."""
    depth, width, mlp = self.layers, self.width, self.mlp_width
    inner, key_inner = self.heads * self.head_width, self.key_heads * self.head_width
    heads = {"q": inner, "k": key_inner, "v": key_inner}
    attention = {name: (depth, width, size) for name, size in heads.items()}
    attention["o"] = (depth, inner, width)
    feed = dict.fromkeys(("gate", "up"), (depth, width, mlp)) | {"down": (depth, mlp, width)}
    return sites_at(targets, attention, "self") | sites_at(targets, feed, "mlp")
