"""What a run finds in its folder and does not take for its own, and runs that begin anew."""

import json
import os
import shutil
import signal

import pytest
import tiny

from sapt_jax import predict, report, train
from sapt_jax.requeued import is_later, start_of_job
from sapt_jax.text_files import read_text
from sapt_jax.training import fit
from tests.runs import assert_same_run, killed_after, scores, snapshots


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
  monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def within(request):
  """Ends a test that hangs."""

  def late(*_):
    pytest.fail("hangs")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(60)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("within")
def test_a_pipe_that_nobody_writes_to_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "config.json")
  with pytest.raises(ValueError, match=r"config\.json: is a pipe or a device; put a file"):
    read_text(tmp_path / "config.json")


@pytest.mark.usefixtures("within")
@pytest.mark.parametrize("program", [train, predict])
def test_a_pipe_in_a_runs_folder_is_refused_by_each_program(
  program, world, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  (folder / "config.json").unlink()
  os.mkfifo(folder / "config.json")
  (tmp_path / "questions.jsonl").write_text('{"input": "thing"}\n')
  arguments = {
    train: [*world, "--output", folder],
    predict: ["--run", folder, "--input", tmp_path / "questions.jsonl", "--output", "/dev/null"],
  }[program]
  code, complaint = tiny.run_program(program, arguments, monkeypatch, capsys)
  assert (code, "config.json" in complaint, len(complaint.splitlines())) == (2, True, 1), complaint


@pytest.mark.usefixtures("within")
@pytest.mark.parametrize("what", ["folder", "pipe"])
@pytest.mark.parametrize(
  "name",
  [
    *("config.json", "metrics.jsonl", "metrics.seal.json", "scores.json", "predictions.jsonl"),
    *("lock", "mixture_testing.png", "predictions/00_task001_colour.jsonl"),
    *("progress/01/test.jsonl", "snapshots"),
  ],
)
def test_what_has_a_name_of_a_runs_and_is_no_such_thing_is_named_and_nothing_is_lost(
  name, what, world, finished, tmp_path, monkeypatch, capsys
):
  folder = killed_after(finished, 5, tmp_path)
  place, aside = folder / name, tmp_path / "aside"
  if place.exists():
    place.rename(aside)
  place.parent.mkdir(parents=True, exist_ok=True)
  is_folder = name == "snapshots"
  if what == "pipe":
    os.mkfifo(place)
  elif is_folder:
    place.write_text("no folder")
  else:
    place.mkdir()
  arguments = [*world, "--output", folder]
  code, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  line = f"error: {place}: is no {'folder' if is_folder else 'file'}, as a run has it there; "
  assert (code, complaint) == (2, f"{line}move it elsewhere\n")
  place.rmdir() if place.is_dir() else place.unlink()
  if aside.exists():
    aside.rename(place)
  train.main(list(map(str, arguments)))
  assert_same_run(folder, finished)


def test_snapshots_under_each_others_names_are_refused(
  world, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  one, two = snapshots(folder)
  (tmp_path / "questions.jsonl").write_text('{"input": "thing"}\n')
  asked = ["--run", folder, "--input", tmp_path / "questions.jsonl", "--output", "/dev/null"]
  for new in ((two.name, one.name), ("00_task002_count", "01_task001_colour")):
    for place, name in zip((one, two), new, strict=True):
      place.rename(tmp_path / name)
    for name in new:
      (tmp_path / name).rename(folder / "snapshots" / name)
    for program, arguments in (
      (train, [*world, "--output", folder]),
      (predict, asked),
      (report, [folder, "--output", tmp_path / "report"]),
    ):
      code, complaint = tiny.run_program(program, arguments, monkeypatch, capsys)
      assert (code, str(folder / "snapshots") in complaint) == (2, True), complaint
      assert "its own name again" in complaint
    for place, name in zip((one, two), new, strict=True):
      (folder / "snapshots" / name).rename(tmp_path / place.name)
    for place in (one, two):
      (tmp_path / place.name).rename(place)
  train.main([*world, "--output", str(folder)])
  assert_same_run(folder, finished)


def stopping_at(number, step, patch):
  """Asks this process to stop after some step of each task."""

  def add(meter, now, *rest, original=fit.Meter.add):
    original(meter, now, *rest)
    if now == step:
      os.kill(os.getpid(), number)

  patch.setattr(fit.Meter, "add", add)


@pytest.mark.parametrize("option", ["--fresh", "--from-task 1", "--from-task 2"])
def test_a_stop_says_which_option_not_to_give_again_and_without_it_the_run_goes_on(
  option, world, finished, tmp_path, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  arguments = [*world, "--output", str(folder)]
  with pytest.MonkeyPatch.context() as patch:
    stopping_at(signal.SIGTERM, 3, patch)
    code, complaint = tiny.run_program(train, [*arguments, *option.split()], patch, capsys)
  assert code == 75
  assert "the same command continues this run, but without --fresh or --from-task" in complaint
  assert not list(folder.glob("mixture_*.png"))  # pictures of what is no longer there
  train.main(arguments)
  done = option.endswith("2")
  said = capsys.readouterr().out
  assert f"going on: {int(done)} of 2 tasks learned; learn after step 3\n" in said
  assert_same_run(folder, finished)


def test_a_job_that_is_put_back_into_the_queue_begins_anew_once(
  world, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  command = [*world, "--output", str(folder), "--fresh"]
  monkeypatch.setenv("SLURM_JOB_ID", "77")
  with pytest.MonkeyPatch.context() as patch:
    stopping_at(signal.SIGTERM, 3, patch)
    code, _ = tiny.run_program(train, command, patch, capsys)
  assert code == 75
  monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
  train.main(command)
  assert "learn after step 3" in capsys.readouterr().out
  assert_same_run(folder, finished)
  began = scores(folder)["made"]
  train.main(command)  # as by SLURM's command in the same job: it has its count still
  assert scores(folder)["made"] == began
  monkeypatch.setenv("SLURM_JOB_ID", "78")
  train.main([*command, "--fit.steps", "2", "--method.name", "sequential"])
  assert scores(folder)["steps"] == [2, 2]
  assert json.loads((folder / "config.json").read_text())["begun_in"]["job"] == "78"


def test_a_later_start_is_one_of_the_same_job():
  now = start_of_job({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
  assert is_later(now, {"job": "7", "restarts": 1})
  assert not is_later(now, {"job": "7", "restarts": 2})  # by hand, within one allocation
  assert not is_later(now, {"job": "8", "restarts": 0})
  assert not any(is_later(now, odd) for odd in (None, 3, {"job": "7", "restarts": "1"}))
  assert start_of_job({}) is None
