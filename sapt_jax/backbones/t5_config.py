"""Sizes of a T5, and where LoRA sits in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from sapt_jax.backbones import quantize
from sapt_jax.backbones.attention import Asked
from sapt_jax.pet.lora import Sites, sites_at


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes of a T5 and how it is computed.
  `heads * head_width` may differ from `width` (T5-3B and 11B). `dropout` is applied, where Hugging
  Face's T5 has it, when the model is given random numbers of that name.
  """

  vocab_size: int
  width: int
  head_width: int
  heads: int
  mlp_width: int
  encoder_layers: int
  decoder_layers: int
  gated: bool = True
  activation: str = "gelu_new"
  tied_head: bool = False
  scaled_head: bool = False  # v1.0 multiplies the states by width**-0.5 before its tied head
  buckets: int = 32
  max_distance: int = 128
  epsilon: float = 1e-6
  pad_id: int = 0
  eos_id: int = 1
  start_id: int = 0
  dtype: Any = jnp.float32
  bits: quantize.Bits = 0
  remat: str = "dots"
  unroll: int = 1
  dropout: float = 0.0
  layer_bias: bool = False  # every layer has position biases of its own (umT5)
  attention: str = "xla"  # the implementation, as attention.choose says
  apart: bool = False  # the decoder's layers are arrays of their own (T5.apart)

  is_decoder_only = False
  embedding_scale = 1.0

  def of_attention(self, platform: str) -> Asked:
    """What attention is asked for, on devices of this platform."""
    return Asked(self.dtype, self.head_width, biased=True, dropout=self.dropout, platform=platform)

  def lora_sites(self, targets: Sequence[str] = ("q", "v")) -> Sites:
    """Where LoRA sits: in encoder and decoder, in self- and cross-attention and in the mlp, by the
    names that config.Pet.targets gives the maps; `gate` where there is one.
    """
    inner = self.heads * self.head_width

    def part(depth: int, name: str) -> Sites:
      attention = dict.fromkeys("qkv", (depth, self.width, inner)) | {
        "o": (depth, inner, self.width)
      }
      return sites_at(targets, attention, name)

    def mlp(depth: int) -> Sites:
      names = ("gate", "up") if self.gated else ("up",)
      into = dict.fromkeys(names, (depth, self.width, self.mlp_width))
      return sites_at(targets, into | {"down": (depth, self.mlp_width, self.width)}, "mlp")

    encoder, decoder = self.encoder_layers, self.decoder_layers
    return {
      "encoder": part(encoder, "self") | mlp(encoder),
      "decoder": part(decoder, "self") | part(decoder, "cross") | mlp(decoder),
    }
