"""What earlier blocks do for a task before it is learned (benchmarks/transfer.py), and when it is
learned from them (benchmarks/starts.py).
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import starts
import transfer

from sapt_jax.answering import Answering
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.sources import load_stream
from sapt_jax.errors import InputError
from sapt_jax.pet import blocks
from sapt_jax.snapshots import record_of
from tests.runs import Loop

SHARING = ["--method.attention", "routed", "--method.sharing", "--method.remembered", "draws"]


def test_the_figures_of_a_task_say_who_gives_most():
  row = transfer.row_of(["a", "b", "c", "d"], np.array([8.0, 7.0, 3.0, 6.0, 2.0]))
  assert row == {
    "task": "d",
    "none": 8.0,
    "own": 2.0,
    "usual": 6.0,
    "best": 3.0,
    "given": pytest.approx(5 / 6),
    "from": "b",
  }
  assert transfer.row_of(["a", "b"], np.array([3.0, 4.0, 1.0]))["given"] == 0  # it does harm
  assert transfer.row_of(["a", "b"], np.array([3.0, 2.0, 3.5]))["given"] == 0  # nothing was learned


def test_a_run_is_measured_on_its_first_dev_rows(finished, monkeypatch, capsys):
  measured, measure = [], transfer.MixtureLosses.__call__

  def watched(losses, learned, batch, mixtures):
    measured.extend(
      tuple(ids[there].tolist()) for ids, there in zip(batch.source, batch.source_mask, strict=True)
    )
    return measure(losses, learned, batch, mixtures)

  monkeypatch.setattr(transfer.MixtureLosses, "__call__", watched)
  transfer.main([str(finished), "--rows", "3"])
  run = Answering(finished)
  stream = load_stream(run.options.data, run.options.stream, run.options.seed)
  first = PreparedTask(1, stream[1], run.codec).dev.rows[:3]
  assert sorted(measured) == sorted(tuple(row.source) for row in first)
  row, mean = (json.loads(line) for line in capsys.readouterr().out.splitlines())
  assert (row["task"], row["from"]) == ("task002_count", "task001_colour")
  assert row["best"] == row["usual"]
  assert 0 < row["own"] != row["none"] > 0
  assert (mean["tasks"], mean["given"]) == (1, row["given"])


def test_a_folder_that_is_no_run_and_a_number_that_is_none_are_named(tmp_path, capsys):
  with pytest.raises(InputError, match="no such folder"):
    transfer.main([str(tmp_path / "nowhere")])
  with pytest.raises(SystemExit, match="2"):
    transfer.main([str(tmp_path), "--rows", "0"])
  assert "--rows: '0' is not a whole number of at least 1" in capsys.readouterr().err


def test_the_figures_of_a_task_choose_by_dev_and_bound_by_test():
  others = np.array([[40.0, 90.0], [60.0, 50.0], [50.0, 70.0]])
  own = np.array([[80.0, 65.0], [70.0, 75.0], [80.0, 60.0]])
  assert starts.row_of(["a", "b", "c", "d"], others, own) == {
    "task": "d",
    "others": [90.0, 50.0, 70.0],
    "own": [65.0, 75.0, 60.0],
    "best": 90.0,
    "best_own": 75.0,
    "by_dev": 50.0,
    "by_dev_own": 65.0,
    "mean_own": pytest.approx(200 / 3),
    "from": "a",
  }


@pytest.mark.parametrize("options", [SHARING, ["--method.name", "per_task"]], ids=["sapt", "alone"])
def test_a_task_is_learned_again_as_the_run_did_and_from_an_earlier_one(
  world, options, tmp_path, monkeypatch, capsys
):
  Loop([*world, *options]).run(tmp_path / "run")
  again = starts.Starts(tmp_path / "run")
  before = again.before(1)
  own = again.begun(before, 1, None)
  learned = again.learned(own, 1, 0)
  for one, other in zip(
    jax.tree.leaves(again.built.method.trainable(learned)),
    jax.tree.leaves(again.built.method.trainable(again.run.learned)),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  from_other = again.begun(before, 1, 0)
  # A start is chosen by the batch that is learned from first, in its parts, as the task has it.
  again.fits[1] = dataclasses.replace(again.fits[1], batch_size=4, accumulation=2)
  asked = []
  monkeypatch.setattr(
    again.instruments,
    "mixture_losses",
    lambda _, batch, mixtures, parts: (
      asked.append((batch.source.shape[0], parts)) or mixtures[:, 0]
    ),
  )
  again.begun(before, 1, None)
  assert set(asked) == ({(4, 2)} if options is SHARING else set())
  said = "task002_count begins at a loss of" in capsys.readouterr().out
  assert said == ("begins_with" in record_of(again.snapshots[1])) == (options is SHARING)
  if options is SHARING:
    assert own.shares[1, :2].tolist() == [0, 1]
    assert from_other.shares[1, :2].tolist() == [1, 1]
  else:
    first, second = (blocks.read(from_other.blocks, slot) for slot in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
  capsys.readouterr()
  starts.main([str(tmp_path / "run")])
  result = json.loads((tmp_path / "run" / "scores.json").read_text())
  assert 0 <= result["alignment"] < 5  # the attention's, though the weights add up to no 1
  row, means = (json.loads(line) for line in capsys.readouterr().out.splitlines())
  assert row["own"] == [round(result["scores"][1][1], 1)]
  assert (row["task"], row["from"]) == ("task002_count", "task001_colour")
  assert means["best"] == row["others"][0]


def test_a_run_of_another_method_is_refused(finished):
  with pytest.raises(InputError, match=r"needs at least two tasks of per_task, or of sapt with"):
    starts.main([str(finished)])
