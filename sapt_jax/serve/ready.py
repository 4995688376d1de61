"""A run that is restored and compiled for the server."""

from __future__ import annotations

import contextlib
import copy
import pathlib
import threading
from collections.abc import Iterator, Sequence

import jax

from sapt_jax.answering import Answering
from sapt_jax.data.batches import Row
from sapt_jax.data.prompts import Codec
from sapt_jax.evaluation.stepwise import StepwiseAnswerer, Written
from sapt_jax.snapshots import finished_snapshots
from sapt_jax.training import checkpoint


class Ready:
  """Answers batches of prompts step by step, as `Answering` does it at once.

  Attributes:
    codec_lock: a tokenizer may be used by one thread at a time. The event loop, which spells
      answers, has one of its own: it must not wait while long prompts are read.
    instructions: those of the tasks, as far as they are known.
  """

  def __init__(self, answering: Answering, old: Ready | None = None):
    self.answering, built = answering, answering.built
    self.mesh: jax.sharding.Mesh = built.mesh
    self.codec_lock: threading.Lock = old.codec_lock if old else threading.Lock()
    self.spelling: Codec = old.spelling if old else copy.deepcopy(answering.codec)
    self.compiled_before = old is not None and old.answering.built is built
    self.stepwise: StepwiseAnswerer = (
      old.stepwise
      if old and self.compiled_before
      else StepwiseAnswerer(
        built.backbone,
        built.method,
        built.answerer.batcher,
        built.mesh,
        answering.codec.max_source,
        answering.max_new,
        old=old.stepwise if old else None,
      )
    )
    self.sizes, self.end = self.stepwise.sizes, answering.codec.eos_id
    self.shapes = len(self.sizes) * len(self.stepwise.lengths)
    self.tasks, self.snapshot = answering.tasks, answering.snapshot
    self.max_new = answering.max_new
    self.mixture = answering.mixture
    self.instructions = instructions_of(answering.run)

  def renewed(self) -> Ready:
    """The run as its folder holds it now; see Answering.renewed."""
    return Ready(self.answering.renewed(), self)

  def warm_up(self) -> Iterator[None]:
    """Compiles all shapes, one at a time, unless the run before this one has."""
    if not self.compiled_before:
      for _ in self.stepwise.warm_up(self.answering.learned):
        yield

  def row(self, definition: str | None, text: str, called: str) -> Row:
    """The tokens of a prompt; raises InputError, see Answering.row."""
    with self.codec_lock:
      return self.answering.row(definition, text, called)

  def text(self, ids: list[int]) -> str:
    """The answer that tokens spell; for the event loop alone."""
    return self.spelling.text(ids)

  def answer(self, rows: Sequence[Row]) -> Iterator[Written]:
    """See StepwiseAnswerer.answer."""
    return self.stepwise.answer(self.answering.learned, rows)

  def padded(self, row: Row) -> int:
    """Tokens that a prompt alone is padded to."""
    return self.stepwise.padded(row)

  def places(self, rows: int) -> int:
    """Rows of the batch that so many prompts are computed in."""
    return next(size for size in self.sizes if size >= rows)


def instructions_of(run: pathlib.Path) -> dict[str, str]:
  """{task: instruction}, as far as the records of the run's snapshots have them."""
  found = {}
  for snapshot in finished_snapshots(run):
    with contextlib.suppress(checkpoint.DamagedError, KeyError):
      record = checkpoint.read_record(snapshot)
      if text := str(record["definition"]):
        found[str(record["task"])] = text
  return found
