"""Where each LoRA site of a backbone stands in the Hugging Face module tree,
which other programs name it after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sapt_jax.backbones.hf import ModelConfig
from sapt_jax.backbones.llama import LlamaConfig
from sapt_jax.errors import InputError


class Site(NamedTuple):
  """One projection that LoRA sits on, in every layer of a stack.

  Attributes:
    path: its place in a block, e.g. ("decoder", "cross", "q").
    module: the attention that it belongs to, "{}" for the layer.
    linear: the name of the projection in that attention.
    layers: how many layers the stack has.
  """

  path: tuple[str, ...]
  module: str
  linear: str
  layers: int


def sites(config: ModelConfig) -> Iterator[Site]:
  """The sites of a backbone: q and v of every attention.

  Raises:
    InputError: other programs have no such sites, as q and v are not maps of their own there.
  """
  stacks: list[tuple[tuple[str, ...], str, str, int]]
  if isinstance(config, LlamaConfig):
    if config.fused:
      raise InputError(
        "other programs keep q, k and v of this backbone in one map (qkv_proj), where LoRA on q "
        "and v alone has no place: its blocks cannot be exchanged"
      )
    stacks = [(("self",), "model.layers.{}.self_attn", "{}_proj", config.layers)]
  else:
    encoder, decoder = config.encoder_layers, config.decoder_layers
    stacks = [
      (("encoder", "self"), "encoder.block.{}.layer.0.SelfAttention", "{}", encoder),
      (("decoder", "self"), "decoder.block.{}.layer.0.SelfAttention", "{}", decoder),
      (("decoder", "cross"), "decoder.block.{}.layer.1.EncDecAttention", "{}", decoder),
    ]
  for path, module, linear, layers in stacks:
    for name in ("q", "v"):
      yield Site((*path, name), module, linear.format(name), layers)


def get(tree: Any, path: tuple[str, ...]) -> Any:
  """What stands at a path of nested dicts."""
  for name in path:
    tree = tree[name]
  return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Writes a value at a path of nested dicts, making the dicts on the way."""
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  tree[path[-1]] = value
