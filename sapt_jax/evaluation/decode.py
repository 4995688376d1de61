"""Answering with a key-value cache: one compiled loop that stops when every row has ended. B rows,
V vocabulary, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax import sharding
from sapt_jax.backbones.hf import Model
from sapt_jax.pet.adapters import Adapters

# (logits (B, V) float32, tokens so far (B, N) int32, how many of them are there (B,), random key)
# -> next tokens (B,) int32
Choose = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def greedy(logits: jax.Array, written: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
  """The most likely token of each row, the first of equal ones.

  A maximum and the first place that has it: on a CPU, XLA's argmax takes ten times as long
  (docs/performance.md).
  """
  del written, count, rng
  most = jnp.max(logits, axis=-1, keepdims=True)
  places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  # Not "where equal": where numbers are NaN, there would be no place.
  return jnp.min(jnp.where(logits < most, len(places), places), axis=-1)


def sampler(top_k: int, repetition_penalty: float, temperature: float) -> Choose:
  """Draws among the top_k most likely tokens, after those already written have been made less
  likely (Keskar et al., 2019, CTRL).

  A score of a written token is divided by repetition_penalty when positive and multiplied by it
  when negative.
  """

  def choose(logits: jax.Array, written: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
    rows = jnp.arange(logits.shape[0])[:, None]
    # Places not yet written point past the vocabulary, where the scatter drops them.
    places = jnp.where(jnp.arange(written.shape[1]) < count[:, None], written, logits.shape[1])
    seen = jnp.zeros(logits.shape, bool).at[rows, places].set(True, mode="drop")
    penalised = jnp.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    scores = jnp.where(seen, penalised, logits) / temperature
    values, tokens = jax.lax.top_k(scores, min(top_k, logits.shape[1]))
    drawn = jax.random.categorical(rng, values)[:, None]
    return jnp.take_along_axis(tokens, drawn, axis=1)[:, 0].astype(jnp.int32)

  return choose


class Writing(flax.struct.PyTreeNode):
  """Answers that are being written.

  Attributes:
    written: (B, N) int32; pad ids after a row's end token and where nothing is written yet.
    ended: (B,) bool, rows whose end token is written.
    last: (B,) int32, the newest token of each row.
    cache: the backbone's keys and values.
    count: (B,) int32, places of `written` that are used.
  """

  written: jax.Array
  ended: jax.Array
  last: jax.Array
  cache: Any
  count: jax.Array

  @classmethod
  def empty(cls, rows: int, max_new: int, pads: int, cache: Any) -> Writing:
    """Nothing is written yet in so many rows of so many places."""
    return cls(
      written=jnp.full((rows, max_new), pads, jnp.int32),
      ended=jnp.zeros(rows, bool),
      last=jnp.zeros(rows, jnp.int32),
      cache=cache,
      count=jnp.zeros(rows, jnp.int32),
    )

  @property
  def done(self) -> jax.Array:
    """(B,) bool, rows that have ended or have no room for more."""
    return self.ended | (self.count >= self.written.shape[1])

  def with_next(
    self, logits: jax.Array, choose: Choose, key: jax.Array, ends: int, pads: int
  ) -> Writing:
    """The same with one more token in each row; a row that is done gets the pad id."""
    drawing = jax.random.fold_in(key, jnp.max(self.count))
    chosen = choose(logits.astype(jnp.float32), self.written, self.count, drawing)
    tokens = jnp.where(self.done, pads, chosen)
    rows, room = jnp.arange(len(tokens)), self.written.shape[1]
    return self.replace(
      written=self.written.at[rows, self.count].set(tokens, mode="drop"),
      ended=self.ended | (~self.done & (chosen == ends)),
      last=tokens,
      count=jnp.minimum(self.count + 1, room),
    )

  def with_rows(self, new: Writing, where: jax.Array) -> Writing:
    """The same with the rows of `new`, whose sources may be shorter, at the places `where` (rows of
    new,) int32; a row whose place is past the end is left out.
    """

    def put(x: jax.Array, rows: jax.Array) -> jax.Array:
      axis = rows_axis(x)
      room = [size - own for size, own in zip(x.shape, rows.shape, strict=True)]
      room[axis] = 0
      rows = jnp.pad(rows, [(0, more) for more in room])  # nothing is there: zeros and False
      return x.at[(*[slice(None)] * axis, where)].set(rows, mode="drop")

    return jax.tree.map(put, self, new)


def rows_axis(x: jax.Array) -> int:
  """Where a backbone's cache has its rows: keys and values that are stacked over layers behind
  these, all others first.
  """
  return 1 if x.ndim == 5 else 0


def begin(
  model: Model,
  params: Any,
  source: jax.Array,
  source_mask: jax.Array,
  adapters: Adapters | None,
  max_new: int,
  choose: Choose = greedy,
  rng: jax.Array | None = None,
  apart: bool = False,
  part: int = 0,
) -> Writing:
  """The first token of each row; see generate for the arguments."""
  config, rows = model.config, source.shape[0]

  def read(rows: tuple) -> tuple[jax.Array, Any]:
    source, mask, own = rows
    mixed = None if adapters is None else adapters.replace(**own)
    logits, cache = model.apply({"params": params}, source, mask, max_new, mixed, method="start")
    return logits, cache.apart() if apart else cache

  # Of a cache whose layers are apart, rows are the first axis of all.
  parts = parts_of(rows, source.shape[1], part) if apart else 1
  own = {} if adapters is None else adapters.of_rows()
  logits, cache = in_parts(read, (source, source_mask, own), parts)
  nothing = Writing.empty(rows, max_new, config.pad_id, cache)
  return nothing.with_next(logits, choose, key_of(rng), config.eos_id, config.pad_id)


def parts_of(rows: int, length: int, part: int) -> int:
  """Into how many equal parts, a power of two, so many rows are cut so that one has at most `part`
  tokens, as far as they can be; 1 where `part` is 0.
  """
  parts = 1
  while 0 < part < rows // parts * length and rows % (2 * parts) == 0:
    parts *= 2
  return parts


def in_parts(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
  """function(rows), computed one part of the rows after another. Rows are the first axis of all
  arrays given, and of all that come back.
  """
  if parts == 1:
    return function(rows)
  cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(function, cut))


def go_on(
  model: Model,
  params: Any,
  writing: Writing,
  adapters: Adapters | None,
  more: int | jax.Array,
  choose: Choose = greedy,
  rng: jax.Array | None = None,
  apart: bool = False,
  enough: int | jax.Array | None = None,
) -> Writing:
  """Writes on: at most so many tokens more, until `enough` rows are done (None: all of them);
  `apart` as it began.
  """
  config, key = model.config, key_of(rng)
  if apart:
    model, params, adapters = model.apart(params, adapters)

  enough = len(writing.last) if enough is None else enough

  def unfinished(state: tuple[Writing, jax.Array]) -> jax.Array:
    w, left = state
    return (left > 0) & (jnp.sum(w.done) < enough)

  def body(state: tuple[Writing, jax.Array]) -> tuple[Writing, jax.Array]:
    w, left = state
    logits, cache = model.apply({"params": params}, w.last, w.cache, adapters, method="extend")
    w = w.replace(cache=cache).with_next(logits, choose, key, config.eos_id, config.pad_id)
    return w, left - 1

  return jax.lax.while_loop(unfinished, body, (writing, jnp.asarray(more, jnp.int32)))[0]


# The share of a GPU's memory that weights may take if they are to be there twice while answers are
# written.
TWICE = 0.25


def pays_apart(mesh: jax.sharding.Mesh, params: Any) -> bool:
  """Whether `apart` of generate pays where answers are written: on CPUs, and on one GPU that holds
  the weights twice and has half of its memory left. Over several devices the copies would undo how
  the weights are spread; on a TPU nobody has measured it.
  """
  platform = mesh.devices.flat[0].platform
  if platform == "cpu":
    return True
  memory = sharding.device_memory()
  if platform != "gpu" or mesh.size > 1 or memory is None:
    return False
  weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  return weights <= TWICE * memory


@partial(jax.jit, static_argnames=("model", "apart"))
def apart_once(model: Model, apart: bool, params: Any) -> Any:
  """The weights for many calls of go_on: with `apart`, each call would copy them."""
  return model.apart(params, None)[1] if apart else params


# Tokens of sources that a CPU reads at once: what their layers make has room in its caches.
PART = 1024


def part_here(mesh: jax.sharding.Mesh) -> int:
  """`part` of generate where answers are written: for one CPU. Other devices are the faster, the
  more they read at once.
  """
  return PART if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu" else 0


def key_of(rng: jax.Array | None) -> jax.Array:
  """The random key; without one, any: only a sampler looks at it."""
  return jax.random.key(0) if rng is None else rng


def generate(
  model: Model,
  params: Any,
  source: jax.Array,
  source_mask: jax.Array,
  adapters: Adapters | None,
  max_new: int,
  choose: Choose = greedy,
  rng: jax.Array | None = None,
  apart: bool = False,
  part: int = 0,
) -> jax.Array:
  """Up to max_new tokens for each row.

  Args:
    source, source_mask: (B, L) int32 and bool.
    choose: greedy, or a sampler.
    rng: the sampler's random key.
    apart: copy the weights of each layer, and its cache, to a place of its own before the first
      token (layers.LayersApart, pays_apart). It changes no token.
    part: where layers are apart, read sources in groups of rows with at most so many tokens
      (part_here); 0: all at once. Nor does this.

  Returns:
    (B, max_new) int32; after a row's end token stands the pad id.
  """
  writing = begin(model, params, source, source_mask, adapters, max_new, choose, rng, apart, part)
  return go_on(model, params, writing, adapters, max_new, choose, rng, apart).written
