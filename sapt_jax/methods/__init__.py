"""Continual-learning methods, by the name that --method.name takes."""

from __future__ import annotations

from typing import Any

from sapt_jax import config
from sapt_jax.errors import InputError
from sapt_jax.methods.base import Method, Setting
from sapt_jax.methods.epi import Epi
from sapt_jax.methods.gainlora import GainLora
from sapt_jax.methods.inflora import InfLora
from sapt_jax.methods.l2p import L2p
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


def moved(values: dict[str, Any]) -> dict[str, Any]:
  """The options of a run with those that older versions kept elsewhere in their place."""
  method, pet, fit = dict(values["method"]), dict(values["pet"]), dict(values["fit"])
  if "new_block" in method:
    pet["new_block"] = method.pop("new_block")
  rate = {"sapt": "attention", "l2p": "key", "gainlora": "gate"}.get(method["name"])
  if "attention_learning_rate" in fit and rate:
    method[f"{rate}_learning_rate"] = fit["attention_learning_rate"]
  if "numbers" not in values and method["name"] in ("epi", "l2p"):
    method.setdefault("feature", "embeddings")  # all that there was
  return values | {"method": method, "pet": pet}


def config_from_json(values: dict[str, Any]) -> config.Config:
  """A run's configuration from its JSON form; keys that are no options are passed over.

  Raises:
    InputError: it is not what a run writes.
  """
  try:
    values = moved(values)
    kind = named(values["method"]["name"]).Options
  except (TypeError, AttributeError, LookupError):
    raise InputError("config.json does not hold the options of a run") from None
  try:
    method = config.from_dict(kind, values["method"])
    return config.from_dict(config.Config, values | {"method": method})
  except (TypeError, AttributeError):
    raise InputError("config.json does not hold the options of a run") from None
