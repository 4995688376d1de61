"""Answers that are kept on disk batch by batch while they are given, so that a run that is stopped
goes on with the next batch.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from sapt_jax import processes
from sapt_jax.text_files import add_checked_line, checked_lines, write_checked_lines


class KeptAnswers:
  """A file with a line per batch: its checksum, the numbers of its rows, token ids and mixtures.

  Process 0 writes, and tells all what an earlier start left.
  """

  def __init__(self, file: pathlib.Path):
    self.file = file
    self.earlier: list[dict[str, Any]] = processes.first_tells(
      lambda: [json.loads(line) for line in checked_lines(file)]
    )
    self._shorten(len(self.earlier))

  def of(self, number: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Token ids (B, L) and mixtures (B, T) float32 of the batch of this number, if it was of these
    rows; None: it is to be answered.
    """
    if number >= len(self.earlier):
      return None
    kept = self.earlier[number]
    if kept["rows"] != rows.tolist():  # batches were made otherwise
      self._shorten(number)
      return None
    return np.array(kept["ids"], np.int32), np.array(kept["mixtures"], np.float32)

  def _shorten(self, count: int) -> None:
    """Forgets all batches but the first ones."""
    del self.earlier[count:]
    if processes.is_first() and self.file.exists():
      write_checked_lines(self.file, checked_lines(self.file)[:count])

  def add(self, rows: np.ndarray, ids: np.ndarray, mixtures: np.ndarray) -> None:
    """Keeps one more batch."""
    if not processes.is_first():
      return
    kept = {"rows": rows.tolist(), "ids": ids.tolist(), "mixtures": mixtures.tolist()}
    add_checked_line(self.file, json.dumps(kept))
