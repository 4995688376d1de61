"""What --help prints of a program's options: names, kinds of values, meaning and defaults, out of
the classes that hold them. The texts are the docstrings below the fields.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import tyro

METAVARS = {int: "INT", float: "FLOAT", str: "STR", types.NoneType: "None"}


@dataclasses.dataclass(frozen=True)
class Option:
  """One option.

  Attributes:
    name: with dots, as fit.steps; of a positional argument without.
    value: what stands for its value; empty: it takes none, it is a switch.
    default: None: it must be given.
  """

  name: str
  value: str
  text: str
  default: str | None
  positional: bool = False


def help_of(kind: type, default: Any, program: str, about: str, whole: bool) -> str:
  """All options of a class, or those that its MOST_USED names, by themselves or by the group that
  they stand in; a class without it has few.

  Args:
    default: an object of the class, whose values are the defaults; None: its own.
    program: what it was called by.
    about: what the program does.
    whole: all options, whatever is most used.
  """
  most_used: tuple[str, ...] = () if whole else getattr(kind, "MOST_USED", ())
  parser = argparse.ArgumentParser(program, add_help=False)
  options = list(options_of(kind, default))
  given = "".join(f" {option.value} ..." for option in options if option.positional)
  parser.description, parser.usage = about, f"{program}{given} [OPTIONS]"
  parser.formatter_class = lambda prog: argparse.HelpFormatter(
    prog, max_help_position=34, width=min(100, shutil.get_terminal_size().columns)
  )
  groups: dict[str, Any] = {}
  for option in options:
    group = option.name.rpartition(".")[0]
    if most_used and not {option.name, group} & set(most_used):
      continue
    if group not in groups:
      groups[group] = parser.add_argument_group(group or "options")
    text = re.split(r"\. (?!\d)", option.text)[0].rstrip(".") + "." if most_used else option.text
    said = "must be given" if option.default is None else f"default: {option.default}"
    dashed = option.name.replace("_", "-")
    names = [dashed] if option.positional else [f"--{dashed}"]
    if not option.value:
      names.append(f"--{group + '.' if group else ''}no-{dashed.rpartition('.')[2]}")
    groups[group].add_argument(
      *names,
      **({"metavar": option.value} if option.value else {"action": "store_true"}),
      help=f"{text} ({said})".replace("%", "%%"),
    )
  if most_used:
    parser.epilog = "All options, with all that there is to say of them: --help-all."
  return parser.format_help()


def options_of(kind: type, default: Any, prefix: str = "") -> Iterator[Option]:
  """The options of a class, and of the classes of its fields, those of the class itself first."""
  hints, texts = typing.get_type_hints(kind, include_extras=True), texts_of(kind)
  inner = []
  for field in dataclasses.fields(kind):
    hint, value = hints[field.name], getattr(default, field.name, field.default)
    if default is None and field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    hint = typing.get_args(hint)[0] if extras else hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
      inner.append((hint, value, f"{prefix}{field.name}."))
      continue
    said = next((extra.help for extra in extras if getattr(extra, "help", None)), None)
    text = " ".join((said or texts.get(field.name, "")).split())
    positional = tyro.conf.Positional in extras
    yield Option(
      prefix + field.name,
      field.name.upper() if positional else "" if hint is bool else metavar(hint),
      text,
      None if value is dataclasses.MISSING else shown(value),
      positional,
    )
  for part, value, name in inner:
    yield from options_of(part, value, name)


def metavar(hint: Any) -> str:
  """What stands for a value: INT, {a,b}, [STR ...]."""
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return f"{{{','.join(map(str, inner))}}}"
  if origin is tuple:
    return f"[{metavar(inner[0])} ...]"
  if origin in (typing.Union, types.UnionType):
    return "|".join(map(metavar, inner))
  return METAVARS.get(hint, "VALUE")


def shown(value: Any) -> str:
  """A default, as it would be given."""
  if isinstance(value, tuple):
    return " ".join(map(str, value)) or "none"
  return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "empty"


def texts_of(kind: type) -> dict[str, str]:
  """The docstring below each field of a class and of its bases."""
  texts: dict[str, str] = {}
  for base in reversed(kind.__mro__):
    if not dataclasses.is_dataclass(base) or base.__module__ == "types":
      continue
    try:
      [body] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
    except (OSError, TypeError):  # a class that was made, not written
      continue
    lines: Sequence[ast.stmt] = getattr(body, "body", ())
    for field, below in itertools.pairwise(lines):
      if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
        texts[ast.unparse(field.target)] = str(getattr(below.value, "value", ""))
  return texts
