"""What earlier blocks do for a task before it is learned: benchmarks/transfer.py."""

import json

import numpy as np
import pytest
import transfer

from sapt_jax.errors import InputError


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


def test_a_run_is_measured_on_its_dev_rows(finished, capsys):
  transfer.main([str(finished), "--rows", "3"])
  row, mean = (json.loads(line) for line in capsys.readouterr().out.splitlines())
  assert (row["task"], row["from"]) == ("task002_count", "task001_colour")
  assert row["best"] == row["usual"]
  assert 0 < row["own"] != row["none"] > 0
  assert (mean["tasks"], mean["given"]) == (1, row["given"])


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(InputError, match="no such folder"):
    transfer.main([str(tmp_path / "nowhere")])
