"""Checks of option values, each an InputError that names the option and its value."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sapt_jax.errors import InputError


def require(condition: bool, message: str) -> None:
  """Raises InputError with the message where the condition does not hold."""
  if not condition:
    raise InputError(message)


def at_least(options: Any, part: str, least: int, *names: str) -> None:
  """Whether the values of these options, of one part of the configuration, are no less."""
  for name in names:
    value = getattr(options, name)
    require(
      value >= least,
      f"{part}.{name} {value}: must {f'be at least {least}' if least else 'not be negative'}",
    )


def at_most(options: Any, part: str, most: int, *names: str) -> None:
  """Whether the values of these options, of one part of the configuration, are no more."""
  for name in names:
    value = getattr(options, name)
    require(value <= most, f"{part}.{name} {value}: must be at most {most}")


def positive(options: Any, part: str, *names: str) -> None:
  """Whether the values of these options are above zero, where they are given."""
  for name in names:
    value = getattr(options, name)
    require(value is None or value > 0, f"{part}.{name} {value}: must be positive")


def share(options: Any, part: str, *names: str) -> None:
  """Whether the values of these options are shares of a whole: above 0 and at most 1."""
  for name in names:
    value = getattr(options, name)
    require(0 < value <= 1, f"{part}.{name} {value}: must be in (0, 1]")


def in_range(options: Any, part: str = "") -> None:
  """Whether all numbers among options, those of nested ones too, are such as can be computed with:
  whole ones below 2^31, others finite.
  """
  for field in dataclasses.fields(options):
    name, value = f"{part}{field.name}", getattr(options, field.name)
    if dataclasses.is_dataclass(value):
      in_range(value, f"{name}.")
    elif isinstance(value, int):
      require(abs(value) < 2**31, f"{name} {value}: must be less than 2147483648")
    elif isinstance(value, float):
      require(math.isfinite(value), f"{name} {value}: must be a finite number")
