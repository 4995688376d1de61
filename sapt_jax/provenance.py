"""Where numbers come from: the command, the commit, the machine and the day that made them."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax


def provenance() -> dict[str, Any]:
  """What made the numbers of this process, in words that a reader can act on."""
  return {
    "command": command(),
    "commit": commit(),
    "machine": machine(),
    "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
  }


def command() -> str:
  """The command line, a program of the library by its module's name."""
  package, own = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[0])
  inside = own.is_absolute() and package in own.parents
  program = f"python -m {package.name}.{own.stem}" if inside else own.name
  return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def commit() -> str | None:
  """The commit of the checkout that the library stands in, "+" behind it where files differ; None
  where it is no checkout.
  """
  folder = pathlib.Path(__file__).parent
  try:
    if pathlib.Path(_git(folder, "rev-parse", "--show-toplevel")) != folder.resolve().parent:
      return None  # installed inside a repository of something else
    name = _git(folder, "rev-parse", "--short=9", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
  except (OSError, subprocess.SubprocessError):
    return None
  return f"{name}+" if changed else name


def _git(folder: pathlib.Path, *arguments: str) -> str:
  done = subprocess.run(
    ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
  )
  return done.stdout.strip()


def machine() -> str:
  """The accelerator, or the processor with the cores that this process may use."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} x {device.device_kind}"
  model = platform.processor() or platform.machine()
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    pass
  here = getattr(os, "sched_getaffinity", None)  # Linux alone has it
  return f"{model}, {len(here(0)) if here else os.cpu_count()} cores"
