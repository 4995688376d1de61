"""Command lines: typed options through tyro; whatever ends a program early as one line on stderr,
with an exit code of its own (docs/cluster.md).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import io
import os
import pathlib
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

from sapt_jax import option_help, stopping
from sapt_jax.errors import FailedError, InputError, Stopped

T = TypeVar("T")


# What tyro draws around a complaint, in colour or in ASCII.
FRAME = r"\x1b\[[0-9;]*m|[╭╮╰╯│─━]|-{3,}|(?<!\S)[|+](?!\S)"
# What tyro writes over a complaint: the first of its words, or that it has parsed something.
HEADINGS = r"(\w+( \w+)*) (?=\1)|Value error Error parsing (\w+: )?|Missing argument (?=Missing)"
# What of a complaint says too little, and what is said in its place.
CLEARER = {
  r" Argument helptext: .*": "",
  r": invalid literal for int\(\) with base 10: (.*)": r" \1: is not a whole number",
  r": could not convert string to float: (.*)": r" \1: is not a number",
  r"^Missing value for argument '(.*?)'\. .*": r"\1: needs a value",
  r"^invalid choice (.*?) for argument '(.*?)'\. Expected one of \((.*)\)\.?": (
    r"\2 \1: is none of \3"
  ),
}


def parse(
  kind: type[T], arguments: Sequence[str], program: str, description: str, default: T | None = None
) -> T:
  """Options of a program. --help prints those most used and exits, --help-all prints all.

  Raises:
    InputError: an unknown option or a value that does not fit; the message is tyro's, in one line.
  """
  if asked := {"-h", "--help", "--help-all"}.intersection(arguments):
    print(
      option_help.help_of(kind, default, called(program), description, "--help-all" in asked),
      end="",
    )
    raise SystemExit(0)
  complaint = io.StringIO()
  try:
    with contextlib.redirect_stderr(complaint):
      return tyro.cli(
        kind,
        args=list(arguments),
        prog=called(program),
        description=description,
        default=tyro.MISSING_NONPROP if default is None else default,
      )
  except SystemExit:
    said = told(complaint.getvalue())
    raise InputError(f"{said} (see {called(program)} --help-all)") from None


def told(complaint: str) -> str:
  """A complaint of tyro's in one line."""
  words = re.sub(FRAME, " ", complaint)
  said = re.sub(r"For full helptext.*", "", " ".join(words.split())).strip()
  said = re.sub(rf"(?i)^(?:{HEADINGS})", "", said)
  if unknown := re.search(r"Unrecognized options: (.*)", said):
    given, *meant = re.split(r" (?:Perhaps you meant:|Arguments similar to \S+:) ", unknown[1])
    named = re.split(r",? ", given)
    # A word behind an unknown option is its value.
    names = [word for word in named if word.startswith("-")] or named
    hint = (
      f"; did you mean {' or '.join(sorted(text.split()[0] for text in meant))}?" if meant else ""
    )
    return f"{', '.join(names)}: no such option{hint}"
  if missing := re.search(r"Missing from [^:]*: (.*)", said):
    return f"{', '.join(re.findall(r'--[^ ]+(?= [A-Z{])', missing[1]))}: must be given"
  for pattern, clearer in CLEARER.items():
    said = re.sub(pattern, clearer, said)
  return said


def called(program: str) -> str:
  """What a program was called by: sapt-jax NAME, or python -m with its module."""
  return sys.argv[0] if sys.argv[0].startswith("sapt-jax ") else f"python -m {program}"


def summary(docstring: str | None) -> str:
  """The first paragraph of a program's docstring, as --help shows it."""
  return " ".join((docstring or "").split("\n\n")[0].split())


def keep_compiled_programs() -> None:
  """Has jax keep what it compiles in ~/.cache/sapt_jax (XDG_CACHE_HOME), so that the next run need
  not; JAX_COMPILATION_CACHE_DIR names another place, JAX_ENABLE_COMPILATION_CACHE=false turns it
  off.

  A CPU program runs only on CPUs with the instructions that it was compiled for, so every kind has
  a folder of its own: home folders of clusters are shared by unlike machines.
  """
  find_home()
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  import jax  # here, so that --help and wrong options answer at once

  try:
    features = next(
      line
      for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
      if line.startswith(("flags", "Features"))
    )
  except (OSError, StopIteration):
    features = platform.processor()
  kind = f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  jax.config.update("jax_compilation_cache_dir", str(cache / "sapt_jax" / "compiled" / kind))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # most are small


def find_home() -> None:
  """Gives an unknown user without HOME a home until the process ends: libraries ask for one, some
  as soon as they are imported.
  """
  try:
    pathlib.Path.home()
  except RuntimeError:
    home = os.environ["HOME"] = tempfile.mkdtemp(prefix="sapt_jax-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)


def output_folder(name: str) -> pathlib.Path:
  """The folder that --output names, which need not be there.

  Raises:
    InputError: there is no name, or there is a file of that name.
  """
  if not name:
    raise InputError("--output is empty; name a folder")
  if pathlib.Path(name).is_file():
    raise InputError(f"--output {name}: is a file; name a folder")
  return pathlib.Path(name)


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a program's main with the process's arguments, and ends the process as docs/cluster.md
  says: each end has its exit code and, but for success, one line on stderr.
  """
  for stream in (sys.stdout, sys.stderr):  # a terminal may not know all letters
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  sys.unraisablehook = unraisable
  try:
    pathlib.Path.cwd()  # which libraries ask for
  except FileNotFoundError:
    end(2, "error: the working directory is not there any more; cd to another one")
  try:
    main(sys.argv[1:])
    sys.stdout.flush()
  except InputError as error:
    end(2, f"error: {error}")
  except Stopped as stop:
    end(75, f"stopped: {stop}; {stopping.again()}")  # EX_TEMPFAIL of sysexits.h
  except FailedError as error:
    end(1, f"error: {error}")
  except KeyboardInterrupt:
    end(130, "stopped: Ctrl-C; what was saved before is there")
  except PermissionError as error:
    place = error.filename or error
    end(2, f"error: {place}: this user may not use it so; give rights, or name another")
  except BrokenPipeError:  # as when the output goes to `head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except Exception as error:  # noqa: BLE001 (whatever it is, a line says it)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # it was given so
      end(2, f"error: {str(error.filename)[:60]!r}...: is too long for the name of a file")
    end(1, f"error: {reason_of(error)}{keep_traceback(temporary('error.log'))}")


def unraisable(what: sys.UnraisableHookArgs) -> None:
  """Prints an error that nobody can catch, but for two kinds.

  Ctrl-C in a callback of a library's, such as XLA's when memory is collected, ends the program all
  the same. When Orbax has failed, threads of its storage still tell a loop that is no longer there:
  that says nothing.
  """
  if what.exc_type is KeyboardInterrupt:
    # When this, too, has ended; a signal also ends a wait.
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
  elif str(what.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(what)


def end(code: int, message: str) -> NoReturn:
  """Ends the process with this exit code and one line on stderr."""
  print(" ".join(message.split()), file=sys.stderr)
  sys.exit(code)


def reason_of(error: BaseException) -> str:
  """What an error says, in one line; with its kind, where its message alone says little."""
  text = " ".join(str(error).split())[:300]
  of_jax = type(error).__name__ == "JaxRuntimeError"
  if of_jax and "_handle_pool" in text:  # NVIDIA's libraries take theirs beside JAX's share
    return (
      f"out of memory ({text}); others on the device, or JAX's share, leave none to NVIDIA's "
      "libraries: XLA_PYTHON_CLIENT_MEM_FRACTION=0.5 makes it smaller"
    )
  # The storage library calls a full disk RESOURCE_EXHAUSTED, too, by a ValueError.
  if (of_jax and "RESOURCE_EXHAUSTED" in text) or isinstance(error, MemoryError):
    return (
      f"out of memory ({text}); smaller batches take less, and so does --backbone.remat full; "
      "python -m sapt_jax.plan says what fits"
    )
  return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"


def temporary(name: str) -> pathlib.Path:
  """A file of this process in the folder for temporary ones."""
  return pathlib.Path(tempfile.gettempdir()) / f"sapt_jax-{os.getpid()}-{name}"


def keep_traceback(file: pathlib.Path) -> str:
  """Adds the traceback of the error that is being handled to a file, or to one of the temporary
  folder where the disk is full; says in words to which.
  """
  for place in (file, temporary(file.name)):
    with contextlib.suppress(OSError):
      with place.open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.write(traceback.format_exc() + "\n")
      return f" (traceback: {place})"
  return ""
