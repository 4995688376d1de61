"""ARM's pseudo inputs (SAPT section 3.3).

Per task, a block of its own on the same backbone learns to write the task's inputs, and samples of it stand for them later. Reflection
keeps nothing but their pooled embeddings; the texts are saved for the reader.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax

from sapt_jax import config
from sapt_jax.backbones.hf import Backbone
from sapt_jax.data.batches import Batcher, Row, bucket
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Task
from sapt_jax.evaluation.decode import sampler
from sapt_jax.evaluation.evaluate import Answerer
from sapt_jax.methods.base import Setting
from sapt_jax.methods.sequential import Sequential
from sapt_jax.training.fit import Log, Plan, Trainer

# What the generator reads, and what stands between the instruction and the input in what it writes: words that any tokenizer can spell.
START, SEPARATOR = "Definition:", "Input:"


@dataclasses.dataclass(frozen=True)
class PseudoInputs:
  """pairs: (definition, input) texts that were kept; counts: how many samples were drawn, malformed, repeated, verbatim, kept."""

  pairs: list[tuple[str, str]]
  counts: dict[str, int]


def wanted(options: config.Generator, examples: int) -> int:
  """Pseudo inputs to keep of a task with so many training examples."""
  return max(options.keep_at_least, int(options.keep * examples))


def clean(samples: Sequence[str], task: Task, keep: int) -> PseudoInputs:
  """Well-formed, distinct samples that do not repeat a training input word for word, at most `keep` of them."""
  known = {" ".join(example.input.split()) for example in task.train}
  pairs: list[tuple[str, str]] = []
  seen: set[str] = set()
  counts = {"drawn": len(samples), "malformed": 0, "repeated": 0, "verbatim": 0}
  for sample in samples:
    definition, separator, text = (part.strip() for part in sample.partition(SEPARATOR))
    flat = " ".join(text.split())
    if not (definition and separator and text):
      counts["malformed"] += 1
    elif flat in seen:
      counts["repeated"] += 1
    elif flat in known:
      counts["verbatim"] += 1
    else:
      pairs.append((definition, text))
    seen.add(flat)
  return PseudoInputs(pairs[:keep], counts | {"kept": min(keep, len(pairs))})


class Generator:
  """Learns and samples pseudo inputs, task after task, with one compiled step and one compiled sampler."""

  def __init__(self, options: config.Generator, backbone: Backbone, setting: Setting, codec: Codec, batcher: Batcher,
               mesh: jax.sharding.Mesh):
    pet = config.Pet(kind="lora", rank=options.rank, alpha=setting.pet.alpha)
    self.options, self.codec = options, codec
    self.method = Sequential(config.Method(name="sequential"), dataclasses.replace(setting, pet=pet))
    fit = config.Fit(batch_size=options.batch_size, learning_rate=options.learning_rate, epochs=options.epochs)
    batcher = dataclasses.replace(batcher, size=options.batch_size)
    self.trainer = Trainer(backbone, self.method, fit, batcher, mesh)
    choose = sampler(options.top_k, options.repetition_penalty, options.temperature)
    self.answerer = Answerer(backbone, self.method, batcher, mesh, choose)

  def rows(self, task: Task) -> list[Row]:
    """start marker -> definition, separator, input; one row per training example."""
    start = self.codec.tokenizer(START)["input_ids"]
    codec = dataclasses.replace(self.codec, max_target=self.options.max_length)
    return [Row(start, codec.target(f"{task.definition}\n{SEPARATOR} {example.input}"), 0) for example in task.train]

  def write(self, task: Task, index: int, seed: int, log: Log) -> PseudoInputs:
    """Trains the task's generator block and returns its cleaned samples."""
    rows, rng = self.rows(task), jax.random.fold_in(jax.random.key(seed), index)
    steps = min(self.options.steps, self.trainer.steps(len(rows)))
    learned = self.trainer.fit(self.method.start(rng), rows, Plan(f"{task.name} (inputs)", steps, None, log))
    keep = wanted(self.options, len(task.train))
    drawn = math.ceil(keep * self.options.oversample / self.options.batch_size) * self.options.batch_size
    longest = min(self.options.max_length, bucket(max(len(row.target) for row in rows)))
    answers = self.answerer.answer(learned, rows[:1] * drawn, longest, seed + index)
    pseudo = clean([self.codec.text(ids) for ids in answers.tokens], task, keep)
    log({"pseudo_inputs": pseudo.counts})
    return pseudo


def prompt_rows(codec: Codec, pairs: Sequence[tuple[str, str]]) -> list[Row]:
  """The prompts of (definition, input) pairs, tokenised as a task's own prompts are."""
  return [Row(codec.source(definition, text), [codec.eos_id], 0) for definition, text in pairs]


