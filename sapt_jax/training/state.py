"""What a training step changes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sapt_jax import config
from sapt_jax.methods.base import Method, Trainable


class TrainState(flax.struct.PyTreeNode):
  """What there is between two steps.

  Attributes:
    step: () int32, updates made.
    trainable: the method's trainable part.
    optimizer: optax's state for it.
    running: what the method carries from step to step besides (Method.running).
    total: () int32, all updates of the task, where the rates depend on it (Schedule).
  """

  step: jax.Array
  trainable: Trainable
  optimizer: Any
  running: Any = None
  total: jax.Array | None = None


# (updates made, all updates of the task), () int32 each -> what all rates are multiplied by
Schedule = Callable[[jax.Array, jax.Array], jax.Array]


def make_schedule(options: config.Fit) -> Schedule | None:
  """How rates rise and fall in a task (Fit.warmup, Fit.decay); none: they are constant."""
  if not options.warmup and options.decay == "none":
    return None

  def factor(step: jax.Array, total: jax.Array) -> jax.Array:
    warm = jnp.ceil(options.warmup * total)
    rising = jnp.minimum(1.0, (step + 1) / jnp.maximum(warm, 1.0))
    done = jnp.clip((step - warm) / jnp.maximum(total - warm, 1.0), 0.0, 1.0)
    match options.decay:
      case "linear":
        return rising * (1.0 - done)
      case "cosine":
        return rising * (0.5 + 0.5 * jnp.cos(jnp.pi * done))
    return rising

  return factor


def make_optimizer(method: Method, options: config.Fit) -> optax.GradientTransformation:
  """AdamW without weight decay, each trainable part at its own rate (Method.rates), on
  gradients of a limited length where a limit is set.
  """
  rates = method.rates(options.learning_rate)
  adam = optax.partition(
    {part: optax.adamw(rate, weight_decay=0.0) for part, rate in rates.items()},
    lambda trainable: {part: part for part in trainable},
  )
  if not options.max_gradient_norm:
    return adam
  return optax.chain(optax.clip_by_global_norm(options.max_gradient_norm), adam)
