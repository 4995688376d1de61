"""Runs whose stream becomes longer: what is new is learned, what is there stays as it is."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from sapt_jax import continual, export, forget, train
from sapt_jax.answering import Answering
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.methods import METHODS
from tests.runs import assert_same_run, record_of, saved, scores, snapshots

LATER = {
  "task000_shape": ("Name the shape.", [(f"item {i} is {x}", x) for i, x in enumerate("abcd" * 3)]),
  "task003_place": (
    "Name the place.",
    [(f"person {i} in {x}", x) for i, x in enumerate("xyz" * 4)],
  ),
}
NAMES = [*tiny.TASKS, *LATER]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Options of a run, and four tasks; two of them are told to the first run."""
  root = tmp_path_factory.mktemp("growing")
  options = tiny.world(root, [*tiny.RUN, "--pet.new-block", "mixture"])
  tiny.benchmark_folder(root / "data", LATER)
  return options


@pytest.fixture(scope="module")
def three(world, tmp_path_factory):
  """A finished run on three of the tasks."""
  folder = tmp_path_factory.mktemp("three") / "run"
  train.main([*world, "--output", str(folder), "--stream.tasks", *NAMES[:3]])
  return folder


@pytest.fixture
def grown(three, tmp_path):
  return shutil.copytree(three, tmp_path / "run")


@pytest.fixture
def data(world, tmp_path):
  """A copy of the tasks' files, of which a test may remove some."""
  root = shutil.copytree(world[world.index("--data.root") + 1], tmp_path / "data")
  return root / "SuperNI"


def refused(world, folder, more, monkeypatch, capsys):
  code, line = tiny.run_program(train, [*world, "--output", folder, *more], monkeypatch, capsys)
  assert code == 2
  return line


def test_a_task_that_comes_later_is_learned_as_if_it_had_been_there_from_the_start(
  world, grown, tmp_path
):
  train.main([*world, "--output", str(grown), "--stream.tasks", *NAMES])
  train.main([*world, "--output", str(tmp_path / "at once"), "--stream.tasks", *NAMES])
  assert_same_run(grown, tmp_path / "at once")


def test_what_is_new_is_learned_alone_and_without_the_files_of_earlier_tasks(
  world, three, grown, data, capsys
):
  shutil.rmtree(data / NAMES[0])
  (data / NAMES[1] / "train.json").unlink()
  before = {file: file.read_bytes() for file in three.rglob("snapshots/*/record.json")}
  # No names: the new task sorts first among the folders and still comes last.
  options = ["--data.root", str(data.parent), "--fit.steps", "4", "--output", str(grown)]
  shutil.rmtree(data / NAMES[2])
  tiny.benchmark_folder(data.parent, {NAMES[2]: LATER[NAMES[2]]})
  train.main([*world, *options])
  assert f"learned otherwise than {NAMES[2]}: fit.steps: 6 -> 4\n" in capsys.readouterr().out
  result = scores(grown)
  assert result["tasks"] == NAMES
  assert [score is None for score in result["scores"][-1]] == [True, False, False, False]
  assert result["note"].endswith(f"test rows are not there: {NAMES[0]}")
  assert result["metrics"]["AP"] is None
  assert result["steps"] == [6, 6, 6, 4]
  assert all(
    (grown / file.relative_to(three)).read_bytes() == kept for file, kept in before.items()
  )
  record = record_of(snapshots(grown)[-1])
  assert (record["options"]["fit"]["steps"], record["task"]) == (4, NAMES[3])
  assert set(record["changed"]) == set(NAMES[1:3])
  old, new = (saved(snapshots(folder)[-1]) for folder in (three, grown))
  blocks = [name for name in old if name.startswith("blocks") and name.endswith(".a")]
  assert blocks
  for name in blocks:
    np.testing.assert_array_equal(new[name][:, :, :3], old[name][:, :, :3])
  # Started again, nothing is learned and nothing is lost.
  train.main([*world, *options])
  assert scores(grown) == result
  # Forgotten later, a task whose rows were gone leaves no name either.
  forget.main(["--run", str(grown), "--task", NAMES[0]])
  left = [file for file in grown.rglob("*") if NAMES[0] in str(file)]
  left += [file for file in grown.rglob("*.json*") if NAMES[0] in file.read_text()]
  assert left == []


def test_the_pool_becomes_larger_when_it_must(world, tmp_path, monkeypatch, capsys):
  folder = tmp_path / "run"
  options = ["--output", str(folder), "--method.attention", "routed", "--method.sharing"]
  for count in (1, 3):
    train.main([*world, *options, "--stream.tasks", *NAMES[:count]])
  sizes = [record_of(place)["capacity"] for place in snapshots(folder)]
  assert sizes == [1, 4, 4]
  first, last = saved(snapshots(folder)[0]), saved(snapshots(folder)[-1])
  np.testing.assert_array_equal(last["keys"][:1], first["keys"])
  np.testing.assert_array_equal(last["memory.pooled"][0, :2], first["memory.pooled"][0])
  shares = np.asarray(last["shares"])
  np.testing.assert_array_equal(np.diag(shares), [1, 1, 1, 0])
  assert np.all(np.tril(shares, -1)[:3, :2] != 0, where=np.tri(3, 2, -1, bool))
  np.testing.assert_array_equal(np.triu(shares, 1), 0)
  mixtures = [record_of(place)["training_mixture"] for place in snapshots(folder)]
  assert scores(folder)["taken"].get(NAMES[2], {}) == {
    name: round(mixtures[2][slot], 3)
    for slot, name in enumerate(NAMES[:2])
    if abs(mixtures[2][slot]) >= 0.05
  }
  place = tmp_path / "adapter"
  export.main(
    ["--run", str(folder), "--what", "mixture", "--task", NAMES[2], "--output", str(place)]
  )
  found = load_file(place / "adapter_model.safetensors")
  weights = last["memory.target"][2] @ shares
  pool = Answering(folder).learned.blocks["lora"]["decoder"]["cross"]["v"]["b"][1]
  expected = np.concatenate([weights[task] * np.asarray(pool[task]) for task in range(3)]).T
  name = "base_model.model.decoder.block.1.layer.1.EncDecAttention.v.lora_B.weight"
  np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-8)
  # Its tasks go from the last one on, as each takes from those before it.
  gone = ["--run", str(folder), "--task"]
  code, line = tiny.run_program(forget, [*gone, NAMES[0]], monkeypatch, capsys)
  assert code == 2
  assert f"forget them first, in this order: {NAMES[2]}, {NAMES[1]}" in line
  forget.main([*gone, NAMES[2]])
  np.testing.assert_array_equal(saved(snapshots(folder)[-1])["shares"][:2], shares[:2])


def test_a_changed_beginning_is_refused(world, grown, monkeypatch, capsys):
  for tasks, way_out in (
    ([NAMES[1], NAMES[0], NAMES[2]], "name them in this order"),
    ([NAMES[0], NAMES[3]], f"name {NAMES[1]} {NAMES[2]} too"),
  ):
    line = refused(world, grown, ["--stream.tasks", *tasks], monkeypatch, capsys)
    assert f"begins with {' '.join(NAMES[:3])}" in line
    assert way_out in line


def test_what_belongs_to_the_whole_run_stays(world, grown, monkeypatch, capsys):
  line = refused(world, grown, ["--stream.tasks", *NAMES, "--pet.alpha", "8"], monkeypatch, capsys)
  assert "pet.alpha: 32.0 -> 8.0" in line
  line = refused(
    world, grown, ["--stream.tasks", *NAMES[:3], "--fit.steps", "8"], monkeypatch, capsys
  )
  assert "fit.steps: 6 -> 8" in line
  other = ["--data.benchmark", "mini_related", "--data.root", ""]
  line = refused(world, grown, other, monkeypatch, capsys)
  assert "data.benchmark: superni -> mini_related" in line


def test_changed_rows_of_an_earlier_task_are_refused(world, grown, data, monkeypatch, capsys):
  file = data / NAMES[0] / "train.json"
  file.write_text(file.read_text().replace("thing 0", "thing 99"))
  more = ["--stream.tasks", *NAMES, "--data.root", str(data.parent)]
  assert f"tasks.{NAMES[0]}.train" in refused(world, grown, more, monkeypatch, capsys)


def test_a_task_that_must_be_learned_again_needs_its_rows(world, grown, data, monkeypatch, capsys):
  shutil.rmtree(data / NAMES[1])
  before = {file: file.read_bytes() for file in grown.rglob("*") if file.is_file()}
  more = ["--stream.tasks", *NAMES, "--data.root", str(data.parent), "--from-task", "2"]
  line = refused(world, grown, more, monkeypatch, capsys)
  assert f"stream.tasks '{NAMES[1]}' is not in" in line
  del before[grown / "lock"]
  assert before.items() <= {f: f.read_bytes() for f in grown.rglob("*") if f.is_file()}.items()


def test_a_longer_stream_that_is_refused_changes_nothing(world, grown, data, monkeypatch, capsys):
  before = (grown / "config.json").read_bytes()
  (data / NAMES[3] / "test.json").write_text('{"Definition": "d", "Instances": []}')
  refused(world, grown, ["--data.root", str(data.parent)], monkeypatch, capsys)
  more = ["--generator.max-length", "2", "--stream.tasks", *NAMES]
  assert "leaves no room for an input" in refused(world, grown, more, monkeypatch, capsys)
  assert (grown / "config.json").read_bytes() == before
  train.main([*world, "--output", str(grown), "--stream.tasks", *NAMES[:3]])


def test_a_task_may_be_learned_again_otherwise_or_be_left_out(world, grown):
  options = [*world, "--output", str(grown)]
  again = ["--stream.tasks", *NAMES[:3], "--fit.steps", "4", "--from-task", "3"]
  train.main([*options, *again])
  assert scores(grown)["steps"] == [6, 6, 4]
  config = json.loads((grown / "config.json").read_text())
  config["tasks"]["one that was never learned"] = {}
  (grown / "config.json").write_text(json.dumps(config))
  train.main([*options, *again[:-2]])
  assert scores(grown)["tasks"] == NAMES[:3]
  assert list(json.loads((grown / "config.json").read_text())["tasks"]) == NAMES[:3]


def test_a_task_that_was_begun_in_a_wrong_way_can_be_begun_again_or_left_out(
  world, grown, monkeypatch, capsys
):
  command = [*world, "--output", str(grown), "--stream.tasks"]
  longer = ["--stream.tasks", *NAMES, "--fit.steps", "4"]
  monkeypatch.setattr(continual.Continual, "one_task", lambda *_: 1 / 0)  # before a step is kept
  assert (
    tiny.run_program(train, [*command, *NAMES, "--fit.steps", "9"], monkeypatch, capsys)[0] == 1
  )
  monkeypatch.undo()
  line = refused(world, grown, longer, monkeypatch, capsys)
  assert "fit.steps: 9 -> 4" in line
  assert "--from-task 4 to learn the rest anew with this one" in line
  left_out = shutil.copytree(grown, grown.with_name("left out"))
  train.main([*world, "--output", str(left_out), "--stream.tasks", *NAMES[:3]])
  forget.main(["--run", str(left_out), "--task", NAMES[2]])
  train.main([*world, "--output", str(grown), *longer, "--from-task", "4"])
  assert scores(grown)["steps"] == [6, 6, 6, 4]


def test_another_method_is_named_alone_and_not_with_all_its_options(
  world, grown, monkeypatch, capsys
):
  line = refused(world, grown, ["--method.name", "epi"], monkeypatch, capsys)
  assert "(method: sapt -> epi)" in line


@pytest.mark.parametrize("method", ["replay", "multi_task", "lfpt5"])
def test_methods_that_need_earlier_rows_say_so(method):
  tasks = [Task("a", "", (), (), ()), Task("b", "", (Example("x", ("y",)),) * 2, (), ())]
  stream = [PreparedTask(index, task, None) for index, task in enumerate(tasks)]
  kind = METHODS[method]
  with pytest.raises(InputError, match="task a: its training rows are not there"):
    kind(kind.Options(), None).check_task(SimpleNamespace(stream=stream, index=1))
