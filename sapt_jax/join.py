"""Makes one run of two: a pool with the blocks of both, on the backbone that both were trained on.

    python -m sapt_jax.join runs/one runs/other --output runs/both

SAPT's attention is fitted to what both runs remember of their tasks. Nothing is scored anew; the
runs themselves stay as they are.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.remote import is_remote, readable


@dataclasses.dataclass(frozen=True)
class JoinOptions:
  """Which runs, and where the new one goes."""

  runs: Annotated[tuple[str, ...], tyro.conf.Positional]
  """Folders of two finished runs, or their URLs."""
  output: str
  """The new run's folder."""


def main(arguments: Sequence[str]) -> None:
  """Parses, reads, joins, writes."""
  options = cli.parse(JoinOptions, arguments, "sapt_jax.join", cli.summary(__doc__))
  if len(options.runs) != 2:
    raise InputError(f"{len(options.runs)} run(s) given; name the folders of two")
  if is_remote(options.output):
    raise InputError(f"--output {options.output}: must be a folder of this machine")
  cli.keep_compiled_programs()
  from sapt_jax.stored_run import beside, new_folder, read_run  # here, so that --help is quick

  output = new_folder(pathlib.Path(options.output))
  if any(pathlib.Path(name).resolve() in output.parents for name in options.runs):
    raise InputError(f"--output {output}: is inside of a run; choose another")
  first, second = (read_run(readable(name), name) for name in options.runs)
  both = beside(first, second)
  both.write(output)
  print(f"{output}: has {', '.join(both.names)}")


if __name__ == "__main__":
  cli.run(main)
