"""Learns a stream of tasks one after another, and scores all tasks seen after each.

    python -m sapt_jax.train        the embedded default, into runs/mini
    python -m sapt_jax.train --config configs/mini.py --output runs/try --method.name sequential

Started again with the same options and folder, it continues where it stopped. Started as several
processes, they share the work.
"""

from __future__ import annotations

if __name__ == "__main__":
  from sapt_jax import stopping

  stopping.end_at_once_if_asked()

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import ClassVar

from sapt_jax import cli, run_options
from sapt_jax.checks import require
from sapt_jax.config import Config
from sapt_jax.mini.default import config as mini_config


@dataclasses.dataclass(frozen=True)
class TrainOptions(Config):
  """Options of a run, and where it goes."""

  MOST_USED: ClassVar[tuple[str, ...]] = (
    *("config", "output", "seed", "fresh", "from_task", "method", "data.benchmark", "data.root"),
    *("stream.tasks", "backbone.path", "backbone.dtype", "pet.kind", "pet.rank", "pet.targets"),
    *("fit.steps", "fit.batch_size", "fit.accumulation", "fit.learning_rate", "generator.steps"),
    *("generator.keep", "evaluation.metric", "evaluation.batch_size", "mesh.fsdp"),
  )
  config: str = ""
  """A Python file that defines `config` (see configs/); the other options change it. Empty: all of
  them are made for the mini run (sapt_jax/mini/default.py), which other benchmarks and backbones
  outgrow."""
  output: str = ""
  """The run's folder, or the URL of one, such as gs://bucket/run. Empty: runs/NAME, with the config
  file's name, or mini.
  """
  fresh: bool = False
  """Remove what an earlier start has learned there, and begin anew."""
  start_from: str = ""
  """A finished run, whose tasks the new run has from the start: it learns those that are named
  behind them. That run stays as it is."""
  from_task: int = 0
  """Learn from this task of the stream on again, counted from 1: what was learned from it on is
  removed; 0: go on where the run is."""


def options(arguments: Sequence[str]) -> TrainOptions:
  """All options, those of the file that --config names as defaults."""
  return run_options.parse_over_config(
    TrainOptions,
    arguments,
    "sapt_jax.train",
    cli.summary(__doc__),
    mini_config,
    lambda file: {"output": f"runs/{pathlib.Path(file).stem if file else 'mini'}"},
  )


def main(arguments: Sequence[str]) -> None:
  """Parses, builds, runs, prints."""
  chosen = options(arguments)
  config = run_options.config_of(chosen)
  require(
    not (chosen.start_from and chosen.fresh),
    "--start-from and --fresh: give one of them; a new run starts in a new folder",
  )
  require(
    not (chosen.fresh and chosen.from_task),
    f"--fresh and --from-task {chosen.from_task}: give one of them",
  )
  require(chosen.from_task >= 0, f"--from-task {chosen.from_task}: must not be negative")
  keep = 0 if chosen.fresh else chosen.from_task - 1 if chosen.from_task else None
  cli.keep_compiled_programs()
  from sapt_jax import processes  # here, so that --help and wrong options answer at once
  from sapt_jax.training.saver import limit_arenas

  limit_arenas()
  with processes.joined(config.distributed):
    from sapt_jax.continual import run

    result = run(config, chosen.output, keep, chosen.start_from)
  figures = (
    f"{name} {'-' if value is None else format(value, '.2f')}"
    for name, value in result["metrics"].items()
  )
  took = f"({result['metric']}; {result['wall_s']:.0f} s for all tasks)"
  processes.say(f"{'   '.join(figures)}   {took}\n{chosen.output}/scores.json")


if __name__ == "__main__":
  cli.run(main)
