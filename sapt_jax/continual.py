"""The loop over tasks: learn, reflect, evaluate, snapshot. The only place that knows the order of
things.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax

from sapt_jax import learner, processes, results, streams
from sapt_jax.backbones.attention import choose
from sapt_jax.config import Config, Fit
from sapt_jax.cost import Cost
from sapt_jax.data.inspection import Figures, figures_of, words_of
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.errors import InputError, Stopped
from sapt_jax.methods.lesson import Learned, Lesson
from sapt_jax.mini import T5_MINI
from sapt_jax.pet.blocks import capacity_for
from sapt_jax.provenance import provenance
from sapt_jax.remat import resolved
from sapt_jax.remote import mirror_of
from sapt_jax.requeued import is_later, start_of_job
from sapt_jax.run_folder import RunFolder
from sapt_jax.run_identity import BEGUN_IN, FREE, changes, shared, tasks_of, values_in
from sapt_jax.run_inputs import RunInputs, check_rows, most_pseudo_inputs, read_inputs
from sapt_jax.scoring import Evaluation, Scorer, metric_of, score_of_commonest, share_changed
from sapt_jax.single import single_scores
from sapt_jax.stored_run import fork
from sapt_jax.study import Instruments, TaskStudy
from sapt_jax.text_files import json_lines
from sapt_jax.training.fit import Plan
from sapt_jax.training.profile import Profile

# Steps of a task with which t5-mini learns short texts that are not of its own language.
ENOUGH = 600


def run(
  config: Config, output: str | pathlib.Path, keep: int | None = None, source: str = ""
) -> dict[str, Any]:
  """Learns the stream that a configuration describes, or goes on learning it; returns what
  scores.json holds.

  Args:
    output: the run's folder, or the URL of a remote one.
    keep: see RunFolder.
    source: a finished run, with whose tasks a new one begins; empty: none.

  Raises:
    InputError: something in the configuration, the data, the model folder or the output folder is
      not as it must be; nothing has been computed then.
    DivergedError, Stopped: see Trainer.fit.
  """
  if not str(output):
    raise InputError("--output is empty; name a folder for the run")
  # Before anything that one process would wait for and another would not.
  processes.check_alike((shared(config, {}), keep, source), "options")
  mirror = mirror_of(str(output))
  path = pathlib.Path(output) if mirror is None else mirror.local
  if source:
    processes.first_does(lambda: fork(source, path, mirror is not None, config))
  values = processes.first_tells(lambda: values_in(path, mirror))
  anew = keep is not None
  if anew and is_later(start_of_job(), values.get(BEGUN_IN)):
    processes.say("the job was started again: the run goes on, and begins anew no more")
    keep = None
  begun = tasks_of(values)[:keep]
  if keep and not begun and not processes.first_tells((path / "config.json").exists):
    raise InputError(f"--from-task {keep + 1}: {output} has no task yet; leave it out")
  inputs = processes.all_or_none(lambda: read_inputs(config, begun))
  with RunFolder(path, config, inputs.identity, keep, mirror) as folder:
    folder.anew = anew
    single = processes.all_or_none(
      lambda: single_scores(config, inputs.names, path, inputs.fingerprint, run)
    )
    with Cost() as cost:
      return Continual(config, inputs, folder, cost).run(single)


def advice_of(fit: Fit, index: int) -> str:
  """What to do if the loss of the index-th task rises again; empty where the best weights are
  kept anyhow.
  """
  if fit.validate_every or fit.validate_epochs:
    return ""
  falling = "" if fit.decay != "none" else "--fit.decay cosine, or "
  return (
    f"--from-task {index + 1}, and {falling}--fit.validate-epochs 5, which keeps the best weights"
  )


def time_left(seconds: Sequence[float], tasks: int) -> str:
  """What the rest of a stream of so many tasks will take, in words, from the seconds of those that
  are learned; empty: none is left.
  """
  if len(seconds) == tasks:
    return ""
  left = (tasks - len(seconds)) * statistics.median(seconds)
  if left < 90:
    words = f"{left:.0f} s"
  else:
    words = f"{left / 60:.0f} min" if left < 7200 else f"{left / 3600:.1f} hours"
  return f"{len(seconds)} of {tasks} tasks learned, about {words} left"


class Continual:
  """One run: what stays the same from task to task, and the order of things within one."""

  def __init__(self, config: Config, inputs: RunInputs, folder: RunFolder, cost: Cost):
    self.config, self.folder, self.cost = config, folder, cost
    self.stream, self.names, self.fits = inputs.stream, inputs.names, inputs.fits
    self.codec = inputs.codec
    self.profile = Profile(config.profile, folder.path / "profile")
    # The shapes of all that is learned; a snapshot is restored into the same ones.
    sizes = {
      "capacity": capacity_for(len(self.stream)),
      "memory_inputs": most_pseudo_inputs(config, inputs),
    }
    self.sizes = {name: max(size, folder.size(name)) for name, size in sizes.items()}
    config = resolved(
      config, inputs.backbone, len(self.stream), max(len(task.train) for task in self.stream)
    )
    self.shapes = learner.shapes_of(config, self.stream, self.fits, self.codec.open_ended)
    self.built = built = learner.build(config, inputs.backbone, **self.sizes, shapes=self.shapes)
    self.method = built.method
    self.scorer = Scorer(config, built, inputs.codec, self.stream)
    self.instruments = Instruments(config, built, inputs.codec, inputs.stored, inputs.blocks)
    self.check_rows = partial(check_rows, inputs, config.stream)
    self.check_rows(processes.first_tells(folder.finished))
    for index, task in enumerate(self.stream):
      if len(task.train):
        self.method.check_task(self.study(index))

  def run(self, single: list[float] | None) -> dict[str, Any]:
    """Learns the whole stream, from where an earlier start of the same run stopped; returns what
    scores.json holds.
    """
    self.folder.begin()
    learned, records = self.folder.restore(self.names, self.built.start(self.config.seed))
    self.check_rows(len(records))
    for task in self.stream[len(records) :]:
      processes.say(words_of(task.name, self.oddities(task)))
    if records and len(records) < len(self.stream):
      earlier, usual = records[-1].get("options", {}), self.options_of(len(records))
      if otherwise := changes(earlier, usual, FREE) if earlier else []:
        processes.say(
          f"new tasks are learned otherwise than {records[-1]['task']}: {'; '.join(otherwise)}"
        )
    self.folder.go_on(records)
    of_mini = self.built.backbone.folder == T5_MINI and not self.config.data.is_generated
    if of_mini and not records and 0 < self.config.fit.steps < ENOUGH:
      processes.say(
        "backbone t5-mini knows the little language of the mini tasks alone, and learns other "
        f"texts slowly: give --fit.steps {ENOUGH} --fit.decay cosine, or a real model with "
        "--backbone.path"
      )
    processes.say(f"attention: {self.attention_words}")
    if self.shapes:
      sizes = ", ".join(f"{source}+{answer}" for source, answer in self.shapes)
      processes.say(f"batches are padded to these lengths of sources + answers: {sizes}")
    for index in range(len(records), len(self.stream)):
      try:
        learned, record = self.one_task(learned, index)
      except Stopped:
        self.folder.progress(index).keep_cost(self.cost.so_far())
        raise
      records.append(record)
      processes.say(results.score_table(self.names, [record["scores"] for record in records]))
      if left := time_left([record["wall_s"] for record in records], len(self.stream)):
        processes.say(left)
    processes.first_does(self.folder.saver.wait)
    if self.profile.missed:
      processes.say(f"--profile {self.config.profile}: this start made no such step; no trace")
    result = results.summary(self.config, self.method, self.names, records, single, learned)
    publish = partial(results.publish, self.folder, self.method, self.names, records, result)
    processes.first_does(publish)
    return result

  @property
  def attention_words(self) -> str:
    """What computes attention, and what was tried before it."""
    backbone, platform = self.built.backbone.config, jax.default_backend()
    asked = backbone.of_attention(platform)
    name, reasons = choose(self.config.backbone.attention, asked, here=True)
    return f"{name} ({reasons})" if reasons and platform != "cpu" else name

  def one_task(self, learned: Learned, index: int) -> tuple[Learned, dict[str, Any]]:
    """Learns the index-th task; returns what is known then, and the record of the task."""
    study = self.study(index)
    self.folder.at = f"task {study.task.name}"
    self.cost.task(study.progress.cost())
    rng = streams.of_seed(self.config.seed, "task", index)
    learned = self.method.begin(learned, rng, study)
    lesson = self.method.lesson(learned, study)
    steps = self.steps(lesson, index)

    self.cost.phase("learn")
    learned = self.learn(learned, lesson, steps, study)
    training_mixture = self.scorer.training_mixture(learned, study.features("train"), index)

    self.cost.phase("remember")
    learned = self.method.remember(learned, study)

    self.cost.phase("evaluate")
    scored = self.scored_after(index, lesson)
    evaluation = self.scorer.evaluate(learned, index, scored, study.progress)

    self.cost.phase("save")
    record = {
      "task": study.task.name,
      "definition": study.task.task.definition,
      "steps": steps,
      "data": self.oddities(study.task),
      "metric": metric_of(self.config, study.task.task),
      "scores": evaluation.scores,
      "rows": evaluation.rows,
      "training_mixture": training_mixture,
      "testing_mixture": evaluation.mixtures,
      "wall_s": round(self.cost.so_far()["wall_s"], 1),
      "made": provenance(),
      "attention": self.built.backbone.config.attention,
    }
    record |= self.sizes | study.figures
    record |= {"changed": self.changed(index, evaluation), "options": self.options_of(index)}
    absent = [task.name for task in self.stream[:index] if not len(task.test)]
    record |= {"without_test_rows": absent} if absent else {}
    lines = {"predictions": evaluation.answers} | study.left
    self.folder.save(index, study.task.name, learned, record, lines)
    study.log(self.cost.take())
    return learned, record

  @cache  # noqa: B019 (the loop lives as long as its run)
  def oddities(self, task: PreparedTask) -> Figures:
    """What is odd in a task's rows, and what always the commonest answer would score."""
    commonest = round(score_of_commonest(self.config, task.task))
    return figures_of(task, self.codec) | {"commonest": commonest}

  def changed(self, index: int, evaluation: Evaluation) -> dict[str, float]:
    """The share of answers to each earlier task that the index-th task has changed."""
    if not index:
      return {}
    before = self.folder.lines_of("predictions", index - 1, self.names[index - 1])
    return processes.first_tells(
      lambda: share_changed((row for _, row in json_lines(before)), evaluation.answers)
    )

  def options_of(self, index: int) -> dict[str, Any]:
    """How a task is learned and scored; a task that comes later may have other options."""
    return {
      "fit": dataclasses.asdict(self.fits[index]),
      "generator": dataclasses.asdict(self.config.generator),
      "evaluation": dataclasses.asdict(self.config.evaluation),
    }

  def study(self, index: int) -> TaskStudy:
    """The index-th task as the method sees it; what is logged of it names the task."""
    name, progress = self.names[index], self.folder.progress(index)

    def saved() -> None:
      progress.keep_cost(self.cost.so_far())
      progress.saved()

    return TaskStudy(
      self.instruments,
      self.stream,
      index,
      self.fits[index],
      log=lambda figures: self.folder.log({"index": index, "task": name, **figures}),
      progress=dataclasses.replace(progress, saved=saved),
    )

  def steps(self, lesson: Lesson, index: int) -> int:
    """Updates that a lesson takes."""
    counted = {index: len(lesson.rows)} if lesson.counted is None else lesson.counted
    return sum(self.built.trainer(self.fits[task]).steps(rows) for task, rows in counted.items())

  def learn(self, learned: Learned, lesson: Lesson, steps: int, study: TaskStudy) -> Learned:
    """Trains the newest block, and what goes with it, on the lesson."""
    fit = self.fits[study.index]
    judged = [study.index] if lesson.judged is None else lesson.judged
    dev_score = partial(self.scorer.dev_score, tasks=judged)
    plan = Plan(
      f"{study.index + 1}/{len(self.stream)} {study.task.name}",
      steps,
      study.progress.checkpoints("learn"),
      study.log,
      dev_score if fit.validate_every or fit.validate_epochs else None,
      self.profile,
      advice=advice_of(fit, study.index),
    )
    return self.built.trainer(fit).fit(learned, lesson.rows, plan)

  def scored_after(self, index: int, lesson: Lesson) -> list[int]:
    """The tasks that are scored after the index-th: after the last one, all; before, none while
    nothing has been learned.
    """
    seen = list(range(index + 1))
    if index + 1 == len(self.stream):
      return seen
    if not lesson.rows:
      return []
    return seen if self.config.evaluation.every_task else [index]
