"""What a training step changes, and nothing else."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import optax

from sapt_jax import config
from sapt_jax.methods.base import Trainable


class TrainState(flax.struct.PyTreeNode):
  """step: () int32, updates made; trainable: the method's trainable part; optimizer: optax's state
  for it.
  """

  step: jax.Array
  trainable: Trainable
  optimizer: Any


def make_optimizer(options: config.Fit) -> optax.GradientTransformation:
  """AdamW without weight decay at a constant rate, with a rate of its own for the attention where
  one is asked for, on gradients of a limited length where a limit is set.
  """
  attention = (
    options.learning_rate
    if options.attention_learning_rate is None
    else options.attention_learning_rate
  )
  rates = {"block": options.learning_rate, "attention": attention}
  adam = optax.partition(
    {part: optax.adamw(rate, weight_decay=0.0) for part, rate in rates.items()},
    lambda trainable: {part: part for part in trainable},
  )
  return (
    optax.chain(optax.clip_by_global_norm(options.max_gradient_norm), adam)
    if options.max_gradient_norm
    else adam
  )
