"""Holds the library against goldens: what the authors' PyTorch code computes on small random models.

    python benchmarks/parity.py GOLDEN.npz [...]

A golden holds a model's parameters, inputs and outputs: query, scores, mixture, hidden states, logits, loss, every
gradient, the replay KL of each earlier task with its gradients, and greedily decoded ids. All of it is computed anew by
the functions that train and answer, with `reference_quirks` on, and compared. One row per array: name, largest
difference, the same over the array's largest entry, tolerance, ok. The exit code is 1 if any array is off, and 2 for a
file that is no golden.

Sizes are read off the arrays. What they do not show comes from the golden's entry in an index*.json beside it; without
one from the public code's defaults: alpha 32, epsilon 1e-6, relu or gated gelu, T5's ids 0, 1, 0 for padding, end and
start, LLaMA's 1, 2. LLaMA's number of heads is then the one whose logits come closest, unless --heads gives it.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sapt_jax import arm, config, sals
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batch
from sapt_jax.errors import InputError
from sapt_jax.evaluation.decode import generate
from sapt_jax.interop import public
from sapt_jax.methods.base import Learned, Setting
from sapt_jax.methods.sapt import Sapt
from sapt_jax.training.step import batch_gradient, pooled_inputs

Arrays = dict[str, np.ndarray]

# Part of an array's name -> how far it may be off: absolutely, or relative to its largest entry. The first that fits.
TOLERANCES = (("/grad/", "rel", 5e-5), ("/kl", "abs", 1e-5), ("/loss", "rel", 1e-5), ("/generated_ids", "ids", 0.0),
              ("/generated_margin", "abs", 2e-4), ("hidden_state", "rel", 1e-5), ("/out/", "abs", 1e-4))
CLEAR_MARGIN = 1e-3  # where the two best logits are closer than this, either may be decoded
NO_GRADIENT = 1e-6  # a gradient array smaller than this is zero but for rounding


@dataclasses.dataclass(frozen=True)
class Golden:
  """A golden file and the library's side of it.

  Attributes:
    arrays: all of the file.
    tasks: T, blocks in the pool.
    prefix: of the attention's parameters, "encoder" or "model".
    learned: the pool, in a method with room for one task more, so that an empty slot is always there.
  """

  arrays: Arrays
  tasks: int
  prefix: str
  model: hf.Model
  params: Any
  method: Sapt
  learned: Learned

  def newest_first(self, x: jax.Array) -> jax.Array:
    """(..., capacity) in the order of the pool -> (..., T) in that of goldens."""
    return x[..., : self.tasks][..., ::-1]

  def oldest_first(self, x: np.ndarray) -> np.ndarray:
    """(..., T) in the order of goldens -> (..., capacity) in that of the pool."""
    return np.pad(x[..., ::-1], [(0, 0)] * (x.ndim - 1) + [(0, self.method.setting.capacity - self.tasks)])


def read_arrays(path: Path) -> Arrays:
  """All arrays of an .npz file."""
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise InputError(f"{path}: not an .npz file of arrays ({error})") from None
  if not any(name.startswith("param/") for name in arrays):
    raise InputError(f"{path}: not a golden: no arrays param/...")
  return arrays


def index_entry(path: Path) -> dict[str, Any]:
  """What an index*.json beside a golden says of it; nothing if there is none."""
  for index in sorted(path.parent.glob("index*.json")):
    entry = json.loads(index.read_text(encoding="utf-8")).get(path.name)
    if entry is not None:
      return entry
  return {}


def layer_count(arrays: Arrays, stack: str) -> int:
  """1 + the largest layer number of the parameters param/{stack}.{number}..."""
  start = f"param/{stack}."
  return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in arrays if name.startswith(start))


def t5_config(arrays: Arrays) -> dict[str, Any]:
  """config.json of the T5 that these parameters belong to."""
  attention = "param/encoder.block.0.layer.0.SelfAttention"
  buckets, heads = arrays[f"{attention}.relative_attention_bias.weight"].shape
  vocabulary, width = arrays["param/shared.weight"].shape
  feed_forward = "param/encoder.block.0.layer.1.DenseReluDense"
  return {
    "model_type": "t5", "vocab_size": vocabulary, "d_model": width, "num_heads": heads,
    "d_kv": arrays[f"{attention}.q.weight"].shape[0] // heads, "d_ff": arrays[f"{feed_forward}.wo.weight"].shape[1],
    "num_layers": layer_count(arrays, "encoder.block"), "num_decoder_layers": layer_count(arrays, "decoder.block"),
    "feed_forward_proj": "gated-gelu" if f"{feed_forward}.wi_0.weight" in arrays else "relu",
    "tie_word_embeddings": "param/lm_head.weight" not in arrays, "relative_attention_num_buckets": buckets}


def llama_config(arrays: Arrays) -> dict[str, Any]:
  """config.json of the LLaMA that these parameters belong to, but for num_attention_heads."""
  vocabulary, width = arrays["param/model.embed_tokens.weight"].shape
  return {
    "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width, "pad_token_id": 1, "eos_token_id": 2,
    "intermediate_size": arrays["param/model.layers.0.mlp.up_proj.weight"].shape[0],
    "num_hidden_layers": layer_count(arrays, "model.layers"),
    "tie_word_embeddings": "param/lm_head.weight" not in arrays}


def with_heads(raw: dict[str, Any], arrays: Arrays, heads: int) -> dict[str, Any]:
  """A LLaMA's config.json with this number of heads, and what follows from it."""
  width, key_width = (arrays[f"param/model.layers.0.self_attn.{x}_proj.weight"].shape[0] for x in "qk")
  if width % (2 * heads) or key_width % (width // heads):
    raise InputError(f"{heads} heads do not fit q_proj and k_proj of {width} and {key_width} rows")
  head_width = width // heads
  return raw | {"num_attention_heads": heads, "head_dim": head_width, "num_key_value_heads": key_width // head_width}


def all_heads(raw: dict[str, Any], arrays: Arrays) -> Iterator[dict[str, Any]]:
  """A LLaMA's config.json with every number of heads that its shapes allow."""
  for heads in range(1, arrays["param/model.layers.0.self_attn.q_proj.weight"].shape[0] // 2 + 1):
    try:
      yield with_heads(raw, arrays, heads)
    except InputError:
      continue


def make_golden(arrays: Arrays, raw: dict[str, Any], alpha: float, quirks: bool) -> Golden:
  """The model, pool and method that a golden's parameters make up."""
  given = {name.removeprefix("param/"): value for name, value in arrays.items() if name.startswith("param/")}
  model = hf.build_model(raw)
  params = {}
  for weight in hf.ARCHITECTURES[raw["model_type"]].weights(model.config):
    parts = [given[name].T if weight.transpose else given[name] for name in weight.names()]
    params[weight.path] = jnp.asarray(parts[0] if weight.layers is None else np.stack(parts))
  prefix = "model" if model.config.is_decoder_only else "encoder"
  keys = given[f"{prefix}.prompt_key"]
  if f"{prefix}.previous_prompts_keys" in given:
    keys = np.concatenate([keys, given[f"{prefix}.previous_prompts_keys"]])
  tasks = len(keys)
  pool = [public.block_from(given, model.config, age) for age in public.ages(tasks)]
  pet = config.Pet(rank=min(given[name].shape[0] for name in given if name.endswith("lora_A")), alpha=alpha)
  setting = Setting(pet, model.config.lora_sites(), params["embedding/table"], tasks + 1, 0)
  method = Sapt(config.Method(reference_quirks=quirks), setting)
  learned = public.make_learned(method, pool, keys[::-1], public.query_from(given, f"{prefix}.trans_input."))
  return Golden(arrays, tasks, prefix, model, traverse_util.unflatten_dict(params, sep="/"), method, learned)


def load_golden(path: Path, heads: int | None = None, quirks: bool = True) -> Golden:
  """Reads a golden and builds the library's side of it.

  Raises:
    InputError: not a golden, or one of a form that is not known.
  """
  arrays, entry = read_arrays(path), index_entry(path)
  if entry.get("attn_temperature", 1) != 1:
    raise InputError(f"{path}: attn_temperature {entry['attn_temperature']}: only 1, scores / sqrt(d_model), is known")
  known, alpha = entry.get("config", {}), entry.get("lora_alpha", 32)
  try:
    if "param/shared.weight" in arrays:
      return make_golden(arrays, t5_config(arrays) | known | {"model_type": "t5"}, alpha, quirks)
    raw, heads = llama_config(arrays) | known, heads or known.get("num_attention_heads")
    if heads:
      return make_golden(arrays, with_heads(raw, arrays, heads), alpha, quirks)
    return min((make_golden(arrays, one, alpha, quirks) for one in all_heads(raw, arrays)), key=logit_error)
  except KeyError as error:
    raise InputError(f"{path}: no array {error.args[0]}") from None


# What is computed anew


def batch_names(arrays: Arrays) -> list[str]:
  """The batches of a golden: "eq", "pad", ..."""
  return sorted({name.split("/")[0] for name in arrays if name.endswith("/in/labels")})


def make_batch(golden: Golden, name: str) -> Batch:
  """A golden's batch as training would have made it."""
  given = lambda x: golden.arrays[f"{name}/in/{x}"]
  target, ending = given("labels"), ""
  if golden.model.config.is_decoder_only:
    # Labels stand below the whole sequence, at its right end: here they start at the left.
    longest = int(np.max(np.sum(target != -100, axis=1)))
    order = np.argsort(target == -100, axis=1, kind="stable")[:, :longest]
    target, ending = np.take_along_axis(target, order, axis=1), "_wo_label"
  real = target != -100
  return Batch(
    given(f"input_ids{ending}").astype(np.int32), given(f"attention_mask{ending}") == 1,
    np.where(real, target, golden.model.config.pad_id).astype(np.int32), real, np.zeros(len(target), np.int32))


def attention(golden: Golden, batch: Batch) -> tuple[dict[str, jax.Array], Any]:
  """Query, scores and mixture of a batch, and what the backbone applies."""
  method, learned = golden.method, golden.learned
  pooled = pooled_inputs(golden.model, golden.params, batch, method.pools_padding)
  query, mixture = sals.query(learned.query, pooled), method.mixture(learned, pooled, batch.task)
  scores = golden.newest_first(sals.scores(query, learned.keys, learned.count))
  outputs = {"query": query, "key_attention_scores": scores, "key_attention_weights": golden.newest_first(mixture)}
  return outputs, method.adapters(learned, mixture)


def hidden_states(name: str, inputs: jax.Array, last: jax.Array) -> dict[str, jax.Array]:
  """Inputs of all layers (layers, B, L, D) and the final states, by name."""
  return {f"{name}/{i}": x for i, x in enumerate([*inputs, last])}


def t5_outputs(golden: Golden, batch: Batch) -> dict[str, jax.Array]:
  """Every forward output of a T5."""
  outputs, adapters = attention(golden, batch)
  norms = lambda module, method: module.name in ("encoder_norm", "decoder_norm") and method == "__call__"
  logits, seen = golden.model.apply(
    {"params": golden.params}, batch.source, batch.source_mask, batch.target, batch.target_mask, adapters,
    mutable=["intermediates"], capture_intermediates=norms)
  outputs["logits"], seen = logits, seen["intermediates"]
  for stack in ("encoder", "decoder"):
    outputs |= hidden_states(f"{stack}_hidden_states", seen[stack]["hidden"][0], seen[f"{stack}_norm"]["__call__"][0])
  return outputs | {"encoder_last_hidden_state": seen["encoder_norm"]["__call__"][0]}


def llama_outputs(golden: Golden, batch: Batch, tokens: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
  """Every forward output of a LLaMA on whole sequences (prompt and answer)."""
  outputs, adapters = attention(golden, batch)
  apply = partial(golden.model.apply, {"params": golden.params})
  states, sown = apply(tokens, mask, adapters, method="states", mutable=["intermediates"])
  outputs |= {"logits": apply(states, method="logits"), "last_hidden_state": states}
  return outputs | hidden_states("hidden_states", sown["intermediates"]["layers"]["hidden"][0], states)


def forward(golden: Golden, name: str) -> dict[str, jax.Array]:
  """Every forward output of a batch, in one compiled program."""
  batch = make_batch(golden, name)
  if not golden.model.config.is_decoder_only:
    return jax.jit(partial(t5_outputs, golden))(batch)
  tokens, mask = golden.arrays[f"{name}/in/input_ids"], golden.arrays[f"{name}/in/attention_mask"]
  return jax.jit(partial(llama_outputs, golden))(batch, tokens.astype(np.int32), mask == 1)


def decoded(golden: Golden, name: str) -> dict[str, np.ndarray]:
  """Greedily decoded ids, and the margins between the two best logits of the golden's own ids."""
  batch, theirs = make_batch(golden, name), golden.arrays[f"{name}/out/generated_ids"].astype(np.int32)
  only = golden.model.config.is_decoder_only
  before = theirs[:, : batch.source.shape[1] if only else 1]
  written = theirs[:, before.shape[1]:]

  @jax.jit
  def answer(batch: Batch) -> tuple[jax.Array, jax.Array]:
    adapters, source = attention(golden, batch)[1], (batch.source, batch.source_mask)
    logits = golden.model.apply({"params": golden.params}, *source, written, jnp.ones_like(written, bool), adapters)
    ids = generate(golden.model, golden.params, *source, adapters, written.shape[1])
    best = jax.lax.top_k(logits, 2)[0]
    return ids, best[..., 0] - best[..., 1]

  ids, margin = answer(batch)
  return {"generated_ids": np.concatenate([before, ids], axis=1), "generated_margin": np.asarray(margin)}


def named_gradient(golden: Golden, gradient: dict[str, Any]) -> Arrays:
  """A gradient of the trainable part under the names of a golden."""
  query = public.query_arrays(gradient["attention"]["query"], f"{golden.prefix}.trans_input.")
  key = {f"{golden.prefix}.prompt_key": np.asarray(gradient["attention"]["key"])[None]}
  return public.block_arrays(gradient["block"], golden.model.config) | query | key


def learning(golden: Golden, name: str) -> Arrays:
  """The loss of a batch and its gradient, from the training step."""
  step = jax.jit(partial(batch_gradient, golden.model, golden.method, 1))
  trainable = golden.method.trainable(golden.learned)
  gradient, metrics = step(golden.params, golden.learned, trainable, make_batch(golden, name))
  arrays = {f"grad/{x}": value for x, value in named_gradient(golden, gradient).items()}
  return arrays | {"out/loss": np.asarray(metrics["cross_entropy"])}


def replay(golden: Golden, name: str) -> Arrays:
  """The reflection loss of one earlier task ("replay/0", ...) and its gradient."""
  method, capacity = golden.method, golden.method.setting.capacity
  given = lambda x: golden.arrays[f"{name}/in/{x}"]

  def reflection(trainable: dict[str, Any], tokens: np.ndarray) -> jax.Array:
    embedded = golden.model.apply({"params": golden.params}, tokens.astype(np.int32), method="embed")
    memory = arm.empty_memory(capacity, len(tokens), golden.method.setting.width)
    pooled = sals.pool_embeddings(embedded, np.ones(tokens.shape, bool))  # quirk: padding and, in a LLaMA, the answer
    memory = arm.remember(memory, 0, pooled, jnp.asarray(golden.oldest_first(given("replay_labels"))))
    return method.reflection(dataclasses.replace(method.merge(golden.learned, trainable), memory=memory))

  trainable = method.trainable(golden.learned)
  loss, gradient = jax.jit(jax.value_and_grad(reflection))(trainable, given("input_ids"))
  arrays = {"out/kl": np.asarray(loss)} | {f"grad/{x}": value for x, value in named_gradient(golden, gradient).items()}
  if f"{name}/in/input_ids_wo_label" in golden.arrays:
    arrays["out/kl_if_prompt_only"] = np.asarray(reflection(trainable, given("input_ids_wo_label")))
  return arrays


def logit_error(golden: Golden) -> float:
  """Largest difference between the logits of a golden's first batch and ours."""
  name = batch_names(golden.arrays)[0]
  return compare(golden, f"{name}/out/logits", np.asarray(forward(golden, name)["logits"])).max_abs


# How it is compared


@dataclasses.dataclass(frozen=True)
class Row:
  """One array's comparison."""

  name: str
  max_abs: float
  max_rel: float
  tolerance: str
  ok: bool

  def __str__(self) -> str:
    return f"{self.name:<92} {self.max_abs:8.2e} {self.max_rel:8.2e} {self.tolerance:>9} {'ok' if self.ok else 'FAIL'}"


def live_places(golden: Golden, name: str) -> np.ndarray:
  """(B, N) bool: decoded ids up to and including the first end token."""
  margin = golden.arrays[f"{name}/out/generated_margin"]
  ended = golden.arrays[f"{name}/out/generated_ids"][:, -margin.shape[1]:] == golden.model.config.eos_id
  return np.cumsum(ended, axis=1) - ended == 0


def wrong_ids(golden: Golden, name: str, ours: np.ndarray) -> np.ndarray:
  """(B,) bool: rows whose decoded ids differ, and not first where the choice was within CLEAR_MARGIN."""
  theirs, margin = golden.arrays[f"{name}/out/generated_ids"], golden.arrays[f"{name}/out/generated_margin"]
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
  elif golden.model.config.is_decoder_only and theirs.ndim == 3:  # a row that sees nothing but padding means nothing
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
    found = learning(golden, name)
    arrays |= {"out/loss": found["out/loss"]} if forward_only else found
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
    parts += sorted({name.rsplit("/", 2)[0] for name in golden.arrays if name.endswith("/in/replay_labels")})
  for part in parts:
    ours = computed(golden, part, forward_only)
    for name in golden.arrays:
      if name.startswith((f"{part}/out/", f"{part}/grad/")) and not (forward_only and "/grad/" in name):
        yield compare(golden, name, ours[name]) if name in ours else Row(name, math.nan, math.nan, "not known", False)


def main(arguments: list[str] | None = None) -> int:
  """Prints the table; the exit code says whether all is well."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("goldens", nargs="+", type=Path, metavar="GOLDEN.npz", help="files to compare with")
  parser.add_argument("--heads", type=int, help="attention heads of a LLaMA whose golden has no index*.json beside it")
  parser.add_argument("--correct", action="store_true", help=(
    "leave reference_quirks off and compare the outputs of batches without padding, which must be the same"))
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
