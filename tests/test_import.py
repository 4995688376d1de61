"""What others have learned: a pool of the authors' code as a run, adapters as starts of blocks."""

import importlib
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from sapt_jax import export, train
from sapt_jax.answering import Answering
from sapt_jax.pet import blocks
from tests.classroom import same
from tests.runs import record_of, saved, scores, snapshots
from tests.test_growing import LATER

program = importlib.import_module("sapt_jax.import")
NAMES = list(tiny.TASKS)
QUESTIONS = [(definition, text) for definition, rows in tiny.TASKS.values() for text, _ in rows[:4]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Options of a run of the published form, whose pseudo inputs are given."""
  root = tmp_path_factory.mktemp("world")
  options = tiny.world(root, [*tiny.RUN, "--method.attention", "published"])
  (root / "config.py").write_text("from sapt_jax.mini.default import config\n")
  written = root / "written"
  written.mkdir()
  for number, (name, (definition, rows)) in enumerate(tiny.TASKS.items()):
    lines = [json.dumps({"definition": definition, "input": f"{text}!"}) for text, _ in rows[:3]]
    (written / f"{number:02d}_{name}.jsonl").write_text("\n".join(lines))
  return ["--config", str(root / "config.py"), *options, "--generator.folder", str(written)]


@pytest.fixture(scope="module")
def learned(world, tmp_path_factory):
  """A finished run."""
  folder = tmp_path_factory.mktemp("learned") / "run"
  train.main([*world, "--output", str(folder)])
  return folder


@pytest.fixture(scope="module")
def pool(learned, tmp_path_factory):
  """The folders that the authors' code would have left of it."""
  place = tmp_path_factory.mktemp("pool")
  export.main(["--run", str(learned), "--what", "pool", "--output", str(place)])
  return sorted(str(folder) for folder in place.glob("*/saved_weights"))


def test_an_imported_pool_answers_as_the_run_did_and_learns_more(world, learned, pool, tmp_path):
  folder, data = tmp_path / "run", tiny.benchmark_folder(tmp_path / "data", LATER)
  # The pool's own tasks are not there.
  options = [*world, "--data.root", str(data), "--output", str(folder)]
  program.main([*pool, *options, "--stream.tasks", *NAMES])
  ours, theirs = Answering(folder), Answering(learned)
  assert list(ours(QUESTIONS)) == list(theirs(QUESTIONS))
  assert same(ours.learned, theirs.learned)
  assert np.asarray(ours.learned.memory.valid).sum() == 6
  assert scores(folder)["metrics"]["AP"] is None
  assert "by another program, and not scored: task001_colour, task002" in scores(folder)["note"]
  target = np.asarray(theirs.learned.memory.target)[1, :2]
  np.testing.assert_allclose(record_of(snapshots(folder)[-1])["testing_mixture"][1], target)

  before = saved(snapshots(folder)[-1])
  train.main([*options, "--stream.tasks", *NAMES, *LATER, "--generator.folder", ""])
  after = saved(snapshots(folder)[-1])
  for name, array in before.items():
    if name.startswith("blocks"):
      axis = {"a": 2, "b": 1}[name.split(".")[-1]]
      both = (np.take(np.asarray(x), range(len(NAMES)), axis) for x in (after[name], array))
      np.testing.assert_array_equal(*both)
  result = scores(folder)
  assert result["tasks"] == [*NAMES, *LATER]
  assert [score is None for score in result["scores"][-1]] == [True, True, False, False]


def test_the_last_folder_alone_will_do(world, learned, pool, tmp_path):
  options = [*world, "--stream.tasks", *NAMES, "--output", str(tmp_path / "run")]
  program.main([pool[-1], *options])
  ours, theirs = Answering(tmp_path / "run"), Answering(learned)
  assert list(ours(QUESTIONS)) == list(theirs(QUESTIONS))
  # Its mean mixtures are not in that folder: they are those of the pseudo inputs with all blocks.
  features = ours.learned.memory.pooled[0, :3]
  now = np.exp(np.asarray(ours.built.method.log_mixture(ours.learned, features))).mean(axis=0)
  np.testing.assert_allclose(ours.learned.memory.target[0], now, rtol=1e-5)
  program.main([pool[-1], *options[:-1], str(tmp_path / "plain"), "--generator.folder", ""])
  assert not np.any(Answering(tmp_path / "plain").learned.memory.valid)
  assert scores(tmp_path / "plain")["blocks_used"] is None


def test_folders_with_numbers_are_taken_by_their_numbers(tmp_path):
  names = [f"{number}-task/saved_weights" for number in (1, 10, 11, 2)]
  paths = program.in_order([str(tmp_path / name) for name in names])
  assert [path.parent.name for path in paths] == ["1-task", "2-task", "10-task", "11-task"]
  assert program.in_order(["b/saved_weights", "a"]) == [Path("b/saved_weights"), Path("a")]


WRONG = {
  "no folder": ([], [], "no folder given"),
  "a task too few": (["POOL"], ["--stream.tasks", NAMES[0]], "a pool of 2 tasks; stream.tasks"),
  "no tasks": (["POOL"], ["--stream.tasks"], "stream.tasks is empty"),
  "method": (["POOL"], ["--method.name", "epi"], "is of --method.name sapt"),
  "attention": (
    ["POOL"],
    ["--method.attention", "routed"],
    "not of --method.attention routed",
  ),
  "rank": (["POOL"], ["--pet.rank", "3"], "block 1 has rank 2, where pet.rank is 3"),
  "no output": (["POOL"], ["--output", ""], "--output (none): must be a folder"),
  "no pool": (["/nowhere"], [], "/nowhere: no file prompts_keys_till_now"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case, world, pool, tmp_path, monkeypatch, capsys):
  folders, options, message = WRONG[case]
  common = [*world, "--stream.tasks", *NAMES, "--output", str(tmp_path / "run")]
  if "--method.name" in options:
    at = common.index("--method.attention")
    del common[at : at + 2]
  arguments = [*(pool if folders == ["POOL"] else folders), *common, *options]
  code, complaint = tiny.run_program(program, arguments, monkeypatch, capsys)
  assert (code, message in complaint) == (2, True), complaint
  assert not (tmp_path / "run").exists()


# peft adapters as starts of blocks


@pytest.fixture(scope="module")
def adapter(learned, tmp_path_factory):
  """The block of the run's second task as a peft adapter."""
  place = tmp_path_factory.mktemp("adapter") / "block"
  export.main(["--run", str(learned), "--task", NAMES[1], "--output", str(place)])
  return place


def test_a_block_starts_as_the_adapter_that_is_named_for_its_task(
  world, learned, adapter, tmp_path, monkeypatch, capsys
):
  folder, other = tmp_path / "run", shutil.copytree(adapter, tmp_path / "other")
  options = [*world, "--fit.learning-rate", "1e-12", "--output", str(folder)]
  train.main([*options, "--stream.blocks", f"task001={adapter}"])
  pool, given = (Answering(run).learned.blocks for run in (folder, learned))
  first, second = (blocks.read(pool, slot) for slot in range(2))
  expected = blocks.read(given, 1)
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), first, expected)
  assert not same(second, expected)
  # Elsewhere it is the same one; another in its place is not.
  train.main([*options, "--stream.blocks", f"task001={other}"])
  arrays = load_file(other / "adapter_model.safetensors")
  save_file({name: 2 * x for name, x in arrays.items()}, other / "adapter_model.safetensors")
  again = [*options, "--stream.blocks", f"task001={other}"]
  code, complaint = tiny.run_program(train, again, monkeypatch, capsys)
  shutil.rmtree(other)
  train.main(again)  # what has been learned needs it no more
  assert (code, f"changed since the run was begun: blocks.{NAMES[0]}" in complaint) == (2, True)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["task001"], "must be TASK=FOLDER"),
    (["task009=here"], "task009"),
    (["task001=/nowhere"], "/nowhere"),
    (["task001=ADAPTER", "--pet.rank", "3"], "has rank 2, where pet.rank is 3"),
    (["task001=ADAPTER", "--method.name", "sequential"], "sequential makes its blocks itself"),
    (["task001=ADAPTER", "--method.name", "inflora"], "inflora makes its blocks itself"),
  ],
)
def test_an_adapter_that_cannot_be_a_start_is_named(
  options, message, world, adapter, tmp_path, monkeypatch, capsys
):
  common = [*world, "--output", str(tmp_path / "run")]
  if "--method.name" in options:
    at = common.index("--method.attention")
    del common[at : at + 2]
  options = [option.replace("ADAPTER", str(adapter)) for option in options]
  arguments = [*common, "--stream.blocks", *options]
  code, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  assert (code, message in complaint) == (2, True), complaint
