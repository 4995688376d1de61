"""Command lines: typed options through tyro; wrong input, or a stop as asked, as one line on stderr
with exit code 2 or 75.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from sapt_jax.errors import InputError, Stopped

T = TypeVar("T")


def parse(
  kind: type[T], arguments: Sequence[str], program: str, description: str, default: T | None = None
) -> T:
  """Options of a program. --help prints them all and exits.

  Raises:
    InputError: an unknown option or a value that does not fit; the message is tyro's, folded into
      one line.
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


def summary(docstring: str | None) -> str:
  """The first paragraph of a program's docstring, as --help shows it."""
  return " ".join((docstring or "").split("\n\n")[0].split())


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
