"""ARM's pseudo inputs (SAPT section 3.3).

Per task, a block of its own on the same backbone learns to write the task's inputs, and samples of
it stand for them later. Reflection keeps nothing but their pooled embeddings; the texts are saved
for the reader. Pseudo inputs that exist already can be read instead.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sapt_jax import config, processes, streams
from sapt_jax.backbones.hf import Backbone
from sapt_jax.data.batches import Batcher, Row, bucket
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.prompts import Codec
from sapt_jax.data.published import read_split
from sapt_jax.data.tasks import Task
from sapt_jax.errors import InputError
from sapt_jax.evaluation.decode import sampler
from sapt_jax.evaluation.evaluate import Answerer
from sapt_jax.methods.lesson import Setting
from sapt_jax.methods.sequential import Sequential, SequentialOptions
from sapt_jax.progress import Progress
from sapt_jax.text_files import json_lines
from sapt_jax.training.fit import Log, Plan, Trainer

# What the generator reads, and what stands between the instruction and the input in what it writes:
# words that any tokenizer can spell.
START, SEPARATOR = "Definition:", "Input:"
RUN = 4  # words; samples are compared with training inputs by their runs of so many

Pairs = list[tuple[str, str]]  # (definition, input)


@dataclasses.dataclass(frozen=True)
class PseudoInputs:
  """pairs: texts that were kept; figures: how many samples were drawn, dropped (malformed,
  repeated, verbatim, near_verbatim) and kept, `yield`, the share of the drawn ones that could be
  kept, and `distinct_2`, how varied the kept ones are.
  """

  pairs: Pairs
  figures: dict[str, float]


def runs(text: str, length: int) -> list[tuple[str, ...]]:
  """Every run of `length` words of a text."""
  words = text.split()
  return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def distinct_2(texts: Sequence[str]) -> float:
  """Share of different ones among all pairs of neighbouring words (distinct-2, Li et al., 2016); 0
  where there is no pair.
  """
  pairs = [pair for text in texts for pair in runs(text, 2)]
  return round(len(set(pairs)) / max(len(pairs), 1), 4)


class KnownInputs:
  """A task's training inputs, indexed by their runs of words, to find copies of them."""

  def __init__(self, task: Task, spelled: Callable[[str], str]):
    texts = list(dict.fromkeys(" ".join(spelled(one.input).split()) for one in task.train))
    self.texts = set(texts)
    self.inputs_with: dict[tuple[str, ...], list[int]] = {}
    for number, text in enumerate(texts):
      for words in set(runs(text, RUN)):
        self.inputs_with.setdefault(words, []).append(number)

  def overlap(self, text: str) -> float:
    """The largest share of a text's runs that stand in one training input."""
    own = runs(text, RUN)
    found = [number for words in own for number in self.inputs_with.get(words, ())]
    return int(np.bincount(found).max()) / len(own) if found else 0.0


def split_sample(sample: str, definition: str) -> tuple[str, str] | None:
  """The instruction and the input of a sample; None where there are not both.

  An instruction may hold the separator itself. So where the sample begins with the task's own, it
  is cut behind that; else at the last separator.
  """
  words = r"\s+".join(map(re.escape, definition.split()))
  own = re.match(rf"\s*{words}\s*{re.escape(SEPARATOR)}", sample)
  if own:
    parts = definition, sample[own.end() :].strip()
  else:
    before, separator, text = sample.rpartition(SEPARATOR)
    parts = before.strip(), text.strip() if separator else ""
  return parts if parts[1] and (parts[0] or not definition) else None


def clean(
  samples: Sequence[str],
  task: Task,
  keep: int,
  max_overlap: float,
  has_room: Callable[[str], bool] = lambda definition: True,
  spelled: Callable[[str], str] = lambda text: text,
) -> PseudoInputs:
  """Well-formed, distinct samples that are no copies of a training input, word for word or nearly,
  at most `keep` of them.

  Args:
    max_overlap: see config.Generator. Inputs of fewer than four words are compared as a whole.
    has_room: whether a definition leaves room for an input in a prompt; a sample whose definition
      does not is malformed.
    spelled: how a text comes back from the tokenizer that wrote the samples, which may lose some of
      it.
  """
  known, definition = KnownInputs(task, spelled), spelled(task.definition)
  pairs: Pairs = []
  seen: set[str] = set()
  counts = dict.fromkeys(("malformed", "repeated", "verbatim", "near_verbatim"), 0)
  for sample in samples:
    parts = split_sample(sample, definition)
    if parts is None or not has_room(parts[0]):
      counts["malformed"] += 1
      continue
    flat = " ".join(parts[1].split())
    if flat in seen:
      counts["repeated"] += 1
    elif flat in known.texts:
      counts["verbatim"] += 1
    elif known.overlap(flat) > max_overlap:
      counts["near_verbatim"] += 1
    else:
      pairs.append(parts)
    seen.add(flat)
  kept = pairs[:keep]
  figures = {
    "yield": round(len(pairs) / max(len(samples), 1), 4),
    "distinct_2": distinct_2([text for _, text in kept]),
  }
  return PseudoInputs(kept, {"drawn": len(samples), **counts, "kept": len(kept), **figures})


class Generator:
  """Learns and samples pseudo inputs, task after task, with one compiled step and one compiled
  sampler.
  """

  def __init__(
    self,
    options: config.Generator,
    backbone: Backbone,
    setting: Setting,
    codec: Codec,
    answering: Batcher,
    mesh: jax.sharding.Mesh,
    checkpoint_every: int,
  ):
    pet = config.Pet(kind="lora", rank=options.rank, alpha=setting.pet.alpha)
    self.options, self.codec = options, codec
    self.method = Sequential(SequentialOptions(), dataclasses.replace(setting, pet=pet))
    fit = config.Fit(
      batch_size=options.batch_size,
      accumulation=options.accumulation,
      learning_rate=options.learning_rate,
      epochs=options.epochs,
      checkpoint_every=checkpoint_every,
    )
    # What is written here is about as long as the sources that it is like.
    start = bucket(len(codec.encode(START)))
    shapes = tuple((size if answering.left else start, size) for size, _ in answering.shapes)
    training = dataclasses.replace(
      answering, size=options.batch_size, stream="generator batches", shapes=shapes
    )
    self.trainer = Trainer(backbone, self.method, fit, training, mesh)
    choose = sampler(options.top_k, options.repetition_penalty, options.temperature)
    sampling = dataclasses.replace(answering, shapes=())
    self.answerer = Answerer(backbone, self.method, sampling, mesh, choose)

  def rows(self, task: Task) -> list[Row]:
    """start marker -> definition, separator, input; one row per training example."""
    start = self.codec.encode(START)
    codec = dataclasses.replace(self.codec, max_target=self.options.max_length)
    return [
      Row(start, codec.target(f"{task.definition}\n{SEPARATOR} {example.input}"), 0)
      for example in task.train
    ]

  def check(self, task: Task) -> None:
    """Whether there is room for an input behind the task's instruction.

    Raises:
      InputError: there is none.
    """
    before_input = self.codec.encode(f"{task.definition}\n{SEPARATOR}")
    if len(before_input) >= self.options.max_length:
      raise InputError(
        f"generator.max_length {self.options.max_length}: the instruction of {task.name} leaves "
        "no room for an input; raise it"
      )

  def write(self, task: Task, index: int, seed: int, log: Log, progress: Progress) -> PseudoInputs:
    """Trains the task's generator block and returns its cleaned samples; what is done of it is kept
    in the task's progress.
    """
    rows, rng = self.rows(task), streams.of_seed(seed, "generator", index)
    steps = min(self.options.steps, self.trainer.steps(len(rows)))
    label = f"task {index + 1}, {task.name} (inputs)"
    plan = Plan(label, steps, progress.checkpoints("inputs"), log)
    learned = self.trainer.fit(self.method.start(rng), rows, plan)
    keep = self.options.kept_of(len(task.train))
    drawn = math.ceil(keep * self.options.oversample)
    longest = min(self.options.max_length, bucket(max(len(row.target) for row in rows)))
    sampling = streams.of_seed(seed, "pseudo inputs", index)
    kept = progress.answers("inputs")
    answers = self.answerer.answer(learned, rows[:1] * drawn, longest, sampling, kept)
    samples = [self.codec.text(ids) for ids in answers.tokens]
    pseudo = clean(
      samples, task, keep, self.options.max_overlap, self.codec.has_room, self.codec.spelled
    )
    log({"pseudo_inputs": pseudo.figures})
    if len(pseudo.pairs) < keep:
      processes.say(
        f"{task.name}: {len(pseudo.pairs)} of {keep} wanted pseudo inputs, which is no error; if "
        "the task is forgotten later, learn it and what follows again with more: "
        f"--from-task {index + 1} --generator.oversample {4 * self.options.oversample:g}"
      )
    return pseudo


class Stored:
  """Pseudo inputs that exist already, by task, in the place of a generator."""

  def __init__(self, pairs: dict[str, Pairs]):
    self.pairs = pairs
    self.most = max(1, *map(len, pairs.values()))  # Orbax saves no memory without a place in it

  @classmethod
  def read(
    cls, place: str, benchmark: str, names: Sequence[str], has_room: Callable[[str], bool]
  ) -> Stored:
    """From a folder as config.Generator.folder says.

    Raises:
      InputError: a task has none there, its file does not hold what it should, or a definition in
        it leaves no room for an input.
    """
    pairs, folder = {}, pathlib.Path(place).expanduser()
    for name in names:
      published = folder / BENCHMARKS[benchmark].folder / name / "train.json"
      own = [
        path
        for path in sorted(folder.glob(f"[0-9]*_{name}.jsonl"))
        if path.stem.split("_", 1)[1] == name
      ]
      if published.is_file():
        definition, examples = read_split(published)
        pairs[name] = [(definition, example.input) for example in examples]
      elif own:
        pairs[name] = [read_pair(row, place) for place, row in json_lines(own[0])]
      else:
        raise InputError(
          f"generator.folder {place!r}: no pseudo inputs of {name}; looked for {published} and "
          f"NUMBER_{name}.jsonl"
        )
      for definition in {definition for definition, _ in pairs[name]}:
        if not has_room(definition):
          raise InputError(
            f"generator.folder {place!r}: the definition {definition[:60]!r} of {name} leaves no "
            "room for an input; raise --data.max-source-length"
          )
    return cls(pairs)

  def check(self, task: Task) -> None:
    """All is checked as it is read."""

  def write(self, task: Task, index: int, seed: int, log: Log, progress: Progress) -> PseudoInputs:
    """The task's pseudo inputs, all that there are."""
    del index, seed, progress
    pairs = self.pairs[task.name]
    pseudo = PseudoInputs(
      pairs, {"read": len(pairs), "distinct_2": distinct_2([text for _, text in pairs])}
    )
    log({"pseudo_inputs": pseudo.figures})
    return pseudo


def read_pair(row: Any, where: str) -> tuple[str, str]:
  """One line of a run's pseudo_inputs; `where` is what an error calls it."""
  definition, text = (
    row.get(name) if isinstance(row, dict) else None for name in ("definition", "input")
  )
  if not isinstance(definition, str) or not isinstance(text, str):
    raise InputError(f'{where}: not an object with the texts "definition" and "input"')
  return definition, text


def prompt_rows(codec: Codec, pairs: Sequence[tuple[str, str]]) -> list[Row]:
  """The prompts of (definition, input) pairs, tokenised as a task's own prompts are."""
  return [Row(codec.source(definition, text), [codec.eos_id], 0) for definition, text in pairs]
