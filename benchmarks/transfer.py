"""How much a stream's tasks have to give each other: what an earlier block does for a task before
that task has learned anything.

    python benchmarks/transfer.py runs/related.per_task.0

Takes a run with a block for each task, its data and its backbone. Prints a line of JSON for each
task but the first: the mean cross-entropy of its first dev rows' answers, in nats a token,
    none    of the backbone alone (of soft prompts: with a prompt of zeros)
    own     with the task's block alone
    usual   with an earlier task's block, the median
    best    with that one that leaves least; `from` names its task
    given   (none - best) / (none - own): of what its own block gains, the share that this one
            gives; 0 where every earlier block does harm
and the means over tasks. Where `best` is near `usual`, what is given is the form of answers, which
any block has. Two blocks may give more than one, and what a block gives at the start is not all
that a task can take from it. In a run with method.sharing, all that a task takes stands for its
block.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from sizes import add_number

from sapt_jax import cli
from sapt_jax.answering import Answering
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.sources import load_stream
from sapt_jax.errors import InputError
from sapt_jax.training.mixture_losses import MixtureLosses

FIGURES = ("none", "own", "usual", "best", "given")


def row_of(names: Sequence[str], losses: np.ndarray) -> dict[str, Any]:
  """The figures of the last of these tasks.

  Args:
    losses: (1 + tasks,), with no block and with that of each task.
  """
  none, earlier, own = losses[0], losses[1:-1], losses[-1]
  best = earlier.min()
  given = max(none - best, 0.0) / (none - own) if own < none else 0.0
  figures = zip(FIGURES, map(float, (none, own, np.median(earlier), best, given)), strict=True)
  return {"task": names[-1], **dict(figures), "from": names[int(earlier.argmin())]}


def rounded(row: dict[str, Any]) -> str:
  """A line of JSON."""
  return json.dumps({k: round(x, 3) if isinstance(x, float) else x for k, x in row.items()})


def main(arguments: Sequence[str]) -> None:
  """Restores the run, measures, prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run", type=pathlib.Path, help="a run's folder")
  add_number(parser, "--rows", 32, "dev rows of each task (default 32)")
  options = parser.parse_args(arguments)
  run = Answering(options.run)
  built, config = run.built, run.options
  if not built.method.block_per_task or len(run.tasks) < 2:
    raise InputError(f"{options.run}: needs a block for each of at least two tasks")
  stream = {task.name: task for task in load_stream(config.data, config.stream, config.seed)}
  losses = MixtureLosses(built.backbone, built.method, built.mesh)
  taken = getattr(run.learned, "shares", None)
  each = np.eye(run.sizes[0], dtype=np.float32) if taken is None else np.asarray(taken)
  each = np.concatenate([0 * each[:1], each])
  rows = []
  for number, name in enumerate(run.tasks[1:], 1):
    task = PreparedTask(number, stream[name], run.codec)
    first = task.dev.rows[: options.rows]
    [batch] = dataclasses.replace(built.batcher, size=len(first)).training(first, 0, 1)
    rows.append(row_of(run.tasks[: number + 1], losses(run.learned, batch, each[: number + 2])))
    print(rounded(rows[-1]), flush=True)
  means = {figure: float(np.mean([row[figure] for row in rows])) for figure in FIGURES}
  print(rounded({"tasks": len(rows), **means}))


if __name__ == "__main__":
  cli.run(main)
