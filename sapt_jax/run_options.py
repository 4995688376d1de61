"""The options of programs that are about a run: a configuration file, and over it all options of a
run, with those of the chosen method and of no other.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import runpy
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from sapt_jax import cli
from sapt_jax.config import Config, MethodOptions
from sapt_jax.errors import InputError
from sapt_jax.methods import METHODS, named

C = TypeVar("C", bound=Config)


def load_config(file: str) -> Config:
  """The `config` of a Python file (see configs/).

  Raises:
    InputError: no such file, an error in it, or no `config` of type Config in it.
  """
  try:
    found = runpy.run_path(file).get("config")
  except FileNotFoundError:
    raise InputError(f"--config {file}: no such file") from None
  except InputError as error:
    raise InputError(f"--config {file}: {error}") from None
  except Exception as error:  # noqa: BLE001 (whatever a user's file raises is wrong input)
    raise InputError(f"--config {file}: {type(error).__name__}: {error}") from None
  if not isinstance(found, Config):
    raise InputError(
      f"--config {file}: must define `config = Config(...)`, found {type(found).__name__}"
    )
  return found


def parse_over_config(
  kind: type[C],
  arguments: Sequence[str],
  program: str,
  description: str,
  embedded: Config,
  own: Callable[[str], dict[str, Any]] = lambda file: {},
) -> C:
  """Options that extend a Config and have a `config` of their own: values of the file that --config
  names, changed by the other options.

  Where --method.name names another method than the file's, its options have their own defaults.

  Args:
    embedded: the values where no file is named.
    own: defaults of the options that a Config does not have, given the file's name, which may be
      empty.

  Raises:
    InputError: see load_config, check_method_options and cli.parse.
  """
  finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  finder.add_argument("--config", nargs="?", default="", const="")
  finder.add_argument("--method.name", "--method-name", nargs="?", dest="method", const=None)
  found, _ = finder.parse_known_args(arguments)
  base = load_config(found.config) if found.config else embedded
  method = base.method
  if found.method not in (None, method.name):
    method = named(found.method).Options(name=found.method)
  check_method_options(method, arguments)
  values = vars(config_of(base)) | {"method": shown(method), "config": found.config}
  options = with_method(kind, type(values["method"]))
  chosen = cli.parse(
    options, arguments, program, description, options(**(values | own(found.config)))
  )
  plain = config_of(chosen, type(method))
  return dataclasses.replace(chosen, method=plain.method)


# Options that stood elsewhere in older versions, as they were given, - written _.
MOVED = {
  "__method.new_block": "--pet.new-block",
  "__fit.attention_learning_rate": (
    "--method.attention-learning-rate (sapt), --method.key-learning-rate (l2p, mocl) or "
    "--method.gate-learning-rate (gainlora)"
  ),
}


def check_method_options(method: MethodOptions, arguments: Sequence[str]) -> None:
  """Whether each --method.OPTION among the arguments is one of the method's.

  Raises:
    InputError: one is not; the message names the methods that have it, or what it may be meant for.
  """
  own = fields_of(type(method))
  for argument in arguments:
    given = argument.split("=")[0]
    dotted = given.replace("-", "_").replace("method.no_", "method.")
    if dotted in MOVED:
      raise InputError(f"{given}: is {MOVED[dotted]} now")
    name = dotted.removeprefix("__method.")
    if name in own or name == dotted:
      continue
    owners = [other for other, kind in METHODS.items() if name in fields_of(kind.Options)]
    if owners:
      raise InputError(
        f"{given}: not an option of method {method.name}; "
        f"{', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it"
      )
    near = difflib.get_close_matches(name, own, 1)
    meant = [f"; did you mean --method.{close.replace('_', '-')}?" for close in near]
    words = ", ".join(sorted(f"--method.{each.replace('_', '-')}" for each in own - {"name"}))
    raise InputError(
      f"{given}: no method has this option"
      + (meant[0] if meant else f"; {method.name} has {words or 'none'}")
    )


def fields_of(kind: type[MethodOptions]) -> set[str]:
  """The names of a method's options."""
  return {field.name for field in dataclasses.fields(kind)}


def shown(method: MethodOptions) -> MethodOptions:
  """The same options, of a class whose --help lists all methods at `name`."""
  summaries = "; ".join(f"{name}: {summary_of(kind.Options)}" for name, kind in METHODS.items())
  help_text = f"The method. {summaries}. The options below are those of the method chosen."
  choice: Any = Annotated[Literal[tuple(METHODS)], tyro.conf.arg(help=help_text)]
  kind = dataclasses.make_dataclass(
    "Method", [("name", choice, method.name)], bases=(type(method),), frozen=True
  )
  kind.__doc__ = f"How the stream is learned. {type(method).__doc__}"
  return kind(**vars(method))


def summary_of(kind: type[MethodOptions]) -> str:
  """What a method does, in a few words, without its source."""
  return re.split(r"[.(]", kind.__doc__ or "")[0].strip()


def with_method(kind: type[C], method: type[MethodOptions]) -> type[C]:
  """The class of options with this class for those of the method."""
  return dataclasses.make_dataclass(kind.__name__, [("method", method)], bases=(kind,), frozen=True)


def config_of(options: Config, method: type[MethodOptions] | None = None) -> Config:
  """The run's part of options that extend it.

  Args:
    method: the class that the method's options get; None: they stay as they are.
  """
  values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Config)}
  if method is not None:
    values["method"] = method(**vars(values["method"]))
  return Config(**values)
