"""Checks of option values, each an InputError that names the option and its value."""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from typing import Any

from sapt_jax.errors import InputError


def require(condition: bool, message: str) -> None:
  """Raises InputError with the message where the condition does not hold."""
  if not condition:
    raise InputError(message)


def typed(options: Any, part: str = "") -> None:
  """Whether all values of options, and of those in them, are of the types of their fields."""
  hints = typing.get_type_hints(type(options))
  for field in dataclasses.fields(options):
    name, value, hint = f"{part}{field.name}", getattr(options, field.name), hints[field.name]
    require(_is_a(value, hint), f"{name} {value!r:.60}: must be {_words_of(hint)}")
    if dataclasses.is_dataclass(value):
      typed(value, f"{name}.")


NUMBERS = {int: numbers.Integral, float: numbers.Real}


def _is_a(value: Any, hint: Any) -> bool:
  """Whether a value is of a type, as fields of options have them."""
  parts = typing.get_args(hint)
  if typing.get_origin(hint) is typing.Literal:
    return any(value == one and type(value) is type(one) for one in parts)
  if typing.get_origin(hint) is tuple:
    return isinstance(value, tuple) and all(_is_a(one, parts[0]) for one in value)
  if parts:
    return any(_is_a(value, one) for one in parts)
  if hint in NUMBERS:
    return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
  return isinstance(value, hint)


def _words_of(hint: Any) -> str:
  """A type in words."""
  parts = typing.get_args(hint)
  if typing.get_origin(hint) is typing.Literal:
    return "one of " + ", ".join(map(repr, parts))
  if typing.get_origin(hint) is tuple:
    return f"a tuple, of which each is {_words_of(parts[0])}"
  if parts:
    return " or ".join(map(_words_of, parts))
  words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
  return words.get(hint, "None" if hint is type(None) else f"a {hint.__name__}")


def _number(options: Any, part: str, name: str) -> Any:
  """The value of an option, which has to be a number."""
  value = getattr(options, name)
  number = _is_a(value, float) and value == value  # NaN is not: math.isnan takes no huge number
  require(number, f"{part}.{name} {value!r}: must be a number")
  return value


def at_least(options: Any, part: str, least: int, *names: str) -> None:
  """Whether the values of these options, of one part of the configuration, are no less."""
  for name in names:
    value = _number(options, part, name)
    require(
      value >= least,
      f"{part}.{name} {value}: must {f'be at least {least}' if least else 'not be negative'}",
    )


def at_most(options: Any, part: str, most: int, *names: str) -> None:
  """Whether the values of these options, of one part of the configuration, are no more."""
  for name in names:
    value = _number(options, part, name)
    require(value <= most, f"{part}.{name} {value}: must be at most {most}")


def positive(options: Any, part: str, *names: str) -> None:
  """Whether the values of these options are above zero, where they are given."""
  for name in names:
    if getattr(options, name) is not None:
      value = _number(options, part, name)
      require(value > 0, f"{part}.{name} {value}: must be positive")


def share(options: Any, part: str, *names: str) -> None:
  """Whether the values of these options are shares of a whole: above 0 and at most 1."""
  for name in names:
    value = _number(options, part, name)
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
