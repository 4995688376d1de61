"""One command for all programs: sapt-jax train, sapt-jax predict, ..., as python -m sapt_jax.train.

sapt-jax                    lists them
sapt-jax train --help       explains one
"""

from __future__ import annotations

import importlib
import sys

from sapt_jax import __version__, stopping

# Program -> what it does.
PROGRAMS = {
  "train": "learns a stream of tasks, or goes on",
  "predict": "answers a file of inputs",
  "report": "compares runs",
  "export": "blocks, mixtures, models and pools for other programs",
  "import": "a run of a pool that the authors' code has learned",
  "serve": "answers over HTTP",
  "plan": "what a run would need of hardware that is not here",
  "forget": "takes a task out of a run",
  "join": "makes one run of two",
}
PACKAGES = ("plan", "serve")


def main() -> None:
  """Runs the program that the first argument names."""
  name, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
  if name == "train":
    stopping.end_at_once_if_asked()
  from sapt_jax import cli  # here, so that a run that is being stopped says so

  if name in ("--help", "-h"):
    print("usage: sapt-jax PROGRAM [OPTIONS]\n")
    print("\n".join(f"  {program:<9} {does}" for program, does in PROGRAMS.items()))
    print("\nsapt-jax PROGRAM --help explains the options of one.")
  elif name == "--version":
    print(__version__)
  elif name in PROGRAMS:
    sys.argv = [f"sapt-jax {name}", *rest]
    module = f"sapt_jax.{name}" + (".__main__" if name in PACKAGES else "")
    cli.run(importlib.import_module(module).main)
  else:
    cli.end(2, f"error: sapt-jax {name}: no such program; give one of {', '.join(PROGRAMS)}")


if __name__ == "__main__":
  main()
