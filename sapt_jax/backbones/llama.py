"""LLaMA (Touvron et al., 2023; LLaMA 3: Grattafiori et al., 2024): grouped-query attention, rotary
positions, scanned layers, a cache.

Letters: B batch, S source length (soft prompt included), M target length, L any length, D model
width, H query heads, G key heads, K head width, V vocabulary. Sources are padded on the left, so
that the answer follows the last source token directly.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax.backbones import attention, layers, quantize
from sapt_jax.backbones.layers import ACTIVATIONS, Embedding, Linear, RMSNorm
from sapt_jax.pet.adapters import Adapters
from sapt_jax.pet.lora import Sites
from sapt_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """LLaMA 3.1's stretch of the slow rotary frequencies."""

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_length: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Sizes of a LLaMA and how it is computed."""

  vocab_size: int
  width: int
  mlp_width: int
  layers: int
  heads: int
  key_heads: int
  head_width: int
  activation: str = "silu"
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  tied_head: bool = False
  epsilon: float = 1e-6
  pad_id: int = 0
  eos_id: int = 2
  bos_id: int = 1
  dtype: Any = jnp.float32
  bits: quantize.Bits = 0
  remat: str = "dots"
  unroll: int = 1

  is_decoder_only = True

  def lora_sites(self) -> Sites:
    """q and v of every self-attention."""
    return {
      "self": {
        "q": (self.layers, self.width, self.heads * self.head_width),
        "v": (self.layers, self.width, self.key_heads * self.head_width),
      }
    }


class LlamaCache(flax.struct.PyTreeNode):
  """Keys and values (layers, B, G, length, K), which places hold real tokens (B, length), the next
  place, each row's next position (B,).
  """

  k: jax.Array
  v: jax.Array
  filled: jax.Array
  index: jax.Array
  position: jax.Array


KeysValues = tuple[jax.Array, jax.Array]


def rotary_frequencies(config: LlamaConfig) -> jax.Array:
  """(K/2,) float32, radians per position; with llama3 scaling slow waves are stretched, fast ones
  kept, those between interpolated.
  """
  exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
  frequencies = 1.0 / config.rope_theta**exponents
  s = config.rope_scaling
  if s is None:
    return frequencies
  rotations = s.original_length * frequencies / (2 * math.pi)
  low, high = s.low_frequency_factor, s.high_frequency_factor
  keep = jnp.clip((rotations - low) / (high - low), 0.0, 1.0)
  return frequencies * (keep + (1 - keep) / s.factor)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """x (B, heads, L, K) turned by angles (B, L, K/2) float32;
  the two halves of K are the two coordinates.
  """
  cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


class LlamaLayer(nn.Module):
  """Self-attention and gated mlp, each after a norm and added to what came in; `read` fills a cache
  on the way, `step` uses it.
  """

  config: LlamaConfig

  def setup(self) -> None:
    c = self.config
    inner, key_inner = c.heads * c.head_width, c.key_heads * c.head_width
    linear = partial(Linear, dtype=c.dtype, bits=c.bits)
    self.q = linear((c.width, inner), ("embed", "heads"))
    self.k, self.v = (linear((c.width, key_inner), ("embed", "heads")) for _ in range(2))
    self.o = linear((inner, c.width), ("inner", None))
    self.gate, self.up = (linear((c.width, c.mlp_width), ("embed", "mlp")) for _ in range(2))
    self.down = linear((c.mlp_width, c.width), ("inner", None))
    self.attention_norm, self.mlp_norm = RMSNorm(c.epsilon, c.dtype), RMSNorm(c.epsilon, c.dtype)

  def queries_keys_values(
    self, x: jax.Array, lora: Any, angles: jax.Array, adapters: Adapters | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    c = self.config
    h = self.attention_norm(x)
    factors = (lora and lora["self"]) or {"q": None, "v": None}
    q = rotate(attention.split_heads(self.q(h, factors["q"], adapters), c.heads), angles)
    k = rotate(attention.split_heads(self.k(h), c.key_heads), angles)
    return q, k, attention.split_heads(self.v(h, factors["v"], adapters), c.key_heads)

  def finish(
    self, x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array
  ) -> jax.Array:
    x = x + self.o(attention.attend(q, k, v, bias, scale=self.config.head_width**-0.5))
    h = self.mlp_norm(x)
    return x + self.down(ACTIVATIONS[self.config.activation](self.gate(h)) * self.up(h))

  def __call__(
    self, x: jax.Array, lora: Any, angles: jax.Array, bias: jax.Array, adapters: Adapters | None
  ) -> tuple[jax.Array, None]:
    return self.read(x, lora, angles, bias, None, adapters)[0], None

  def read(
    self,
    x: jax.Array,
    lora: Any,
    angles: jax.Array,
    bias: jax.Array,
    room: jax.Array | None,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, KeysValues]:
    """A source; its keys and values are returned with room (B, G, N, K) for those
    of N tokens behind them.
    """
    x = constrain(x, "batch", None, None)
    self.sow("intermediates", "hidden", x)
    q, k, v = self.queries_keys_values(x, lora, angles, adapters)
    kept = k, v
    if room is not None:
      kept = jnp.concatenate([k, room], axis=2), jnp.concatenate([v, room], axis=2)
    return self.finish(x, q, k, v, bias), kept

  def step(
    self,
    x: jax.Array,
    lora: Any,
    earlier: KeysValues,
    angles: jax.Array,
    bias: jax.Array,
    index: jax.Array,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, KeysValues]:
    """One token (B, 1, D); `earlier` are the keys and values of those before it. Also returns this
    token's, (B, G, 1, K) each.
    """
    q, new_k, new_v = self.queries_keys_values(x, lora, angles, adapters)
    k = attention.write_cache(earlier[0], new_k, index)
    v = attention.write_cache(earlier[1], new_v, index)
    return self.finish(x, q, k, v, bias), (new_k, new_v)


class Llama(nn.Module):
  """The frozen backbone.
  Apply it with `model.apply({"params": params}, ..., method="hidden")` and the like.
  """

  config: LlamaConfig

  def setup(self) -> None:
    c = self.config
    self.embedding = Embedding(c.vocab_size, c.width, c.dtype, stddev=0.02)
    split, shared = 0, nn.broadcast
    methods = {
      "__call__": (split, shared, shared, shared),
      "read": (split, shared, shared, shared, shared),
      "step": (split, split, shared, shared, shared, shared),
    }
    self.layers = layers.scan_layers(LlamaLayer, c.layers, c.remat, c.unroll, methods)(c)
    self.norm = RMSNorm(c.epsilon, c.dtype)
    if not c.tied_head:
      self.head = Linear((c.width, c.vocab_size), ("embed", "vocab"), c.dtype)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """(B, L) int32 -> (B, L, D), the frozen token embeddings."""
    return self.embedding(tokens)

  def with_prompt(
    self, tokens: jax.Array, mask: jax.Array, adapters: Adapters | None
  ) -> tuple[jax.Array, jax.Array]:
    return layers.put_prompts_before(self.embedding(tokens), mask, adapters)

  def angles_and_bias(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, L, K/2) radians and (B, 1, L, L) of tokens that see those before them;
    both float32, mask (B, L) bool.
    """
    angles = (jnp.cumsum(mask, axis=1) - 1)[:, :, None] * rotary_frequencies(self.config)
    seen = attention.causal_mask(mask.shape[1]) & mask[:, None, None, :]
    return angles, attention.mask_bias(seen)

  def states(
    self, tokens: jax.Array, mask: jax.Array, adapters: Adapters | None = None
  ) -> jax.Array:
    """tokens (B, L) int32, mask (B, L) bool -> final states (B, prompt length + L, D); values at
    masked places mean nothing.
    """
    x, mask = self.with_prompt(tokens, mask, adapters)
    x, _ = self.layers(x, adapters and adapters.lora, *self.angles_and_bias(mask), adapters)
    return self.norm(x)

  def hidden(
    self,
    source: jax.Array,
    source_mask: jax.Array,
    target: jax.Array,
    target_mask: jax.Array,
    adapters: Adapters | None = None,
  ) -> jax.Array:
    """Final states (B, M, D) that predict each token of target (B, M); source (B, L) is padded on
    the left, target on the right.
    """
    tokens = jnp.concatenate([source, target[:, :-1]], axis=1)
    x = self.states(tokens, jnp.concatenate([source_mask, target_mask[:, :-1]], axis=1), adapters)
    return x[:, x.shape[1] - target.shape[1] :]

  def hidden_joined(
    self,
    source: jax.Array,
    source_mask: jax.Array,
    target: jax.Array,
    target_mask: jax.Array,
    adapters: Adapters | None = None,
  ) -> jax.Array:
    """As `hidden`, with less padding: L has room for any row's source and answer (without its last
    token), and L places are computed.
    """
    length = source.shape[1]
    tokens = jnp.concatenate([source, target[:, :-1]], axis=1)
    mask = jnp.concatenate([source_mask, target_mask[:, :-1]], axis=1)
    # A row's tokens stand together, padding on both sides.
    places = jnp.argmax(mask, axis=1)[:, None] + jnp.arange(length)
    moved = partial(jnp.take_along_axis, indices=places, axis=1, mode="fill", fill_value=0)
    x = self.states(moved(tokens), moved(mask), adapters)
    before_answer = x.shape[1] - length + jnp.sum(source_mask, axis=1, keepdims=True) - 1
    return jax.vmap(lambda row, places: row.at[places].get(mode="clip"))(
      x, before_answer + jnp.arange(target.shape[1])
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """(..., D) -> (..., V) in the compute dtype."""
    return self.embedding.logits(hidden) if self.config.tied_head else self.head(hidden)

  def __call__(
    self,
    source: jax.Array,
    source_mask: jax.Array,
    target: jax.Array,
    target_mask: jax.Array,
    adapters: Adapters | None = None,
  ) -> jax.Array:
    """Logits (B, M, V) of each target token given the source and the target tokens before it."""
    return self.logits(self.hidden(source, source_mask, target, target_mask, adapters))

  def start(
    self, source: jax.Array, source_mask: jax.Array, max_new: int, adapters: Adapters | None = None
  ) -> tuple[jax.Array, LlamaCache]:
    """Reads the source; returns logits (B, V) of the first answer token and a cache
    with room for max_new tokens.
    """
    c = self.config
    x, mask = self.with_prompt(source, source_mask, adapters)
    room = jnp.zeros((x.shape[0], c.key_heads, max_new, c.head_width), c.dtype)
    states, (k, v) = self.layers.read(
      x, adapters and adapters.lora, *self.angles_and_bias(mask), room, adapters
    )
    filled, index = jnp.pad(mask, ((0, 0), (0, max_new))), jnp.asarray(x.shape[1], jnp.int32)
    cache = LlamaCache(k, v, filled, index, position=jnp.sum(mask, axis=1))
    return self.logits(self.norm(states[:, -1])), cache

  def extend(
    self, tokens: jax.Array, cache: LlamaCache, adapters: Adapters | None = None
  ) -> tuple[jax.Array, LlamaCache]:
    """Feeds one token per row (B,) int32;
    returns logits (B, V) of the next one and the longer cache.
    """
    filled = cache.filled | (jnp.arange(cache.filled.shape[1]) == cache.index)
    angles = cache.position[:, None, None] * rotary_frequencies(self.config)
    x, new = self.layers.step(
      self.embedding(tokens[:, None]),
      adapters and adapters.lora,
      (cache.k, cache.v),
      angles,
      attention.mask_bias(filled)[:, None, None, :],
      cache.index,
      adapters,
    )
    k = attention.write_cache(cache.k, new[0], cache.index)
    v = attention.write_cache(cache.v, new[1], cache.index)
    longer = LlamaCache(k, v, filled, cache.index + 1, cache.position + 1)
    return self.logits(self.norm(x[:, -1])), longer
