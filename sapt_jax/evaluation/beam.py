"""Beam search by Hugging Face's rules, on the key-value cache that greedy decoding uses.

B rows, K beams, V vocabulary, N new tokens. Where rows and beams share an axis, B * K, a row's
beams stand together.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax.backbones.hf import Model
from sapt_jax.evaluation.decode import rows_axis
from sapt_jax.pet.adapters import Adapters

ABSENT = -1e9  # the score of an answer that is not there

# What differs between the beams of a row: keys and values of answer tokens,
# (layers, B * K, heads, length, head width).
PER_BEAM = ("self_k", "self_v", "k", "v")


@flax.struct.dataclass
class Search:
  """What is known after `count` tokens.

  Attributes:
    running, done: (B, K, N) int32, unfinished and finished answers, best first; pad ids where
      nothing is written.
    running_scores: (B, K) float32, log probabilities.
    done_scores: (B, K) float32, log probability / length ** length_penalty.
    finished: (B, K) bool, which of `done` are there.
    parents: (B, K) int32, the beam before the last token that each of `running` goes on from.
    open: (B,) bool, rows whose finished answers may still be bettered.
    count: () int32.
  """

  running: jax.Array
  done: jax.Array
  running_scores: jax.Array
  done_scores: jax.Array
  finished: jax.Array
  parents: jax.Array
  open: jax.Array
  count: jax.Array


def nothing_yet(rows: int, beams: int, max_new: int, pad_id: int) -> Search:
  """A search before its first token. Only the first beam counts:
  all would go on from the same place.
  """
  empty = jnp.full((rows, beams, max_new), pad_id, jnp.int32)
  absent = jnp.full((rows, beams), ABSENT)
  return Search(
    running=empty,
    done=empty,
    running_scores=absent.at[:, 0].set(0.0),
    done_scores=absent,
    finished=jnp.zeros((rows, beams), bool),
    parents=jnp.zeros((rows, beams), jnp.int32),
    open=jnp.ones(rows, bool),
    count=jnp.zeros((), jnp.int32),
  )


def best(scores: jax.Array, count: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """The `count` largest of scores (B, C), best first,
  and the same entries of the arrays (B, C, ...).
  """
  values, places = jax.lax.top_k(scores, count)
  rows = jnp.arange(scores.shape[0])[:, None]
  return values, *(x[rows, places] for x in arrays)


def choose(
  s: Search, logits: jax.Array, eos_id: int, length_penalty: float, early_stopping: bool
) -> Search:
  """Extends all beams by one token, given its logits (B * K, V).

  2 K candidates are looked at, as up to K of them end. The best K of the others run on; those that
  end are finished answers if they are among the best K of all.
  """
  (rows, beams, max_new), vocabulary = s.running.shape, logits.shape[-1]
  steps = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, beams, vocabulary)
  every = s.running_scores[:, :, None] + steps
  scores, places = jax.lax.top_k(every.reshape(rows, -1), 2 * beams)
  parents, tokens = places // vocabulary, places % vocabulary
  answers = s.running[jnp.arange(rows)[:, None], parents].at[:, :, s.count].set(tokens)
  ends = (tokens == eos_id) | (s.count + 1 == max_new)
  running_scores, running, parents = best(jnp.where(ends, ABSENT, scores), beams, answers, parents)

  length = (s.count + 1).astype(jnp.float32) ** length_penalty
  accepted = ends & (jnp.arange(2 * beams) < beams) & s.open[:, None]
  if early_stopping:
    accepted &= ~jnp.all(s.finished, axis=1, keepdims=True)
  join = partial(jnp.concatenate, axis=1)
  every_score = join([s.done_scores, jnp.where(accepted, scores / length, ABSENT)])
  every_answer, is_answer = join([s.done, answers]), join([s.finished, accepted])
  done_scores, done, finished = best(every_score, beams, every_answer, is_answer)
  worst = jnp.min(jnp.where(finished, done_scores, ABSENT), axis=1)
  return Search(
    running=running,
    done=done,
    running_scores=running_scores,
    done_scores=done_scores,
    finished=finished,
    parents=parents,
    open=s.open & (running_scores[:, 0] / length > worst),
    count=s.count + 1,
  )


def repeat_rows(tree: Any, beams: int) -> Any:
  """Every row `beams` times."""
  return jax.tree.map(lambda x: jnp.repeat(x, beams, axis=rows_axis(x)), tree)


def follow(cache: Any, parents: jax.Array) -> Any:
  """The cache of each beam's parent (B, K)."""
  rows, beams = parents.shape
  places = (jnp.arange(rows)[:, None] * beams + parents).reshape(-1)
  there = [name for name in PER_BEAM if hasattr(cache, name)]
  return cache.replace(**{name: getattr(cache, name)[:, places] for name in there})


def beam_search(
  model: Model,
  params: Any,
  source: jax.Array,
  source_mask: jax.Array,
  adapters: Adapters | None,
  max_new: int,
  beams: int,
  length_penalty: float = 1.0,
  early_stopping: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The best answer that a search with `beams` beams finds for each row.

  Rules, and so answers, are those of transformers' generate(num_beams=..., do_sample=False). A
  finished answer scores its log probability / length ** length_penalty, the end token counted. A
  row is closed once it has `beams` of them and its best unfinished answer, taken at its present
  length, scores no better than the worst.

  Args:
    source, source_mask: (B, L) int32 and bool.
    max_new: N; an answer of N tokens is finished.
    length_penalty: above 0 favours long answers, below 0 short ones.
    early_stopping: stop as soon as every row has `beams` finished answers.

  Returns:
    (B, N) int32, with the pad id after a row's end token, and the answers' scores (B,) float32.
  """
  config, variables = model.config, {"params": params}
  advance = partial(
    choose, eos_id=config.eos_id, length_penalty=length_penalty, early_stopping=early_stopping
  )
  # Each source is read once.
  logits, cache = model.apply(variables, source, source_mask, max_new, adapters, method="start")
  if adapters is not None:
    adapters = adapters.replace(**repeat_rows(adapters.of_rows(), beams))

  def unfinished(carry: tuple[Search, Any]) -> jax.Array:
    s = carry[0]
    full = jnp.all(s.finished) & early_stopping
    return (s.count < max_new) & jnp.any(s.open) & ~full

  def body(carry: tuple[Search, Any]) -> tuple[Search, Any]:
    s, cache = carry
    last = s.running[:, :, s.count - 1].reshape(-1)
    cache = follow(cache, s.parents)
    logits, cache = model.apply(variables, last, cache, adapters, method="extend")
    return advance(s, logits), cache

  first = nothing_yet(source.shape[0], beams, max_new, config.pad_id)
  carry = (advance(first, repeat_rows(logits, beams)), repeat_rows(cache, beams))
  found = jax.lax.while_loop(unfinished, body, carry)[0]
  return found.done[:, 0], found.done_scores[:, 0]
