"""What a run finds in its folder and does not take for its own, runs that begin anew, and what is
left half done.
"""

import json
import math
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny

from sapt_jax import export, forget, predict, report, train
from sapt_jax.errors import InputError
from sapt_jax.interop import merged
from sapt_jax.requeued import is_later, start_of_job
from sapt_jax.run_lock import check_kinds
from sapt_jax.snapshots import finished_snapshots
from sapt_jax.text_files import read_text, write_json
from sapt_jax.training import checkpoint, fit
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
  if what == "folder" and name in ("lock", "metrics.jsonl"):
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
  assert "to continue this run, give the same command without --fresh and --from-task" in complaint
  assert not list(folder.glob("mixture_*.png"))  # pictures of what is no longer there
  train.main(arguments)
  done = option.endswith("2")
  said = capsys.readouterr().out
  name = "2 of 2, task002_count" if done else "1 of 2, task001_colour"
  assert f"{folder}: going on with task {name}, learned up to step 3\n" in said
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
  assert "learned up to step 3" in capsys.readouterr().out
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


def test_a_link_in_the_place_of_a_folder_keeps_nothing_of_what_is_to_go(
  world, finished, tmp_path, monkeypatch, capsys
):
  """What is saved of a task may lie on another disk; the link goes, and nothing is gone on with."""
  folder, disk = killed_after(finished, 7, tmp_path), tmp_path / "disk"
  (folder / "progress").rename(disk)
  (folder / "progress").symlink_to(disk)
  command = [*world, "--output", str(folder), "--from-task", "2", "--fit.learning-rate", "0.03"]
  code, line = tiny.run_program(train, [*command, "--fresh"], monkeypatch, capsys)
  assert (code, line) == (2, "error: --fresh and --from-task 2: give one of them\n")
  train.main(command)
  other = shutil.copytree(finished, tmp_path / "other")
  train.main([*command[:-5], str(other), *command[-4:]])
  removed = f"{other}: what was learned is removed, as asked: 01_task002_count\n"
  assert removed in capsys.readouterr().out
  assert_same_run(folder, other)
  assert (disk / "01" / "learn").is_dir()


@pytest.mark.parametrize("harm", ["link to a folder", "dangling link"])
def test_links_where_something_was_left_half_done_are_no_hindrance(harm, world, finished, tmp_path):
  folder, elsewhere = killed_after(finished, 6, tmp_path), tmp_path / "elsewhere"
  if harm == "link to a folder":
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
  for place in ("snapshots/01_task002_count.draft", "snapshots/01_task002_count.before"):
    (folder / place).symlink_to(elsewhere)
  for place in ("progress/01/learn.draft", "snapshots/01_task002_count"):
    (folder / place).symlink_to(tmp_path / "nowhere")
  train.main([*world, "--output", str(folder)])
  assert_same_run(folder, finished)
  assert harm != "link to a folder" or (elsewhere / "mine.txt").read_text() == "mine"


def with_record(folder, **changed):
  """Changes the newest record of a run, and its hash with it."""
  newest = snapshots(folder)[-1]
  record = json.loads((newest / checkpoint.RECORD).read_text()) | changed
  write_json(newest / checkpoint.RECORD, record)
  manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
  manifest[checkpoint.RECORD] = checkpoint.sha256(newest / checkpoint.RECORD)
  write_json(newest / checkpoint.MANIFEST, manifest)


# What no run writes into a record, by the key.
WRONG: dict[str, list[Any]] = {
  "capacity": [-1, 0, 2.5, "2", 10**12, None],
  "memory_inputs": [-1, math.nan, [1]],
  "scores": [-3, ["x"], [math.nan, 1.0], None],
  "testing_mixture": [-3, [["a"]], [[math.nan, 1.0]], {}],
  "training_mixture": ["x", [None, 1.0]],
  "rows": [[[None]]],
  "files": [[1]],
  "changed": [5],
  "begins_with": [["task001"]],
  "options": [[]],
  "metric": [{}],
  "attention": [[1]],
  "wall_s": [[1]],
  "forgotten": ["x"],
  "without_test_rows": [[1]],
  "task": [["x"]],
}


@pytest.mark.parametrize(
  ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_record_that_no_run_writes_is_named_by_every_program(
  key, value, world, finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  with_record(folder, **{key: value})
  (tmp_path / "questions.jsonl").write_text('{"input": "thing"}\n')
  programs: list[Any] = [
    (report, [folder, "--output", tmp_path / "report"]),
    (train, [*world, "--output", folder]),
    (predict, ["--run", folder, "--input", tmp_path / "questions.jsonl", "--output", "/dev/null"]),
    (forget, ["--run", folder, "--task", "task001_colour"]),
  ]
  for program, arguments in programs if value in (10**12, -3) else programs[:1]:
    code, line = tiny.run_program(program, arguments, monkeypatch, capsys)
    assert (code, f"record.json: {key}: not what a run writes" in line) == (2, True), line


def test_forget_names_a_log_that_was_changed_and_refuses_lines_of_no_task(
  finished, tmp_path, monkeypatch, capsys
):
  folder = shutil.copytree(finished, tmp_path / "run")
  command = ["--run", str(folder), "--task", "task001_colour"]
  with (folder / "metrics.jsonl").open("a") as log:
    log.write('{"index": 99, "task": "x"}\n')
  code, line = tiny.run_program(forget, command, monkeypatch, capsys)
  assert (code, "no line that a run has logged; take it out" in line) == (2, True)
  (folder / "metrics.jsonl").write_text("")
  forget.main(command)
  assert "metrics.jsonl: changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
  "row", [{"phase": [1], "loss": 1.0, "step": 1}, {"loss": 1.0, "step": 10**400}]
)
def test_a_report_passes_over_odd_lines_of_the_log(row, finished, tmp_path):
  folder = shutil.copytree(finished, tmp_path / "run")
  with (folder / "metrics.jsonl").open("a") as log:
    log.write(json.dumps({"index": 0, "task": "task001_colour"} | row) + "\n")
  report.main([str(folder), "--output", str(tmp_path / "report")])
  assert (tmp_path / "report/index.html").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ["", "snapshots", "predictions", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_what_a_user_may_not_change_is_named(name, mode):
  # pytest's own folders are closed to others.
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
    run = Path(made)
    for folder in ("snapshots", "predictions"):
      (run / folder).mkdir()
    for file in ("metrics.jsonl", "config.json"):
      (run / file).touch()
    for place in (run, *run.iterdir()):
      os.chown(place, 65534, 65534)
    (run / name).chmod(mode)
    os.seteuid(65534)
    try:
      with pytest.raises(InputError, match="give rights") as told:
        check_kinds(run)
      if name == "snapshots":
        with pytest.raises(InputError, match="give rights"):
          finished_snapshots(run)
    finally:
      os.seteuid(0)
    assert str(told.value).startswith(f"{run / name}: this user may not")


def test_an_export_that_was_killed_is_not_taken_for_a_whole_one(finished, tmp_path, monkeypatch):
  whole, out = tmp_path / "whole", tmp_path / "out"
  arguments = ["--run", str(finished), "--task", "task001", "--what", "merged", "--output"]
  export.main([*arguments, str(whole)])

  def killed(*given, original=merged.export_merged):
    original(*given)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(merged, "export_merged", killed)
    with pytest.raises(KeyboardInterrupt):
      export.main([*arguments, str(out)])
  assert [place.name for place in out.iterdir()] == [export.UNFINISHED]
  export.main([*arguments, str(out)])
  one, other = (
    {file.name: checkpoint.sha256(file) for file in place.iterdir()} for place in (whole, out)
  )
  assert one == other


# A user's own, by their names in a run's folder; some are much like a run's.
OF_THE_USER = [
  *("notes/01_d.jsonl", "notes/2024-05_x.jsonl", "my.lock", "errors_mine.log", "mixture_mine.png"),
  *("metrics.seal.bak", "x.json.draft", "pseudo_notes.txt", "elsewhere/01_train.jsonl"),
]


def test_the_users_own_files_neither_hinder_a_run_nor_go_with_it(world, finished, tmp_path):
  folder, elsewhere = shutil.copytree(finished, tmp_path / "run"), tmp_path / "elsewhere"
  elsewhere.mkdir()
  (folder / "elsewhere").symlink_to(elsewhere)
  (folder / "here").symlink_to(folder)
  (folder / "snapshots/1st_copy").mkdir()
  (folder / "mixture_x.png").mkdir()
  (folder / "poetry.lock").symlink_to(tmp_path / "nowhere")
  for name in OF_THE_USER:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
  arguments = [*world, "--output", str(folder)]
  for more in (["--fresh"], ["--from-task", "2", "--keep-snapshots", "1"]):
    train.main([*arguments, *more])
    assert [(folder / name).read_text() for name in OF_THE_USER] == ["mine"] * len(OF_THE_USER)
  assert (folder / "snapshots/1st_copy").is_dir()
  shutil.rmtree(folder / "snapshots/1st_copy")
  assert_same_run(folder, finished)
  forget.main(["--run", str(folder), "--task", "task001_colour"])
  assert [(folder / name).read_text() for name in OF_THE_USER] == ["mine"] * len(OF_THE_USER)


def test_a_forget_that_was_killed_is_ended_through_a_link_too(world, finished, tmp_path):
  (tmp_path / "real").mkdir()
  link = tmp_path / "run"
  link.symlink_to(tmp_path / "real/run")
  for name in (".run.before", ".run.forgetting"):  # killed between two renames
    shutil.copytree(finished, tmp_path / "real" / name)
  train.main([*world, "--output", str(link)])
  assert_same_run(link, finished)
  shutil.copytree(finished, tmp_path / "real/.run.before")  # and before the old one was gone
  (tmp_path / "real/.run.before/mine.txt").write_text("mine")
  train.main([*world, "--output", str(link)])
  assert (link / "mine.txt").read_text() == "mine"
  assert not (tmp_path / "real/.run.before").exists()
