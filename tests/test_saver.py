"""What is saved beside the computation is what was given, and nothing passes over its end."""

import os
import platform
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import tiny

from sapt_jax import processes, train
from sapt_jax.run_log import RunLog
from sapt_jax.snapshots import finished_snapshots
from sapt_jax.training import checkpoint
from sapt_jax.training.saver import Saver
from tests.runs import assert_same_run


@pytest.fixture
def held(monkeypatch):
  """An event without which nothing is written."""
  event = threading.Event()

  def save(*given, original=checkpoint.save):
    assert event.wait(60)
    original(*given)

  monkeypatch.setattr(checkpoint, "save", save)
  return event


def test_what_is_written_is_as_it_was_when_it_was_given(tmp_path, held):
  saver, done = Saver(), []
  tree, record = {"x": jax.numpy.arange(3.0)}, {"losses": [1.0]}
  saver.save(tmp_path / "s", tree, record, lambda: done.append(threading.current_thread()))
  jax.jit(lambda tree: {"x": tree["x"] + 1}, donate_argnums=0)(tree)
  record["losses"].append(2.0)
  saver.look()
  assert (done, checkpoint.is_finished(tmp_path / "s")) == ([], False)
  held.set()
  saver.wait()
  saver.wait()  # there is nothing more
  assert done == [threading.current_thread()]
  found, record = checkpoint.load(tmp_path / "s", {"x": jax.numpy.zeros(3)})
  assert (found["x"].tolist(), record) == ([0.0, 1.0, 2.0], {"losses": [1.0]})


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_info is of glibc")
@pytest.mark.parametrize("limited", [True, False])
def test_no_more_arenas_are_made_than_there_are_cores(tmp_path, limited):
  program = f"""
import ctypes, os, threading
from sapt_jax.training.saver import limit_arenas
{"limit_arenas()" if limited else ""}
libc, count = ctypes.CDLL(None), 2 * os.cpu_count() + 2
all_here = threading.Barrier(count + 1)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
def allocate():
  libc.malloc(100)
  all_here.wait()
for _ in range(count):
  threading.Thread(target=allocate).start()
all_here.wait()
file = ctypes.c_void_p(libc.fopen(b"{tmp_path / "arenas"}", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""
  environment = {name: x for name, x in os.environ.items() if name != "MALLOC_ARENA_MAX"}
  subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
  arenas = (tmp_path / "arenas").read_text().count("<heap ")
  assert (arenas <= os.cpu_count()) == limited


@pytest.mark.parametrize("ask", ["save", "look", "wait", "failure"])
def test_what_could_not_be_written_is_raised_once_to_whoever_asks_first(tmp_path, ask):
  saver, tree = Saver(), {"x": np.zeros(1, np.float32)}
  (tmp_path / "file").touch()
  saver.save(tmp_path / "file/s", tree, {}, lambda: pytest.fail("it was not written"))
  assert saver._pending[0].exception(60)
  if ask == "failure":
    assert isinstance(saver.failure(), OSError)
  else:
    given = (tmp_path / "s", tree, {}, lambda: None) if ask == "save" else ()
    with pytest.raises(OSError, match="file"):
      getattr(saver, ask)(*given)
  assert saver.failure() is None
  assert not (tmp_path / "s").exists()


def test_a_run_killed_in_the_next_task_while_a_snapshot_is_written_ends_alike(
  loop, finished, tmp_path, held, monkeypatch
):
  """The first task's checkpoints too: all of it is learned again."""
  run, copy = tmp_path / "run", tmp_path / "copy"

  def save(saver, folder, *given, original=Saver.save, **kind):
    if folder.parent.name != "snapshots":
      held.set()
    elif folder.name.startswith("00_"):
      saver.wait()
      held.clear()
    original(saver, folder, *given, **kind)

  def add(log, row, original=RunLog.add):
    original(log, row)
    if row["index"] == 1 and not copy.exists():
      assert not held.is_set()
      shutil.copytree(run, copy)
    if row["index"] == 1:
      held.set()

  monkeypatch.setattr(Saver, "save", save)
  monkeypatch.setattr(RunLog, "add", add)
  loop.run(run)
  assert_same_run(run, finished)
  assert not finished_snapshots(copy)
  assert (copy / "progress/00/learn" / checkpoint.MANIFEST).is_file()
  # Nothing may be left of a task that now has not begun.
  shutil.copytree(copy / "progress/00/learn", copy / "progress/01/learn")
  loop.run(copy)
  assert_same_run(copy, finished)
  assert not (copy / "progress").exists()


def test_a_run_whose_folder_is_removed_says_so_at_once(world, tmp_path, monkeypatch, capsys):
  def add(log, row, original=RunLog.add):
    original(log, row)
    shutil.rmtree(tmp_path / "run")

  monkeypatch.setattr(RunLog, "add", add)
  code, complaint = tiny.run_program(
    train, [*world, "--output", tmp_path / "run"], monkeypatch, capsys
  )
  line = f"error: {tmp_path / 'run'}: was removed while the run was at work; put it back"
  assert (code, line in complaint) == (1, True)


def test_the_systems_reason_is_what_is_said_of_a_failed_write(tmp_path, monkeypatch):
  """As tensorstore has it."""

  def full(*_, **__):
    raise ValueError(f"RESOURCE_EXHAUSTED: Error writing {'x' * 500} [os_error_code='28']")

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", full)
  with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
    checkpoint.save(tmp_path / "s", {"x": np.zeros(1, np.float32)}, {})


@pytest.mark.parametrize("stopped", [False, True])
def test_a_snapshot_that_cannot_be_written_ends_the_run_and_counts_more_than_a_stop(
  world, finished, tmp_path, monkeypatch, capsys, stopped
):
  def save(folder, *given, original=checkpoint.save):
    if folder.parent.name == "snapshots":
      raise OSError(28, "No space left on device", str(folder))
    original(folder, *given)

  given = [*world, "--output", tmp_path / "run"]
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "save", save)
    if stopped:
      patch.setattr(
        processes, "stop_asked", lambda: bool(list(tmp_path.glob("run/predictions/00_*")))
      )
    code, complaint = tiny.run_program(train, given, patch, capsys)
  assert code == 1
  assert "No space left on device" in complaint
  assert "errors.log" in complaint
  assert "stopped" not in complaint
  train.main([str(x) for x in given])
  assert_same_run(tmp_path / "run", finished)
