"""metrics.jsonl: one line per logged step, validation or event. No step stands in it twice, however
often the run was started.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sapt_jax.text_files import write_text


class RunLog:
  """The log of a run, written by process 0."""

  def __init__(self, file: pathlib.Path):
    self.file = file

  def add(self, row: dict[str, Any]) -> None:
    """Adds one line."""
    with self.file.open("a", encoding="utf-8") as out:
      out.write(json.dumps(row) + "\n")

  def sealed(self) -> dict[str, Any]:
    """What tells later whether the lines so far are still what they are: how many bytes they take,
    and their SHA-256.
    """
    content = self.file.read_bytes() if self.file.exists() else b""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

  def trim(self, done: int, steps: dict[str, int], sealed: dict[str, Any] | None) -> None:
    """Drops lines of what will be learned again.

    Args:
      done: tasks that are finished.
      steps: the step that a phase of the next task goes on from; phases that are not named begin
        anew.
      sealed: what `sealed` said after the last finished task; None: nothing is known of it.
    """
    content = self.file.read_bytes() if self.file.exists() else b""
    if sealed is not None:
      digest = hashlib.sha256(content[: sealed["bytes"]]).hexdigest()
      if digest != sealed["sha256"]:
        print(f"warning: {self.file}: changed since it was written", file=sys.stderr)
    if content:
      lines = content.decode(errors="backslashreplace").split("\n")
      write_text(self.file, self._kept(lines, done, steps))

  def _kept(self, lines: Sequence[str], done: int, steps: dict[str, int]) -> Iterator[str]:
    """The lines of the tasks before the done-th, and those of that task's phases up to their steps.
    A last line that a process was killed in is none; others that cannot be read are named.
    """
    for number, line in enumerate(lines, 1):
      try:
        row = json.loads(line)
        index, phase, step = row["index"], row.get("phase", "learn"), row.get("step", math.inf)
      except (ValueError, LookupError, TypeError, AttributeError):
        if number < len(lines):
          print(f"warning: {self.file}:{number}: cannot be read; left out", file=sys.stderr)
        continue
      if index < done or (index == done and step <= steps.get(phase, 0)):
        yield line + "\n"
