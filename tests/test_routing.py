"""The program that asks where inputs of a long stream are sent."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import routing
import tiny

from sapt_jax import config, learner, methods
from sapt_jax.backbones import hf
from sapt_jax.errors import InputError
from sapt_jax.methods.sapt import SaptOptions


def inputs_around(centre):
  drawn = centre + 0.1 * np.random.default_rng(0).normal(size=(3, 30, 16))
  return routing.Inputs(0, SimpleNamespace(task=None), *drawn.astype(np.float32))


def test_tasks_that_lie_apart_are_told_apart_if_inputs_are_remembered():
  model = hf.build_model(tiny.T5 | {"d_model": 16})
  table, pet = jnp.zeros((8, 16)), config.Pet(kind="prompt", prompt_length=1)
  stream = [inputs_around(centre) for centre in 2.0 * np.eye(16)[:6]]
  setting = learner.setting_of(pet, model.config, table, 8, 10)
  method = methods.build(SaptOptions(attention="routed"), setting)
  row = routing.figures_of(method, stream)
  assert row["right"] == row["worst"] == row["half"] == 100
  assert 80 < row["own"] <= 100
  # Pooled embeddings, keys and targets of six tasks in float32, and the projection.
  assert row["memory"] > 4 * 6 * (10 + 1) * 16 / 2**20


def test_a_share_of_what_stands_for_pseudo_inputs_is_of_any_task():
  stream = [inputs_around(centre) for centre in 2.0 * np.eye(16)[:6]]
  [same, half, none] = [
    np.mean(
      np.all(
        routing.spoiled(stream[0], stream, share, np.random.default_rng(0)).others
        == stream[0].others,
        axis=1,
      )
    )
    for share in (0.0, 0.5, 1.0)
  ]
  assert (same, 0.3 < half < 0.7, none < 0.3) == (1.0, True, True)


def test_a_row_for_each_method(capsys):
  given = ["--backbone", "t5-mini", "--data", "mini", "--counts", "1,2"]
  routing.main([*given, "--first", "4", "--source-length", "64", "--instruction", "Say what."])
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["method"] for row in rows] == ["epi", "sapt, 1", "sapt, 2"]
  assert {row["tasks"] for row in rows} == {4}
  assert all(0 <= row["worst"] <= row["right"] <= 100 for row in rows)
  with pytest.raises(InputError, match=r"--wrong 2\.0"):
    routing.main([*given, "--wrong", "2"])
