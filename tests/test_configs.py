"""The committed configurations."""

import dataclasses
from pathlib import Path

import pytest

from sapt_jax.data.sources import load_stream
from sapt_jax.paper import MODELS, ORDERS, paper
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
