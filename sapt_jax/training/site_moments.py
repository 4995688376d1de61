"""Second moments of what enters the LoRA sites, for methods that keep new updates away from the
inputs of earlier tasks. Sites that read the same states share them.

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
from flax import traverse_util

from sapt_jax import sharding
from sapt_jax.backbones.hf import Backbone, Model
from sapt_jax.backbones.layers import Linear
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned
from sapt_jax.pet.site_inputs import first_readers, input_of

# T5's names of the mlp's maps, where it has a gate. Without one, wi_0 is `up`; what it reads is the
# same.
T5_MLP = {"wi_0": "gate", "wi_1": "up", "wo": "down"}


def site_of(path: Sequence[str], gated: bool = True) -> tuple[str, ...]:
  """The site of a projection, by its place among the modules: encoder/self_attention/q -> encoder,
  self, q; layers/q -> self, q; encoder/feed_forward/wo -> encoder, mlp, down.
  """
  *parts, name = path
  if parts == ["layers"]:
    return ("mlp" if name in ("gate", "up", "down") else "self", name)
  if parts[-1] == "feed_forward":
    return (*parts[:-1], "mlp", T5_MLP[name] if gated or name == "wo" else "up")
  return (*(part.removesuffix("_attention") for part in parts), name)


def tokens_read(site: tuple[str, ...], batch: Batch) -> jax.Array:
  """Which of the states that enter a site stand for real tokens, (B, L) bool; cross-attention's
  values are made of encoder states.
  """
  if site[0] in ("self", "mlp"):  # decoder-only: source, then answer without its last token
    return jnp.concatenate([batch.source_mask, batch.target_mask[:, :-1]], axis=1)
  return (
    batch.source_mask
    if site[0] == "encoder" or input_of(site)[-1] == "encoded"
    else batch.target_mask
  )


def batch_moments(
  model: Model, method: Method, params: Any, learned: Learned, batch: Batch, counted: jax.Array
) -> Any:
  """sum x x' over the real tokens of a batch, as the frozen backbone with all that has been learned
  makes them.

  Args:
    counted: (B,) bool, the rows that count.

  Returns:
    (layers, D, D) float32 for every input of the sites (at_inputs).
  """
  gated = getattr(model.config, "gated", True)
  readers = set(first_readers(method.setting.sites).values())

  def record(
    call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext
  ) -> Any:
    if takes_lora(context, args) and (site := site_of(context.module.path, gated)) in readers:
      there = tokens_read(site, batch) & counted[:, None]
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
  return by_input(state["intermediates"])


def takes_lora(context: nn.module.InterceptorContext, args: tuple) -> bool:
  """Whether a call is that of a projection with LoRA factors, its second argument."""
  called = isinstance(context.module, Linear) and context.method_name == "__call__"
  return called and len(args) > 1 and args[1] is not None


def by_input(intermediates: Any) -> Any:
  """The moments among what modules have sown, by what their sites read."""
  moments: dict[tuple[str, ...], Any] = {}
  for path, value in jax.tree_util.tree_leaves_with_path(intermediates):
    *modules, name = (key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    if name == "moment":
      moments[input_of(site_of(modules))] = value
  return traverse_util.unflatten_dict(moments)


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
