"""One update: pure, compiled once per batch shape, the same on one device or many.

B batch, T capacity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sapt_jax import streams
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch
from sapt_jax.methods.base import Method, StepView, Terms, Trainable
from sapt_jax.methods.lesson import Learned
from sapt_jax.training.state import Schedule, TrainState

Metrics = dict[str, jax.Array]


def loss_gradient(
  model: Model,
  method: Method,
  accumulation: int,
  params: Any,
  learned: Learned,
  trainable: Trainable,
  batch: Batch,
  dropout: jax.Array,
) -> tuple[Trainable, Terms, jax.Array]:
  """Gradient of the method's loss over the whole batch, computed in `accumulation` parts, the terms
  of the loss, and the mean weight of the newest block; `dropout` is this step's random key.
  """
  sizes = method.loss_sizes(batch)

  def part_loss(trainable: Trainable, part: Batch, key: jax.Array) -> tuple[jax.Array, tuple]:
    now = method.merge(learned, trainable)
    sums, mixture = method.loss_sums(model, params, learned, now, part.with_dropout(key))
    terms = {name: total / sizes[name] for name, total in sums.items()}
    own = jnp.mean(mixture[:, now.count - 1])
    return method.loss(terms), (terms, own / accumulation)

  gradient_of = jax.grad(part_loss, has_aux=True)
  if accumulation == 1:
    gradient, (terms, own) = gradient_of(trainable, batch, dropout)
    return gradient, terms, own

  def add_part(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, sums, gradient_of(trainable, *part)), None

  rows = jax.tree.map(lambda x: in_parts(x, accumulation), batch)
  parts = (rows, jax.random.split(dropout, accumulation))
  first = jax.tree.map(lambda x: x[0], parts)
  nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient_of, trainable, *first))
  (gradient, (terms, own)), _ = jax.lax.scan(add_part, nothing, parts)
  return gradient, terms, own


def in_parts(x: jax.Array, parts: int) -> jax.Array:
  """(B, ...) -> (parts, B / parts, ...). Part k takes rows k, k + parts, ...: neighbours stay on
  their own device.
  """
  return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)


def batch_gradient(
  model: Model,
  method: Method,
  accumulation: int,
  params: Any,
  learned: Learned,
  state: TrainState,
  batch: Batch,
  seed: int = 0,
) -> tuple[Trainable, Metrics]:
  """Gradient of the method's loss + penalty by the state's trainable part, and figures;
  the seed is dropout's.
  """
  trainable = state.trainable
  task = jnp.max(batch.task)
  dropout = jax.random.fold_in(streams.of_seed(seed, "dropout", task), state.step)
  gradient, terms, own = loss_gradient(
    model, method, accumulation, params, learned, trainable, batch, dropout
  )
  view = StepView(method.features(model, params, batch), terms, state.step, state.running)

  def penalty_of(trainable: Trainable) -> tuple[jax.Array, dict[str, jax.Array]]:
    return method.penalty(method.merge(learned, trainable), view)

  (penalty, figures), added = jax.value_and_grad(penalty_of, has_aux=True)(trainable)
  gradient = jax.tree.map(jnp.add, gradient, added)
  metrics = {
    "loss": method.loss(terms) + penalty,
    **terms,
    "own_weight": own,
    "gradient_norm": optax.tree.norm(gradient),
  }
  return gradient, metrics | figures


def train_step(
  model: Model,
  method: Method,
  optimizer: optax.GradientTransformation,
  accumulation: int,
  state: TrainState,
  params: Any,
  learned: Learned,
  batch: Batch,
  seed: int = 0,
  schedule: Schedule | None = None,
) -> tuple[TrainState, Metrics]:
  """One update of the trainable part.

  `params` (the frozen backbone) and `learned` are only read; `state` may be donated. The seed is
  dropout's.

  Metrics, all () float32: loss (nats per answer token, penalty included), the terms it is made of
  (Method.loss), own_weight (mean weight of the newest block), gradient_norm, and what the method's
  penalty reports.
  """
  gradient, metrics = batch_gradient(
    model, method, accumulation, params, learned, state, batch, seed
  )
  updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
  if schedule is not None and state.total is not None:
    factor = schedule(state.step, state.total)
    updates = jax.tree.map(lambda update: factor * update, updates)
  trainable = optax.apply_updates(state.trainable, updates)
  running = method.observe(state.running, method.merge(learned, trainable), state.step)
  return TrainState(state.step + 1, trainable, optimizer_state, running, state.total), metrics
