"""What a stream's tasks can gain from each other at most: each task is learned again from every
earlier one, and as often from where the run began it.

    python benchmarks/starts.py runs/mini.sharing.0

Takes a run of SAPT with method.sharing, or of per_task; its options, data, backbone and snapshots.
A task's row of weights begins as an earlier task's row, beside a new block of its own (sharing), or
its block begins as that task's block (per_task). The k-th earlier task stands beside the k-th
learning from the run's own start, with the rows in the same order: the run's for the first, drawn
for each other. So what more tries can do, by luck, is in both.

Prints a line of JSON for each task but the first, test scores (0-100) all:
    others     from each earlier task, in order
    own        from the run's own start, as often; the first is the run's own score
    best       the highest of `others`; `from` names its task. best_own: the highest of `own`
    by_dev     the one of `others` that has the highest dev score. by_dev_own: of `own`
    mean_own   the mean of `own`
and the means over these tasks. `by_dev` less `by_dev_own` is what a choice of the one earlier task
could gain, `best` less `best_own` is more than any rule can.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from transfer import rounded

from sapt_jax import cli, learner, streams
from sapt_jax.answering import Answering
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.sources import load_stream
from sapt_jax.errors import InputError
from sapt_jax.methods.lesson import Learned
from sapt_jax.pet import blocks
from sapt_jax.progress import Progress
from sapt_jax.scoring import Scorer
from sapt_jax.snapshots import finished_snapshots, record_of
from sapt_jax.study import Instruments, TaskStudy
from sapt_jax.text_files import read_object
from sapt_jax.training import checkpoint
from sapt_jax.training.fit import Plan
from sapt_jax.training.saver import Saver


class Starts:
  """A finished run, whose tasks can be learned again.

  Raises:
    InputError: it is no such run.
  """

  def __init__(self, folder: pathlib.Path):
    self.run = run = Answering(folder)
    method = run.built.method
    self.sharing = getattr(run.learned, "shares", None) is not None
    if not (self.sharing or method.options.name == "per_task") or len(run.tasks) < 2:
      raise InputError(
        f"{folder}: needs at least two tasks of per_task, or of sapt with method.sharing"
      )
    if run.options.stream.blocks:
      raise InputError(f"{folder}: stream.blocks says where its tasks begin; take a run without")
    self.snapshots = finished_snapshots(folder)
    self.config = config = run.options_of(folder, read_object(folder / "config.json", str(folder)))
    fits = [record_of(snapshot)["options"]["fit"] for snapshot in self.snapshots]
    self.fits = [dataclasses.replace(config.fit, **fit) for fit in fits]
    tasks = {task.name: task for task in load_stream(config.data, config.stream, config.seed)}
    self.stream = [PreparedTask(i, tasks[name], run.codec) for i, name in enumerate(run.tasks)]
    shapes = learner.shapes_of(config, self.stream, self.fits, run.codec.open_ended)
    mesh, backbone = run.built.mesh, run.built.backbone
    self.built = learner.put_together(config, mesh, backbone, *run.sizes, shapes)
    self.instruments = Instruments(config, self.built, run.codec, None, {})
    self.scorer = Scorer(config, self.built, run.codec, self.stream)

  def before(self, index: int) -> Learned:
    """What the run knew before the index-th task."""
    learned, _ = checkpoint.load(self.snapshots[index - 1], self.built.start(self.config.seed))
    return learned

  def begun(self, before: Learned, index: int, other: int | None) -> Learned:
    """The same when the index-th task begins as the other one; None: where the run began it."""
    progress = Progress(pathlib.Path(str(index)), Saver(), lambda: None)  # nothing is kept
    study = TaskStudy(
      self.instruments, self.stream, index, self.fits[index], lambda figures: None, progress
    )
    if other is not None and not self.sharing:
      study.block = blocks.read(before.blocks, other)
    rng = streams.of_seed(self.config.seed, "task", index)
    with contextlib.redirect_stdout(sys.stderr):  # what a run says of the choice
      learned = self.built.method.begin(before, rng, study)
    if other is None or not self.sharing:
      return learned
    row = learned.shares[other].at[index].set(1.0)
    return learned.replace(shares=learned.shares.at[index].set(row))

  def learned(self, begun: Learned, index: int, order: int) -> Learned:
    """The same when the index-th task has been learned, its rows in the run's order (0) or another
    one.
    """
    task, fit = self.stream[index], self.fits[index]
    rows, trainer = task.train.rows, self.built.trainer(fit)
    if order:
      drawn = np.random.default_rng([self.config.seed, index, order]).permutation(len(rows))
      rows = [rows[i] for i in drawn]
    dev_score = partial(self.scorer.dev_score, tasks=[index])
    validate = dev_score if fit.validate_every or fit.validate_epochs else None
    steps = trainer.steps(len(rows))
    plan = Plan(f"{task.name} ({order})", steps, None, lambda figures: None, validate)
    return trainer.fit(begun, rows, plan)

  def scores(self, begun: Learned, index: int, order: int) -> tuple[float, float]:
    """On dev and test rows then."""
    task, learned = self.stream[index], self.learned(begun, index, order)
    dev, test = (self.scorer.score(learned, split).score for split in (task.dev, task.test))
    return dev, test

  def rows(self) -> Iterator[dict[str, Any]]:
    """The figures of each task but the first."""
    for index in range(1, len(self.stream)):
      before = self.before(index)
      others = [self.scores(self.begun(before, index, k), index, k) for k in range(index)]
      start = self.begun(before, index, None)
      own = [self.scores(start, index, k) for k in range(index)]
      yield row_of(self.run.tasks[: index + 1], np.array(others), np.array(own))


def row_of(names: Sequence[str], others: np.ndarray, own: np.ndarray) -> dict[str, Any]:
  """The figures of the last of these tasks.

  Args:
    others, own: (tasks, 2), the dev and test score of each learning.
  """
  by_dev, by_dev_own = (float(found[found[:, 0].argmax(), 1]) for found in (others, own))
  return {
    "task": names[-1],
    "others": others[:, 1].round(1).tolist(),
    "own": own[:, 1].round(1).tolist(),
    "best": float(others[:, 1].max()),
    "best_own": float(own[:, 1].max()),
    "by_dev": by_dev,
    "by_dev_own": by_dev_own,
    "mean_own": float(own[:, 1].mean()),
    "from": names[int(others[:, 1].argmax())],
  }


FIGURES = ("best", "best_own", "by_dev", "by_dev_own", "mean_own")


def main(arguments: Sequence[str]) -> None:
  """Restores the run, learns, prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run", type=pathlib.Path, help="a finished run's folder")
  rows = []
  for row in Starts(parser.parse_args(arguments).run).rows():
    rows.append(row)
    print(rounded(row), flush=True)
  means = {figure: float(np.mean([row[figure] for row in rows])) for figure in FIGURES}
  print(rounded({"tasks": len(rows), **means}))


if __name__ == "__main__":
  cli.run(main)
