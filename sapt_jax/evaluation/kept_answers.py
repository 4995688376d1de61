"""Answers that are kept on disk while they are given, so that a run that is stopped goes on with
those that are missing.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from sapt_jax import processes
from sapt_jax.text_files import add_checked_line, checked_lines, write_checked_lines


class KeptAnswers:
  """A file with lines of answers that were given together: a checksum, the numbers of their rows,
  token ids and mixtures.

  Process 0 writes, and tells all what an earlier start left.

  Attributes:
    rows: what an earlier start left: token ids and mixture (T,) float32 by number of the row.
  """

  def __init__(self, file: pathlib.Path):
    self.file = file
    lines: list[str] = processes.first_tells(lambda: checked_lines(file))
    if processes.is_first() and file.exists():
      write_checked_lines(file, lines)  # without what is harmed
    self.rows: dict[int, tuple[list[int], np.ndarray]] = {}
    for kept in map(json.loads, lines):
      mixtures = np.array(kept["mixtures"], np.float32)
      self.rows |= zip(kept["rows"], zip(kept["ids"], mixtures, strict=True), strict=True)

  def add(self, rows: np.ndarray, ids: np.ndarray, mixtures: np.ndarray) -> None:
    """Keeps more answers: numbers (n,), token ids (n, N), mixtures (n, T)."""
    if not processes.is_first():
      return
    kept = {"rows": rows.tolist(), "ids": ids.tolist(), "mixtures": mixtures.tolist()}
    add_checked_line(self.file, json.dumps(kept))
