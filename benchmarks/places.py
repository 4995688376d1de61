"""Places that are hard to run in: a disk that is full from some moment on, one that becomes
read-only, no HOME, a terminal that knows ASCII alone, a user whom no file names.

A disk is a tmpfs of a namespace of its own, which Linux lets every user make (unshare).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

# Runs the program ("$@") in the place FOLDER, first as it is, then with room and leave to write.
SCRIPT = """
if [ -n "$FULL$BEGUN" ]; then mount -t tmpfs -o size=64m tmpfs "$FOLDER" || exit 99; fi
mkdir "$FOLDER/$NAME"
if [ -n "$BEGUN" ]; then
  cp -r "$BEGUN"/. "$FOLDER/$NAME" && mount -o remount,ro "$FOLDER" || exit 99
fi
if [ -n "$FULL" ]; then (sleep "$FULL"; cat /dev/zero >"$FOLDER/others" 2>/dev/null) & fi
env $HARD "$@" --output "$FOLDER/$NAME" >"$LOG.first" 2>&1
first=$?
kill %1 2>/dev/null; wait
if [ -n "$BEGUN" ]; then mount -o remount,rw "$FOLDER"; fi
rm -f "$FOLDER/others"
"$@" --output "$FOLDER/$NAME" >"$LOG.then" 2>&1 || exit 98
cp -r "$FOLDER/$NAME"/. "$KEPT" || exit 97
exit $first
"""
NO_HOME = "-u HOME -u XDG_CACHE_HOME -u JAX_COMPILATION_CACHE_DIR"
ASCII = "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 PYTHONIOENCODING=ascii:strict"


@dataclasses.dataclass(frozen=True)
class Place:
  """A hard place.

  Attributes:
    what: it is, in words.
    full: seconds after which its disk is full; 0: never.
    begun: it holds a run that is half done, and then becomes read-only.
    hard: what `env` changes.
    name: of the run's folder in it.
    user: a number that the program runs under, as far as it can see.
  """

  what: str
  full: float = 0.0
  begun: bool = False
  hard: str = ""
  name: str = "run"
  user: int = 0


OTHERS = (
  Place("read-only", begun=True),
  Place("no HOME", hard=NO_HOME),
  Place("ASCII terminal", hard=ASCII, name="run \u00e9"),
  Place("unknown user", hard=NO_HOME, user=54321),
)


def places(seconds: float, count: int) -> list[Place]:
  """Disks that are full at so many moments of the seconds that a run takes, then the others. A
  count of 0: none.
  """
  moments = [round(seconds * (part + 1) / count, 2) for part in range(count)]
  disks = [Place(f"disk full after {moment} s", full=moment) for moment in moments]
  return [*disks, *OTHERS] if count else []


def tried(
  place: Place, options: Sequence[str], folder: pathlib.Path, half: pathlib.Path
) -> tuple[int, str]:
  """Runs the program in a place and then, if it failed there, on in a usual one.

  Args:
    options: of sapt_jax.train, but for --output.
    folder: gets the logs, and in `kept` the run as it has ended.
    half: a run that is half done.

  Returns:
    the exit code in the hard place, and what was said there; the code is 98 if the run could not be
    gone on with, 99 if the place could not be made.
  """
  for name in ("place", "kept"):
    (folder / name).mkdir(parents=True)
  environment = os.environ | {
    "FOLDER": str(folder / "place"),
    "FULL": str(place.full or ""),
    "BEGUN": str(half) if place.begun else "",
    "NAME": place.name,
    "HARD": place.hard,
    "LOG": str(folder / "log"),
    "KEPT": str(folder / "kept"),
  }
  who = f"--map-user={place.user}" if place.user else "--map-root-user"
  program = [sys.executable, "-m", "sapt_jax.train", *options]
  inside = ["unshare", "--user", who, "--mount", "bash", "-c", SCRIPT, "bash", *program]
  code = subprocess.run(inside, env=environment, check=False).returncode
  return code, (folder / "log.first").read_text(errors="replace")
