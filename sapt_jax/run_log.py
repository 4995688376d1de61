"""metrics.jsonl: one line per logged step, validation or event. No step stands in it twice, however
often the run was started. metrics.seal.json tells later whether its lines are still what they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sapt_jax.errors import InputError
from sapt_jax.text_files import json_lines, read_object, write_text


def _sealed(content: bytes) -> dict[str, Any]:
  return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class RunLog:
  """The log of a run, written by process 0."""

  def __init__(self, file: pathlib.Path):
    self.file, self.seal = file, file.with_suffix(".seal.json")

  def add(self, row: dict[str, Any]) -> None:
    """Adds one line."""
    with self.file.open("a", encoding="utf-8") as out:
      out.write(json.dumps(row) + "\n")
    self._seal(self.file.read_bytes())

  def rows(self) -> Iterator[dict[str, Any]]:
    """All lines, which a call of `trim` has left as they must be."""
    if self.file.exists():
      yield from (row for _, row in json_lines(self.file))

  def _seal(self, content: bytes) -> None:
    """Seals these lines. Nothing waits for the disk here: this is done at every line."""
    draft = self.seal.with_suffix(".draft")
    draft.write_text(json.dumps(_sealed(content)) + "\n", encoding="utf-8")
    draft.replace(self.seal)

  def check(self) -> bytes | None:
    """What the log holds; None: there is none, and no seal. Names one that does not begin with the
    lines that were sealed last; one line more may stand there, whose writer was killed before it
    was sealed.
    """
    if not self.file.exists() and not self.seal.exists():
      return None
    content = self.file.read_bytes() if self.file.exists() else b""
    self._check(content)
    return content

  def _check(self, content: bytes) -> None:
    try:
      seal = read_object(self.seal)
    except InputError as error:
      print(f"warning: {error}; {self.file.name} cannot be checked", file=sys.stderr)
      return
    length = seal.get("bytes")
    if not isinstance(length, int) or seal != _sealed(content[:length]):
      words = f"changed since it was written: {self.seal.name} does not fit"
      print(f"warning: {self.file}: {words}", file=sys.stderr)

  def trim(self, done: int, steps: dict[str, int]) -> None:
    """Drops lines of what will be learned again, and names a log that is not as it was written.

    Args:
      done: tasks that are finished.
      steps: the step that a phase of the next task goes on from; phases that are not named begin
        anew.
    """
    content = self.check()
    if content is None:
      return
    lines = content.decode(errors="backslashreplace").split("\n")
    kept = "".join(self._kept(lines, done, steps))
    # Before it is shortened: a log may have lines behind those that are sealed, but none fewer.
    self._seal(kept.encode())
    write_text(self.file, [kept])

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
