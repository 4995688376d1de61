"""Runs that go on: after a stop, after harm, with other options; and what is refused."""

import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import tiny

from sapt_jax import train
from sapt_jax.errors import InputError
from sapt_jax.run_log import RunLog
from sapt_jax.snapshots import finished_snapshots, newest_sound
from sapt_jax.training import checkpoint, fit
from tests.runs import assert_same_run, killed_after, scores, snapshots


# Of each task three checkpoints and a snapshot are saved.
@pytest.mark.parametrize(
  "saves", [1, 3, 7], ids=["in task 1", "before a snapshot", "at the end of task 2"]
)
def test_a_killed_run_ends_where_an_undisturbed_one_does_bit_for_bit(
  loop, finished, tmp_path, saves
):
  folder = killed_after(finished, saves, tmp_path)
  loop.run(folder)
  assert_same_run(folder, finished)


def test_a_new_process_goes_on_from_what_is_in_the_folder_alone(world, finished, tmp_path):
  folder = killed_after(finished, 5, tmp_path)
  train.main([*world, "--output", str(folder)])
  assert_same_run(folder, finished)


def test_no_step_stands_in_the_log_twice_and_half_a_line_is_dropped(tmp_path, capsys):
  def line(index, **more):
    return json.dumps({"index": index, **more})

  first = [
    line(0, step=6, loss=1.0),
    line(0, phase="inputs", step=3, loss=1.0),
    line(0, compile_s=1),
  ]
  learned = [line(1, step=2, loss=1.0), line(1, step=4, loss=1.0), line(1, step=4, dev=50.0)]
  inputs = [line(1, phase="inputs", step=2, loss=1.0)]
  redone = [
    line(1, step=6, loss=1.0),
    line(1, phase="inputs", step=3, loss=1.0),
    line(1, phase="inputs", pseudo_inputs={}),
    '{"index": 1, "st',
  ]
  log = RunLog(tmp_path / "metrics.jsonl")
  for row in first:
    log.add(json.loads(row))
  for steps, kept in [
    ({"learn": 4, "inputs": 2}, [*first, *learned, *inputs]),
    ({"learn": 4}, [*first, *learned]),
    ({}, first),
  ]:
    log.file.write_text("\n".join([*first, *learned, *inputs, *redone]))
    log.trim(1, steps)
    assert log.file.read_text().splitlines() == kept
  assert capsys.readouterr().err == ""
  log.file.write_text("\n".join([*first, "{", *learned]))
  log.trim(1, {})
  number = len(first) + 1
  assert capsys.readouterr().err == f"warning: {log.file}:{number}: cannot be read; left out\n"


@pytest.mark.parametrize("harmed", ["metrics.jsonl", "metrics.seal.json"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "deleted", "flipped"])
def test_a_log_or_its_seal_that_was_harmed_is_named_whatever_the_line(
  tmp_path, capsys, harmed, harm
):
  log = RunLog(tmp_path / "metrics.jsonl")
  for row in ({"index": 0, "step": 1, "loss": 1.5}, {"index": 0, "save_s": 0.25}):
    log.add(row)
  log.trim(1, {})
  assert capsys.readouterr().err == ""
  file = tmp_path / harmed
  content = file.read_bytes()
  last_digit = max(place for place, byte in enumerate(content) if chr(byte).isdigit())
  flipped = bytearray(content)
  flipped[last_digit] ^= 1
  if harm == "deleted":
    file.unlink()
  else:
    file.write_bytes({"cut": content[:-9], "emptied": b"", "flipped": bytes(flipped)}[harm])
  log.trim(1, {})
  assert harmed in capsys.readouterr().err
  log.trim(1, {})
  assert capsys.readouterr().err == ""


def test_a_log_that_is_killed_while_it_is_shortened_is_not_called_changed(
  tmp_path, monkeypatch, capsys
):
  log = RunLog(tmp_path / "metrics.jsonl")
  for index in range(2):
    log.add({"index": index, "step": 1, "loss": 1.5})

  replaced, replace = [], pathlib.Path.replace

  def killed_at_the_second(draft, file):
    replaced.append(file)
    if len(replaced) == 2:
      raise KeyboardInterrupt
    return replace(draft, file)

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
      log.trim(1, {})
  log.trim(1, {})
  assert [row["index"] for row in log.rows()] == [0]
  assert capsys.readouterr().err == ""


def test_the_hundredth_snapshot_comes_after_the_ninety_ninth(tmp_path):
  for index in (11, 99, 100, 2):
    checkpoint.save(tmp_path / f"snapshots/{index:02d}_task", {"x": np.zeros(1, np.float32)}, {})
  assert [int(folder.name.split("_")[0]) for folder in finished_snapshots(tmp_path)] == [
    2,
    11,
    99,
    100,
  ]


def test_a_finished_run_is_not_learned_again(loop, finished, monkeypatch):
  def learned_again(*_):
    raise AssertionError

  monkeypatch.setattr(fit.Trainer, "fit", learned_again)
  before = scores(finished)
  loop.run(finished)
  assert scores(finished) == before


@pytest.mark.parametrize("harmed", ["an array", "manifest.json"])
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(
  loop, finished, tmp_path, monkeypatch, capsys, harmed
):
  folder = shutil.copytree(finished, tmp_path / "run")
  last = snapshots(folder)[-1]
  if harmed == "an array":
    harmed = next(path for path in (last / "tree").rglob("d/*") if path.is_file())
    harmed.write_bytes(harmed.read_bytes()[:-1])
  else:
    harmed = last / harmed
    harmed.unlink()
  learned = []
  original = fit.Trainer.fit

  def look(self, start, rows, plan):
    learned.append(plan.label)
    return original(self, start, rows, plan)

  monkeypatch.setattr(fit.Trainer, "fit", look)
  loop.run(folder)
  assert str(harmed) in capsys.readouterr().err
  assert [label for label in learned if "inputs" not in label] == ["2/2 task002_count"]
  assert scores(folder)["scores"] == scores(finished)["scores"]


def test_a_damaged_earlier_snapshot_is_named_and_the_run_goes_on(loop, finished, tmp_path, capsys):
  folder = shutil.copytree(finished, tmp_path / "run")
  harmed = next(path for path in (snapshots(folder)[0] / "tree").rglob("d/*") if path.is_file())
  harmed.write_bytes(harmed.read_bytes()[:-1])
  loop.run(folder)
  said = capsys.readouterr().err
  assert (str(harmed) in said, "this run does not need it" in said) == (True, True)
  assert scores(folder)["scores"] == scores(finished)["scores"]


def test_more_than_a_task_is_learned_again_only_when_asked(
  world, finished, tmp_path, monkeypatch, capsys
):
  """The record of the first task; the one snapshot that has arrays; the configuration."""
  arguments = [*world, "--output", str(tmp_path / "run")]
  first, last = (folder.name for folder in snapshots(finished))
  begin_at_2 = ("--from-task", "2")
  for harmed, more, way_out in [
    (f"snapshots/{first}/record.json", begin_at_2, "put it back, or begin at an earlier task"),
    (f"predictions/{first}.jsonl", begin_at_2, "learn from task 1 on again: --from-task 1"),
    (f"snapshots/{first}/record.json", (), "or learn from task 1 on again: --from-task 1"),
    (
      f"snapshots/{last}/record.json",
      ("--keep-snapshots", "1"),
      "learn from task 1 on again: --from-task 1",
    ),
    ("config.json", (), "put it back, or learn all tasks again: --fresh"),
  ]:
    folder = shutil.copytree(finished, tmp_path / "run")
    if "--keep-snapshots" in more:
      train.main([*arguments, *more])
    (folder / harmed).write_text("{")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    code, line = tiny.run_program(train, [*arguments, *more], monkeypatch, capsys)
    assert (code, str(folder / harmed) in line, way_out in line) == (2, True, True), line
    del before[folder / "lock"]
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(folder)


def test_snapshots_without_manifests_are_not_thrown_away(finished, tmp_path, capsys):
  folders = snapshots(shutil.copytree(finished, tmp_path / "run"))
  third = shutil.copytree(folders[1], folders[1].with_name("02_more"))
  (third / "manifest.json").unlink()
  assert newest_sound([*folders, third]) == 2
  assert f"{third}/manifest.json: no such file; going back" in capsys.readouterr().err
  (folders[1] / "manifest.json").unlink()
  with pytest.raises(InputError, match=r"put it back, or learn from task 2 on again"):
    newest_sound([*folders, third])
  shutil.rmtree(folders[1])
  with pytest.raises(InputError, match=r"put it back, or learn from task 2 on again"):
    newest_sound([*folders, third])


def test_a_run_of_one_task_whose_snapshot_is_damaged_learns_it_again(
  world, finished, tmp_path, capsys
):
  folder = killed_after(finished, 6, tmp_path)
  assert len(finished_snapshots(folder)) == 1
  (snapshots(folder)[0] / "record.json").write_text("{")
  train.main([*world, "--output", str(folder)])
  assert "the first task is learned again" in capsys.readouterr().err
  assert_same_run(folder, finished)


def test_how_often_is_saved_and_logged_may_change(world, finished, tmp_path):
  folder = killed_after(finished, 1, tmp_path)
  train.main(
    [*world, "--output", str(folder), "--fit.checkpoint-every", "3", "--fit.log-every", "2"]
  )
  assert scores(folder)["scores"] == scores(finished)["scores"]
  assert (folder / "predictions.jsonl").read_text() == (finished / "predictions.jsonl").read_text()


def test_a_checkpoint_of_other_arrays_is_refused_with_the_way_out(
  world, finished, tmp_path, monkeypatch, capsys
):
  folder = killed_after(finished, 1, tmp_path)
  place, arguments = folder / "progress/00/learn", [*world, "--output", str(folder)]
  record = checkpoint.read_record(place)
  checkpoint.save(place, {"x": np.zeros(3, np.float32)}, record, in_one_file=True)
  code, line = tiny.run_program(train, arguments, monkeypatch, capsys)
  assert (code, "other arrays than this version" in line) == (2, True), line
  assert "or learn the task again: --from-task 1" in line
  train.main([*arguments, "--from-task", "1"])
  assert_same_run(folder, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_ends_with_code_75(
  world, tmp_path, monkeypatch, capsys, number
):
  def add(meter, step, *rest, original=fit.Meter.add):
    original(meter, step, *rest)
    if step == 3:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(fit.Meter, "add", add)
  before = signal.getsignal(number)
  arguments = [*world, "--method.name", "sequential", "--output", tmp_path / "run"]
  code, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  stop = (
    "stopped: as asked; 1/2 task001_colour, step 3 of 6 is saved; "
    "the same command continues this run"
  )
  assert (code, stop in complaint) == (75, True)
  assert (
    json.loads((tmp_path / "run/progress/00/learn" / checkpoint.RECORD).read_text())["step"] == 3
  )
  assert signal.getsignal(number) == before


def test_a_damaged_checkpoint_is_named_and_its_task_is_learned_from_the_beginning(
  loop, finished, tmp_path, capsys
):
  folder = killed_after(finished, 2, tmp_path)
  harmed = folder / "progress/00/learn" / checkpoint.RECORD
  harmed.write_text("{}")
  loop.run(folder)
  assert str(harmed) in capsys.readouterr().err
  assert_same_run(folder, finished)


def test_other_options_in_the_same_folder_are_refused_and_listed(
  world, finished, monkeypatch, capsys
):
  code, complaint = tiny.run_program(
    train, [*world, "--output", finished, "--fit.steps", "7"], monkeypatch, capsys
  )
  assert (code, "fit.steps: 6 -> 7" in complaint) == (2, True)


def test_a_run_from_before_an_option_was_there_goes_on_with_its_default(
  world, loop, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  file = folder / "config.json"
  begun = json.loads(file.read_text())
  del begun["method"]["uniform"]
  file.write_text(json.dumps(begun))
  code, complaint = tiny.run_program(
    train, [*world, "--output", folder, "--method.uniform", "always"], monkeypatch, capsys
  )
  assert (code, "method.uniform: never -> always" in complaint) == (2, True)
  loop.run(folder)


def test_other_weights_of_the_same_shape_are_refused(
  world, finished, tmp_path, monkeypatch, capsys
):
  model = tiny.model_folder(tmp_path / "t5", tiny.T5, seed=1)
  monkeypatch.setattr("sapt_jax.learner.backbone_folder", lambda _: model)
  code, complaint = tiny.run_program(train, [*world, "--output", finished], monkeypatch, capsys)
  assert (code, "backbone.weights" in complaint) == (2, True)


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(world, tmp_path, monkeypatch):
  def add(meter, step, batch, metrics, original=fit.Meter.add):
    original(meter, step, batch, metrics | {"loss": np.float32("nan")})

  monkeypatch.setattr(fit.Meter, "add", add)
  with pytest.raises(fit.DivergedError, match="step 1: loss nan"):
    train.main([*world, "--method.name", "sequential", "--output", str(tmp_path / "run")])
  assert not list((tmp_path / "run" / "snapshots").iterdir())


def test_a_model_whose_weights_are_no_numbers_is_named(world, tmp_path):
  model = tiny.model_folder(tmp_path / "broken", tiny.T5, scale=float("nan"))
  arguments = ["--backbone.path", str(model), "--method.name", "sequential"]
  with pytest.raises(InputError, match=r"broken: the model's weights hold NaN or infinity in \w+"):
    train.main([*world, *arguments, "--output", str(tmp_path / "run")])


def test_what_is_not_to_be_logged_is_looked_at_before_it_is_saved():
  meter = fit.Meter(fit.Plan("task", 100, None, print), 0, 10)
  metrics = {"loss": np.float32("nan"), "gradient_norm": np.float32(1)}
  meter.pending = (3, metrics)
  meter.flush()  # not read, so not waited for
  meter.pending = (3, metrics)
  with pytest.raises(fit.DivergedError, match="step 3: loss nan"):
    meter.flush(look=True)
