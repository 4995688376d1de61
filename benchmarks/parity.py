"""Holds the library against goldens:
what the authors' PyTorch code computes on small random models.

    python benchmarks/parity.py GOLDEN.npz [...]

A golden holds a model's parameters, inputs and outputs: query, scores, mixture, hidden states,
logits, loss, every gradient, the replay KL of each earlier task with its gradients, and greedily
decoded ids. All of it is computed anew by the functions that train and answer, with
`reference_quirks` on, and compared. One row per array: name, largest difference, the same over the
array's largest entry, tolerance, ok. The exit code is 1 if any array is off, and 2 for a file that
is no golden.

Sizes are read off the arrays. What they do not show comes from the golden's entry in an index*.json
beside it; without one from the public code's defaults: alpha 32, epsilon 1e-6, relu or gated gelu,
ids 0, 1 and 0 for T5's padding, end and start, 2 for LLaMA's end. LLaMA's number of heads is then
the one whose logits come closest, unless --heads gives it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import arm, sals
from sapt_jax.data.batches import Batch
from sapt_jax.errors import InputError
from sapt_jax.evaluation.decode import generate
from sapt_jax.interop import public
from sapt_jax.interop.golden import Arrays, Golden, batch_names, candidates
from sapt_jax.training.state import TrainState
from sapt_jax.training.step import batch_gradient

# Part of an array's name -> how far it may be off: absolutely, or relative to its largest entry.
# The first that fits.
TOLERANCES = (
  ("/grad/", "rel", 5e-5),
  ("/kl", "abs", 1e-5),
  ("/loss", "rel", 1e-5),
  ("/generated_ids", "ids", 0.0),
  ("/generated_margin", "abs", 2e-4),
  ("hidden_state", "rel", 5e-5),
  ("/out/", "abs", 1e-4),
)
CLEAR_MARGIN = 1e-3  # where the two best logits are closer than this, either may be decoded
NO_GRADIENT = 1e-6  # a gradient array smaller than this is zero but for rounding


def load_golden(path: Path, heads: int | None = None, quirks: bool = True) -> Golden:
  """A golden; where the number of heads is not known, with the one whose logits come closest.

  Raises:
    InputError: not a golden, or one of a form that is not known.
  """
  fitting = list(candidates(path, heads, quirks))
  return fitting[0] if len(fitting) == 1 else min(fitting, key=logit_error)


def inputs_of(golden: Golden, name: str) -> Arrays:
  """What a batch or a replay of a golden was computed from."""
  start = f"{name}/in/"
  return {x.removeprefix(start): y for x, y in golden.arrays.items() if x.startswith(start)}


def make_batch(golden: Golden, name: str) -> Batch:
  """A golden's batch as training would have made it."""
  given, ending = inputs_of(golden, name), ""
  target = given["labels"]
  if golden.model.config.is_decoder_only:
    # Labels stand below the whole sequence, at its right end: here they start at the left.
    longest = int(np.max(np.sum(target != -100, axis=1)))
    order = np.argsort(target == -100, axis=1, kind="stable")[:, :longest]
    target, ending = np.take_along_axis(target, order, axis=1), "_wo_label"
  real = target != -100
  target = np.where(real, target, golden.model.config.pad_id)
  return Batch(
    source=jnp.asarray(given[f"input_ids{ending}"], jnp.int32),
    source_mask=jnp.asarray(given[f"attention_mask{ending}"] == 1),
    target=jnp.asarray(target, jnp.int32),
    target_mask=jnp.asarray(real),
    task=jnp.zeros(len(target), jnp.int32),
  )


def attention(golden: Golden, batch: Batch) -> tuple[dict[str, jax.Array], Any]:
  """Query, scores and mixture of a batch, and what the backbone applies."""
  method, learned = golden.method, golden.learned
  pooled = method.features(golden.model, golden.params, batch)
  query, mixture = sals.query(learned.query, pooled), method.mixture(learned, pooled, batch.task)
  scores = golden.newest_first(sals.scores(query, learned.keys, learned.count))
  outputs = {
    "query": query,
    "key_attention_scores": scores,
    "key_attention_weights": golden.newest_first(mixture),
  }
  return outputs, method.adapters(learned, mixture)


def hidden_states(name: str, inputs: jax.Array, last: jax.Array) -> dict[str, jax.Array]:
  """Inputs of all layers (layers, B, L, D) and the final states, by name."""
  return {f"{name}/{i}": x for i, x in enumerate([*inputs, last])}


def t5_outputs(golden: Golden, batch: Batch) -> dict[str, jax.Array]:
  """Every forward output of a T5."""

  def norms(module: nn.Module, method: str) -> bool:
    return module.name in ("encoder_norm", "decoder_norm") and method == "__call__"

  outputs, adapters = attention(golden, batch)
  logits, seen = golden.model.apply(
    {"params": golden.params},
    batch.source,
    batch.source_mask,
    batch.target,
    batch.target_mask,
    adapters,
    mutable=["intermediates"],
    capture_intermediates=norms,
  )
  outputs["logits"], seen = logits, seen["intermediates"]
  for stack in ("encoder", "decoder"):
    inputs, last = seen[stack]["hidden"][0], seen[f"{stack}_norm"]["__call__"][0]
    outputs |= hidden_states(f"{stack}_hidden_states", inputs, last)
  return outputs | {"encoder_last_hidden_state": seen["encoder_norm"]["__call__"][0]}


def llama_outputs(
  golden: Golden, batch: Batch, tokens: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
  """Every forward output of a LLaMA on whole sequences (prompt and answer)."""
  outputs, adapters = attention(golden, batch)
  apply = partial(golden.model.apply, {"params": golden.params})
  states, sown = apply(tokens, mask, adapters, method="states", mutable=["intermediates"])
  outputs |= {"logits": apply(states, method="logits"), "last_hidden_state": states}
  inputs = sown["intermediates"]["layers"]["hidden"][0]
  return outputs | hidden_states("hidden_states", inputs, states)


def forward(golden: Golden, name: str) -> dict[str, jax.Array]:
  """Every forward output of a batch, in one compiled program."""
  batch = make_batch(golden, name)
  if not golden.model.config.is_decoder_only:
    return jax.jit(partial(t5_outputs, golden))(batch)
  given = inputs_of(golden, name)
  tokens, mask = given["input_ids"].astype(np.int32), given["attention_mask"] == 1
  return jax.jit(partial(llama_outputs, golden))(batch, tokens, mask)


def decoded(golden: Golden, name: str) -> dict[str, np.ndarray]:
  """Greedily decoded ids, and the margins between the two best logits of the golden's own ids."""
  batch = make_batch(golden, name)
  theirs = golden.arrays[f"{name}/out/generated_ids"].astype(np.int32)
  only = golden.model.config.is_decoder_only
  before = theirs[:, : batch.source.shape[1] if only else 1]
  written = theirs[:, before.shape[1] :]

  @jax.jit
  def answer(batch: Batch) -> tuple[jax.Array, jax.Array]:
    adapters, source = attention(golden, batch)[1], (batch.source, batch.source_mask)
    target = written, jnp.ones_like(written, bool)
    logits = golden.model.apply({"params": golden.params}, *source, *target, adapters)
    ids = generate(golden.model, golden.params, *source, adapters, written.shape[1])
    best = jax.lax.top_k(logits, 2)[0]
    return ids, best[..., 0] - best[..., 1]

  ids, margin = answer(batch)
  ids = np.concatenate([before, ids], axis=1)
  return {"generated_ids": ids, "generated_margin": np.asarray(margin)}


def named_gradient(golden: Golden, gradient: dict[str, Any]) -> Arrays:
  """A gradient of the trainable part under the names of a golden."""
  query = public.query_arrays(gradient["attention"]["query"], f"{golden.prefix}.trans_input.")
  key = {f"{golden.prefix}.prompt_key": np.asarray(gradient["attention"]["key"])[None]}
  return public.block_arrays(gradient["block"], golden.model.config) | query | key


def learning(golden: Golden, name: str) -> Arrays:
  """The loss of a batch and its gradient, from the training step."""
  step = jax.jit(partial(batch_gradient, golden.model, golden.method, 1))
  state = TrainState(jnp.zeros((), jnp.int32), golden.method.trainable(golden.learned), None)
  gradient, metrics = step(golden.params, golden.learned, state, make_batch(golden, name))
  arrays = {f"grad/{x}": value for x, value in named_gradient(golden, gradient).items()}
  return arrays | {"out/loss": np.asarray(metrics["cross_entropy"])}


def loss(golden: Golden, name: str) -> np.ndarray:
  """The loss of a batch alone."""
  batch = make_batch(golden, name)
  sums_of = jax.jit(partial(golden.method.loss_sums, golden.model))
  sums, _ = sums_of(golden.params, golden.learned, golden.learned, batch)
  return np.asarray(sums["cross_entropy"] / np.sum(batch.target_mask))


@partial(jax.jit, static_argnums=0)
def reflection(
  golden: Golden, trainable: dict[str, Any], tokens: jax.Array, target: jax.Array
) -> tuple[jax.Array, Any]:
  """The reflection loss on pseudo inputs (B, L) of one task with its target (capacity,),
  and its gradient.
  """
  method = golden.method
  embedded = golden.model.apply({"params": golden.params}, tokens.astype(jnp.int32), method="embed")
  # A quirk of theirs: padding is pooled too and, in a LLaMA, the answer.
  pooled = sals.pool_embeddings(embedded, jnp.ones(tokens.shape, bool))
  memory = arm.remember(arm.empty_memory(len(target), *pooled.shape), 0, pooled, target)

  def value(trainable: dict[str, Any]) -> jax.Array:
    learned = method.merge(golden.learned, trainable)
    return method.reflection(dataclasses.replace(learned, memory=memory))

  return jax.value_and_grad(value)(trainable)


def replay(golden: Golden, name: str) -> Arrays:
  """The reflection loss of one earlier task ("replay/0", ...) and its gradient."""
  given, trainable = inputs_of(golden, name), golden.method.trainable(golden.learned)
  labels = jnp.asarray(golden.oldest_first(given["replay_labels"]))
  loss, gradient = reflection(golden, trainable, given["input_ids"], labels)
  arrays = {f"grad/{x}": value for x, value in named_gradient(golden, gradient).items()}
  arrays["out/kl"] = np.asarray(loss)
  if "input_ids_wo_label" in given:
    loss, _ = reflection(golden, trainable, given["input_ids_wo_label"], labels)
    arrays["out/kl_if_prompt_only"] = np.asarray(loss)
  return arrays


def logit_error(golden: Golden) -> float:
  """Largest difference between the logits of a golden's first batch and ours."""
  name = batch_names(golden.arrays)[0]
  return compare(golden, f"{name}/out/logits", np.asarray(forward(golden, name)["logits"])).max_abs


# How it is compared


@dataclasses.dataclass(frozen=True)
class Row:
  """One array's comparison. The tolerance "no input": nothing to compute it from, "not known":
  not an array of the format.
  """

  name: str
  max_abs: float
  max_rel: float
  tolerance: str
  ok: bool

  def __str__(self) -> str:
    off = f"{self.max_abs:8.2e} {self.max_rel:8.2e} {self.tolerance:>9}"
    return f"{self.name:<92} {off} {'ok' if self.ok else 'FAIL'}"


def live_places(golden: Golden, name: str) -> np.ndarray:
  """(B, N) bool: decoded ids up to and including the first end token."""
  ids, margin = (golden.arrays[f"{name}/out/generated_{x}"] for x in ("ids", "margin"))
  ended = ids[:, -margin.shape[1] :] == golden.model.config.eos_id
  return np.cumsum(ended, axis=1) - ended == 0


def wrong_ids(golden: Golden, name: str, ours: np.ndarray) -> np.ndarray:
  """(B,) bool: rows whose decoded ids differ,
  and not first where the choice was within CLEAR_MARGIN.
  """
  theirs, margin = (golden.arrays[f"{name}/out/generated_{x}"] for x in ("ids", "margin"))
  differ = ours != theirs
  first = np.argmax(differ, axis=1) - (theirs.shape[1] - margin.shape[1])
  at_first = np.take_along_axis(margin, np.maximum(first, 0)[:, None], axis=1)[:, 0]
  return np.any(differ, axis=1) & ((first < 0) | (at_first >= CLEAR_MARGIN))


def compare(golden: Golden, name: str, ours: np.ndarray) -> Row:
  """One array of a golden against ours."""
  theirs, batch = golden.arrays[name], name.split("/")[0]
  kind, bound = next((kind, bound) for part, kind, bound in TOLERANCES if part in name)
  if kind == "ids":
    wrong = wrong_ids(golden, batch, ours)
    return Row(name, float(np.sum(wrong)), float(np.mean(wrong)), "0 rows", not np.any(wrong))
  where = np.ones((), bool)
  if name.endswith("generated_margin"):
    where = live_places(golden, batch)
  elif golden.model.config.is_decoder_only and theirs.ndim == 3:
    # A row that sees nothing but padding means nothing.
    where = golden.arrays[f"{batch}/in/attention_mask"][:, :, None] == 1
  if theirs.shape != ours.shape:
    return Row(name, math.inf, math.inf, f"{kind}<={bound:.0e}", False)
  error = float(np.max(np.abs(ours - theirs), where=where, initial=0.0))
  relative = error / max(float(np.max(np.abs(theirs), where=where, initial=0.0)), NO_GRADIENT)
  off = relative if kind == "rel" else error
  return Row(name, error, relative, f"{kind}<={bound:.0e}", off <= bound)  # a NaN is off


def computed(golden: Golden, name: str, forward_only: bool) -> Arrays:
  """All that can be compared of one batch or replay, by the full names of a golden."""
  if name.startswith("replay/"):
    arrays = replay(golden, name)
  else:
    outputs = forward(golden, name) | decoded(golden, name)
    arrays = {f"out/{x}": np.asarray(value) for x, value in outputs.items()}
    arrays |= {"out/loss": loss(golden, name)} if forward_only else learning(golden, name)
  return {f"{name}/{x}": value for x, value in arrays.items()}


def compare_all(golden: Golden, forward_only: bool = False) -> Iterator[Row]:
  """A row for every output and gradient that a golden holds.

  Args:
    forward_only: the outputs of batches without padding, which are the same in the correct mode.
  """
  parts = batch_names(golden.arrays)
  if forward_only:
    parts = [part for part in parts if np.all(golden.arrays[f"{part}/in/attention_mask"])]
  else:
    labels = [name for name in golden.arrays if name.endswith("/in/replay_labels")]
    parts += sorted({name.rsplit("/", 2)[0] for name in labels})
  for part in parts:
    ours = computed(golden, part, forward_only)
    for name in golden.arrays:
      if name.startswith(f"{part}/out/") or (name.startswith(f"{part}/grad/") and not forward_only):
        if name in ours:
          yield compare(golden, name, ours[name])
        elif name.endswith("/kl_if_prompt_only"):  # its input is not part of every golden
          yield Row(name, 0.0, 0.0, "no input", True)
        else:
          yield Row(name, math.nan, math.nan, "not known", False)


class Parser(argparse.ArgumentParser):
  """Wrong options end the program with code 2 and one line."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"parity: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> int:
  """Prints the table; the exit code says whether all is well."""
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "goldens", nargs="+", type=Path, metavar="GOLDEN.npz", help="files to compare with"
  )
  parser.add_argument(
    "--heads", type=int, help="attention heads of a LLaMA whose golden has no index*.json beside it"
  )
  parser.add_argument(
    "--correct",
    action="store_true",
    help="leave reference_quirks off and compare the outputs of batches without padding, "
    "which must be the same",
  )
  options = parser.parse_args(arguments)
  rows: list[Row] = []
  for path in options.goldens:
    try:
      golden = load_golden(path, options.heads, quirks=not options.correct)
    except InputError as error:
      print(f"parity: {error}", file=sys.stderr)
      return 2
    for row in compare_all(golden, forward_only=options.correct):
      rows.append(dataclasses.replace(row, name=f"{path.stem}/{row.name}"))
      print(rows[-1], flush=True)
  failed = sum(not row.ok for row in rows)
  worst = max((row.max_rel for row in rows), key=lambda x: math.inf if math.isnan(x) else x)
  if failed:
    print(f"parity: {failed} arrays are off")
  print(f"parity: {len(rows)} arrays, worst rel {worst:.2e}")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
