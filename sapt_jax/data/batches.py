"""Token lists -> batches of few shapes.

Which rows stand in batch i is a pure function of (seed, i), so that a step number is all that an
interrupted run has to remember.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from sapt_jax import streams
from sapt_jax.data.shapes import Shape, places

# Lengths that batches are padded to where no shapes are given: each shape is compiled once. From 64
# to 1,024 there are four for each doubling.
FINE = (part << octave for octave in range(4, 8) for part in (4, 5, 6, 7))
BUCKETS = (8, 16, 24, 32, 48, *FINE, 1024, 1536, 2048, 3072, 4096)
# Places for answers in rows that hold both: their logits are all that more of them cost.
ANSWERS = (16, 64, 128, 256, 512, 1024)


class Batch(flax.struct.PyTreeNode):
  """Rows to learn from or to answer.

  Attributes:
    source, target: (B, L) and (B, M) int32 token ids.
    source_mask, target_mask: bool, true at real tokens.
    task: (B,) int32, each row's place in the stream; in answering only methods that know the task
      look at it.
    companions: batches of the rows' companions (Row), by name, in the order of the rows.
    joined: static; decoder-only, in training: L has room for a row's source and answer together,
      and both are computed in one row.
    dropout: a random key, given while learning; None: nothing is dropped.
  """

  source: jax.Array
  source_mask: jax.Array
  target: jax.Array
  target_mask: jax.Array
  task: jax.Array
  companions: dict[str, Batch] = flax.struct.field(default_factory=dict)
  joined: bool = flax.struct.field(pytree_node=False, default=False)
  dropout: jax.Array | None = None

  def with_dropout(self, key: jax.Array) -> Batch:
    """The batch with this key, and with one of its own for each of its companions."""
    companions = {
      name: batch.with_dropout(streams.stream(key, name)) for name, batch in self.companions.items()
    }
    return self.replace(dropout=key, companions=companions)


@dataclasses.dataclass(frozen=True)
class Row:
  """One tokenised example.

  Attributes:
    task: the place in the stream of the task that it is of.
    companions: further rows that are learned from in the same step, by the name that a method
      gives them; all rows of a lesson have the same ones.
  """

  source: list[int]
  target: list[int]
  task: int
  companions: dict[str, Row] = dataclasses.field(default_factory=dict)


def unanswered(rows: Sequence[Row]) -> list[Row]:
  """The rows without their answers, so that these take no part in how a batch is padded."""
  return [dataclasses.replace(row, target=[]) for row in rows]


def bucket(length: int) -> int:
  """The smallest padded length that holds `length` tokens."""
  return next((size for size in BUCKETS if size >= length), length)


def joined_lengths(both: int, answer: int) -> tuple[int, int]:
  """L and M of a joined batch whose longest row has `both` tokens, and whose longest answer has
  `answer`.

  As there is but one length to a row, L can go in small steps: 16 places up to 1024, above that at
  most 1/32 of the length.
  """
  step = max(16, (1 << both.bit_length() - 1) // 32)
  row = -(-both // step) * step
  return row, next((size for size in ANSWERS if answer <= size < row), row)


def pad(lists: Sequence[list[int]], width: int, left: bool, pad_id: int) -> tuple[Any, Any]:
  """(rows, width) int32 ids and bool mask, padded on one side; numpy arrays, that the trainer puts
  on the devices.
  """
  ids = np.full((len(lists), width), pad_id, np.int32)
  mask = np.zeros((len(lists), width), bool)
  for row, tokens in enumerate(lists):
    place = slice(width - len(tokens), None) if left else slice(0, len(tokens))
    ids[row, place], mask[row, place] = tokens, True
  return ids, mask


@dataclasses.dataclass(frozen=True)
class Batcher:
  """Makes batches of rows.

  Attributes:
    left: sources are padded on the left (decoder-only backbones).
    pad_id: what stands at masked places.
    size: rows in every batch.
    seed: of the order in training.
    divisor: devices that share a batch; every batch has a multiple of so many rows.
    stream: what the order is for: each purpose has a random stream of its own.
    window: batches whose rows are sorted by length together in training: the more, the less
      padding, and the less random.
    shapes: that batches are padded to where one is large enough; companions have others.
  """

  left: bool
  pad_id: int
  size: int
  seed: int = 0
  divisor: int = 1
  window: int = 8
  stream: str = "batches"
  shapes: tuple[Shape, ...] = ()

  def collate(self, rows: Sequence[Row], joined: bool = False, length: int = 0) -> Batch:
    """One batch of these rows; sources are padded to `length`, or 0: as they need."""
    width, room = self.padded(*self.need(rows, joined), joined)
    source, source_mask = pad([row.source for row in rows], length or width, self.left, self.pad_id)
    target, target_mask = pad([row.target for row in rows], room, False, self.pad_id)
    task: Any = np.array([row.task for row in rows], np.int32)
    others = dataclasses.replace(self, shapes=())
    companions = {
      name: others.collate([row.companions[name] for row in rows], joined)
      for name in rows[0].companions
    }
    return Batch(source, source_mask, target, target_mask, task, companions, joined)

  def need(self, rows: Sequence[Row], joined: bool) -> Shape:
    """The least shape that holds these rows."""
    longest = max(self.row_length(row) if joined else len(row.source) for row in rows)
    return longest, max(len(row.target) for row in rows)

  def padded(self, source: int, answer: int, joined: bool) -> Shape:
    """The shape that a batch is padded to which needs this one: the least of those given."""
    fitting = [one for one in self.shapes if one[0] >= source and one[1] >= answer]
    if fitting:
      return min(fitting, key=lambda one: float(places(np.array(one), joined)))
    return joined_lengths(source, answer) if joined else (bucket(source), bucket(answer))

  def row_length(self, row: Row) -> int:
    """Tokens that rows are sorted by in training: the source's, and where the answer follows it in
    one row, those that are read of it.
    """
    return len(row.source) + (len(row.target) - 1 if self.left else 0)

  def steps_per_epoch(self, rows: int) -> int:
    """Batches that one pass over so many rows takes."""
    return -(-rows // self.size)

  def epoch(self, rows: Sequence[Row], epoch: int) -> list[np.ndarray]:
    """Row numbers of each batch of one pass, in training order. Every row occurs; the last batch is
    filled up from the beginning.
    """
    rng = streams.host(self.seed, self.stream, epoch)
    order = np.resize(rng.permutation(len(rows)), self.steps_per_epoch(len(rows)) * self.size)
    windows = [
      order[start : start + self.window * self.size]
      for start in range(0, len(order), self.window * self.size)
    ]
    lengths = np.array([self.row_length(row) for row in rows])
    by_length = [window[np.argsort(lengths[window], kind="stable")] for window in windows]
    batches = [part for window in by_length for part in np.split(window, len(window) // self.size)]
    return [batches[i] for i in rng.permutation(len(batches))]

  def needs(self, rows: Sequence[Row]) -> list[Shape]:
    """The least shape of each batch of a few passes over the rows, as each pass has others."""
    batches = [numbers for epoch in range(4) for numbers in self.epoch(rows, epoch)]
    return [self.need([rows[i] for i in numbers], self.left) for numbers in batches]

  def training(self, rows: Sequence[Row], start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start..stop-1."""
    per_epoch = self.steps_per_epoch(len(rows))
    order: list[np.ndarray] = []
    for step in range(start, stop):
      if not order or step % per_epoch == 0:
        order = self.epoch(rows, step // per_epoch)
      yield self.collate([rows[i] for i in order[step % per_epoch]], joined=self.left)

  def answering(self, rows: Sequence[Row], tokens: int = 0) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, batch) over all rows once, alike lengths together.

    Where `tokens` is given, a batch may be smaller by a power of two so that it has at most so many
    places for sources. So may the last one; it repeats a row where it still has places left.
    """
    order, start = np.argsort([len(row.source) for row in rows], kind="stable"), 0
    while start < len(order):
      size = self.size_for(len(order) - start)
      while tokens and self.halves(size) and size * self._width(rows, order[start:], size) > tokens:
        size //= 2
      numbers = order[start : start + size]
      filled = np.concatenate([numbers, np.repeat(numbers[-1:], size - len(numbers))])
      yield numbers, self.collate([rows[i] for i in filled])
      start += size

  def size_for(self, count: int) -> int:
    """Rows of a batch that holds so many: fewer than `size` by a power of two where that is room
    enough.
    """
    size = self.size
    while self.halves(size) and size // 2 >= count:
      size //= 2
    return size

  def halves(self, size: int) -> bool:
    """Whether a batch of this size may be cut in two."""
    return size % 2 == 0 and size // 2 % self.divisor == 0

  def _width(self, rows: Sequence[Row], order: np.ndarray, size: int) -> int:
    """What the sources of the first `size` rows in this order are padded to."""
    first = [rows[i] for i in order[:size]]
    return self.padded(*self.need(first, joined=False), joined=False)[0]
