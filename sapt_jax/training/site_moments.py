"""Second moments of what enters every LoRA site, for methods that keep new updates away from the
inputs of earlier tasks.

B batch, L tokens, D width of a site's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import sharding
from sapt_jax.backbones.hf import Backbone, Model
from sapt_jax.backbones.layers import Linear
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.methods.base import Learned, Method


def site_of(path: Sequence[str]) -> tuple[str, ...]:
  """The site of a projection, by its place among the modules: encoder/self_attention/q -> encoder,
  self, q; layers/q -> self, q.
  """
  return tuple("self" if name == "layers" else name.removesuffix("_attention") for name in path)


def tokens_read(site: tuple[str, ...], batch: Batch) -> jax.Array:
  """Which of the states that enter a site stand for real tokens, (B, L) bool; cross-attention's
  values are made of encoder states.
  """
  if site[0] == "self":  # decoder-only: source, then answer without its last token
    return jnp.concatenate([batch.source_mask, batch.target_mask[:, :-1]], axis=1)
  return (
    batch.source_mask if site[0] == "encoder" or site[1:] == ("cross", "v") else batch.target_mask
  )


def batch_moments(
  model: Model, method: Method, params: Any, learned: Learned, batch: Batch, counted: jax.Array
) -> Any:
  """sum x x' over the real tokens of a batch, as the frozen backbone with all that has been learned
  makes them.

  Args:
    counted: (B,) bool, the rows that count.

  Returns:
    the nesting of the sites, with (layers, D, D) float32 at each.
  """

  def record(
    call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext
  ) -> Any:
    if takes_lora(context, args):
      there = tokens_read(site_of(context.module.path), batch) & counted[:, None]
      x = jnp.where(there[:, :, None], args[0].astype(jnp.float32), 0.0)
      moment = jnp.einsum("bld,ble->de", x, x, precision="highest")
      context.module.sow("intermediates", "moment", moment)
    return call(*args, **kwargs)

  features = method.features(model, params, batch)
  adapters = method.adapters(learned, method.mixture(learned, features, batch.task))
  tokens = (batch.source, batch.source_mask, batch.target, batch.target_mask)
  with nn.intercept_methods(record):
    _, state = model.apply(
      {"params": params}, *tokens, adapters, method="hidden", mutable=["intermediates"]
    )
  return by_site(state["intermediates"])


def takes_lora(context: nn.module.InterceptorContext, args: tuple) -> bool:
  """Whether a call is that of a projection with LoRA factors, its second argument."""
  called = isinstance(context.module, Linear) and context.method_name == "__call__"
  return called and len(args) > 1 and args[1] is not None


def by_site(intermediates: Any) -> Any:
  """The moments among what modules have sown, nested like the sites."""
  moments: dict[str, Any] = {}
  for path, value in jax.tree_util.tree_leaves_with_path(intermediates):
    *modules, name = (key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    if name == "moment":
      *outer, last = site_of(modules)
      place = moments
      for part in outer:
        place = place.setdefault(part, {})
      place[last] = value
  return moments


class SiteMoments:
  """Second moments of many rows, compiled once per shape."""

  def __init__(self, backbone: Backbone, method: Method, batcher: Batcher, mesh: jax.sharding.Mesh):
    self.backbone, self.batcher, self.placement = backbone, batcher, sharding.batch_sharded(mesh)
    self.of_batch = jax.jit(
      partial(batch_moments, backbone.model, method), out_shardings=sharding.replicated(mesh)
    )

  def __call__(self, learned: Learned, rows: Sequence[Row]) -> Any:
    """As batch_moments, summed over all rows."""
    total = None
    for numbers, batch in self.batcher.answering(rows):
      counted = np.arange(len(batch.task)) < len(
        numbers
      )  # not the rows that fill up the last batch
      moments = self.of_batch(
        self.backbone.params, learned, *sharding.to_devices((batch, counted), self.placement)
      )
      total = moments if total is None else jax.tree.map(jnp.add, total, moments)
    return total
