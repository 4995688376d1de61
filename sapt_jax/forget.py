"""Takes a task out of a finished run: its block, key, memory, pseudo inputs, answers and log lines.

    python -m sapt_jax.forget --run runs/mine --task billing

Other tasks are answered as before wherever the task's block had no weight. What all tasks share,
such as SAPT's query projection, is not learned anew. Snapshots but the last lose their arrays.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.run_lock import clear, locked, recover, replace, successor
from sapt_jax.text_files import remove


@dataclasses.dataclass(frozen=True)
class ForgetOptions:
  """Which task of which run."""

  run: str
  """The run's folder."""
  task: str
  """The task's name, whole: what is forgotten cannot be had back."""


def main(arguments: Sequence[str]) -> None:
  """Parses, reads, takes out, writes."""
  options = cli.parse(ForgetOptions, arguments, "sapt_jax.forget", cli.summary(__doc__))
  path = pathlib.Path(options.run).resolve()
  recover(path)
  if not (path / "config.json").is_file():
    raise InputError(f"--run {path}: no config.json of a run is there")
  cli.keep_compiled_programs()
  with locked(path):
    name, left = forget(path, options.task)
  print(
    f"{path}: {name} is forgotten, {', '.join(left)} left; while its data are there, the next "
    "sapt_jax.train learns it again"
  )


def forget(path: pathlib.Path, task: str) -> tuple[str, list[str]]:
  """Takes a task out of the run in a folder; returns its name and the names of those that are left.
  The old folder goes when the new one is whole.

  Raises:
    InputError: there is no such task, or it cannot be taken out; nothing has changed then.
  """
  from sapt_jax.data.sources import choose
  from sapt_jax.stored_run import read_run, without

  clear(path)
  new = successor(path)
  remove(new)  # of a process that was killed
  run = read_run(path, f"--run {path}")
  [name] = choose(run.names, [task], str(path), "--task")
  if name != task:  # which may be one that is forgotten already
    raise InputError(f"--task {task!r}: forgetting takes a whole name; is it {name}?")
  rest = without(run, run.names.index(name))
  rest.write(new)
  alone = path / "single"  # the run that FWT was measured by
  if (alone / "config.json").is_file():
    single = read_run(alone, str(alone))
    without(single, single.names.index(name)).write(new / "single")
  replace(path)
  return name, rest.names


if __name__ == "__main__":
  cli.run(main)
