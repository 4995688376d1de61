"""Pools changed after learning: a task forgotten, a run begun with another's, two joined."""

import shutil

import numpy as np
import pytest
import tiny

from sapt_jax import forget, join, stored_run, train
from sapt_jax.answering import Answering
from sapt_jax.remote import readable
from tests.runs import assert_same_run, record_of, rows_of, saved, scores, snapshots
from tests.test_growing import LATER, NAMES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("pools")
  options = tiny.world(root, tiny.RUN)
  tiny.benchmark_folder(root / "data", LATER)
  # Pseudo inputs as another run may have left them: a model of random weights writes none.
  written = root / "written"
  written.mkdir()
  for number, (name, (definition, rows)) in enumerate((tiny.TASKS | LATER).items()):
    lines = [tiny.json.dumps({"definition": definition, "input": f"{x}!"}) for x, _ in rows[:4]]
    (written / f"{number:02d}_{name}.jsonl").write_text("\n".join(lines))
  return [*options, "--generator.folder", str(written)]


def learned(world, folder, method):
  """A finished run on three of the tasks."""
  tasks = ["--stream.tasks", *NAMES[:3], "--method.name", method]
  train.main([*world, *tasks, "--output", str(folder)])
  return folder


@pytest.fixture(scope="module")
def of_sapt(world, tmp_path_factory):
  return learned(world, tmp_path_factory.mktemp("sapt") / "run", "sapt")


@pytest.fixture(scope="module")
def of_epi(world, tmp_path_factory):
  return learned(world, tmp_path_factory.mktemp("epi") / "run", "epi")


@pytest.fixture(params=["sapt", "epi"])
def three(request):
  """A finished run of a method that can forget and be joined."""
  return request.getfixturevalue(f"of_{request.param}")


def questions():
  return [(definition, text) for definition, rows in tiny.TASKS.values() for text, _ in rows[:4]]


def answers(folder):
  return list(Answering(folder)(questions()))


def test_a_forgotten_task_leaves_nothing_and_changes_nothing_else(three, tmp_path, capsys):
  folder, gone = shutil.copytree(three, tmp_path / "run"), NAMES[2]
  forget.main(["--run", str(folder), "--task", gone])
  assert f"{gone} is forgotten, {NAMES[0]}, {NAMES[1]} left" in capsys.readouterr().out
  files = [file for file in folder.rglob("*") if file.is_file()]
  for words in (gone, gone[:7], "Name the shape", *(text for text, _ in LATER[gone][1])):
    assert not [file for file in files if words.encode() in file.read_bytes()], words
  old, new = saved(snapshots(three)[-1]), saved(snapshots(folder)[-1])
  kinds = {"blocks", "keys", "means", "memory"}
  for name in old:
    if name.split(".")[0] not in kinds or "target" in name or "present" in name:
      continue
    axis = {"a": 2, "b": 1}.get(name.split(".")[-1], 0)
    blocks = [np.take(np.asarray(old[name]), place, axis) for place in range(3)]
    for place in range(new[name].shape[axis]):
      kept = np.take(np.asarray(new[name]), place, axis)
      np.testing.assert_array_equal(kept, blocks[place] if place < 2 else np.zeros_like(kept))
  for (was, mixed), (now, mixture) in zip(answers(three), answers(folder), strict=True):
    weight = mixed.pop(gone)
    assert set(mixture) == set(NAMES[:2])
    for name, share in mixture.items():
      np.testing.assert_allclose(share * (1 - weight), mixed[name], atol=3e-6)
    if weight == 0:
      assert was == now
  result = scores(folder)
  assert (result["tasks"], len(result["scores"][-1])) == (NAMES[:2], 2)
  assert "1 task(s) were forgotten" in result["note"]
  assert [row["index"] for row in rows_of(folder / "metrics.jsonl")][-1] == 1


def test_a_forgotten_tasks_name_leaves_the_command_and_another_that_it_begins_with_stays():
  command = "train --stream.tasks a ab abc --stream.fit ab:steps=3 a:steps=4 --output ab"
  cut = stored_run._command_without(command, ["a", "abc", "ab"], 2)
  assert cut == "train --stream.tasks a abc --stream.fit a:steps=4 --output ab"


def test_a_forgotten_tasks_name_leaves_what_a_later_one_began_with():
  record = {"begins_with": {"a": 2.5, "b": 1.0}, "training_mixture": [1.0, 0.5, 1.0]}
  assert stored_run._record_without(record, ["a", "b", "c"], 0)["begins_with"] == {"b": 1.0}


def test_a_run_that_has_forgotten_goes_on(of_sapt, world, tmp_path, capsys):
  folder = shutil.copytree(of_sapt, tmp_path / "run")
  method = ["--method.name", scores(of_sapt)["method"], "--output", str(folder)]
  forget.main(["--run", str(folder), "--task", NAMES[0]])
  capsys.readouterr()
  train.main([*world, *method, "--stream.tasks", *NAMES[1:3]])
  assert "warning" not in capsys.readouterr().err  # the log fits its seal
  assert scores(folder)["tasks"] == NAMES[1:3]
  train.main([*world, *method, "--stream.tasks", *NAMES[1:3], NAMES[3]])
  assert scores(folder)["tasks"] == NAMES[1:4]


@pytest.mark.parametrize("name", ["predictions", "pseudo_inputs"])
@pytest.mark.parametrize("content", [None, b"{}\n"], ids=["missing", "another"])
def test_what_another_task_has_left_is_looked_at_before_one_is_forgotten(
  name, content, of_sapt, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(of_sapt, tmp_path / "run")
  file = sorted((folder / name).iterdir())[1]
  file.unlink()
  if content:
    file.write_bytes(content)
  code, line = tiny.run_program(forget, ["--run", folder, "--task", NAMES[0]], monkeypatch, capsys)
  assert (code, str(file) in line) == (2, True)
  assert snapshots(folder)[0].name.endswith(NAMES[0])


def test_a_line_of_the_log_that_is_none_is_named(of_sapt, tmp_path, monkeypatch, capsys):
  folder = shutil.copytree(of_sapt, tmp_path / "run")
  (folder / "metrics.jsonl").write_text('[{"a": 1}]\n')
  arguments = ["--run", folder, "--task", NAMES[0]]
  code, line = tiny.run_program(forget, arguments, monkeypatch, capsys)
  assert (code, "metrics.jsonl:1: no line that a run has logged" in line) == (2, True)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--task", "task9"], "--task 'task9' is not in"),
    (["--task", "task00"], "--task 'task00' is ambiguous"),
    # One that was forgotten may be how another begins.
    (["--task", NAMES[0][:-1]], f"forgetting takes a whole name; is it {NAMES[0]}?"),
  ],
)
def test_a_task_that_is_not_there_is_named(of_sapt, options, message, monkeypatch, capsys):
  arguments = ["--run", of_sapt, *options]
  code, line = tiny.run_program(forget, arguments, monkeypatch, capsys)
  assert (code, message in line) == (2, True)


def test_a_method_with_one_block_cannot_forget(world, tmp_path, monkeypatch, capsys):
  folder = tmp_path / "run"
  options = ["--method.name", "sequential", "--stream.tasks", *NAMES[:2], "--output", str(folder)]
  train.main([*world, *options])
  before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
  arguments = ["--run", folder, "--task", NAMES[0]]
  code, line = tiny.run_program(forget, arguments, monkeypatch, capsys)
  assert (code, "method sequential: what it has learned of one task" in line) == (2, True)
  now = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
  assert before == now | {folder / "lock": before[folder / "lock"]}


def test_a_run_begins_with_another_runs_pool(of_sapt, world, tmp_path):
  method = ["--method.name", scores(of_sapt)["method"], "--stream.tasks", *NAMES]
  fork, grown = tmp_path / "fork", shutil.copytree(of_sapt, tmp_path / "grown")
  before = {file: file.read_bytes() for file in of_sapt.rglob("*") if file.is_file()}
  for _ in range(2):  # the second time it is finished
    train.main([*world, *method, "--output", str(fork), "--start-from", str(of_sapt)])
  train.main([*world, *method, "--output", str(grown)])
  assert_same_run(fork, grown)
  assert before == {file: file.read_bytes() for file in of_sapt.rglob("*") if file.is_file()}


def test_two_pools_become_one(three, world, tmp_path, capsys):
  method, other, both = scores(three)["method"], tmp_path / "other", tmp_path / "both"
  options = [*world, "--method.name", method]
  train.main([*options, "--seed", "7", "--stream.tasks", NAMES[3], "--output", str(other)])
  join.main([str(three), str(other), "--output", str(both)])
  assert capsys.readouterr().out.endswith(f"has {', '.join(NAMES)}\n")
  first, second, joined = (saved(snapshots(folder)[-1]) for folder in (three, other, both))
  for name in (name for name in joined if name.endswith(".a")):
    np.testing.assert_array_equal(joined[name][:, :, :3], first[name][:, :, :3])
    np.testing.assert_array_equal(joined[name][:, :, 3], second[name][:, :, 0])
  if method == "sapt":
    np.testing.assert_array_equal(joined["memory.pooled"][3, :4], second["memory.pooled"][0, :4])
    np.testing.assert_allclose(joined["memory.target"].sum(axis=1), 1, atol=1e-6)
    assert joined["memory.target"][3, 3] == 1
  mixtures = [mixture for _, mixture in Answering(both)([("Name the place.", "person 0 in x")])]
  assert set(mixtures[0]) == set(NAMES)
  assert mixtures[0][NAMES[3]] > 0.5
  assert record_of(snapshots(both)[-1])["capacity"] == 4
  result = scores(both)
  assert result["tasks"] == NAMES
  assert result["scores"][-1][:3] == [None] * 3
  assert "two runs made one" in result["note"]
  train.main([*options, "--stream.tasks", *NAMES, "--output", str(both)])
  assert scores(both) == result


def test_pools_that_do_not_fill_their_room_are_joined(of_sapt, world, tmp_path):
  first, other, both = (tmp_path / name for name in ("first", "other", "both"))
  shutil.copytree(of_sapt, first)
  forget.main(["--run", str(first), "--task", NAMES[2]])
  train.main([*world, "--method.name", "sapt", "--stream.tasks", NAMES[3], "--output", str(other)])
  join.main([str(first), str(other), "--output", str(both)])
  joined = saved(snapshots(both)[-1])
  assert joined["keys"].shape[0] == 4
  assert all(np.isfinite(np.asarray(array, np.float32)).all() for array in joined.values())
  assert not joined["keys"][3].any()


def test_a_run_that_was_begun_otherwise_is_not_a_fork(
  of_sapt, world, tmp_path, monkeypatch, capsys
):
  other, folder = shutil.copytree(of_sapt, tmp_path / "other"), tmp_path / "fork"
  start = ["--start-from", of_sapt, "--stream.tasks", *NAMES]
  for more, message in (
    (["--output", other, *start], "was not begun with it"),
    (["--output", folder, *start, "--pet.alpha", "3"], "pet.alpha: 32.0 -> 3.0"),
    (["--output", of_sapt, *start], "--output must be another folder"),
  ):
    arguments = [*world, "--method.name", "sapt", *more]
    code, line = tiny.run_program(train, arguments, monkeypatch, capsys)
    assert (code, message in line) == (2, True), line
  assert not folder.exists()


def test_a_run_is_found_again_after_a_kill_while_it_forgot(of_sapt, tmp_path):
  """Between the two renames, and before the old folder was gone."""
  run, before = tmp_path / "run", tmp_path / ".run.before"
  shutil.copytree(of_sapt, before)
  with pytest.raises(ValueError, match="there is no such folder"):  # its user has removed it
    Answering(readable(str(run)))
  shutil.copytree(of_sapt, tmp_path / ".run.forgetting")
  Answering(readable(str(run)))
  shutil.copytree(run, before)
  (before / "mine.txt").write_text("a file of the user's")
  (run / "mine.txt").write_text("a newer one")
  with pytest.raises(ValueError, match=r"mine\.txt: is there twice"):
    forget.main(["--run", str(run), "--task", NAMES[0]])
  assert (run / "mine.txt").read_text() == "a newer one"
  (run / "mine.txt").unlink()
  link = tmp_path / "link"
  link.symlink_to(run)
  forget.main(["--run", str(link), "--task", NAMES[0]])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]
  assert scores(run)["tasks"] == NAMES[1:3]
  assert (run / "mine.txt").exists()


def test_runs_that_differ_are_not_joined(of_sapt, world, tmp_path, monkeypatch, capsys):
  other = tmp_path / "other"
  options = ["--pet.alpha", "8", "--method.name", "sapt", "--evaluation.metric", "token_f1"]
  train.main([*world, *options, "--stream.tasks", NAMES[3], "--output", str(other)])
  for runs, message in (
    ([of_sapt, other], "evaluation.metric rouge_l and token_f1; pet.alpha 32.0 and 8.0"),
    ([of_sapt, of_sapt], f"both runs have learned {NAMES[2]}"),
    ([of_sapt], "1 run(s) given; name the folders of two"),
  ):
    arguments = [*runs, "--output", tmp_path / "both"]
    code, line = tiny.run_program(join, arguments, monkeypatch, capsys)
    assert (code, message in line) == (2, True), line
