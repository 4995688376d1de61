"""Where each LoRA site of a backbone stands in the Hugging Face module tree,
which other programs name it after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from sapt_jax.backbones.families import decoder_weights
from sapt_jax.backbones.hf import ModelConfig
from sapt_jax.backbones.llama_config import LlamaConfig
from sapt_jax.config.learning import TARGETS
from sapt_jax.pet.lora import factors_at


class Site(NamedTuple):
  """One projection that LoRA sits on, in every layer of a stack.

  Attributes:
    path: its place in a block, e.g. ("decoder", "cross", "q").
    module: the attention or mlp that it belongs to, "{}" for the layer.
    linear: the name of the projection in it.
    layers: how many layers the stack has.
    rows: which of the projection's outputs are this site's, where it does several of our maps at
      once (phi3): the first, how many, how many in all. None: all.
  """

  path: tuple[str, ...]
  module: str
  linear: str
  layers: int
  rows: tuple[int, int, int] | None = None


def sites(config: ModelConfig, factors: Any) -> Iterator[Site]:
  """The sites that a LoRA block, or a stack of them, has.

  Args:
    factors: nested as the block's.
  """
  rows: dict[str, tuple[int, int, int] | None] = {}
  if isinstance(config, LlamaConfig):
    layer = "model.layers.{}"
    linears: dict[str, str] = {x: f"{x}_proj" for x in TARGETS}
    if config.fused:
      linears |= dict.fromkeys("qkv", "qkv_proj") | dict.fromkeys(("gate", "up"), "gate_up_proj")
      rows = {weight.path.split("/")[1]: weight.rows for weight in decoder_weights(config)}
    parts: dict[tuple[str, ...], tuple[str, int, dict[str, str]]] = {
      ("self",): (f"{layer}.self_attn", config.layers, {x: linears[x] for x in "qkvo"}),
      ("mlp",): (f"{layer}.mlp", config.layers, {x: linears[x] for x in ("gate", "up", "down")}),
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
        yield Site((*path, name), module, linear, depth, rows.get(name))


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


def misfit(found: Any, wanted: Any) -> str:
  """How the shapes of a LoRA block, or of what it is nested in, differ from those of another, in
  words; empty: they do not.
  """
  ours, theirs = (
    {
      jax.tree_util.keystr(path, simple=True, separator="."): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (found, wanted)
  )
  if names := sorted(ours.keys() ^ theirs.keys()):
    which = "an array" if names[0] in ours else "no array"
    return f"has {which} {names[0]}; the backbone and pet.targets ask for others"
  if (have := _ranks(ours)) != (rank := _ranks(theirs)):
    return f"has rank {have}, where pet.rank is {rank}"
  for name, shape in theirs.items():
    if ours[name] != shape:
      return f"{name} has shape {ours[name]}, where the backbone asks for {shape}: another model's"
  return ""


def _ranks(shapes: dict[str, tuple[int, ...]]) -> str:
  """The ranks of the sites, in words."""
  return ", ".join(map(str, sorted({x[-1] for name, x in shapes.items() if name.endswith(".a")})))
