"""The loop over tasks: learn, reflect, evaluate, snapshot. The only place that knows the order of
things.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sapt_jax
from sapt_jax import learner, methods, plots, processes
from sapt_jax.backbones import hf
from sapt_jax.config import Config
from sapt_jax.cost import Cost
from sapt_jax.data.batches import Row
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.prompts import Codec
from sapt_jax.data.rehearsal import kept
from sapt_jax.data.sources import load_stream
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.evaluation.continual_metrics import blocks_used, continual_metrics
from sapt_jax.evaluation.evaluate import mean_score
from sapt_jax.generator import Generator, PseudoInputs, Stored, prompt_rows, wanted
from sapt_jax.methods.base import Learned, TaskInputs
from sapt_jax.pet.blocks import capacity_for
from sapt_jax.recall import PseudoExamples, Recaller, closed_answers
from sapt_jax.run_folder import RunFolder, read_lines, write_lines
from sapt_jax.training.checkpoint import write_json
from sapt_jax.training.fit import Log, Plan, Trainer
from sapt_jax.training.site_moments import SiteMoments

# Examples to learn one task from, with the place in the stream of the task that they are of.
Lesson = list[tuple[int, Sequence[Example]]]


def run(config: Config, output: pathlib.Path) -> dict[str, Any]:
  """Learns the stream that a configuration describes, or goes on learning it; returns what
  scores.json holds.

  Raises: InputError: something in the configuration, the data, the model folder or the output
    folder is not as it must be; nothing has been
      computed then.
    DivergedError, Stopped: see Trainer.fit.
  """
  tasks, backbone, codec, stored, fingerprint = processes.together(lambda: _inputs(config))
  with RunFolder(output, config, fingerprint) as folder:
    single = processes.together(
      lambda: single_scores(config, [task.name for task in tasks], output, fingerprint)
    )
    with Cost() as cost:
      return Continual(config, tasks, codec, backbone, single, stored, folder, cost).run()


def _inputs(config: Config) -> tuple[list[Task], pathlib.Path, Codec, Stored | None, str]:
  """All that a run reads before it computes anything, checked: tasks, the backbone's folder,
  tokenizer, pseudo inputs, fingerprint.
  """
  methods.check(config.method, config.pet)
  tasks = load_stream(config.data, config.stream, config.seed)
  backbone = learner.backbone_folder(config)
  codec = learner.make_codec(config, backbone)
  for task in tasks:
    if not codec.has_room(task.definition):
      raise InputError(
        f"data.max_source_length {config.data.max_source_length}: the instruction of {task.name} leaves no room for an "
        "input; raise it"
      )
  names = [task.name for task in tasks]
  stored = (
    Stored.read(config.generator.folder, config.data.benchmark, names, codec.has_room)
    if config.generator.folder
    else None
  )
  return tasks, backbone, codec, stored, hf.fingerprint(backbone)


class Continual:
  """One run: what stays the same from task to task, and the order of things within one."""

  def __init__(
    self,
    config: Config,
    tasks: list[Task],
    codec: Codec,
    backbone: pathlib.Path,
    single: list[float] | None,
    stored: Stored | None,
    folder: RunFolder,
    cost: Cost,
  ):
    self.config, self.tasks, self.codec, self.single, self.folder, self.cost = (
      config,
      tasks,
      codec,
      single,
      folder,
      cost,
    )
    self.names = [task.name for task in tasks]
    self.capacity = capacity_for(len(tasks))
    self.memory_inputs = (
      stored.most if stored else max(wanted(config.generator, len(task.train)) for task in tasks)
    )
    self.built = built = learner.build(config, backbone, self.capacity, self.memory_inputs)
    self.method, self.answerer, self.pooler = built.method, built.answerer, built.pooler
    self.trainer = Trainer(built.backbone, built.method, config.fit, built.batcher, built.mesh)
    answering = built.answerer.batcher
    self.generator: Generator | Stored | None = None
    if built.method.wants_pseudo_inputs:
      self.generator = stored or Generator(
        config.generator, built.backbone, built.setting, codec, answering, built.mesh
      )
      for task in tasks:
        self.generator.check(task)
    self.recaller = (
      Recaller(
        config.generator,
        config.method.pseudo_examples,
        built.backbone,
        built.method,
        codec,
        answering,
        built.mesh,
      )
      if built.method.writes_examples
      else None
    )
    self.moments = (
      SiteMoments(built.backbone, built.method, built.batcher, built.mesh)
      if built.method.wants_moments
      else None
    )
    self.metric = metric_of(config)

  def run(self) -> dict[str, Any]:
    """Learns the whole stream, from where an earlier start of the same run stopped; returns what
    scores.json holds.
    """
    learned, records = self.folder.restore(self.names, self.built.start(self.config.seed))
    self.folder.trim_log(len(records))
    self.cost.lap("start")
    for index, task in list(enumerate(self.tasks))[len(records) :]:
      began, log = time.monotonic(), self.logger(index, task)
      inputs = self.task_inputs(index, task)
      recalled = self.recall(learned, index)
      rng = jax.random.fold_in(jax.random.key(self.config.seed), index + 1)
      learned = self.method.open(learned, rng, self.measured(learned, index, inputs))
      self.cost.lap("open")
      lesson = self.lesson(index, recalled)
      learned = self.learn(learned, index, task, lesson, log)
      self.cost.lap("learn")
      mixture = self.training_mixture(learned, index, inputs)
      learned, pseudo = self.reflect(learned, index, task, inputs, log)
      self.cost.lap("reflect")
      record, answers = self.evaluate(learned, index)
      self.cost.lap("evaluate")
      record |= {
        "task": task.name,
        "steps": self.steps(index, lesson),
        "training_mixture": mixture,
        "pseudo_examples": [examples.counts for examples in recalled],
        "capacity": self.capacity,
        "memory_inputs": self.memory_inputs,
        "wall_s": round(time.monotonic() - began, 1),
      }
      self.snapshot(learned, index, task, record, answers, pseudo)
      self.cost.lap("save")
      log(self.cost.take())
      records.append(record)
      processes.say(score_table(self.names, [r["scores"] for r in records]))
    return self.finish(records)

  def recall(self, learned: Learned, index: int) -> list[PseudoExamples]:
    """Examples of each earlier task, written by what has been learned so far, if the method can.
    The tasks give their labels, no rows.

    A run that is continued inside a task draws the same ones again.
    """
    if self.recaller is None or index == 0:
      return []
    recalled = self.recaller.write(
      learned, [closed_answers(task) for task in self.tasks[:index]], self.config.seed + index
    )
    rows = (
      {
        "task": task.name,
        "definition": task.definition,
        "input": example.input,
        "output": example.references[0],
      }
      for task, pseudo in zip(self.tasks, recalled, strict=False)
      for example in pseudo.examples
    )
    self.folder.write(f"pseudo_examples/{index:02d}_{self.names[index]}.jsonl", rows)
    return recalled

  def lesson(self, index: int, recalled: Sequence[PseudoExamples]) -> Lesson:
    """What the index-th task is learned from: what the method recalls or rehearses of earlier
    tasks, and the task's own examples.
    """
    earlier = (
      [pseudo.examples for pseudo in recalled]
      if self.recaller is not None
      else [
        kept(task.train, self.method.rehearsal, self.config.seed) for task in self.tasks[:index]
      ]
    )
    return [*enumerate(earlier), (index, self.tasks[index].train)]

  def learn(self, learned: Learned, index: int, task: Task, lesson: Lesson, log: Log) -> Learned:
    """Trains the newest block (and what goes with it) on the task."""
    rows = [row for j, examples in lesson for row in self.training_rows(j, examples)]
    validate = None
    if self.config.fit.validate_every or self.config.fit.validate_epochs:
      judged = range(index + 1) if self.method.waits else [index]

      def validate(current):
        return float(
          np.mean([self.score(current, j, self.tasks[j], self.tasks[j].dev)[0] for j in judged])
        )

    plan = Plan(
      f"{index + 1}/{len(self.tasks)} {task.name}",
      self.steps(index, lesson),
      self.folder.progress(index),
      log,
      validate,
    )
    return self.trainer.fit(learned, rows, plan)

  def steps(self, index: int, lesson: Lesson) -> int:
    """Updates that learning the index-th task takes."""
    if self.method.waits:
      return (
        sum(self.trainer.steps(len(task.train)) for task in self.tasks)
        if index + 1 == len(self.tasks)
        else 0
      )
    return self.trainer.steps(sum(len(examples) for _, examples in lesson))

  def reflect(
    self, learned: Learned, index: int, task: Task, inputs: TaskInputs, log: Log
  ) -> tuple[Learned, PseudoInputs | None]:
    """Has pseudo inputs written if the method wants them, and lets it remember the task."""
    pseudo = None
    if self.generator is not None:
      pseudo = self.generator.write(task, index, self.config.seed, log)
      inputs = dataclasses.replace(
        inputs, pseudo=self.pooler(prompt_rows(self.codec, pseudo.pairs))
      )
    return self.method.close(learned, self.measured(learned, index, inputs)), pseudo

  def evaluate(self, learned: Learned, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores on all tasks seen so far, their mean mixtures, and every answer."""
    scores: list[float | None] = []
    mixtures: list[list[float]] = []
    answers: list[dict[str, Any]] = []
    last = index + 1 == len(self.tasks)

    def wanted(j):
      return last or (not self.method.waits and (self.config.evaluation.every_task or j == index))

    for j, task in enumerate(self.tasks[: index + 1]):
      if not wanted(j):
        scores.append(None)
        continue
      value, texts, weights = self.score(learned, j, task, task.test)
      scores.append(value)
      mixtures.append(self.mean_mixture(weights))
      answers += [
        {
          "after": self.names[index],
          "task": task.name,
          "input": example.input,
          "prediction": text,
          "references": list(example.references),
        }
        for example, text in zip(task.test, texts, strict=True)
      ]
    return {"scores": scores, "testing_mixture": mixtures}, answers

  def score(
    self, learned: Learned, index: int, task: Task, examples: Sequence[Example]
  ) -> tuple[float, list[str], np.ndarray]:
    """Mean score on examples of a task (0-100), the answers, and the mixtures they were given with."""
    answers = self.answerer.answer(
      learned, self.rows(index, task.definition, examples), self.config.data.max_target_length
    )
    texts = [self.codec.text(ids) for ids in answers.tokens]
    return (
      mean_score(self.metric, texts, [example.references for example in examples]),
      texts,
      answers.mixtures,
    )

  def rows(self, index: int, definition: str, examples: Sequence[Example]) -> list[Row]:
    """Examples of the index-th task, tokenised."""
    return [
      Row(
        self.codec.source(definition, example.input),
        self.codec.target(example.references[0]),
        index,
      )
      for example in examples
    ]

  def training_rows(self, index: int, examples: Sequence[Example]) -> list[Row]:
    """The same to learn from: with their language-modelling pairs, if the method learns to write
    examples.
    """
    rows = self.rows(index, self.tasks[index].definition, examples)
    return rows if self.recaller is None else self.recaller.with_lm_pairs(rows, examples)

  def task_inputs(self, index: int, task: Task) -> TaskInputs:
    """Pooled embeddings of the task's training and held-out inputs."""
    train, held_out = (
      self.pooler(self.rows(index, task.definition, examples))
      for examples in (task.train, task.dev)
    )
    return TaskInputs(train, held_out, pseudo=train[:0])

  def measured(self, learned: Learned, index: int, inputs: TaskInputs) -> TaskInputs:
    """The task's inputs with what enters the LoRA sites now, if the method wants that."""
    if self.moments is None:
      return inputs
    task = self.tasks[index]
    return dataclasses.replace(
      inputs, moments=self.moments(learned, self.rows(index, task.definition, task.train))
    )

  def training_mixture(self, learned: Learned, index: int, inputs: TaskInputs) -> list[float]:
    """Mean mixture of the task's training inputs when it has just been learned."""
    mixture = self.method.mixture(learned, inputs.train, jnp.full(len(inputs.train), index))
    return self.mean_mixture(np.asarray(mixture))

  def mean_mixture(self, mixtures: np.ndarray) -> list[float]:
    """Mean weight of each block over inputs (n, T); where blocks belong to tasks, of those that the
    stream will fill.
    """
    blocks = len(self.tasks) if self.method.block_per_task else None
    return [round(float(weight), 6) for weight in mixtures.mean(axis=0)[:blocks]]

  def snapshot(
    self,
    learned: Learned,
    index: int,
    task: Task,
    record: dict[str, Any],
    answers: list[dict[str, Any]],
    pseudo: PseudoInputs | None,
  ) -> None:
    """Writes what the task leaves behind, the snapshot last: with it the task is done."""
    self.folder.write(f"predictions/{index:02d}_{task.name}.jsonl", answers)
    if pseudo is not None:
      record["pseudo_inputs"] = pseudo.figures
      rows = ({"definition": definition, "input": text} for definition, text in pseudo.pairs)
      self.folder.write(f"pseudo_inputs/{index:02d}_{task.name}.jsonl", rows)
    self.folder.save(index, task.name, learned, record)

  def logger(self, index: int, task: Task) -> Log:
    """Writes figures to the log with the task they belong to."""
    return lambda figures: self.folder.log({"index": index, "task": task.name, **figures})

  def finish(self, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of scores.json, which is written with predictions.jsonl and the heatmaps."""
    count = len(self.tasks)
    rows = [r["scores"] for r in records]
    result = {
      "method": self.config.method.name,
      "label": self.method.label,
      "backbone": self.config.backbone.path,
      "tasks": self.names,
      "scores": [row + [None] * (count - len(row)) for row in rows],
      "single": self.single,
      "metrics": continual_metrics(rows, self.single),
      "metric": self.metric,
      "protocol": self.config.data.protocol,
      "pet": self.pet_words(),
      "seed": self.config.seed,
      "steps": [r["steps"] for r in records],
      "wall_s": round(sum(r["wall_s"] for r in records), 1),
      "versions": versions(),
    }
    if self.method.block_per_task:
      result["own_weight"] = round(
        float(np.mean(np.diag(np.array(records[-1]["testing_mixture"])))), 4
      )
    result["blocks_used"] = round(blocks_used(records[-1]["testing_mixture"]), 2)
    processes.by_first(lambda: self.publish(records, result))
    return result

  def pet_words(self) -> str:
    """The kind and size of a block, for tables."""
    pet = self.config.pet
    return f"lora of rank {pet.rank}" if pet.kind == "lora" else f"prompt of {pet.prompt_length}"

  def publish(self, records: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """Writes what the whole run leaves for the reader, scores.json last."""
    path = self.folder.path
    for when, mixtures in (
      ("training", [r["training_mixture"] for r in records]),
      ("testing", records[-1]["testing_mixture"]),
    ):
      if self.method.block_per_task:
        plots.mixture_heatmap(
          path / f"mixture_{when}.png", np.array(mixtures), self.names, f"mean mixture in {when}"
        )
    parts = [
      path / "predictions" / f"{index:02d}_{name}.jsonl" for index, name in enumerate(self.names)
    ]
    write_lines(path / "predictions.jsonl", (row for part in parts for row in read_lines(part)))
    write_json(path / "scores.json", result)


def single_scores(
  config: Config, names: list[str], output: pathlib.Path, fingerprint: str
) -> list[float] | None:
  """Scores of blocks trained alone on each task (a0 of FWT), from another run, or from one made now
  inside this run's folder.

  Raises: InputError: the other run is not finished, not of per_task, or its scores are not to be
    held beside this run's.
  """
  if not config.single:
    return None
  place = output / "single" if config.single == "train" else pathlib.Path(config.single)
  if config.single == "train":
    method = dataclasses.replace(config.method, name="per_task")
    evaluation = dataclasses.replace(config.evaluation, every_task=False)
    run(dataclasses.replace(config, method=method, evaluation=evaluation, single=""), place)
  try:
    finished = json.loads((place / "scores.json").read_text(encoding="utf-8"))
    asked = json.loads((place / "config.json").read_text(encoding="utf-8"))
    its = {
      "seed": finished["seed"],
      "data.protocol": finished["protocol"],
      "evaluation.metric": finished["metric"],
      "backbone.weights": asked["backbone.weights"],
    }
    alone = {name: finished["scores"][j][j] for j, name in enumerate(finished["tasks"])}
  except OSError:
    raise InputError(
      f"single {config.single!r}: no scores.json of a finished run is there; name the folder of one of per_task"
    ) from None
  except (ValueError, LookupError, TypeError):
    raise InputError(
      f"single {config.single!r}: {place / 'scores.json'} is not what a run writes; name a finished per_task run"
    ) from None
  missing = [name for name in names if name not in alone]
  if finished["method"] != "per_task" or missing:
    raise InputError(
      f"single {config.single!r}: a per_task run of all tasks is needed, not {finished['method']} without {missing}"
    )
  own = {
    "seed": config.seed,
    "data.protocol": config.data.protocol,
    "evaluation.metric": metric_of(config),
    "backbone.weights": fingerprint,
  }
  if its != own:
    others = ", ".join(
      f"{name} {value} (here {own[name]})" for name, value in its.items() if value != own[name]
    )
    raise InputError(
      f"single {config.single!r}: a run with {others}, whose scores are not to be held beside this run's"
    )
  return [alone[name] for name in names]


def metric_of(config: Config) -> str:
  """The metric that a run's answers are scored by."""
  return (
    BENCHMARKS[config.data.benchmark].metric
    if config.evaluation.metric == "benchmark"
    else config.evaluation.metric
  )


def versions() -> dict[str, str]:
  """Versions of what the numbers depend on."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers")
  own = {"sapt_jax": sapt_jax.__version__, "python": platform.python_version()}
  return own | {name: importlib.metadata.version(name) for name in names}


def score_table(names: Sequence[str], rows: Sequence[Sequence[float | None]]) -> str:
  """The score matrix as text: a row per task learned, a column per task seen."""
  width = max(len(name) for name in names[: len(rows)])
  lines = [" " * width + "".join(f"{j + 1:>6}" for j in range(len(rows)))]
  for name, row in zip(names, rows, strict=False):
    lines.append(
      f"{name:<{width}}"
      + "".join(f"{'-' if value is None else format(value, '.1f'):>6}" for value in row)
    )
  return "\n".join(lines)
