"""What a training step changes, and nothing else."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
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
  """

  step: jax.Array
  trainable: Trainable
  optimizer: Any
  running: Any = None


def make_optimizer(method: Method, options: config.Fit) -> optax.GradientTransformation:
  """AdamW without weight decay, each trainable part at its own constant rate (Method.rates), on
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
