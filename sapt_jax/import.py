"""Makes a run of a pool that the authors' PyTorch code has learned, to be asked, exported and gone
on with.

    python -m sapt_jax.import outputs/1-TASK/saved_weights outputs/2-TASK/saved_weights \
      --config configs/paper/superni_1_t5_large.py --data.root CL_Benchmark \
      --stream.tasks TASK TASK --generator.folder generated_data --output runs/theirs

The folders are those of all tasks, or of the last one (layout: sapt_jax/interop/public.py). The
other options are those of a run: its backbone is the one that the pool was learned on. Nothing is
scored. Without pseudo inputs (--generator.folder), what is learned later is not held to these
tasks.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Annotated

import tyro

from sapt_jax import cli, run_options
from sapt_jax.config import Config
from sapt_jax.errors import InputError
from sapt_jax.paper import paper
from sapt_jax.remote import is_remote


@dataclasses.dataclass(frozen=True)
class ImportOptions(Config):
  """Which pool, and the options of the run that is made of it."""

  folders: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
  """The saved_weights folders of all tasks, or of the last one."""
  config: str = ""
  """A Python file that defines `config` (see configs/); the other options change it. Empty: the
  paper's SuperNI, order 1, on T5-Large."""
  output: str = ""
  """The run's folder."""


def in_order(folders: Sequence[str]) -> list[pathlib.Path]:
  """The folders as they were learned: NUMBER-TASK/saved_weights by number, as a shell lists 10
  before 2; others as they are given.
  """
  paths = [pathlib.Path(folder) for folder in folders]
  numbered = [(re.match(r"(\d+)-", path.resolve().parent.name), path) for path in paths]
  found = [(int(number[1]), path) for number, path in numbered if number]
  return [path for _, path in sorted(found)] if len(found) == len(paths) else paths


def main(arguments: Sequence[str]) -> None:
  """Parses, reads, writes."""
  options = run_options.parse_over_config(
    ImportOptions,
    arguments,
    "sapt_jax.import",
    cli.summary(__doc__),
    paper("superni", 1, "t5_large"),
  )
  config = run_options.config_of(options)
  if not options.folders:
    raise InputError("no folder given; name the saved_weights of the pool's tasks, or of the last")
  if not options.output or is_remote(options.output):
    raise InputError(f"--output {options.output or '(none)'}: must be a folder of this machine")
  cli.keep_compiled_programs()
  from sapt_jax.imported import imported  # here, so that --help is quick
  from sapt_jax.stored_run import new_folder

  output = new_folder(pathlib.Path(options.output))
  run = imported(in_order(options.folders), config)
  run.write(output)
  print(f"{output}: has {', '.join(run.names)}")


if __name__ == "__main__":
  cli.run(main)
