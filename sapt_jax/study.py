"""What a run lends its method while a task is learned: features, moments, pseudo inputs, samples.

Each instrument is built when a method first asks for it, and serves all later tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from sapt_jax import processes, streams
from sapt_jax.config import Config, Fit
from sapt_jax.data.batches import Row
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec
from sapt_jax.evaluation.decode import sampler
from sapt_jax.evaluation.evaluate import Answerer
from sapt_jax.generator import Generator, Stored, prompt_rows
from sapt_jax.learner import Learner, batcher_for
from sapt_jax.methods.lesson import Learned
from sapt_jax.pet.blocks import Block
from sapt_jax.progress import Progress
from sapt_jax.training.fit import Log
from sapt_jax.training.mixture_losses import MixtureLosses
from sapt_jax.training.site_moments import SiteMoments


class Instruments:
  """The compiled programs that measure and generate, one of each for a run.

  Args:
    stored: pseudo inputs that exist already.
    blocks: task -> what its block starts as.
  """

  def __init__(
    self,
    config: Config,
    built: Learner,
    codec: Codec,
    stored: Stored | None,
    blocks: Mapping[str, Block],
  ):
    self.config, self.built, self.codec, self.stored = config, built, codec, stored
    self.blocks = blocks

  @cached_property
  def moments(self) -> SiteMoments:
    built = self.built
    return SiteMoments(built.backbone, built.method, built.batcher, built.mesh)

  @cached_property
  def mixture_losses(self) -> MixtureLosses:
    built = self.built
    return MixtureLosses(built.backbone, built.method, built.mesh)

  @cached_property
  def generator(self) -> Generator | Stored:
    built, options = self.built, self.config.generator
    if self.stored is not None:
      return self.stored
    batcher = built.answerer.batcher
    every = self.config.fit.checkpoint_every
    return Generator(options, built.backbone, built.setting, self.codec, batcher, built.mesh, every)

  @cached_property
  def sampling(self) -> Answerer:
    built, options = self.built, self.config.generator
    choose = sampler(options.top_k, options.repetition_penalty, options.temperature)
    return Answerer(built.backbone, built.method, built.answerer.batcher, built.mesh, choose)


class TaskStudy:
  """The index-th task of a run, as methods.base.Study describes it.

  Attributes:
    fit: how the task is learned.
    progress: what is kept of it while it is learned.
    left: rows for the reader, by the folder that they belong in.
    figures: what is known of them, by the same names.
  """

  def __init__(
    self,
    instruments: Instruments,
    stream: Sequence[PreparedTask],
    index: int,
    fit: Fit,
    log: Log,
    progress: Progress,
  ):
    self.instruments, self.stream, self.index, self.log = instruments, stream, index, log
    self.fit, self.progress = fit, progress
    self.codec, self.block = instruments.codec, instruments.blocks.get(stream[index].name)
    self.seed, self.sampling = instruments.config.seed, instruments.config.generator
    self.left: dict[str, list[dict[str, Any]]] = {}
    self.figures: dict[str, Any] = {}
    self._features: dict[str, jax.Array] = {}

  @property
  def task(self) -> PreparedTask:
    return self.stream[self.index]

  def features(self, split: str) -> jax.Array:
    if split not in self._features:
      rows = getattr(self.task, split).rows
      self._features[split] = self.instruments.built.features(rows)
    return self._features[split]

  def moments(self, learned: Learned) -> Any:
    return self.instruments.moments(learned, self.task.train.rows)

  def losses(self, learned: Learned, mixtures: np.ndarray) -> np.ndarray:
    batcher = batcher_for(self.fit, self.instruments.built.batcher)
    [first] = batcher.training(self.task.train.rows, 0, 1)
    return self.instruments.mixture_losses(learned, first, mixtures, self.fit.accumulation)

  def begins_with(self, taken: Mapping[int, float], loss: float) -> None:
    left = {self.stream[place].name: round(rest, 4) for place, rest in taken.items()}
    self.figures["begins_with"] = left
    steps = [f"{loss:.2f}", *(f"{rest:.2f} with {name}" for name, rest in left.items())]
    words = ", ".join(steps) if left else f"{loss:.2f}, which no earlier task halves"
    processes.say(f"{self.task.name} begins at a loss of {words}")

  def check_pseudo_inputs(self) -> None:
    self.instruments.generator.check(self.task.task)

  def pseudo_inputs(self) -> jax.Array:
    generator = self.instruments.generator

    def log(figures: dict[str, Any]) -> None:
      self.log({"phase": "inputs", **figures})

    pseudo = generator.write(self.task.task, self.index, self.seed, log, self.progress)
    lines = ({"definition": definition, "input": text} for definition, text in pseudo.pairs)
    self.leave("pseudo_inputs", lines, pseudo.figures)
    return self.instruments.built.features(prompt_rows(self.codec, pseudo.pairs))

  def sample(self, learned: Learned, rows: Sequence[Row]) -> list[str]:
    rng = streams.of_seed(self.seed, "samples", self.index)
    kept = self.progress.answers("samples")
    answers = self.instruments.sampling.answer(learned, rows, self.sampling.max_length, rng, kept)
    return [self.codec.text(ids) for ids in answers.tokens]

  def leave(self, folder: str, rows: Iterable[dict[str, Any]], figures: Any) -> None:
    self.left[folder], self.figures[folder] = list(rows), figures
