"""Answering with a key-value cache: one compiled loop that stops when every row has ended. B rows,
V vocabulary, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sapt_jax.backbones.hf import Model
from sapt_jax.pet.adapters import Adapters

# (logits (B, V) float32, tokens so far (B, N) int32, how many of them are there, random key)
# -> next tokens (B,) int32
Choose = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def greedy(logits: jax.Array, written: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
  """The most likely token of each row."""
  del written, count, rng
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sampler(top_k: int, repetition_penalty: float, temperature: float) -> Choose:
  """Draws among the top_k most likely tokens, after those already written have been made less
  likely (Keskar et al., 2019, CTRL).

  A score of a written token is divided by repetition_penalty when positive and multiplied by it
  when negative.
  """

  def choose(logits: jax.Array, written: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
    rows = jnp.arange(logits.shape[0])[:, None]
    # Places not yet written point past the vocabulary, where the scatter drops them.
    places = jnp.where(jnp.arange(written.shape[1]) < count, written, logits.shape[1])
    seen = jnp.zeros(logits.shape, bool).at[rows, places].set(True, mode="drop")
    penalised = jnp.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    scores = jnp.where(seen, penalised, logits) / temperature
    values, tokens = jax.lax.top_k(scores, min(top_k, logits.shape[1]))
    drawn = jax.random.categorical(rng, values)[:, None]
    return jnp.take_along_axis(tokens, drawn, axis=1)[:, 0].astype(jnp.int32)

  return choose


def generate(
  model: Model,
  params: Any,
  source: jax.Array,
  source_mask: jax.Array,
  adapters: Adapters | None,
  max_new: int,
  choose: Choose = greedy,
  rng: jax.Array | None = None,
) -> jax.Array:
  """Up to max_new tokens for each row.

  Args:
    source, source_mask: (B, L) int32 and bool.
    choose: greedy, or a sampler.
    rng: the sampler's random key.

  Returns:
    (B, max_new) int32; after a row's end token stands the pad id.
  """
  config, variables = model.config, {"params": params}
  logits, cache = model.apply(variables, source, source_mask, max_new, adapters, method="start")
  key = jax.random.key(0) if rng is None else rng

  def write(
    written: jax.Array, ended: jax.Array, logits: jax.Array, count: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    chosen = choose(logits.astype(jnp.float32), written, count, jax.random.fold_in(key, count))
    tokens = jnp.where(ended, config.pad_id, chosen)
    return written.at[:, count].set(tokens), ended | (chosen == config.eos_id), tokens

  def body(carry: tuple) -> tuple:
    written, ended, tokens, cache, count = carry
    logits, cache = model.apply(variables, tokens, cache, adapters, method="extend")
    written, ended, tokens = write(written, ended, logits, count)
    return written, ended, tokens, cache, count + 1

  nothing = jnp.full((source.shape[0], max_new), config.pad_id, jnp.int32)
  none_ended, first = jnp.zeros(source.shape[0], bool), jnp.zeros((), jnp.int32)
  written, ended, tokens = write(nothing, none_ended, logits, first)
  carry = (written, ended, tokens, cache, jnp.ones((), jnp.int32))
  return jax.lax.while_loop(lambda c: (c[4] < max_new) & ~jnp.all(c[1]), body, carry)[0]
