"""The parts that T5 and LLaMA share besides attention: linear maps that LoRA can ride on,
embeddings, norms, the scan over layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sapt_jax.backbones import quantize
from sapt_jax.pet import lora
from sapt_jax.pet.adapters import Adapters
from sapt_jax.sharding import constrain

KEPT = "attention"  # the name of what a kernel's backward pass reads of its forward pass
# What a rematerialised layer keeps for its backward pass; "none" keeps everything.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
  "full": jax.checkpoint_policies.nothing_saveable,
  # A kernel's attention is dearer to compute again than to keep.
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(KEPT),
  ),
}


# By the names that config.json gives them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": jax.nn.relu,
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_new": partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
  "gelu_fast": partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class Linear(nn.Module):
  """x @ kernel, plus the mixed LoRA product when this site has factors.

  Attributes:
    shape: (D_in, D_out).
    axes: logical axis of each dimension, for sharding.
    bits: of a quantised kernel (quantize.py); 0: the kernel is kept in dtype.
    bias: whether a vector (D_out,) is added.
  """

  shape: tuple[int, int]
  axes: tuple[str | None, str | None]
  dtype: Any
  stddev: float = 0.02
  bits: quantize.Bits = 0
  bias: bool = False

  def multiply(self, x: jax.Array) -> jax.Array:
    # When decoding, one token's states are sent to where the weights are, not the other way round.
    if x.ndim == 3 and x.shape[1] == 1:
      x = constrain(x, "rows", None, self.axes[0])
    if not self.bits:
      normal = nn.initializers.normal(self.stddev)
      return x @ self.placed("kernel", normal, self.shape, self.dtype)
    random_codes, dtype = quantize.random_codes(self.bits), quantize.CODES[self.bits]
    codes = self.placed("codes", random_codes, self.shape, dtype)
    groups = self.shape[0] // quantize.group_of(self.shape[0])
    scale = nn.initializers.constant(quantize.scale_for(self.bits, self.stddev))
    scales = self.placed("scales", scale, (groups, self.shape[1]), self.dtype)
    return quantize.product(x, codes, scales)

  def placed(self, name: str, init: Callable, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A parameter that is split along the site's axes."""
    axes = self.axes[-len(shape) :]
    return self.param(name, nn.with_logical_partitioning(init, axes), shape, dtype)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    factors: dict[str, jax.Array] | None = None,
    adapters: Adapters | None = None,
  ) -> jax.Array:
    y = self.multiply(x)
    if self.bias:
      y = y + self.placed("bias", nn.initializers.zeros, self.shape[1:], self.dtype)
    if factors is None or adapters is None or adapters.gates is None:
      return y
    if adapters.dropout:
      x = dropped(x, adapters.dropout, dropout_key(self))
    return y + lora.mixed_product(
      x, factors, adapters.gates, adapters.detached, adapters.chosen, adapters.newest
    )


class Embedding(nn.Module):
  """Token embeddings (vocabulary, D); `logits` is the tied head."""

  vocab_size: int
  width: int
  dtype: Any
  stddev: float = 1.0

  def setup(self) -> None:
    init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), ("vocab", "embed"))
    self.table = self.param("table", init, (self.vocab_size, self.width), self.dtype)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    return jnp.take(self.table, tokens, axis=0)

  def logits(self, x: jax.Array) -> jax.Array:
    return x @ self.table.T


class RMSNorm(nn.Module):
  """x / rms(x) * (offset + scale), computed in float32 (no mean, no bias)."""

  epsilon: float
  dtype: Any
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = nn.initializers.constant(1.0 - self.offset)
    ones = nn.with_logical_partitioning(start, ("norm",))
    scale = self.param("scale", ones, (x.shape[-1],), self.dtype)
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
    return (wide * (self.offset + scale.astype(jnp.float32))).astype(x.dtype)


def dropped(x: jax.Array, dropout: float, key: jax.Array | None) -> jax.Array:
  """x with a share `dropout` of its entries zero, drawn with the key, and the others as much larger
  as keeps the mean; no key, or a share of 0: x as it is.
  """
  if not dropout or key is None:
    return x
  keep = 1.0 - dropout
  return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0).astype(x.dtype)


def dropout_key(module: nn.Module) -> jax.Array | None:
  """A new random key, where the model is applied with rngs of the name "dropout"."""
  return module.make_rng("dropout") if module.has_rng("dropout") else None


def put_prompts_before(
  x: jax.Array, mask: jax.Array, adapters: Adapters | None
) -> tuple[jax.Array, jax.Array]:
  """Input embeddings x (B, L, D) and their mask (B, L), with the adapters' soft prompts, if any,
  before them: (B, P + L, D), (B, P + L).
  """
  if adapters is None or adapters.prompts is None:
    return x, mask
  x = jnp.concatenate([adapters.prompts.astype(x.dtype), x], axis=1)
  if adapters.prompts_mask is not None:
    return x, jnp.concatenate([adapters.prompts_mask, mask], axis=1)
  return x, jnp.pad(mask, ((0, 0), (adapters.prompts.shape[1], 0)), constant_values=True)


def each_layer(stacked: Any, length: int) -> list[Any]:
  """A tree of arrays that are stacked over `length` layers as a list with a tree per layer."""
  return [jax.tree.map(itemgetter(number), stacked) for number in range(length)]


class LayersApart(nn.Module):
  """`step` of scan_layers for layers whose parameters are arrays of their own, not slices of
  stacked ones: XLA copies a layer's slice at every token, on CPUs and where a GPU's products are
  made by Triton, which takes longer than to read it.

  Attributes:
    split: how many of the first inputs are split along the layers: lists with an entry per layer,
      or arrays that are stacked.
  """

  layer: type[nn.Module]
  config: Any
  length: int
  split: int

  def setup(self) -> None:
    self.each = [self.layer(self.config) for _ in range(self.length)]

  def step(self, x: jax.Array, *inputs: Any) -> tuple[jax.Array, tuple[list[jax.Array], ...]]:
    own, shared, news = inputs[: self.split], inputs[self.split :], []
    for number, layer in enumerate(self.each):
      there = jax.tree.map(itemgetter(number), own, is_leaf=lambda x: isinstance(x, list))
      x, new = layer.step(x, *there, *shared)
      news.append(new)
    return x, tuple(map(list, zip(*news, strict=True)))

  @staticmethod
  def params_of(stacked: Any, length: int) -> dict[str, Any]:
    """The parameters of this module, from those of scan_layers, or as they are if they are its."""
    if "each_0" in stacked:
      return stacked
    return {f"each_{number}": one for number, one in enumerate(each_layer(stacked, length))}


def scan_layers(
  layer: type[nn.Module], length: int, remat: str, unroll: int, methods: dict[str, tuple]
) -> Any:
  """`layer` repeated `length` times over stacked parameters (leading logical axis "layers").

  Args:
    layer: a module whose methods take (carry, *inputs) and return (carry, outputs).
    remat: "none" or a name in REMAT_POLICIES; it applies to `__call__`, the one that is
      differentiated.
    unroll: layers per iteration of the loop; `length` gives straight-line code.
    methods: method name -> for each of its inputs 0 (split along the layers) or nn.broadcast (the
      same for every layer).
  """
  if remat != "none":
    layer = nn.remat(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
  common = {
    "variable_axes": {"params": 0, "intermediates": 0},
    "split_rngs": {"params": True, "dropout": True},
    "length": length,
    "unroll": unroll,
    "metadata_params": {nn.PARTITION_NAME: "layers"},
  }
  scans = {name: {"in_axes": in_axes, **common} for name, in_axes in methods.items()}
  return nn.scan(layer, methods=scans)
