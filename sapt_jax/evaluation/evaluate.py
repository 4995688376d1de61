"""Answering all inputs of a task with the whole pool, and scoring the answers. n inputs, T capacity
of the pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sapt_jax import processes, sharding
from sapt_jax.backbones.hf import Backbone, Model
from sapt_jax.data.batches import Batch, Batcher, Row, unanswered
from sapt_jax.evaluation.decode import Choose, generate, greedy, part_here, pays_apart
from sapt_jax.evaluation.kept_answers import KeptAnswers
from sapt_jax.evaluation.slots import SlotAnswerer
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned


@dataclasses.dataclass(frozen=True)
class Answers:
  """tokens: one list of ids per input, in the order of the rows; mixtures: (n, T) float32."""

  tokens: list[list[int]]
  mixtures: np.ndarray


def answer_batch(
  model: Model,
  method: Method,
  apart: bool,
  part: int,
  max_new: int,
  choose: Choose,
  params: Any,
  learned: Learned,
  batch: Batch,
  rng: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Token ids (B, max_new) and mixtures (B, T) of one batch."""
  mixture = method.mixture(learned, method.features(model, params, batch), batch.task)
  adapters = method.adapters(learned, mixture)
  source = (batch.source, batch.source_mask)
  return generate(model, params, *source, adapters, max_new, choose, rng, apart, part), mixture


class Answerer:
  """Compiled answering for one backbone and one method: greedily on one device in slots, else batch
  by batch.

  Args:
    apart: see generate; None: where it pays.
  """

  def __init__(
    self,
    backbone: Backbone,
    method: Method,
    batcher: Batcher,
    mesh: jax.sharding.Mesh,
    choose: Choose = greedy,
    apart: bool | None = None,
  ):
    self.backbone, self.batcher = backbone, batcher
    self.placement = sharding.batch_sharded(mesh)
    apart = pays_apart(mesh, backbone.params) if apart is None else apart
    self.slots = (
      SlotAnswerer(backbone, method, batcher, mesh, apart)
      if choose is greedy and mesh.size == 1
      else None
    )
    self.answer_batch = jax.jit(
      partial(answer_batch, backbone.model, method, apart, part_here(mesh)),
      static_argnames=("max_new", "choose"),
      out_shardings=sharding.replicated(mesh),  # every process reads all answers
    )
    self.choose = choose

  def answer(
    self,
    learned: Learned,
    rows: Sequence[Row],
    max_new: int,
    rng: jax.Array | None = None,
    kept: KeptAnswers | None = None,
  ) -> Answers:
    """Answers to all rows.

    Args:
      rng: matters to a sampler alone.
      kept: answers of an earlier start; what is answered now is added.

    Raises:
      Stopped: the run was asked to stop.
    """
    rows, found = unanswered(rows), {} if kept is None else dict(kept.rows)
    if self.slots is not None:
      answered = self.slots.answer(learned, rows, max_new, found.keys())
    else:
      rng = jax.random.key(0) if rng is None else rng
      answered = self._in_batches(learned, rows, max_new, rng, found.keys())
    for numbers, ids, mixtures in answered:
      if kept is not None:
        kept.add(numbers, ids, mixtures)
      found |= zip(numbers.tolist(), zip(ids.tolist(), mixtures, strict=True), strict=True)
    tokens, weights = zip(*(found[number] for number in range(len(rows))), strict=True)
    return Answers(list(tokens), np.stack(weights))

  def _in_batches(
    self,
    learned: Learned,
    rows: Sequence[Row],
    max_new: int,
    rng: jax.Array,
    there: Collection[int],
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As SlotAnswerer.answer, batch by batch."""
    for count, (numbers, batch) in enumerate(self.batcher.answering(rows)):
      if all(number in there for number in numbers):
        continue
      processes.stop_if_asked()
      ids, mixtures = self.answer_batch(
        max_new=max_new,
        choose=self.choose,
        params=self.backbone.params,
        learned=learned,
        batch=sharding.to_devices(batch, self.placement),
        rng=jax.random.fold_in(rng, count),
      )
      yield numbers, np.asarray(ids)[: len(numbers)], np.asarray(mixtures)[: len(numbers)]


class FeatureReader:
  """What a method looks at of many rows' inputs (Method.features), compiled once per length."""

  def __init__(self, backbone: Backbone, method: Method, batcher: Batcher, mesh: jax.sharding.Mesh):
    self.backbone, self.batcher = backbone, batcher
    self.placement, self.everywhere = sharding.batch_sharded(mesh), sharding.replicated(mesh)
    self.features = jax.jit(partial(method.features, backbone.model), out_shardings=self.everywhere)

  def __call__(self, rows: Sequence[Row]) -> jax.Array:
    """(n, D) float32, in the order of the rows; (0, D) when there are none."""
    features = np.zeros((len(rows), self.backbone.config.width), np.float32)
    for numbers, batch in self.batcher.answering(unanswered(rows)):
      processes.stop_if_asked()
      batch = sharding.to_devices(batch, self.placement)
      features[numbers] = np.asarray(self.features(self.backbone.params, batch))[: len(numbers)]
    return sharding.to_devices(features, self.everywhere)
