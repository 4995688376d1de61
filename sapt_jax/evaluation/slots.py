"""Answering many rows in the places of one batch: where answers have ended, the next sources are
read (continuous batching; Yu et al., OSDI 2022, Orca).

A row's tokens do not depend on when it is read, nor beside whom (but where reference_quirks lets a
mixture look at padding). B places, p rows that are read at once, L source length, N new tokens, T
capacity of the pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import processes, sharding
from sapt_jax.backbones.hf import Backbone, Model
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.evaluation.decode import Writing, apart_once, go_on, part_here
from sapt_jax.evaluation.stepwise import begin_batch
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned

# Where a device is not told how many tokens to read at once, the share of all places whose rows
# are: the fewer, the sooner a place is taken again, and the more often the host looks.
SHARE = 8

NOBODY = -1


class Slots(flax.struct.PyTreeNode):
  """Answers that are being written in B places, and their mixtures (B, T) float32."""

  writing: Writing
  mixture: jax.Array


def empty(
  model: Model,
  method: Method,
  apart: bool,
  max_new: int,
  params: Any,
  learned: Learned,
  batch: Batch,
) -> Slots:
  """Places for as many rows as the batch has, with sources as long, none of them taken."""
  begun = jax.eval_shape(
    partial(begin_batch, model, method, apart, 0, max_new), params, learned, batch
  )
  slots = Slots(*jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), begun))
  return slots.replace(writing=slots.writing.replace(ended=jnp.ones_like(slots.writing.ended)))


def put(slots: Slots, writing: Writing, mixture: jax.Array, where: jax.Array) -> Slots:
  """p rows that have begun, in the places `where` (p,); a row whose place is past the end is left
  out.
  """
  return Slots(
    slots.writing.with_rows(writing, where), slots.mixture.at[where].set(mixture, mode="drop")
  )


def write(
  model: Model,
  method: Method,
  apart: bool,
  params: Any,
  learned: Learned,
  slots: Slots,
  enough: jax.Array,
) -> Slots:
  """More tokens in all places, until so many are done."""
  adapters, room = method.adapters(learned, slots.mixture), slots.writing.written.shape[1]
  return slots.replace(
    writing=go_on(model, params, slots.writing, adapters, room, apart=apart, enough=enough)
  )


class SlotAnswerer:
  """Compiled greedy answering on one device: a program for each shape that sources are read in, and
  one that writes for all of a task.

  Args:
    apart: see decode.generate.
  """

  def __init__(
    self, backbone: Backbone, method: Method, batcher: Batcher, mesh: jax.sharding.Mesh, apart: bool
  ):
    self.backbone, self.batcher, self.part = backbone, batcher, part_here(mesh)
    self.placement = sharding.batch_sharded(mesh)
    self.reader = (
      batcher if self.part else dataclasses.replace(batcher, size=max(1, batcher.size // SHARE))
    )
    how, model = (backbone.model, method, apart), backbone.model
    self.empty = jax.jit(partial(empty, *how), static_argnames="max_new")
    # Apart from `put`, so that it is the same for places of all lengths.
    self.read = jax.jit(partial(begin_batch, *how, 0), static_argnames="max_new")
    self.put = jax.jit(put, donate_argnames="slots")
    self.write = jax.jit(partial(write, *how), donate_argnames="slots")
    # Apart once for all rows, and only as long as they are answered: it is a copy of weights.
    self.params = partial(apart_once, model, apart)

  def answer(
    self, learned: Learned, rows: Sequence[Row], max_new: int, there: Collection[int] = ()
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(numbers (n,), token ids (n, N), mixtures (n, T)) of some rows after the other, as they end;
    of those `there` none are needed.

    Raises:
      Stopped: the run was asked to stop.
    """
    groups = (
      (numbers, wanted, batch)
      for numbers, batch in self.reader.answering(rows, self.part)
      if np.any(wanted := [number not in there for number in numbers])
    )
    if (waiting := next(groups, None)) is None:
      return
    # Room for all, also for those that are not wanted: then an answer is what it was among all.
    size, longest = self.batcher.size_for(len(rows)), max(rows, key=lambda row: len(row.source))
    given = {"params": self.backbone.params, "learned": learned, "max_new": max_new}
    slots = self.empty(**given, batch=self.batcher.collate([longest] * size))
    params = self.params(self.backbone.params)
    held = np.full(size, NOBODY)  # the row that is answered in each place
    while waiting or np.any(held != NOBODY):
      free = np.flatnonzero(held == NOBODY)
      if waiting and np.sum(waiting[1]) <= len(free):
        processes.stop_if_asked()
        numbers, wanted, batch = waiting
        taken = free[: np.sum(wanted)]
        where = np.full(len(batch.source), size)
        where[: len(numbers)][wanted], held[taken] = taken, numbers[wanted]
        begun = self.read(**given, batch=sharding.to_devices(batch, self.placement))
        slots, waiting = self.put(slots, *begun, where), next(groups, None)
        continue
      enough = np.sum(waiting[1]) if waiting else size
      slots = self.write(params=params, learned=learned, slots=slots, enough=np.int32(enough))
      done = np.asarray(slots.writing.done) & (held != NOBODY)
      yield held[done], *(np.asarray(x)[done] for x in (slots.writing.written, slots.mixture))
      held[done] = NOBODY
