"""Makes `t5-mini`, the small T5 that the embedded default runs on: tokenizer, pretraining, Hugging
Face folder, model card.

    python -m sapt_jax.mini.make_backbone --output DIR --seed 0 --steps N

Equal seeds see equal text in equal order; weights agree up to the rounding of the machine's matrix
products.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from sapt_jax.backbones import hf
from sapt_jax.backbones.architectures import t5_config
from sapt_jax.backbones.positions import relative_buckets
from sapt_jax.backbones.t5 import T5
from sapt_jax.mini import instructions, language, pretraining
from sapt_jax.mini.pretraining import Pair
from sapt_jax.mini.texts import Row
from sapt_jax.mini.tokenizer import VOCAB_SIZE, build_tokenizer, save_tokenizer

# Lengths of source and target in tokens; the first that fits is used. Few shapes, few compilations.
BUCKETS = ((8, 48), (32, 4), (48, 4), (40, 16), (64, 24))
CHUNK = 2048  # examples that are drawn, tokenised and sorted into buckets at once
CONFIG: dict[str, Any] = {
  "architectures": ["T5ForConditionalGeneration"],
  "model_type": "t5",
  "vocab_size": VOCAB_SIZE,
  "d_model": 160,
  "d_kv": 32,
  "num_heads": 5,
  "d_ff": 384,
  "num_layers": 4,
  "num_decoder_layers": 2,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": True,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "layer_norm_epsilon": 1e-6,
  "dropout_rate": 0.0,
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "decoder_start_token_id": 0,
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How long and how the backbone is trained.

  `batch` counts examples, `learning_rate` is the peak for kernels (see RATES). Copying must be
  learned (0.5 nats or less, after some 450 steps) before `copy_until`, a share of the steps: with
  it go the heads that the other tasks need. A rate of 3e-3 learns it in 240, and loses it again.
  """

  steps: int
  seed: int = 0
  batch: int = 48
  learning_rate: float = 1.2e-3
  copy_until: float = pretraining.COPY_UNTIL
  warm_up: int = 100
  log_every: int = 100
  eval_rows: int = 1024


@dataclasses.dataclass(frozen=True)
class Batch:
  """source (B, L) and target (B, M), int32, padded with 0; the target ends with </s>."""

  source: np.ndarray
  target: np.ndarray


def build_model(dtype: Any = jnp.float32) -> T5:
  """The Flax module of CONFIG, its layers unrolled:
  a loop over so few costs a CPU more than it saves.
  """
  unrolled = dataclasses.replace(t5_config(CONFIG), unroll=CONFIG["num_layers"])
  return T5(dataclasses.replace(unrolled, dtype=jnp.dtype(dtype)))


def pad(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
  """(len(rows), length) int32, right-padded with 0."""
  out = np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
  """Token ids of source and target, </s> at the end of both."""
  sources = tokenizer.encode_batch([pair.source for pair in pairs])
  targets = tokenizer.encode_batch([pair.target for pair in pairs])
  return [(source.ids, target.ids) for source, target in zip(sources, targets, strict=True)]


def batches(tokenizer: Tokenizer, rng: np.random.Generator, settings: Settings) -> Iterator[Batch]:
  """Endless batches of the mixture as it changes over the steps, each of one bucket's shape; what
  fits no bucket is dropped.
  """
  size, until = settings.batch, settings.copy_until
  waiting: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = defaultdict(list)
  done = 0
  while True:
    ready = []
    chunk = [pretraining.mixture_pair(rng, done / settings.steps, until) for _ in range(CHUNK)]
    for source, target in encode(tokenizer, chunk):
      shape = next((b for b in BUCKETS if len(source) <= b[0] and len(target) <= b[1]), None)
      if shape is None:
        continue
      waiting[shape].append((source, target))
      if len(waiting[shape]) == size:
        sources, targets = zip(*waiting.pop(shape), strict=True)
        ready.append(Batch(pad(sources, shape[0]), pad(targets, shape[1])))
    done += len(ready)
    for i in rng.permutation(len(ready)):
      yield ready[i]


def loss_and_hits(
  model: T5, params: Any, source: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean cross-entropy of the target's real tokens in nats, and (B,) bool:
  every token of the row is the most likely one.
  """
  real = target > 0
  logits = model.apply({"params": params}, source, source > 0, target, real).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  hit = jnp.all((logits.argmax(-1) == target) | ~real, axis=-1)
  return jnp.sum(losses * real) / jnp.sum(real), hit


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(
  model: T5,
  optimizer: optax.GradientTransformation,
  params: Any,
  state: Any,
  source: jax.Array,
  target: jax.Array,
) -> tuple[Any, Any, jax.Array]:
  """One step; returns parameters, optimizer state and loss."""
  loss, grads = jax.value_and_grad(lambda p: loss_and_hits(model, p, source, target)[0])(params)
  updates, state = optimizer.update(grads, state, params)
  return optax.apply_updates(params, updates), state, loss


@partial(jax.jit, static_argnums=0)
def hits(model: T5, params: Any, source: jax.Array, target: jax.Array) -> jax.Array:
  """(B,) bool: greedy decoding would give exactly the target."""
  return loss_and_hits(model, params, source, target)[1]


def rate_group(path: tuple[Any, ...]) -> str:
  """The learning-rate group of a parameter: queries learn slower than kernels,
  what has unit scale learns faster.
  """
  name = "/".join(str(part.key) for part in path)
  marks = {"/q/": "query", "_bias/": "bias", "scale": "unit", "embedding/": "unit"}
  return next((group for mark, group in marks.items() if mark in name), "kernel")


# (stack, head) -> distance of the key that the head looks at when training starts, by BIAS nats.
LOOKS_AT = {
  ("encoder", 0): -1,
  ("encoder", 1): 1,
  ("encoder", 2): 0,
  ("decoder", 0): 0,
  ("decoder", 1): -1,
}
BIAS = 6.0
RATES = {"kernel": 1.0, "query": 1 / 3, "unit": 3.0, "bias": 7.0}  # times the learning rate


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
  """Adam with one rate per group of parameters, linear warm-up and cosine decay to a hundredth."""
  warm_up = min(settings.warm_up, max(1, settings.steps // 10))

  def adam(rate: float) -> optax.GradientTransformation:
    steps = max(settings.steps, warm_up + 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, steps, rate / 100)
    return optax.adam(schedule, b2=0.98)

  groups = {group: adam(settings.learning_rate * factor) for group, factor in RATES.items()}
  labels = partial(jax.tree_util.tree_map_with_path, lambda path, _: rate_group(path))
  return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(groups, labels))


def fresh_params(model: T5, seed: int) -> Any:
  """Random parameters, but for position biases that give some heads a sense of place from step one.

  Copying needs a head that looks one token back, and a bias grows to the size that takes only over
  thousands of steps: from T5's own start the copy drill is at 2.4 nats after 400 steps, from this
  one at 0.5.
  """
  params = nn.meta.unbox(hf.init_params(model, jax.random.key(seed)))
  for (stack, head), distance in LOOKS_AT.items():
    table, c = params[f"{stack}_bias"]["table"], model.config
    row = relative_buckets(jnp.asarray(distance), stack == "encoder", c.buckets, c.max_distance)
    params[f"{stack}_bias"]["table"] = table.at[row, head].add(BIAS)
  return params


def accuracy(
  model: T5, params: Any, tokenizer: Tokenizer, seed: int, rows: int
) -> dict[str, float]:
  """Exact match in % of greedy answers to fresh instruction rows, per family of the mixture,
  and their mean as "all".
  """
  rng = np.random.default_rng((seed, 1))
  result = {}
  for writer in instructions.FAMILIES:
    written: list[Row] = [writer(rng) for _ in range(rows // len(instructions.FAMILIES))]
    framed = [
      Pair(pretraining.FRAME.format(definition=definition, input=text), answer)
      for definition, text, answer in written
    ]
    coded = encode(tokenizer, framed)
    sources, targets = pad([ids for ids, _ in coded], 64), pad([ids for _, ids in coded], 16)
    right = hits(model, params, sources, targets)
    result[writer.__name__.lstrip("_")] = 100 * float(right.mean())
  return result | {"all": float(np.mean(list(result.values())))}


def train(settings: Settings, tokenizer: Tokenizer, log: pathlib.Path) -> tuple[Any, float]:
  """Trains in float32 from random weights; writes step, loss, minutes to `log`.
  Returns parameters and the last mean loss.
  """
  model = build_model()
  params = fresh_params(model, settings.seed)
  optimizer = make_optimizer(settings)
  state = optimizer.init(params)
  rng = np.random.default_rng((settings.seed, 0))
  stream = batches(tokenizer, rng, settings)
  began, losses, mean = time.time(), [], float("nan")
  with log.open("w", encoding="utf-8") as file:
    file.write("step,loss,minutes\n")
    for step, batch in zip(range(1, settings.steps + 1), stream, strict=False):
      params, state, loss = train_step(model, optimizer, params, state, batch.source, batch.target)
      losses.append(loss)
      if step % settings.log_every == 0 or step == settings.steps:
        mean, losses = float(np.mean(jax.device_get(losses))), []
        line = f"{step},{mean:.4f},{(time.time() - began) / 60:.2f}"
        file.write(line + "\n")
        file.flush()
        print(line, flush=True)
  return params, mean


CARD = """# t5-mini

A very small T5 (v1.1 form: gated gelu; tied head), made for sapt_jax's embedded default \
benchmark `mini`. It has read nothing but
generated text: the mixture of `sapt_jax/mini/pretraining.py`, in the little language of \
`sapt_jax/mini/language.py`. It knows no English
beyond that language and is of no use elsewhere. No definition and no input of the benchmark's \
tasks is in its training data.

| | |
|---|---|
| made by | `python -m sapt_jax.mini.make_backbone \
--output DIR --seed {seed} --steps {steps} --batch {batch} \
--learning-rate {learning_rate:g} --copy-until {copy_until:g}` |
| size | {parameters:,} parameters, bfloat16, {bytes:,} bytes |
| shape | width {d_model}, {num_heads} heads of {d_kv}, feed-forward {d_ff}, \
vocabulary {vocab_size} |
| layers | {num_layers} encoder, {num_decoder_layers} decoder |
| training | Adam, batch {batch}, peak learning rate {learning_rate:g}, float32, \
{minutes:.0f} minutes on two CPU cores |
| last mean loss | {loss:.3f} nats a token (all of `pretraining_log.csv` shows the way there) |
| exact match on unseen instruction rows | {accuracy:.1f} % |

Exact match by family of the mixture, stored weights, greedy decoding: {families}.
"""


def write_folder(
  output: pathlib.Path,
  settings: Settings,
  tokenizer: Tokenizer,
  params: Any,
  minutes: float,
  loss: float,
) -> None:
  """Writes config.json, model.safetensors (bfloat16), the tokenizer's files and README.md;
  scores what was written.
  """
  stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  hf.save_backbone(output, build_model(jnp.bfloat16), CONFIG, stored)
  save_tokenizer(tokenizer, pretraining.SENTINELS, output)
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
  scores = accuracy(build_model(), rounded, tokenizer, settings.seed, settings.eval_rows)
  overall = scores.pop("all")
  card = CARD.format(
    **CONFIG,
    **dataclasses.asdict(settings),
    parameters=sum(x.size for x in jax.tree.leaves(params)),
    bytes=(output / "model.safetensors").stat().st_size,
    minutes=minutes,
    loss=loss,
    accuracy=overall,
    families=", ".join(f"{name} {score:.0f}" for name, score in scores.items()),
  )
  (output / "README.md").write_text(card, encoding="utf-8")
  print(json.dumps(scores | {"all": overall}))


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the command line and makes the backbone."""
  parser = argparse.ArgumentParser(
    description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write")
  parser.add_argument("--seed", type=int, default=0, help="of text, order and initial weights")
  parser.add_argument("--steps", type=int, required=True, help="optimiser steps")
  parser.add_argument("--batch", type=int, default=Settings.batch, help="examples a step")
  rate, until, rows = Settings.learning_rate, Settings.copy_until, Settings.eval_rows
  parser.add_argument(
    "--learning-rate", type=float, default=rate, help="peak learning rate of kernels"
  )
  parser.add_argument(
    "--copy-until", type=float, default=until, help="share of the steps that only copy"
  )
  parser.add_argument(
    "--eval-rows", type=int, default=rows, help="unseen instruction rows to score"
  )
  parsed = parser.parse_args(arguments)
  if not 0 <= parsed.copy_until < pretraining.DRILLS_UNTIL:
    parser.error(
      f"--copy-until {parsed.copy_until}: must be in [0, {pretraining.DRILLS_UNTIL}), where drills "
      "lead no longer"
    )
  settings = Settings(
    parsed.steps,
    parsed.seed,
    parsed.batch,
    parsed.learning_rate,
    parsed.copy_until,
    eval_rows=parsed.eval_rows,
  )
  parsed.output.mkdir(parents=True, exist_ok=True)
  began = time.time()
  rng = np.random.default_rng((settings.seed, 2))
  sample = [pretraining.mixture_pair(rng) for _ in range(20000)]
  texts = [text for pair in sample for text in (pair.source, pair.target)]
  tokenizer = build_tokenizer(texts, language.lexicon(), pretraining.SENTINELS)
  params, loss = train(settings, tokenizer, parsed.output / "pretraining_log.csv")
  write_folder(parsed.output, settings, tokenizer, params, (time.time() - began) / 60, loss)


if __name__ == "__main__":
  main()
