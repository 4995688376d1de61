"""The committed configurations."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sapt_jax.data.sources import load_stream
from sapt_jax.data.task_file import read_task_file
from sapt_jax.errors import InputError
from sapt_jax.mini.default import config as mini_config
from sapt_jax.paper import MODELS, ORDERS, paper
from sapt_jax.run_inputs import fits_of
from sapt_jax.run_options import load_config

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.joinpath("configs").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_configuration_is_one(file):
  assert load_config(str(file)).stream is not None
  assert f"--config {file.relative_to(ROOT)}" in file.read_text()


def test_every_experiment_of_the_paper_has_a_file():
  committed = {file.stem: load_config(str(file)) for file in FILES if file.parent.name == "paper"}
  wanted = {
    f"{benchmark}_{order}_{model}": paper(benchmark, order, model)
    for benchmark in ORDERS
    for order in (1, 2)
    for model in MODELS
  }
  assert {
    name: config for name, config in committed.items() if not name.startswith("ablation")
  } == wanted
  whole = wanted["superni_1_t5_large"]
  ablations = {name: config for name, config in committed.items() if name.startswith("ablation")}
  assert len({str(config.method) for config in [whole, *ablations.values()]}) == 4
  assert all(
    config.fit == whole.fit and config.stream == whole.stream for config in ablations.values()
  )


@pytest.mark.parametrize("benchmark", ORDERS)
def test_the_two_orders_hold_the_same_fifteen_tasks(benchmark):
  first, second = ORDERS[benchmark]
  assert set(first) == set(second)
  assert len(set(first)) == len(first) == len(second) == 15


def test_the_orders_name_the_published_tasks(shared):
  config = paper("superni", 2, "t5_large")
  options = dataclasses.replace(
    config.data, root=str(shared / "data" / "CL_Benchmark"), max_train=1, max_test=1
  )
  names = [task.name for task in load_stream(options, config.stream, 0)]
  assert [name.split("_")[0] + "_" for name in names] == list(ORDERS["superni"][1])


def test_the_tasks_of_both_hubs_are_those_of_long_sequence():
  folder = ROOT / "configs/hubs"
  files = {
    kind: {file.stem: read_task_file(file) for file in (folder / kind).glob("*.toml")}
    for kind in ("datasets", "tfds")
  }
  assert set(files["datasets"]) == set(ORDERS["long_sequence"][0])
  assert set(files["tfds"]) < set(files["datasets"])
  for kind, tasks in files.items():
    for task in tasks.values():
      assert (task.source.kind, task.max_train, task.max_test) == (kind, 1000, 500)
      assert task.instruction


def test_trace_has_its_eight_tasks_with_their_epochs(tmp_path):
  config = load_config(str(ROOT / "configs/trace.py"))
  rows = '[{"prompt": "a", "answer": "b"}]'
  for name in config.stream.tasks:
    (tmp_path / name).mkdir()
    for split in ("train", "eval", "test"):
      (tmp_path / name / f"{split}.json").write_text(rows)
  options = dataclasses.replace(config.data, root=str(tmp_path))
  tasks = load_stream(options, config.stream, 0)
  assert [fit.epochs for fit in fits_of(config, tasks)] == [5, 3, 7, 5, 3, 5, 5, 7]


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (lambda c: replace(c, fit=replace(c.fit, steps=3.0)), "fit.steps 3.0: must be a whole number"),
    (lambda c: replace(c, fit=replace(c.fit, steps=True)), "fit.steps True: must be a number"),
    (lambda c: replace(c, fit=replace(c.fit, steps="5")), "fit.steps '5': must be a number"),
    (
      lambda c: replace(c, fit=replace(c.fit, learning_rate=math.nan)),
      "fit.learning_rate nan: must be a number",
    ),
    (lambda c: replace(c, fit=replace(c.fit, steps=10**400)), "must be less than 2147483648"),
    (lambda c: replace(c, fit=None), "fit None: must be a Fit"),
    (lambda c: replace(c, method="sapt"), "method 'sapt': must be a MethodOptions"),
    (lambda c: replace(c, seed="0"), "seed '0': must be a whole number"),
    (
      lambda c: replace(c, data=replace(c.data, max_train=None)),
      "max_train None: must be a number",
    ),
    (lambda c: replace(c, data=replace(c.data, root=3)), "data.root 3: must be a text"),
    (lambda c: replace(c, pet=replace(c.pet, kind="loar")), "pet.kind 'loar': must be one of"),
    (lambda c: replace(c.stream, tasks="film_mood"), "tasks 'film_mood': must be a tuple, of"),
    (lambda c: replace(c.stream, tasks=("a", 1)), "must be a tuple, of which each is a text"),
  ],
)
def test_values_of_another_type_are_named_when_a_configuration_is_made(change, named):
  with pytest.raises(InputError, match=named):
    change(mini_config)
