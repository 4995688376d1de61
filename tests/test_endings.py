"""How programs end: one line for each way, with its exit code, and the traceback in a file."""

import io
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest
import tiny

from sapt_jax import cli, train
from sapt_jax.errors import FailedError, InputError, Stopped
from sapt_jax.training import checkpoint, fit
from tests.runs import rows_of


def ending(main, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["program"])
  with pytest.raises(SystemExit) as stop:
    cli.run(main)
  return stop.value.code, capsys.readouterr().err


def raising(error):
  def main(_):
    raise error

  return main


@pytest.mark.parametrize(
  ("error", "code", "line"),
  [
    (InputError("a: 1\n is wrong"), 2, "error: a: 1 is wrong\n"),
    (Stopped(), 75, "stopped: as asked; the same command continues this run\n"),
    (FailedError("run: what"), 1, "error: run: what\n"),
    (KeyboardInterrupt(), 130, "stopped: Ctrl-C; what was saved before is there\n"),
    (
      OSError(36, "File name too long", "/" + "x" * 300),
      2,
      f"error: '/{'x' * 59}'...: is too long for the name of a file\n",
    ),
  ],
)
def test_each_ending_has_its_code_and_one_line(error, code, line, monkeypatch, capsys):
  assert ending(raising(error), monkeypatch, capsys) == (code, line)


@pytest.mark.parametrize("program", ["-m sapt_jax.train", "-m sapt_jax train"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_asked_to_stop_while_it_starts_is_one_to_be_started_again(
  program, number, tmp_path
):
  # The first thing that takes time is to import tyro. A background program may ignore Ctrl-C.
  (tmp_path / "tyro.py").write_text(f"import os, signal; os.kill(os.getpid(), signal.{number})")
  done = subprocess.run(
    [sys.executable, *program.split()],
    env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{pathlib.Path.cwd()}"},
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  line = (
    "stopped: at once, as asked; what was saved before is there; "
    "the same command continues this run\n"
  )
  assert (done.returncode, done.stderr) == (75, line)


def test_a_working_directory_that_was_removed_is_named(tmp_path, monkeypatch, capsys):
  gone = tmp_path / "gone"
  gone.mkdir()
  monkeypatch.chdir(gone)
  gone.rmdir()
  line = "error: the working directory is not there any more; cd to another one\n"
  assert ending(raising(AssertionError), monkeypatch, capsys) == (2, line)
  monkeypatch.chdir(tmp_path)


def test_an_interrupt_that_a_callback_drops_comes_again(monkeypatch, capsys):
  class Dropping:
    def __del__(self):
      raise KeyboardInterrupt

  def main(_):
    Dropping()
    time.sleep(60)

  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  # A shell's background program ignores Ctrl-C from the start.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    ended = ending(main, monkeypatch, capsys)
  finally:
    signal.signal(signal.SIGINT, before)
  assert ended == (130, "stopped: Ctrl-C; what was saved before is there\n")


def test_too_little_memory_is_told_with_the_way_out(monkeypatch, capsys):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
  code, line = ending(raising(error), monkeypatch, capsys)
  assert (code, line.startswith("error: out of memory (RESOURCE_EXHAUSTED: Out of")) == (1, True)
  assert "smaller batches take less" in line


def test_nvidias_libraries_without_memory_are_told_with_the_way_out(monkeypatch, capsys):
  # As it came on an H100 that eleven other programs shared.
  error = jax.errors.JaxRuntimeError(
    "INTERNAL: jaxlib/gpu/blas_handle_pool.cc:33: operation gpublasCreate(&handle) failed: cuBlas "
    "allocation failure [executable_name='jit_train_step']"
  )
  code, line = ending(raising(error), monkeypatch, capsys)
  assert (code, "XLA_PYTHON_CLIENT_MEM_FRACTION" in line, line.count("\n")) == (1, True, 1)


def test_what_nobody_expected_is_one_line_and_a_file_with_the_traceback(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(cli.tempfile, "gettempdir", lambda: str(tmp_path))
  code, line = ending(raising(KeyError("key\nof two lines")), monkeypatch, capsys)
  [file] = tmp_path.iterdir()
  assert (code, line.count("\n")) == (1, 1)
  assert line.startswith("error: KeyError: ")
  assert line.endswith(f"(traceback: {file})\n")
  assert "raise error" in file.read_text()
  full = OSError(28, "No space left on device", "/there/file")
  _, line = ending(raising(full), monkeypatch, capsys)
  assert "error: [Errno 28] No space left on device: '/there/file' (" in line


def test_letters_that_a_terminal_does_not_know_end_nothing(monkeypatch):
  raw = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
  monkeypatch.setattr(sys, "argv", ["program"])
  cli.run(lambda _: print("é \udcff"))
  assert raw.getvalue() == b"\\xe9 \\udcff\n"


def test_a_failure_in_a_run_names_the_run_the_step_and_the_file(
  world, tmp_path, monkeypatch, capsys
):
  def add(meter, step, *rest, original=fit.Meter.add):
    original(meter, step, *rest)
    if step == 3:
      raise ZeroDivisionError("nobody expected this")

  monkeypatch.setattr(fit.Meter, "add", add)
  run = tmp_path / "run"
  arguments = [*world, "--method.name", "sequential", "--output", run, "--fit.log-every", "1"]
  code, complaint = tiny.run_program(train, arguments, monkeypatch, capsys)
  line = complaint.strip().splitlines()[-1]
  assert code == 1
  assert line == (
    f"error: {run}: ZeroDivisionError: nobody expected this; task task001_colour, after step 2, "
    f"all that was saved is there (traceback: {run}/errors.log)"
  )
  assert "Traceback" not in complaint
  assert "nobody expected this" in (run / "errors.log").read_text()
  monkeypatch.undo()
  train.main([*map(str, arguments)])  # and it can be gone on with
  assert rows_of(run / "metrics.jsonl")


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
  world, tmp_path, monkeypatch, capsys
):
  """Orbax's threads log the tracebacks of their errors, which are then raised as well."""

  def full(*_, **__):
    logging.getLogger("absl").error("a thread raised an exception:\nTraceback ...")
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

  run = tmp_path / "run"
  arguments = [*world, "--method.name", "sequential", "--output", run]
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp.Checkpointer, "save", full)
    code, complaint = tiny.run_program(train, arguments, patch, capsys)
  line = complaint.strip().splitlines()[-1]
  assert (code, "Traceback" in complaint) == (1, False)
  assert line.startswith(f"error: {run}: ValueError: RESOURCE_EXHAUSTED: No space left on device; ")
  train.main([*map(str, arguments)])
  assert (run / "scores.json").is_file()


def test_a_disk_that_is_full_from_the_start_leaves_a_folder_that_can_be_begun(
  world, tmp_path, monkeypatch, capsys
):
  def full(*_):
    raise OSError(28, "No space left on device")

  run = tmp_path / "run"
  arguments = [*world, "--method.name", "sequential", "--output", run]
  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", full)
    code, complaint = tiny.run_program(train, arguments, patch, capsys)
  assert (code, "Traceback" in complaint) == (1, False)
  assert f"error: {run}: [Errno 28] No space left on device; at the start" in complaint
  assert {path.name for path in run.iterdir()} >= {"config.json.draft", "errors.log"}
  train.main([*map(str, arguments)])
  assert (run / "scores.json").is_file()


# Writes that go on when their loop is gone, as those of a save that has failed.
LATE_WRITES = """
import asyncio, gc, logging, sys, time
import numpy as np, tensorstore
from sapt_jax import cli

def main(arguments):
  logging.disable()  # of asyncio: that tasks were left
  spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": sys.argv[1]}, "create": True,
          "metadata": {"shape": [400, 4], "dtype": "<f4", "chunks": [1, 4]}}
  async def write():
    place = await tensorstore.open(spec)
    writes = [asyncio.ensure_future(wait(place[row].write(np.ones(4, "f")))) for row in range(400)]
    await asyncio.sleep(0)
  async def wait(future):
    await future
  loop = asyncio.new_event_loop()
  loop.run_until_complete(write())
  loop.close()
  time.sleep(1)

sys.argv[2] == "cli" and cli.run(main)
sys.argv[2] == "plain" and main([])
"""


def test_what_threads_of_a_failed_save_leave_is_not_printed(tmp_path):
  said = {}
  for how in ("cli", "plain"):
    command = [sys.executable, "-c", LATE_WRITES, str(tmp_path / how), how]
    said[how] = subprocess.run(command, capture_output=True, text=True, check=True).stderr
  assert "Event loop is closed" in said["plain"]
  assert said["cli"] == ""


def test_a_reader_that_leaves_is_no_failure(tmp_path):
  program = "from sapt_jax import cli\ncli.run(lambda _: print('x' * 10**6))"
  command = f'{sys.executable} -c "{program}" | head -c 1'
  done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
  assert (done.stdout, done.stderr) == ("x", "")


def test_a_user_without_name_and_home_can_run(tmp_path):
  """As in a container with a random user: no HOME, and an id that no file knows."""
  program = (
    "import pwd; pwd.getpwuid = {}.__getitem__;"
    "from sapt_jax import cli; cli.keep_compiled_programs(); from sapt_jax import continual;"
    "import jax; print(jax.jit(lambda x: x + 1)(1))"
  )
  without = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
  environment = {name: value for name, value in os.environ.items() if name not in without}
  done = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
    cwd=tmp_path,
  )
  assert done.stdout.strip() == "2", done.stderr
  assert "Traceback" not in done.stderr
  assert list(tmp_path.iterdir()) == []
