"""Answering one batch a few tokens at a time, so that an answer can be shown while it is written.

The tokens are those of evaluate.Answerer: the same loop, left and entered again. B rows, L source
length, N new tokens, T capacity of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sapt_jax import sharding
from sapt_jax.backbones.hf import Backbone, Model
from sapt_jax.data.batches import BUCKETS, Batch, Batcher, Row, bucket
from sapt_jax.evaluation.decode import (
  Writing,
  apart_once,
  begin,
  go_on,
  part_here,
  pays_apart,
)
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned

SHORTEST = 32  # tokens that sources are padded to at least: shorter shapes would save little


class Written(NamedTuple):
  """What is there of a batch's n answers.

  tokens: (n, count) int32 ids, pad ids behind an end token; ended: (n,) bool, whether an answer is
  whole; mixtures: (n, T) float32.
  """

  tokens: np.ndarray
  ended: np.ndarray
  mixtures: np.ndarray


def begin_batch(
  model: Model,
  method: Method,
  apart: bool,
  part: int,
  max_new: int,
  params: Any,
  learned: Learned,
  batch: Batch,
) -> tuple[Writing, jax.Array]:
  """The first tokens, and the mixtures (B, T)."""
  mixture = method.mixture(learned, method.features(model, params, batch), batch.task)
  adapters = method.adapters(learned, mixture)
  source = (batch.source, batch.source_mask)
  return begin(model, params, *source, adapters, max_new, apart=apart, part=part), mixture


def continue_batch(
  model: Model,
  method: Method,
  apart: bool,
  params: Any,
  learned: Learned,
  mixture: jax.Array,
  writing: Writing,
  more: jax.Array,
) -> Writing:
  """So many more tokens, or those that are left."""
  return go_on(model, params, writing, method.adapters(learned, mixture), more, apart=apart)


class StepwiseAnswerer:
  """Compiled answering in few shapes: `sizes` rows by `lengths` tokens.

  Args:
    batcher: says the padding; its size is the most rows of a batch.
    max_new: N.
    every: tokens between two looks at what is written.
    old: what answered before; of the same backbone the copy of weights is kept.
  """

  def __init__(
    self,
    backbone: Backbone,
    method: Method,
    batcher: Batcher,
    mesh: jax.sharding.Mesh,
    max_source: int,
    max_new: int,
    every: int = 4,
    old: StepwiseAnswerer | None = None,
  ):
    self.backbone, self.batcher, self.mesh = backbone, batcher, mesh
    self.max_new, self.every = max_new, every
    self.sizes = sizes_of(batcher.size, batcher.divisor)
    self.lengths = lengths_of(max_source)
    self.placement = sharding.batch_sharded(mesh)
    apart = pays_apart(mesh, backbone.params)
    self.params: Any = (
      old.params
      if old and old.backbone is backbone
      else apart_once(backbone.model, apart, backbone.params)
    )
    how = (backbone.model, method, apart)
    self.begin = jax.jit(partial(begin_batch, *how, part_here(mesh), max_new))
    self.go_on = jax.jit(partial(continue_batch, *how), donate_argnames=("writing",))

  def answer(self, learned: Learned, rows: Sequence[Row]) -> Iterator[Written]:
    """What is written of the answers to at most sizes[-1] rows, after every few tokens; the last
    time all have ended, or have N tokens.
    """
    writing, given = self._begun(learned, rows)
    mixtures, count = np.asarray(given["mixture"])[: len(rows)], 1
    while True:
      ended = np.asarray(writing.ended)[: len(rows)]
      yield Written(np.asarray(writing.written)[: len(rows), :count], ended, mixtures)
      if count >= self.max_new or ended.all():
        return
      count = min(count + self.every, self.max_new)
      writing = self.go_on(writing=writing, more=np.int32(self.every), **given)

  def _begun(self, learned: Learned, rows: Sequence[Row]) -> tuple[Writing, dict[str, Any]]:
    """The first tokens, and what `go_on` is given besides them."""
    batch = sharding.to_devices(self.collate(rows), self.placement)
    writing, mixture = self.begin(params=self.backbone.params, learned=learned, batch=batch)
    return writing, {"params": self.params, "learned": learned, "mixture": mixture}

  def collate(self, rows: Sequence[Row]) -> Batch:
    """The smallest compiled batch that holds these rows; the last row fills it up."""
    size = next(size for size in self.sizes if size >= len(rows))
    length = max(map(self.padded, rows))
    return self.batcher.collate([*rows, *[rows[-1]] * (size - len(rows))], length=length)

  def padded(self, row: Row) -> int:
    """The smallest compiled length that holds a prompt."""
    return next(length for length in self.lengths if length >= len(row.source))

  def warm_up(self, learned: Learned) -> Iterator[tuple[int, int]]:
    """Compiles everything; yields (rows, tokens) of each shape as it is done."""
    some, end = self.backbone.config.pad_id, self.backbone.config.eos_id
    for length in self.lengths:
      for size in self.sizes:
        writing, given = self._begun(learned, [Row([some] * length, [end], 0)] * size)
        jax.block_until_ready(self.go_on(writing=writing, more=np.int32(1), **given))
        yield size, length


def sizes_of(most: int, divisor: int) -> list[int]:
  """Rows of the batches that are compiled: `most`, its half and its quarter, as a server with much
  to do fills these; below them each a fourth of the one before, down to 4; and 1. All are multiples
  of `divisor`.
  """
  sizes, part = {most, most // 2, most // 4}, most // 16
  while part:
    sizes.add(part)
    part //= 4
  return sorted({divisor, most} | {-(-size // divisor) * divisor for size in sizes if size >= 4})


def rows_to_take(waiting: int, sizes: list[int]) -> int:
  """How many of so many prompts to answer together: where they are few more than a compiled batch
  holds, so many as it holds, as a larger one would be filled up at their cost.
  """
  full = max((size for size in sizes if size <= waiting), default=waiting)
  return full if full == sizes[-1] or waiting - full < full // 2 else waiting


def lengths_of(max_source: int) -> list[int]:
  """Source lengths that are compiled: 32, 48, 64, 96, 128, 192 and so on up to `max_source`."""
  lengths = [length for length in BUCKETS if length >= SHORTEST and is_round(length)]
  most = bucket(max(max_source, SHORTEST))
  return sorted({*(length for length in lengths if length < most), most})


def is_round(length: int) -> bool:
  """Whether this is a power of two, or one and a half of one."""
  odd = length // (length & -length)
  return odd in (1, 3)
