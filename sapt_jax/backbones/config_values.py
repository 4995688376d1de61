"""Values of config.json that several architectures read."""

from __future__ import annotations

from typing import Any

from sapt_jax.backbones.layers import ACTIVATIONS
from sapt_jax.errors import InputError


def token_id(raw: dict[str, Any], name: str, usual: int) -> int:
  """A special token's id; null means the usual one, of a list the first counts.

  Raises:
    InputError: it is no id of the vocabulary, and so would read no row of the embedding.
  """
  value = raw.get(name)
  if isinstance(value, list):
    value = value[0] if value else None
  if value is None:
    return usual
  if not isinstance(value, int) or not 0 <= value < raw["vocab_size"]:
    raise InputError(
      f"{name} {value!r} is no token of a vocabulary of {raw['vocab_size']}: mend it in config.json"
    )
  return value


def activation_of(name: str) -> str:
  """The name of an activation that the backbones can compute.

  Raises:
    InputError: it is none.
  """
  if name not in ACTIVATIONS:
    raise InputError(f"activation {name!r} is not supported: {', '.join(ACTIVATIONS)}")
  return name
