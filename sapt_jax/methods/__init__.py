"""Continual-learning methods, by the name that --method.name takes."""
from __future__ import annotations

from sapt_jax import config
from sapt_jax.methods.base import Method, Setting
from sapt_jax.methods.per_task import PerTask
from sapt_jax.methods.sapt import Sapt
from sapt_jax.methods.sequential import Sequential

METHODS: dict[str, type[Method]] = {"sapt": Sapt, "sequential": Sequential, "per_task": PerTask}


def build(options: config.Method, setting: Setting) -> Method:
  """The method that the options name."""
  return METHODS[options.name](options, setting)
