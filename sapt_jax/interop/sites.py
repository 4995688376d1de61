"""Where each LoRA site of a backbone stands in the Hugging Face module tree,
which other programs name it after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sapt_jax.backbones.hf import ModelConfig
from sapt_jax.backbones.llama_config import LlamaConfig
from sapt_jax.errors import InputError
from sapt_jax.pet.lora import factors_at


class Site(NamedTuple):
  """One projection that LoRA sits on, in every layer of a stack.

  Attributes:
    path: its place in a block, e.g. ("decoder", "cross", "q").
    module: the attention or mlp that it belongs to, "{}" for the layer.
    linear: the name of the projection in it.
    layers: how many layers the stack has.
  """

  path: tuple[str, ...]
  module: str
  linear: str
  layers: int


def sites(config: ModelConfig, factors: Any) -> Iterator[Site]:
  """The sites that a LoRA block, or a stack of them, has.

  Args:
    factors: nested as the block's.

  Raises:
    InputError: other programs have no such sites, as their maps hold several of ours.
  """
  if isinstance(config, LlamaConfig):
    if config.fused:
      raise InputError(
        "other programs keep q, k and v of this backbone in one map (qkv_proj), where LoRA on q "
        "and v alone has no place: its blocks cannot be exchanged"
      )
    layer = "model.layers.{}"
    parts: dict[tuple[str, ...], tuple[str, int, dict[str, str]]] = {
      ("self",): (f"{layer}.self_attn", config.layers, {x: f"{x}_proj" for x in "qkvo"}),
      ("mlp",): (f"{layer}.mlp", config.layers, {x: f"{x}_proj" for x in ("gate", "up", "down")}),
    }
  else:
    mlp = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
    parts = {
      (stack, part): (f"{stack}.block.{{}}.layer.{place}.{module}", depth, names)
      for stack, depth, attentions in (
        ("encoder", config.encoder_layers, {"self": "SelfAttention"}),
        ("decoder", config.decoder_layers, {"self": "SelfAttention", "cross": "EncDecAttention"}),
      )
      for place, (part, module, names) in enumerate(
        [
          *((part, module, {x: x for x in "qkvo"}) for part, module in attentions.items()),
          ("mlp", "DenseReluDense", mlp | {"down": "wo"}),
        ]
      )
    }
  for path, (module, depth, names) in parts.items():
    for name, linear in names.items():
      if factors_at(factors, *path, name) is not None:
        yield Site((*path, name), module, linear, depth)


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
