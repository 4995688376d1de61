"""Scores of what has been learned, on the tasks of a run. T capacity of the pool."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.config import Config
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.prepared import PreparedTask, Split
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Task
from sapt_jax.evaluation.kept_answers import KeptAnswers
from sapt_jax.evaluation.text_metrics import Scoring, scoring_of
from sapt_jax.learner import Learner
from sapt_jax.methods.lesson import Learned
from sapt_jax.progress import Progress

ROWS = 1024  # whose mixtures are computed at once, where no backbone is needed


def metric_of(config: Config, task: Task | None = None) -> str:
  """The metric that a run's answers are scored by, or those to one of its tasks."""
  if config.evaluation.metric == "benchmark":
    own = task.metric if task is not None else ""
    return own or BENCHMARKS[config.data.benchmark].metric
  return config.evaluation.metric


def scoring_of_task(config: Config, task: Task) -> Scoring:
  """How answers to a task's inputs are scored.

  Raises:
    InputError: there is no such metric.
  """
  rows = (*task.test, *task.dev)
  found = (answer for one in rows for answer in one.references)
  scoring = scoring_of(metric_of(config, task), [*task.labels, *found])
  for one in rows[:1]:  # a function of the user's is tried before anything is computed
    scoring(one.references[0], one.references)
  return scoring


def score_of_commonest(config: Config, task: Task) -> float:
  """The test score (0-100) of always giving the commonest right answer of the training rows; 0
  without rows.
  """
  answers = Counter(answer for one in task.train for answer in one.references)
  if not answers or not task.test:
    return 0.0
  scoring, [(answer, _)] = scoring_of_task(config, task), answers.most_common(1)
  return statistics.mean(scoring(answer, one.references) for one in task.test)


@dataclasses.dataclass(frozen=True)
class Scored:
  """A split's mean score and that of each row (0-100), the answers, and the mixtures (n, T) they
  were given with.
  """

  score: float
  rows: list[float]
  answers: list[str]
  mixtures: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What is known of the tasks seen so far.

  Attributes:
    scores: one per task, in order; None where a task was not scored.
    rows: the score of every test row of each task; None as above.
    mixtures: the mean mixture of each task's test inputs; None as above.
    answers: a row per answer, for the reader.
  """

  scores: list[float | None]
  rows: list[list[float] | None]
  mixtures: list[list[float] | None]
  answers: list[dict[str, Any]]


class Scorer:
  """Answers the inputs of splits and scores the answers."""

  def __init__(self, config: Config, built: Learner, codec: Codec, stream: Sequence[PreparedTask]):
    self.answerer, self.method = built.answerer, built.method
    self.codec, self.stream = codec, stream
    self.longest = config.data.max_target_length
    self.scorings = [scoring_of_task(config, task.task) for task in stream]
    # Where blocks belong to tasks, those that the stream will fill are shown; else all.
    self.blocks = len(stream) if built.method.block_per_task else None

  def score(self, learned: Learned, split: Split, kept: KeptAnswers | None = None) -> Scored:
    """Answers all inputs of a split; see Answerer.answer."""
    answers = self.answerer.answer(learned, split.rows, self.longest, kept=kept)
    texts = [self.codec.text(ids) for ids in answers.tokens]
    references = [example.references for example in split.examples]
    scoring = self.scorings[split.index]
    rows = [scoring(text, accepted) for text, accepted in zip(texts, references, strict=True)]
    return Scored(float(np.mean(rows)), rows, texts, answers.mixtures)

  def dev_score(self, learned: Learned, tasks: Iterable[int]) -> float:
    """Mean score over the dev rows of these tasks."""
    return float(np.mean([self.score(learned, self.stream[task].dev).score for task in tasks]))

  def evaluate(
    self, learned: Learned, newest: int, scored: Iterable[int], progress: Progress
  ) -> Evaluation:
    """Scores on test rows after the task `newest`, of those tasks that are to be scored and have
    any; answers are kept in its progress.
    """
    chosen, found = set(scored), Evaluation([], [], [], [])
    for index, task in enumerate(self.stream[: newest + 1]):
      if index not in chosen or not len(task.test):
        for figures in (found.scores, found.rows, found.mixtures):
          figures.append(None)
        continue
      result = self.score(learned, task.test, progress.answers(f"test_{index:02d}"))
      found.scores.append(result.score)
      found.rows.append([round(value, 2) for value in result.rows])
      found.mixtures.append(self.mean_mixture(result.mixtures))
      for example, text in zip(task.test.examples, result.answers, strict=True):
        answer = {"after": self.stream[newest].name, "task": task.name, "input": example.input}
        references = list(example.references)
        found.answers.append(answer | {"prediction": text, "references": references})
    return found

  def training_mixture(self, learned: Learned, features: jax.Array, task: int) -> list[float]:
    """Mean mixture of inputs with these features (n, D), of a task that has just been learned."""
    mixtures = [
      np.asarray(self.method.mixture(learned, some, jnp.full(len(some), task)))
      for some in (features[start : start + ROWS] for start in range(0, len(features), ROWS))
    ]
    return self.mean_mixture(np.concatenate(mixtures))

  def mean_mixture(self, mixtures: np.ndarray) -> list[float]:
    """Mean weight of each block over inputs (n, T)."""
    return [round(float(weight), 6) for weight in mixtures.mean(axis=0)[: self.blocks]]


def share_changed(
  before: Iterable[dict[str, Any]], now: Iterable[dict[str, Any]]
) -> dict[str, float]:
  """The share of answers to each task's test inputs that are no longer the same, of the tasks that
  were answered both times.
  """
  then, after = (_predictions(rows) for rows in (before, now))
  return {
    task: round(float(np.mean([x != y for x, y in zip(texts, after[task], strict=True)])), 4)
    for task, texts in then.items()
    if len(after.get(task, ())) == len(texts)
  }


def _predictions(rows: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
  texts: dict[str, list[str]] = {}
  for row in rows:
    texts.setdefault(row["task"], []).append(row["prediction"])
  return texts
