"""Runs for tests: one loop that runs in many folders, folders as a killed process leaves them."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

from sapt_jax import run_options, train
from sapt_jax.continual import Continual
from sapt_jax.cost import Cost
from sapt_jax.run_folder import RunFolder
from sapt_jax.run_inputs import read_inputs
from sapt_jax.training import checkpoint
from sapt_jax.training.saver import Saver


class Loop:
  """The loop of a run, which can be gone through in one folder after another.

  Its programs are compiled once. What a run has kept in memory is there in the next folder too, so
  at least one test of a kind has to start a run anew.
  """

  def __init__(self, options):
    self.config = run_options.config_of(train.options(options))
    self.inputs = read_inputs(self.config)
    self.loop = None

  def run(self, folder):
    """Runs, or goes on running, in a folder; returns what scores.json holds."""
    with RunFolder(folder, self.config, self.inputs.identity) as place, Cost() as cost:
      if self.loop is None:
        self.loop = Continual(self.config, self.inputs, place, cost)
      jax.set_mesh(self.loop.built.mesh)  # else all would be traced and compiled for none
      self.loop.folder, self.loop.cost = place, cost
      return self.loop.run(None)


@contextlib.contextmanager
def killed_after_each_save(folder, copies):
  """Copies a run's folder to copies/1, copies/2, ... after each of its saves: what a process that
  is killed there leaves behind.
  """
  numbers = iter(range(1, 100))

  def save(saver, place, tree, record, then, in_one_file=False, original=Saver.save):
    def copied():
      shutil.copytree(folder, copies / str(next(numbers)))
      then()

    original(saver, place, tree, record, copied)
    saver.wait()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Saver, "save", save)
    yield


def killed_after(finished, number, tmp_path):
  """A folder as the finished run would have left it if it had been killed after a save."""
  return shutil.copytree(finished.parent / "killed" / str(number), tmp_path / "run")


def scores(folder):
  return json.loads((folder / "scores.json").read_text())


def rows_of(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def snapshots(folder):
  """The folders of a run's snapshots, in order."""
  return sorted((folder / "snapshots").iterdir())


def record_of(snapshot):
  return json.loads((snapshot / checkpoint.RECORD).read_text())


def saved(snapshot):
  """Every array of a snapshot."""
  return checkpoint.arrays_of(snapshot)


def logged(folder):
  """(task, step, loss) of every step in the log, those of the pseudo inputs among them."""
  rows = rows_of(folder / "metrics.jsonl")
  return [(row["index"], row["step"], row["loss"]) for row in rows if "loss" in row]


def assert_same_run(folder, other):
  """Two runs left the same scores, answers, log and last snapshot, bit for bit."""
  texts = [(place / "predictions.jsonl").read_text() for place in (folder, other)]
  trees = [saved(snapshots(place)[-1]) for place in (folder, other)]
  assert scores(folder)["scores"] == scores(other)["scores"]
  assert texts[0] == texts[1]
  assert logged(folder) == logged(other)
  assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
  jax.tree.map(np.testing.assert_array_equal, *trees)
