"""Programs of the library, each in a process of its own that is forked from one which has imported
it: importing is half of what a small run takes.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

from sapt_jax import cli

FORKS = multiprocessing.get_context("forkserver")
PATIENCE = 60  # seconds that a program may take beyond what an undisturbed one takes


def start(
  arguments: Sequence[str],
  log: pathlib.Path,
  module: str = "train",
  before: Callable[[], None] | None = None,
) -> BaseProcess:
  """Runs `python -m sapt_jax.MODULE` in a session of its own; what it says goes to a file.

  Args:
    before: what the new process does first.
  """
  process = FORKS.Process(target=program, args=(list(arguments), log, module, before))
  process.start()
  return process


def program(
  arguments: list[str], log: pathlib.Path, module: str, before: Callable[[], None] | None
) -> None:
  """What such a process does."""
  os.setsid()
  with log.open("wb") as out:
    for stream in (sys.stdout, sys.stderr):
      os.dup2(out.fileno(), stream.fileno())
  os.chdir(log.parent)
  sys.argv[1:] = arguments
  try:
    if before:
      before()
    cli.run(importlib.import_module(f"sapt_jax.{module}").main)
  finally:
    atexit._run_exitfuncs()  # a fork ends without


def end(process: BaseProcess, seconds: float) -> int | None:
  """Its exit code; None: it had not ended by then, and was killed with all that it started."""
  process.join(seconds)
  if process.exitcode is None and process.pid:
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return None
  return process.exitcode
