"""The options of a run as its config.json keeps them, also one that an older version wrote."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from sapt_jax import config, methods
from sapt_jax.errors import InputError


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
    kind = methods.named(values["method"]["name"]).Options
  except (TypeError, AttributeError, LookupError):
    raise InputError("config.json does not hold the options of a run") from None
  try:
    method = from_dict(kind, values["method"])
    return from_dict(config.Config, values | {"method": method})
  except (TypeError, AttributeError):
    raise InputError("config.json does not hold the options of a run") from None


def from_dict(kind: Any, values: dict[str, Any]) -> Any:
  """The inverse of dataclasses.asdict for Config and its parts, from JSON values.

  Keys that are not fields are passed over; values that are parts already stay as they are.
  """
  hints = typing.get_type_hints(kind)

  def value_of(name: str) -> Any:
    value = values[name]
    if isinstance(value, list):
      return tuple(value)
    if isinstance(value, dict) and dataclasses.is_dataclass(hints[name]):
      return from_dict(hints[name], value)
    return value

  names = [field.name for field in dataclasses.fields(kind) if field.name in values]
  return kind(**{name: value_of(name) for name in names})
