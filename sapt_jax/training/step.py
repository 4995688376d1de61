"""One update: pure, compiled once per batch shape, the same on one device or many. B batch, M target length, V vocabulary, T capacity."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapt_jax import sals
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch
from sapt_jax.methods.base import Learned, Method, Trainable
from sapt_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def pooled_inputs(model: Model, params: Any, batch: Batch, with_padding: bool = False) -> jax.Array:
  """Pooled embeddings (B, D) float32 of a batch's sources; with_padding is a reference quirk."""
  mask = jnp.ones_like(batch.source_mask) if with_padding else batch.source_mask
  return sals.pool_embeddings(model.apply({"params": params}, batch.source, method="embed"), mask)


def token_losses(logits: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
  """Cross-entropy (B, M) in nats, float32, of each target token; 0 at masked places."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)
  return jnp.where(mask, losses, 0.0)


def answer_loss(model: Model, method: Method, params: Any, learned: Learned, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Sum of the cross-entropy over the batch's answer tokens, and the mixtures (B, T) that it was computed with."""
  mixture = method.mixture(learned, pooled_inputs(model, params, batch, method.pools_padding), batch.task)
  adapters = method.adapters(learned, mixture)
  hidden = model.apply({"params": params}, batch.source, batch.source_mask, batch.target, batch.target_mask, adapters, method="hidden")
  logits = model.apply({"params": params}, hidden, method="logits")
  return jnp.sum(token_losses(logits, batch.target, batch.target_mask)), mixture


def batch_gradient(model: Model, method: Method, accumulation: int, params: Any, learned: Learned, trainable: Trainable,
                   batch: Batch) -> tuple[Trainable, Metrics]:
  """Gradient of mean cross-entropy + penalty over the whole batch, computed in `accumulation` parts, and figures to report."""
  answers = jnp.sum(batch.target_mask)

  def part_loss(trainable: Trainable, part: Batch) -> tuple[jax.Array, tuple]:
    merged = method.merge(learned, trainable)
    total, mixture = answer_loss(model, method, params, merged, part)
    own = jnp.mean(mixture[:, merged.count - 1])
    return total / answers, (total / answers, own / accumulation)

  def add_part(sums: tuple, part: Batch) -> tuple[tuple, None]:
    gradient, (loss, own) = jax.grad(part_loss, has_aux=True)(trainable, part)
    return jax.tree.map(jnp.add, sums, (gradient, loss, own)), None

  # Part k takes rows k, k + accumulation, ...: neighbours stay on their own device.
  parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1), batch)
  nothing = (jax.tree.map(jnp.zeros_like, trainable), jnp.zeros(()), jnp.zeros(()))
  if accumulation == 1:
    gradient, loss, own = add_part(nothing, batch)[0]
  else:
    gradient, loss, own = jax.lax.scan(add_part, nothing, parts)[0]
  pooled = pooled_inputs(model, params, batch, method.pools_padding)
  penalty_of = lambda trainable: method.penalty(method.merge(learned, trainable), pooled)
  (penalty, figures), penalty_gradient = jax.value_and_grad(penalty_of, has_aux=True)(trainable)
  gradient = jax.tree.map(jnp.add, gradient, penalty_gradient)
  norm = optax.tree.norm(gradient)
  return gradient, {"loss": loss + penalty, "cross_entropy": loss, "own_weight": own, "gradient_norm": norm} | figures


def train_step(model: Model, method: Method, optimizer: optax.GradientTransformation, accumulation: int, state: TrainState, params: Any,
               learned: Learned, batch: Batch) -> tuple[TrainState, Metrics]:
  """One update of the trainable part. `params` (the frozen backbone) and `learned` are only read; `state` may be donated.

  Metrics, all () float32: loss (nats per answer token, penalty included), cross_entropy, own_weight (mean weight of the newest block),
  gradient_norm, and what the method's penalty reports.
  """
  gradient, metrics = batch_gradient(model, method, accumulation, params, learned, state.trainable, batch)
  updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
  return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), optimizer_state), metrics
