"""One update: pure, compiled once per batch shape, the same on one device or many. B batch, M
target length, V vocabulary, T capacity.
"""

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


def answer_logits(
  model: Model, method: Method, params: Any, learned: Learned, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Logits (B, M, V) of the batch's answer tokens in the compute dtype, and the mixtures (B, T)
  that they were computed with.
  """
  mixture = method.mixture(
    learned, pooled_inputs(model, params, batch, method.pools_padding), batch.task
  )
  adapters = method.adapters(learned, mixture)
  hidden = model.apply(
    {"params": params},
    batch.source,
    batch.source_mask,
    batch.target,
    batch.target_mask,
    adapters,
    method="hidden_joined" if batch.joined else "hidden",
  )
  return model.apply({"params": params}, hidden, method="logits"), mixture


def answer_loss(
  model: Model, method: Method, params: Any, learned: Learned, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Sum of the cross-entropy over the batch's answer tokens, and the mixtures (B, T) that it was
  computed with.
  """
  logits, mixture = answer_logits(model, method, params, learned, batch)
  return jnp.sum(token_losses(logits, batch.target, batch.target_mask)), mixture


def distillation_loss(logits: jax.Array, taught: jax.Array, mask: jax.Array) -> jax.Array:
  """Sum of KL(softmax taught || softmax logits), in nats, float32, over the places (B, M) of a
  mask; both (B, M, V).
  """
  now, before = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, taught))
  return jnp.sum(jnp.where(mask, optax.losses.kl_divergence_with_log_targets(now, before), 0.0))


def batch_sums(
  model: Model, method: Method, params: Any, learned: Learned, now: Learned, batch: Batch
) -> tuple[Metrics, jax.Array]:
  """The terms of a batch's loss (Method.loss) before they are divided, and the mixtures (B, T) of
  its answers.

  Args:
    learned: as it was when the task's training began, which is where a teacher comes from.
    now: the same with what has been trained since.
  """
  logits, mixture = answer_logits(model, method, params, now, batch)
  sums = {"cross_entropy": jnp.sum(token_losses(logits, batch.target, batch.target_mask))}
  if batch.lm_pairs is not None:
    sums["lm_cross_entropy"], _ = answer_loss(model, method, params, now, batch.lm_pairs)
  compared = method.teacher(learned, batch.task)
  if compared is not None:
    teacher, rows = compared
    taught, _ = answer_logits(model, method, params, teacher, batch)
    sums["distillation"] = distillation_loss(logits, taught, batch.target_mask & rows[:, None])
  return sums, mixture


def batch_gradient(
  model: Model,
  method: Method,
  accumulation: int,
  params: Any,
  learned: Learned,
  trainable: Trainable,
  batch: Batch,
) -> tuple[Trainable, Metrics]:
  """Gradient of the method's loss (mean cross-entropy) + penalty over the whole batch, computed in
  `accumulation` parts, and figures.
  """
  sizes: dict[str, Any] = {
    "cross_entropy": jnp.sum(batch.target_mask),
    "distillation": batch.task.shape[0],
  }
  if batch.lm_pairs is not None:
    sizes["lm_cross_entropy"] = jnp.sum(batch.lm_pairs.target_mask)

  def part_loss(trainable: Trainable, part: Batch) -> tuple[jax.Array, tuple]:
    merged = method.merge(learned, trainable)
    sums, mixture = batch_sums(model, method, params, learned, merged, part)
    terms = {name: total / sizes[name] for name, total in sums.items()}
    own = jnp.mean(mixture[:, merged.count - 1])
    return method.loss(terms), (terms, own / accumulation)

  gradient_of = jax.grad(part_loss, has_aux=True)
  if accumulation == 1:
    gradient, (terms, own) = gradient_of(trainable, batch)
  else:
    # Part k takes rows k, k + accumulation, ...: neighbours stay on their own device.
    parts = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1), batch
    )

    def add_part(sums, part):
      return (jax.tree.map(jnp.add, sums, gradient_of(trainable, part)), None)

    nothing = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(gradient_of, trainable, jax.tree.map(lambda x: x[0], parts))
    )
    (gradient, (terms, own)), _ = jax.lax.scan(add_part, nothing, parts)
  pooled = pooled_inputs(model, params, batch, method.pools_padding)

  def penalty_of(trainable):
    return method.penalty(method.merge(learned, trainable), pooled)

  (penalty, figures), penalty_gradient = jax.value_and_grad(penalty_of, has_aux=True)(trainable)
  gradient = jax.tree.map(jnp.add, gradient, penalty_gradient)
  norm = optax.tree.norm(gradient)
  return gradient, {
    "loss": method.loss(terms) + penalty,
    **terms,
    "own_weight": own,
    "gradient_norm": norm,
  } | figures


def train_step(
  model: Model,
  method: Method,
  optimizer: optax.GradientTransformation,
  accumulation: int,
  state: TrainState,
  params: Any,
  learned: Learned,
  batch: Batch,
) -> tuple[TrainState, Metrics]:
  """One update of the trainable part. `params` (the frozen backbone) and `learned` are only read;
  `state` may be donated.

  Metrics, all () float32: loss (nats per answer token, penalty included), the terms it is made of
  (Method.loss), own_weight (mean weight of the newest block), gradient_norm, and what the method's
  penalty reports.
  """
  gradient, metrics = batch_gradient(
    model, method, accumulation, params, learned, state.trainable, batch
  )
  updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
  return TrainState(
    state.step + 1, optax.apply_updates(state.trainable, updates), optimizer_state
  ), metrics
