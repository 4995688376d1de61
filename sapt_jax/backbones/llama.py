"""LLaMA (Touvron et al., 2023; LLaMA 3: Grattafiori et al., 2024) and its relatives, which differ
by the parts that LlamaConfig names (families.py): grouped-query attention, rotary positions,
scanned layers, a cache.

Letters: B batch, S source length (soft prompt included), M target length, L any length, D model
width, H query heads, G key heads, K head width, W entries of a head that positions turn, V
vocabulary. Sources are padded on the left, so
that the answer follows the last source token directly.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax.backbones import attention, layers
from sapt_jax.backbones.layers import ACTIVATIONS, Embedding, Linear, RMSNorm
from sapt_jax.backbones.llama_config import LlamaConfig
from sapt_jax.backbones.rotary import rotate
from sapt_jax.pet.adapters import Adapters
from sapt_jax.pet.lora import factors_at
from sapt_jax.sharding import constrain


class LlamaCache(flax.struct.PyTreeNode):
  """Keys and values (layers, B, G, length, K), or lists with an entry per layer (Llama.apart);
  which places hold real tokens (B, length); each row's next place and next position (B,).
  """

  k: Any
  v: Any
  filled: jax.Array
  index: jax.Array
  position: jax.Array

  def apart(self) -> LlamaCache:
    """The same with lists where arrays are stacked over layers, for Llama.apart."""
    each = partial(layers.each_layer, length=len(self.k))
    return self.replace(k=each(self.k), v=each(self.v))


KeysValues = tuple[jax.Array, jax.Array]


class Kind(NamedTuple):
  """Which rotary positions a layer has, and whether it has a window; None where all layers are
  alike. For all layers together: (layers,) each.
  """

  rope: jax.Array | None
  windowed: jax.Array | None


class Geometry(NamedTuple):
  """What layers see of positions. N ways of rotary positions.

  Attributes:
    cos, sin: (N, B, L, W/2) float32; see rotary.rotate.
    seen: where a token may look.
    windowed: the same of layers with a window; None: there are none.
  """

  cos: jax.Array
  sin: jax.Array
  seen: attention.Seen
  windowed: attention.Seen | None

  def of(self, kind: Kind) -> tuple[jax.Array, jax.Array, attention.Seen]:
    """cos, sin and what is seen, of a layer of this kind."""
    rope = 0 if kind.rope is None else kind.rope
    if self.windowed is None:
      seen = self.seen
    elif kind.windowed is None:
      seen = self.windowed
    else:
      seen = jax.tree.map(partial(jnp.where, kind.windowed), self.windowed, self.seen)
    return self.cos[rope], self.sin[rope], seen


def behind_prompt(padding: attention.Padding, adapters: Adapters | None) -> attention.Padding:
  """Where padding is when the adapters' soft prompt, if any, stands before rows that are padded on
  this side.
  """
  if adapters is None or adapters.prompts is None:
    return padding
  return "right" if padding == "right" and adapters.prompts_mask is None else "any"


class LlamaLayer(nn.Module):
  """Self-attention and gated mlp, each after a norm and added to what came in; `read` fills a cache
  on the way, `step` uses it.
  """

  config: LlamaConfig

  def setup(self) -> None:
    c = self.config
    inner, key_inner = c.heads * c.head_width, c.key_heads * c.head_width
    linear = partial(Linear, dtype=c.dtype, bits=c.bits)
    into = partial(linear, axes=("embed", "heads"), bias=c.qkv_bias)
    self.q = into((c.width, inner))
    self.k, self.v = (into((c.width, key_inner)) for _ in range(2))
    self.o = linear((inner, c.width), ("inner", None), bias=c.o_bias)
    mlp = partial(linear, (c.width, c.mlp_width), ("embed", "mlp"), bias=c.mlp_bias)
    self.gate, self.up = mlp(), mlp()
    self.down = linear((c.mlp_width, c.width), ("inner", None), bias=c.mlp_bias)
    norm = partial(RMSNorm, c.epsilon, c.dtype, c.norm_offset)
    self.attention_norm, self.mlp_norm = norm(), norm()
    if c.qk_norm:
      self.q_norm, self.k_norm = norm(), norm()
    if c.post_norms:
      self.attention_post_norm, self.mlp_post_norm = norm(), norm()

  def queries_keys_values(
    self, x: jax.Array, lora: Any, cos: jax.Array, sin: jax.Array, adapters: Adapters | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    c = self.config
    h = self.attention_norm(x)
    at = partial(factors_at, lora, "self")
    q = attention.split_heads(self.q(h, at("q"), adapters), c.heads)
    k = attention.split_heads(self.k(h, at("k"), adapters), c.key_heads)
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    v = attention.split_heads(self.v(h, at("v"), adapters), c.key_heads)
    return rotate(q, cos, sin), rotate(k, cos, sin), v

  def finish(
    self,
    x: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: attention.Seen,
    lora: Any,
    adapters: Adapters | None,
  ) -> jax.Array:
    c = self.config
    scale = c.attention_scale or c.head_width**-0.5
    core = partial(attention.attend, seen=seen, by=c.attention)
    h = core(q, k, v, scale=scale, cap=c.attention_cap)
    h = self.o(h, factors_at(lora, "self", "o"), adapters)
    x = x + (self.attention_post_norm(h) if c.post_norms else h)
    h, at = self.mlp_norm(x), partial(factors_at, lora, "mlp")
    with jax.named_scope("mlp"):
      gate = ACTIVATIONS[c.activation](self.gate(h, at("gate"), adapters))
      h = self.down(gate * self.up(h, at("up"), adapters), at("down"), adapters)
    return x + (self.mlp_post_norm(h) if c.post_norms else h)

  def __call__(
    self, x: jax.Array, lora: Any, kind: Kind, geometry: Geometry, adapters: Adapters | None
  ) -> tuple[jax.Array, None]:
    return self.read(x, lora, kind, geometry, None, adapters)[0], None

  def read(
    self,
    x: jax.Array,
    lora: Any,
    kind: Kind,
    geometry: Geometry,
    room: jax.Array | None,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, KeysValues]:
    """A source; its keys and values are returned with room (B, G, N, K) for those
    of N tokens behind them.
    """
    x = constrain(x, "batch", None, None)
    self.sow("intermediates", "hidden", x)
    cos, sin, seen = geometry.of(kind)
    q, k, v = self.queries_keys_values(x, lora, cos, sin, adapters)
    kept = k, v
    if room is not None:
      kept = jnp.concatenate([k, room], axis=2), jnp.concatenate([v, room], axis=2)
    return self.finish(x, q, k, v, seen, lora, adapters), kept

  def step(
    self,
    x: jax.Array,
    lora: Any,
    earlier: KeysValues,
    kind: Kind,
    geometry: Geometry,
    index: jax.Array,
    adapters: Adapters | None,
  ) -> tuple[jax.Array, KeysValues]:
    """One token (B, 1, D); `earlier` are the keys and values of those before it. Also returns this
    token's, (B, G, 1, K) each.
    """
    cos, sin, seen = geometry.of(kind)
    q, new_k, new_v = self.queries_keys_values(x, lora, cos, sin, adapters)
    k = attention.write_cache(earlier[0], new_k, index)
    v = attention.write_cache(earlier[1], new_v, index)
    return self.finish(x, q, k, v, seen, lora, adapters), (new_k, new_v)


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
      "__call__": (split, split, shared, shared),
      "read": (split, split, shared, shared, shared),
      "step": (split, split, split, shared, shared, shared),
    }
    if c.apart:
      self.layers = layers.LayersApart(LlamaLayer, c, c.layers, split=3)
    else:
      self.layers = layers.scan_layers(LlamaLayer, c.layers, c.remat, c.unroll, methods)(c)
    self.norm = RMSNorm(c.epsilon, c.dtype, c.norm_offset)
    if not c.tied_head:
      self.head = Linear((c.width, c.vocab_size), ("embed", "vocab"), c.dtype)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """(B, L) int32 -> (B, L, D), the frozen token embeddings."""
    scale, found = self.config.embedding_scale, self.embedding(tokens)
    return found if scale == 1 else found * jnp.asarray(scale, found.dtype)

  def with_prompt(
    self, tokens: jax.Array, mask: jax.Array, adapters: Adapters | None
  ) -> tuple[jax.Array, jax.Array]:
    return layers.put_prompts_before(self.embed(tokens), mask, adapters)

  def kinds(self) -> Kind:
    """What each layer is, where they differ."""
    c = self.config
    return Kind(
      jnp.asarray(c.rope_of_layer, jnp.int32) if c.rope_of_layer else None,
      jnp.asarray(c.windowed) if c.windowed else None,
    )

  def geometry(
    self,
    positions: jax.Array,
    seen: attention.Seen,
    windowed: attention.Seen | None,
  ) -> Geometry:
    """What layers see of tokens at positions (B, L) int32."""
    c = self.config
    width = c.rotary_width or c.head_width
    turns = [rope.turns(positions, width) for rope in c.ropes]
    if -1 in c.rope_of_layer:  # the last one, which -1 takes: no turn
      turns.append((jnp.ones_like(turns[0][0]), jnp.zeros_like(turns[0][0])))
    cos, sin = (jnp.stack(parts) for parts in zip(*turns, strict=True))
    return Geometry(cos, sin, seen, windowed)

  def geometry_of(self, mask: jax.Array, padding: attention.Padding) -> Geometry:
    """The same of tokens (B, L) that see those before them, padded on this side."""
    c = self.config
    earlier = partial(attention.earlier_tokens, mask, padding, c.attention, some=c.windows_differ)
    windowed = None if c.window is None else earlier(window=c.window)
    return self.geometry(jnp.cumsum(mask, axis=1) - 1, earlier(), windowed)

  def states(
    self,
    tokens: jax.Array,
    mask: jax.Array,
    adapters: Adapters | None = None,
    padding: attention.Padding = "left",
  ) -> jax.Array:
    """tokens (B, L) int32, mask (B, L) bool, padded on this side -> final states (B, prompt length
    + L, D); values at masked places mean nothing.
    """
    x, mask = self.with_prompt(tokens, mask, adapters)
    padding = behind_prompt(padding, adapters)
    lora, geometry = adapters and adapters.lora, self.geometry_of(mask, padding)
    x, _ = self.layers(x, lora, self.kinds(), geometry, adapters)
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
    x = self.states(moved(tokens), moved(mask), adapters, padding="right")
    before_answer = x.shape[1] - length + jnp.sum(source_mask, axis=1, keepdims=True) - 1
    return jax.vmap(lambda row, places: row.at[places].get(mode="clip"))(
      x, before_answer + jnp.arange(target.shape[1])
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """(..., D) -> (..., V) in the compute dtype."""
    c = self.config
    logits = self.embedding.logits(hidden) if c.tied_head else self.head(hidden)
    return attention.capped(logits, c.logit_cap)

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
    padding = behind_prompt("left", adapters)
    lora = adapters and adapters.lora
    geometry = self.geometry_of(mask, padding)
    states, (k, v) = self.layers.read(x, lora, self.kinds(), geometry, room, adapters)
    filled, index = jnp.pad(mask, ((0, 0), (0, max_new))), jnp.full(len(x), x.shape[1], jnp.int32)
    cache = LlamaCache(k, v, filled, index, position=jnp.sum(mask, axis=1))
    return self.logits(self.norm(states[:, -1])), cache

  def extend(
    self, tokens: jax.Array, cache: LlamaCache, adapters: Adapters | None = None
  ) -> tuple[jax.Array, LlamaCache]:
    """Feeds one token per row (B,) int32;
    returns logits (B, V) of the next one and the longer cache.
    """
    filled = cache.filled | (jnp.arange(cache.filled.shape[1]) == cache.index[:, None])
    position, mask, windowed = cache.position[:, None], filled[:, None, None, :], None
    seen = attention.Seen(bias=attention.mask_bias(mask))
    if (window := self.config.window) is not None:
      of_keys = jnp.cumsum(filled, axis=1) - 1
      near = position[:, None, :, None] - of_keys[:, None, None, :] < window
      windowed = attention.Seen(bias=attention.mask_bias(mask & near))
    geometry = self.geometry(position, seen, windowed)
    x, new = self.layers.step(
      self.embed(tokens[:, None]),
      adapters and adapters.lora,
      (cache.k, cache.v),
      self.kinds(),
      geometry,
      cache.index,
      adapters,
    )
    write = partial(attention.write_cache, index=cache.index)
    k, v = jax.tree.map(write, cache.k, new[0]), jax.tree.map(write, cache.v, new[1])
    longer = LlamaCache(k, v, filled, cache.index + 1, cache.position + 1)
    return self.logits(self.norm(x[:, -1])), longer

  def apart(self, params: Any, adapters: Adapters | None) -> tuple[Llama, Any, Adapters | None]:
    """Model, parameters and adapters with layers as arrays of their own: for `extend` alone, and
    with a cache that is apart.
    """
    c, depth = self.config, self.config.layers
    params = {**params, "layers": layers.LayersApart.params_of(params["layers"], depth)}
    if adapters is not None and adapters.lora is not None:
      adapters = adapters.replace(lora=layers.each_layer(adapters.lora, depth))
    return Llama(dataclasses.replace(c, apart=True), parent=None), params, adapters
