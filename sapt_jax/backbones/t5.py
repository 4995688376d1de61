"""T5 (Raffel et al., 2020): v1.0 (relu, tied head) and v1.1/Flan (gated gelu, untied head), layers
scanned, with a cached decoder.

Letters: B batch, S source length (soft prompt included), M target length, D model width, H heads, K
head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax.backbones import attention, layers
from sapt_jax.backbones.layers import ACTIVATIONS, Embedding, Linear, RMSNorm
from sapt_jax.backbones.positions import Places, PositionBias, bias_at
from sapt_jax.backbones.t5_config import T5Config
from sapt_jax.pet.adapters import Adapters
from sapt_jax.pet.lora import factors_at
from sapt_jax.sharding import constrain


class T5Cache(flax.struct.PyTreeNode):
  """What decoding one more token needs: keys and values of the answer (layers, B, H, length, K) and
  of the source (layers, B, H, K, S), or lists with an entry per layer (T5.apart; of the source
  (B, H, S, K) there), the source's mask (B, S), each row's next position (B,).
  """

  self_k: Any
  self_v: Any
  cross_k: Any
  cross_v: Any
  source_mask: jax.Array
  index: jax.Array

  def apart(self) -> T5Cache:
    """The same with a list where arrays are stacked over layers, for T5.apart."""
    stacked = ("self_k", "self_v", "cross_k", "cross_v")
    each = {name: layers.each_layer(getattr(self, name), len(self.self_k)) for name in stacked}
    for name in ("cross_k", "cross_v"):
      each[name] = [x.swapaxes(-1, -2) for x in each[name]]
    return self.replace(**each)


KeysValues = tuple[jax.Array, jax.Array]


def position_bias(config: T5Config, bidirectional: bool) -> PositionBias:
  """The biases of one stack, or of one layer."""
  c = config
  stddev, wide = c.width**-0.5, c.attention == "xla"
  return PositionBias(c.heads, c.buckets, c.max_distance, bidirectional, c.dtype, stddev, wide)


class Attention(nn.Module):
  """Multi-head attention without scaling of the scores (T5 folds it into the initialisation)."""

  config: T5Config

  def setup(self) -> None:
    c = self.config
    inner = c.heads * c.head_width
    linear = partial(Linear, (c.width, inner), ("embed", "heads"), c.dtype, bits=c.bits)
    self.q = linear(stddev=(c.width * c.head_width) ** -0.5)
    self.k = linear(stddev=c.width**-0.5)
    self.v = linear(stddev=c.width**-0.5)
    self.o = Linear((inner, c.width), ("inner", None), c.dtype, inner**-0.5, c.bits)

  def keys_values(
    self, x: jax.Array, factors: Any, adapters: Adapters | None
  ) -> tuple[jax.Array, jax.Array]:
    k = self.k(x, factors_at(factors, "k"), adapters)
    v = self.v(x, factors_at(factors, "v"), adapters)
    return attention.split_heads(k, self.config.heads), attention.split_heads(v, self.config.heads)

  def __call__(
    self,
    x: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    seen: attention.Seen,
    factors: Any,
    adapters: Adapters | None,
  ) -> jax.Array:
    c, biases = self.config, () if bias is None else (bias,)
    q = attention.split_heads(self.q(x, factors_at(factors, "q"), adapters), c.heads)
    core = partial(attention.attend, seen=seen, by=c.attention)
    h = core(q, k, v, *biases, dropout=c.dropout, key=layers.dropout_key(self))
    return dropped(self, self.o(h, factors_at(factors, "o"), adapters))


def dropped(module: nn.Module, x: jax.Array) -> jax.Array:
  """x with dropout, where the model is applied with rngs of that name."""
  return layers.dropped(x, module.config.dropout, layers.dropout_key(module))


class FeedForward(nn.Module):
  """relu, or gated gelu."""

  config: T5Config

  @jax.named_scope("mlp")
  @nn.compact
  def __call__(
    self, x: jax.Array, factors: Any = None, adapters: Adapters | None = None
  ) -> jax.Array:
    c, at = self.config, partial(factors_at, factors)
    wi = partial(Linear, (c.width, c.mlp_width), ("embed", "mlp"), c.dtype, c.width**-0.5, c.bits)
    first = at("gate" if c.gated else "up")
    hidden = ACTIVATIONS[c.activation](wi(name="wi_0")(x, first, adapters))
    if c.gated:
      hidden = hidden * wi(name="wi_1")(x, at("up"), adapters)
    wo = partial(
      Linear, (c.mlp_width, c.width), ("inner", None), c.dtype, c.mlp_width**-0.5, c.bits
    )
    return dropped(self, wo(name="wo")(dropped(self, hidden), at("down"), adapters))


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each after a norm and added to what came in."""

  config: T5Config

  def setup(self) -> None:
    c = self.config
    self.self_attention, self.feed_forward = Attention(c), FeedForward(c)
    self.position_bias = position_bias(c, True) if c.layer_bias else None
    norm = partial(RMSNorm, c.epsilon, c.dtype)
    self.self_norm, self.feed_forward_norm = norm(), norm()

  def __call__(
    self,
    x: jax.Array,
    lora: Any,
    places: Places,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, None]:
    x = constrain(x, "batch", None, None)
    self.sow("intermediates", "hidden", x)
    h = self.self_norm(x)
    factors = factors_at(lora, "self")
    k, v = self.self_attention.keys_values(h, factors, adapters)
    bias = bias_at(places, self.position_bias)
    x = x + self.self_attention(h, k, v, bias, places.seen, factors, adapters)
    h = self.feed_forward_norm(x)
    return x + self.feed_forward(h, factors_at(lora, "mlp"), adapters), None


class DecoderLayer(nn.Module):
  """Causal self-attention, attention over the encoder's states, feed-forward;
  `step` is the same with a cache.
  """

  config: T5Config

  def setup(self) -> None:
    c = self.config
    self.self_attention, self.cross_attention = Attention(c), Attention(c)
    self.position_bias = position_bias(c, False) if c.layer_bias else None
    self.feed_forward = FeedForward(c)
    norm = partial(RMSNorm, c.epsilon, c.dtype)
    self.self_norm, self.cross_norm, self.feed_forward_norm = norm(), norm(), norm()

  def cross_keys_values(
    self, encoded: jax.Array, lora: Any, adapters: Adapters | None
  ) -> tuple[jax.Array, KeysValues]:
    # Kept with positions last: a TPU pads the last axis to 128, and a head may have 64 entries.
    factors = factors_at(lora, "cross")
    k, v = self.cross_attention.keys_values(encoded, factors, adapters)
    return encoded, (k.swapaxes(-1, -2), v.swapaxes(-1, -2))

  def __call__(
    self,
    x: jax.Array,
    lora: Any,
    encoded: jax.Array,
    places: Places,
    source: attention.Seen,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, None]:
    x = constrain(x, "batch", None, None)
    self.sow("intermediates", "hidden", x)
    h = self.self_norm(x)
    own = self.self_attention.keys_values(h, factors_at(lora, "self"), adapters)
    cross = self.cross_attention.keys_values(encoded, factors_at(lora, "cross"), adapters)
    return self.mix(x, h, own, cross, lora, places, source, adapters), None

  def step(
    self,
    x: jax.Array,
    lora: Any,
    own: KeysValues,
    cross: KeysValues,
    places: Places,
    source: attention.Seen,
    index: jax.Array,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, KeysValues]:
    """One token (B, 1, D); `own` are the keys and values of those before it. Also returns this
    token's, (B, H, 1, K) each.
    """
    h = self.self_norm(x)
    new = self.self_attention.keys_values(h, factors_at(lora, "self"), adapters)
    k, v = (attention.write_cache(cache, one, index) for cache, one in zip(own, new, strict=True))
    if not self.config.apart:
      cross = (cross[0].swapaxes(-1, -2), cross[1].swapaxes(-1, -2))
    return self.mix(x, h, (k, v), cross, lora, places, source, adapters), new

  def mix(
    self,
    x: jax.Array,
    h: jax.Array,
    own: KeysValues,
    cross: KeysValues,
    lora: Any,
    places: Places,
    source: attention.Seen,
    adapters: Adapters | None,
  ) -> jax.Array:
    bias, factors = bias_at(places, self.position_bias), factors_at(lora, "self")
    x = x + self.self_attention(h, *own, bias, places.seen, factors, adapters)
    h, factors = self.cross_norm(x), factors_at(lora, "cross")
    x = x + self.cross_attention(h, *cross, None, source, factors, adapters)
    h = self.feed_forward_norm(x)
    return x + self.feed_forward(h, factors_at(lora, "mlp"), adapters)


def lora_of(adapters: Adapters | None, stack: str) -> Any:
  """The LoRA factors of "encoder" or "decoder"; None where there are none."""
  return None if adapters is None or adapters.lora is None else adapters.lora[stack]


class T5(nn.Module):
  """The frozen backbone.
  Apply it with `model.apply({"params": params}, ..., method="hidden")` and the like.
  """

  config: T5Config

  def setup(self) -> None:
    c = self.config
    self.embedding = Embedding(c.vocab_size, c.width, c.dtype)
    if not c.layer_bias:
      self.encoder_bias, self.decoder_bias = position_bias(c, True), position_bias(c, False)
    scan = partial(layers.scan_layers, remat=c.remat, unroll=c.unroll)
    split, shared = 0, nn.broadcast
    encoding = {"__call__": (split, shared, shared)}
    self.encoder = scan(EncoderLayer, c.encoder_layers, methods=encoding)(c)
    decoding = {
      "__call__": (split, shared, shared, shared, shared),
      "cross_keys_values": (split, shared),
      "step": (split, split, split, shared, shared, shared, shared),
    }
    if c.apart:
      self.decoder = layers.LayersApart(DecoderLayer, c, c.decoder_layers, split=3)
    else:
      self.decoder = scan(DecoderLayer, c.decoder_layers, methods=decoding)(c)
    self.encoder_norm, self.decoder_norm = RMSNorm(c.epsilon, c.dtype), RMSNorm(c.epsilon, c.dtype)
    if not c.tied_head:
      self.head = Linear((c.width, c.vocab_size), ("embed", "vocab"), c.dtype, stddev=c.width**-0.5)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """(B, L) int32 -> (B, L, D), the frozen token embeddings."""
    return self.embedding(tokens)

  def encode(
    self, source: jax.Array, source_mask: jax.Array, adapters: Adapters | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """source (B, L) int32, source_mask (B, L) bool -> encoder states (B, S, D) and which of them
    stand for tokens (B, S); S = prompt length + L.
    """
    x, mask = layers.put_prompts_before(self.embedding(source), source_mask, adapters)
    positions = jnp.arange(x.shape[1])
    bias = None if self.config.layer_bias else self.encoder_bias(positions, positions)
    places = Places(bias, positions, positions, self.source_seen(mask, adapters))
    x, _ = self.encoder(dropped(self, x), lora_of(adapters, "encoder"), places, adapters)
    return dropped(self, self.encoder_norm(x)), mask

  def source_seen(self, mask: jax.Array, adapters: Adapters | None) -> attention.Seen:
    """What is seen of a source with this mask (B, S)."""
    # Sources are padded on the right; a soft prompt may have places that are not there.
    holes = adapters is not None and adapters.prompts_mask is not None
    return attention.all_tokens(mask, "any" if holes else "right", self.config.attention)

  def states(
    self, source: jax.Array, source_mask: jax.Array, adapters: Adapters | None = None
  ) -> jax.Array:
    """As `encode`, the states (B, S, D) alone; values at masked places mean nothing."""
    return self.encode(source, source_mask, adapters)[0]

  def hidden(
    self,
    source: jax.Array,
    source_mask: jax.Array,
    target: jax.Array,
    target_mask: jax.Array,
    adapters: Adapters | None = None,
  ) -> jax.Array:
    """Final decoder states (B, M, D) that predict each token of target (B, M):
    position m has seen target[:, :m].
    """
    del target_mask  # padding stands right of all real tokens, where the causal mask hides it
    c, (encoded, mask) = self.config, self.encode(source, source_mask, adapters)
    start = c.start_id
    x = self.embedding(jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start))
    positions = jnp.arange(x.shape[1])
    seen = attention.earlier_places(x.shape[1], c.attention)
    places, lora = self.decoder_places(positions, positions, seen), lora_of(adapters, "decoder")
    source_seen = self.source_seen(mask, adapters)
    x, _ = self.decoder(dropped(self, x), lora, encoded, places, source_seen, adapters)
    return dropped(self, self.decoder_norm(x))

  def decoder_places(self, queries: jax.Array, keys: jax.Array, seen: attention.Seen) -> Places:
    bias = None if self.config.layer_bias else self.decoder_bias(queries, keys)
    return Places(bias, queries, keys, seen)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """(..., D) -> (..., V) in the compute dtype."""
    if self.config.scaled_head:
      hidden = hidden * jnp.asarray(self.config.width**-0.5, hidden.dtype)
    return self.embedding.logits(hidden) if self.config.tied_head else self.head(hidden)

  def __call__(
    self,
    source: jax.Array,
    source_mask: jax.Array,
    target: jax.Array,
    target_mask: jax.Array,
    adapters: Adapters | None = None,
  ) -> jax.Array:
    """Logits (B, M, V) of each target token given those before it."""
    return self.logits(self.hidden(source, source_mask, target, target_mask, adapters))

  def start(
    self, source: jax.Array, source_mask: jax.Array, max_new: int, adapters: Adapters | None = None
  ) -> tuple[jax.Array, T5Cache]:
    """Runs the encoder once; returns logits (B, V) of the first answer token and a cache
    with room for max_new tokens.
    """
    c = self.config
    encoded, mask = self.encode(source, source_mask, adapters)
    lora = lora_of(adapters, "decoder")
    _, (cross_k, cross_v) = self.decoder.cross_keys_values(encoded, lora, adapters)
    empty = jnp.zeros((c.decoder_layers, source.shape[0], c.heads, max_new, c.head_width), c.dtype)
    start = jnp.full((source.shape[0],), c.start_id, jnp.int32)
    cache = T5Cache(empty, empty, cross_k, cross_v, mask, jnp.zeros_like(start))
    return self.extend(start, cache, adapters)

  def extend(
    self, tokens: jax.Array, cache: T5Cache, adapters: Adapters | None = None
  ) -> tuple[jax.Array, T5Cache]:
    """Feeds one token per row (B,) int32;
    returns logits (B, V) of the next one and the longer cache.
    """
    positions = jnp.arange(jax.tree.leaves(cache.self_k)[0].shape[-2])
    earlier = (positions <= cache.index[:, None])[:, None, None]
    seen, source = (
      attention.Seen(bias=attention.mask_bias(mask))
      for mask in (earlier, cache.source_mask[:, None, None])
    )
    places = self.decoder_places(cache.index[:, None], positions, seen)
    x, new = self.decoder.step(
      self.embedding(tokens[:, None]),
      lora_of(adapters, "decoder"),
      (cache.self_k, cache.self_v),
      (cache.cross_k, cache.cross_v),
      places,
      source,
      cache.index,
      adapters,
    )
    write = partial(attention.write_cache, index=cache.index)
    self_k = jax.tree.map(write, cache.self_k, new[0])
    self_v = jax.tree.map(write, cache.self_v, new[1])
    logits = self.logits(self.decoder_norm(x))[:, 0]
    return logits, cache.replace(self_k=self_k, self_v=self_v, index=cache.index + 1)

  def apart(self, params: Any, adapters: Adapters | None) -> tuple[T5, Any, Adapters | None]:
    """Model, parameters and adapters with the decoder's layers as arrays of their own: for `extend`
    alone, and with a cache that is apart.
    """
    c, depth = self.config, self.config.decoder_layers
    params = {**params, "decoder": layers.LayersApart.params_of(params["decoder"], depth)}
    if adapters is not None and adapters.lora is not None:
      lora = layers.each_layer(adapters.lora["decoder"], depth)
      adapters = adapters.replace(lora={"decoder": lora})
    return T5(dataclasses.replace(c, apart=True), parent=None), params, adapters
