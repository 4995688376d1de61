"""Command lines: typed options through tyro; wrong input, or a stop as asked, as one line on stderr
with exit code 2 or 75.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import platform
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from sapt_jax.config import Config
from sapt_jax.errors import InputError, Stopped

T = TypeVar("T")
C = TypeVar("C", bound=Config)


def parse(
  kind: type[T], arguments: Sequence[str], program: str, description: str, default: T | None = None
) -> T:
  """Options of a program. --help prints them all and exits.

  Raises: InputError: an unknown option or a value that does not fit; the message is tyro's, folded
    into one line.
  """
  complaint = io.StringIO()
  try:
    with contextlib.redirect_stderr(complaint):
      return tyro.cli(
        kind,
        args=list(arguments),
        prog=f"python -m {program}",
        description=description,
        default=tyro.MISSING_NONPROP if default is None else default,
      )
  except SystemExit as stop:
    if stop.code == 0:
      raise
    words = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─━]", " ", complaint.getvalue())
    raise InputError(
      re.sub(r"For full helptext.*", "", " ".join(words.split())).strip()
      + f" (see python -m {program} --help)"
    ) from None


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


def keep_compiled_programs() -> None:
  """Has jax keep what it compiles in ~/.cache/sapt_jax (XDG_CACHE_HOME), so that the next run need
  not; JAX_COMPILATION_CACHE_DIR names another place, JAX_ENABLE_COMPILATION_CACHE=false turns it
  off.

  A CPU program runs only on CPUs with the instructions that it was compiled for, so every kind has
  a folder of its own: home folders of clusters are shared by unlike machines.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  import jax  # here, so that --help and wrong options answer at once

  try:
    features = next(
      line
      for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
      if line.startswith(("flags", "Features"))
    )
  except (OSError, StopIteration):
    features = platform.processor()
  kind = f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  jax.config.update("jax_compilation_cache_dir", str(cache / "sapt_jax" / "compiled" / kind))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def output_folder(name: str) -> pathlib.Path:
  """The folder that --output names, which need not be there.

  Raises:
    InputError: there is a file of that name.
  """
  if pathlib.Path(name).is_file():
    raise InputError(f"--output {name}: is a file; name a folder")
  return pathlib.Path(name)


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

  Args: embedded: the values where no file is named. own: defaults of the options that a Config does
    not have, given the file's name, which may be empty.

  Raises:
    InputError: see load_config and parse.
  """
  finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  finder.add_argument("--config", default="")
  file = finder.parse_known_args(arguments)[0].config
  base = load_config(file) if file else embedded
  default = kind(**(vars(config_of(base)) | {"config": file} | own(file)))
  return parse(kind, arguments, program, description, default)


def config_of(options: Config) -> Config:
  """The run's part of options that extend it."""
  return Config(
    **{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)}
  )


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a program's main with the process's arguments; wrong input ends with exit code 2 and one
  line, a stop by SIGTERM with 75.
  """
  try:
    main(sys.argv[1:])
  except InputError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
  except Stopped as stop:
    print(f"stopped: {stop}; the same command continues this run", file=sys.stderr)
    sys.exit(75)  # EX_TEMPFAIL of sysexits.h: try again later
