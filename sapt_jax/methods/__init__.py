"""Continual-learning methods, by the name that --method.name takes."""

from __future__ import annotations

from sapt_jax import config
from sapt_jax.errors import InputError
from sapt_jax.methods.base import Method
from sapt_jax.methods.epi import Epi
from sapt_jax.methods.gainlora import GainLora
from sapt_jax.methods.inflora import InfLora
from sapt_jax.methods.l2p import L2p
from sapt_jax.methods.lesson import Setting
from sapt_jax.methods.lfpt5.method import Lfpt5
from sapt_jax.methods.mocl import Mocl
from sapt_jax.methods.multi_task import MultiTask
from sapt_jax.methods.n_lora import NLora
from sapt_jax.methods.o_lora import OLora
from sapt_jax.methods.per_task import PerTask
from sapt_jax.methods.prog_prompt import ProgPrompt
from sapt_jax.methods.replay import Replay
from sapt_jax.methods.sapt import Sapt
from sapt_jax.methods.sequential import Sequential
from sapt_jax.methods.tree_lora import TreeLora

METHODS: dict[str, type[Method]] = {
  "sapt": Sapt,
  "sequential": Sequential,
  "per_task": PerTask,
  "multi_task": MultiTask,
  "replay": Replay,
  "o_lora": OLora,
  "n_lora": NLora,
  "l2p": L2p,
  "lfpt5": Lfpt5,
  "prog_prompt": ProgPrompt,
  "epi": Epi,
  "inflora": InfLora,
  "gainlora": GainLora,
  "mocl": Mocl,
  "tree_lora": TreeLora,
}


def named(name: str) -> type[Method]:
  """The method of this name.

  Raises:
    InputError: there is none.
  """
  if name not in METHODS:
    raise InputError(f"method.name {name!r}: no such method; give one of {', '.join(METHODS)}")
  return METHODS[name]


def build(options: config.MethodOptions, setting: Setting) -> Method:
  """The method that the options belong to.

  Raises:
    InputError: it cannot use such blocks (Method.check).
  """
  method = named(options.name)
  method.check(options, setting.pet)
  return method(options, setting)
