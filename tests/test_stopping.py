"""A run that is stopped, killed or harmed anywhere ends as one that was left alone."""

import contextlib
import gzip
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from sapt_jax import processes, train
from sapt_jax.errors import InputError, Stopped
from sapt_jax.evaluation import evaluate
from sapt_jax.evaluation.kept_answers import KeptAnswers
from sapt_jax.training import checkpoint
from sapt_jax.training.profile import Profile
from tests.runs import Loop, assert_same_run, rows_of, scores, snapshots


@pytest.fixture(scope="module", params=[(), ("--fit.validate-every", "2")], ids=["plain", "dev"])
def whole(request, world, tmp_path_factory):
  """A loop and the folder of a run that was left alone."""
  loop, folder = Loop([*world, *request.param]), tmp_path_factory.mktemp("whole") / "run"
  loop.run(folder)
  return loop, folder


def test_a_run_that_is_stopped_all_the_time_advances_and_ends_alike(whole, tmp_path, monkeypatch):
  """It is asked to stop at every seventh look, in whatever phase that is."""
  loop, undisturbed = whole
  looks, answered = [0], []

  def asked():
    looks[0] += 1
    return looks[0] % 7 == 0

  def add(kept, rows, *given, original=KeptAnswers.add):
    answered.append((kept.file, len(answered) and tuple(rows.tolist())))
    original(kept, rows, *given)

  monkeypatch.setattr(processes, "stop_asked", asked)
  monkeypatch.setattr(evaluate.KeptAnswers, "add", add)
  places = []
  for _ in range(100):
    try:
      loop.run(tmp_path / "run")
      break
    except Stopped as stop:
      places.append(str(stop))
  assert_same_run(tmp_path / "run", undisturbed)
  assert len(places) > 3, places
  kept = [batch for batch in answered if batch[0].stem.startswith(("test", "inputs"))]
  assert len(set(kept)) == len(kept)  # no batch was answered twice


def test_kept_answers_are_those_that_were_given_up_to_the_first_that_is_harmed(tmp_path):
  file, rng = tmp_path / "x" / "answers.jsonl", np.random.default_rng(0)
  batches = [
    (np.arange(2) + 2 * i, rng.integers(0, 9, (2, 3)), rng.normal(size=(2, 4)).astype(np.float32))
    for i in range(3)
  ]
  for batch in batches:
    KeptAnswers(file).add(*batch)

  def kept():
    found = KeptAnswers(file)
    return [
      number
      for number, (rows, ids, mixtures) in enumerate(batches)
      if all(row in found.rows for row in rows)
      and np.array_equal([found.rows[row][0] for row in rows], ids)
      and np.array_equal([found.rows[row][1] for row in rows], mixtures)
    ]

  assert kept() == [0, 1, 2]
  content = file.read_bytes()
  file.write_bytes(content[:-5])
  assert kept() == [0, 1]
  second = content.index(b"\n") + 30
  file.write_bytes(content[:second] + bytes([content[second] ^ 1]) + content[second + 1 :])
  assert kept() == [0]
  KeptAnswers(file).add(*batches[1])
  assert kept() == [0, 1]
  assert set(KeptAnswers(file).rows) == set(range(4))


def test_what_a_killed_save_left_half_done_is_settled(tmp_path):
  def saved(name, number):
    checkpoint.save(tmp_path / "other" / name, {"x": np.full(1, number, np.float32)}, {})
    (tmp_path / "other" / name).rename(tmp_path / name)

  def found(name):
    tree, _ = checkpoint.load(tmp_path / name, {"x": np.zeros(1, np.float32)})
    return float(tree["x"][0])

  saved("a.before", 1)
  saved("a.draft", 2)  # killed between the two renames
  saved("b.before", 1)
  (tmp_path / "b.draft").mkdir()  # the second rename was lost with its folder
  saved("c", 1)
  saved("c.before", 2)  # killed while the old one was removed
  (tmp_path / "d.draft").mkdir()
  (tmp_path / "d.draft/half").write_text("x")
  checkpoint.settle(tmp_path)
  assert (found("a"), found("b"), found("c")) == (2, 1, 1)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "other"]


def test_a_save_that_cannot_be_read_back_does_not_count(tmp_path, monkeypatch):
  tree = {"x": np.arange(3, dtype=np.float32)}
  checkpoint.save(tmp_path / "s", tree, {"number": 1})
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_get", lambda *_: {"x": np.zeros(3, np.float32)})
    with pytest.raises(OSError, match="other numbers are read there than were written"):
      checkpoint.save(tmp_path / "s", tree, {"number": 2})
  assert checkpoint.read_record(tmp_path / "s") == {"number": 1}


@pytest.mark.parametrize("name", ["back\\slash", "half\udc80", "run[1]/x"])
def test_a_path_that_cannot_be_read_back_is_refused_at_once(
  world, tmp_path, name, monkeypatch, capsys
):
  code, complaint = tiny.run_program(
    train, [*world, "--output", tmp_path / name], monkeypatch, capsys
  )
  assert code == 2
  assert "could not be read back" in complaint


def test_an_output_that_is_a_link_to_nothing_is_refused(world, tmp_path, monkeypatch, capsys):
  link = tmp_path / "run"
  link.symlink_to(tmp_path / "nowhere")
  code, complaint = tiny.run_program(train, [*world, "--output", link], monkeypatch, capsys)
  line = f"--output {link}: cannot be a run's folder (a link that leads nowhere); choose another"
  assert (code, line in complaint) == (2, True)


def test_a_task_that_is_named_like_an_unfinished_folder_is_refused(tmp_path):
  for name in ("00_task.draft", "00_task.before"):
    with pytest.raises(InputError, match="are ends of unfinished folders"):
      checkpoint.check_path(tmp_path / name)


@pytest.mark.parametrize("name", ["a b", "ü", "100%", "a?b#c", "*", "1]", "line\nend", "x" * 200])
def test_any_other_legal_path_can_be_read_back(tmp_path, name):
  tree = {"x": np.arange(3, dtype=np.float32)}
  checkpoint.check_path(tmp_path / name)
  checkpoint.save(tmp_path / name, tree, {})
  assert np.array_equal(checkpoint.load(tmp_path / name, tree)[0]["x"], tree["x"])


def test_inputs_that_have_changed_since_are_named(world, finished, tmp_path):
  data = tmp_path / "data"
  shutil.copytree(world[world.index("--data.root") + 1], data)
  options = [*world, "--data.root", str(data)]
  Loop(options).run(shutil.copytree(finished, tmp_path / "run"))  # moved, but not changed
  for name, change, said in [
    ("train", ["Instances", 1, "input"], "tasks.task002_count.train"),
    ("test", ["Instances", 0, "output"], "tasks.task002_count.test"),
    ("train", ["Definition", 0], "tasks.task002_count.definition"),
  ]:
    file = data / "SuperNI/task002_count" / f"{name}.json"
    before = file.read_text()
    content = place = json.loads(before)
    for key in change[:-1]:
      place = place[key]
    place[change[-1]] = "something else"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"config\.json, changed since .*: {said};"):
      Loop(options).run(tmp_path / "run")
    file.write_text(before)
  model = shutil.copytree(world[world.index("--backbone.path") + 1], tmp_path / "model")
  options = [*world, "--backbone.path", str(model)]
  Loop(options).run(tmp_path / "run")
  settings = model / "tokenizer_config.json"
  settings.write_text(settings.read_text() + " ")
  with pytest.raises(InputError, match=r"config\.json, changed since .*: tokenizer;"):
    Loop(options).run(tmp_path / "run")


def test_a_file_of_answers_that_has_changed_is_named_with_the_way_out(
  world, loop, finished, tmp_path
):
  folder = shutil.copytree(finished, tmp_path / "run")
  file = folder / "predictions/01_task002_count.jsonl"
  file.write_text(file.read_text().replace("o", "0", 1))
  with pytest.raises(InputError, match=f"{file}: changed since .*: --from-task 2"):
    loop.run(folder)
  file.unlink()
  with pytest.raises(InputError, match=f"{file}: missing; .*: --from-task 2"):
    loop.run(folder)
  train.main([*world, "--output", str(folder), "--from-task", "2"])
  assert_same_run(folder, finished)


def test_a_profile_is_of_the_steps_that_were_asked_for(world, tmp_path, monkeypatch, capsys):
  run, traced = tmp_path / "run", []
  begin = jax.profiler.start_trace
  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda *x, **y: (traced.append(x), begin(*x, **y))
  )
  steps = ["--method.name", "sequential", "--output", str(run)]
  train.main([*world, *steps, "--profile", "2:3"])
  assert traced == [(run / "profile",)]
  [file] = run.rglob("perfetto_trace.json.gz")
  with gzip.open(file, "rt") as content:
    events = json.load(content)["traceEvents"]
  called = [event for event in events if "train_step" in str(event.get("name"))]
  assert called
  assert list(run.rglob("*.xplane.pb"))
  capsys.readouterr()
  train.main([*world, *steps, "--profile", "900:901"])  # how it is watched changes no result
  assert "--profile" not in capsys.readouterr().out  # it has ended: no step is made
  late = [*steps[:-1], str(tmp_path / "late"), "--profile", "900:901"]
  train.main([*world, *late, "--fit.steps", "2", "--data.max-test", "1"])
  assert "--profile 900:901: this start made no such step" in capsys.readouterr().out
  code, complaint = tiny.run_program(train, [*world, "--profile", "3:2"], monkeypatch, capsys)
  assert (code, "profile '3:2': must be FIRST:LAST" in complaint) == (2, True)


def test_a_start_within_the_steps_of_a_profile_traces_those_that_are_left(tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda *x, **y: seen.append("begun"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("ended"))
  profile = Profile("10:12", tmp_path)
  for number in (11, 12, 13, 10, 11):  # 10 and 11 are another task's
    profile.step(number, lambda number=number: (seen.append(number), None))
  assert seen == ["begun", 11, 12, "ended", 13, 10, 11]
  assert not profile.missed
  seen.clear()
  with contextlib.suppress(Stopped), Profile("1:9", tmp_path) as profile:
    profile.step(1, lambda: (seen.append(1), None))
    raise Stopped("as asked")
  assert seen == ["begun", 1, "ended"]  # what was traced is there


def test_a_run_can_be_learned_again_from_any_task_or_anew(
  world, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  arguments = [*world, "--output", str(folder)]
  code, complaint = tiny.run_program(train, [*arguments, "--from-task", "4"], monkeypatch, capsys)
  assert code == 2
  assert "--from-task 4: the stream has 2 tasks; give one of them, from 1" in complaint
  assert scores(folder) == scores(finished)
  train.main([*arguments, "--from-task", "1"])
  assert_same_run(folder, finished)
  train.main([*arguments, "--fresh", "--fit.steps", "2", "--method.name", "sequential"])
  assert scores(folder)["steps"] == [2, 2]
  assert {row["index"] for row in rows_of(folder / "metrics.jsonl")} == {0, 1}


def test_old_snapshots_are_pruned_as_far_as_asked_and_the_run_goes_on(
  world, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  arguments = [*world, "--output", str(folder), "--keep-snapshots", "1"]
  train.main([*arguments, "--from-task", "2"])
  assert [checkpoint.has_arrays(snapshot) for snapshot in snapshots(folder)] == [False, True]
  assert_same_run(folder, finished)
  train.main(arguments)
  assert_same_run(folder, finished)
  code, complaint = tiny.run_program(train, [*arguments, "--from-task", "2"], monkeypatch, capsys)
  assert (code, "of the task before (--keep-snapshots may" in complaint) == (2, True)
  assert "it can begin at task 1\n" in complaint
  whole = shutil.copytree(finished, tmp_path / "whole")  # killed before it could prune
  train.main([*world, "--output", str(whole), "--keep-snapshots", "1"])
  assert [checkpoint.has_arrays(snapshot) for snapshot in snapshots(whole)] == [False, True]
