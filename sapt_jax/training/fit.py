"""Learning one task: steps, progress, checkpoints inside the task, the best weights by dev score."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from sapt_jax import config, processes, sharding
from sapt_jax.backbones.hf import Backbone
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.errors import Stopped
from sapt_jax.methods.base import Learned, Method
from sapt_jax.training import checkpoint
from sapt_jax.training.state import TrainState, make_optimizer
from sapt_jax.training.step import train_step

Log = Callable[[dict[str, Any]], None]


class DivergedError(RuntimeError):
  """The loss is no longer a number; the last checkpoint is from before."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How one task is learned.

  Attributes: label: what the progress bar shows. steps: updates to make. folder: where checkpoints
    inside the task go; None: nowhere. log: takes one dict of figures per logged step. validate: dev
    score (higher is better) of what has been learned so far; None: the last weights are kept.
  """

  label: str
  steps: int
  folder: pathlib.Path | None
  log: Log
  validate: Callable[[Learned], float] | None = None


class Trainer:
  """A compiled step for one backbone and one method; shapes compiled for one task serve all later
  ones.
  """

  def __init__(
    self,
    backbone: Backbone,
    method: Method,
    options: config.Fit,
    batcher: Batcher,
    mesh: jax.sharding.Mesh,
  ):
    self.backbone, self.method, self.options, self.batcher = backbone, method, options, batcher
    self.placement, self.everywhere = sharding.batch_sharded(mesh), sharding.replicated(mesh)
    self.optimizer = make_optimizer(options)
    step = partial(train_step, backbone.model, method, self.optimizer, options.accumulation)
    # Every device keeps the whole state, as it is given it: left alone, XLA spreads parts of it
    # like the gradients that they come from, and the second step would be compiled anew for them.
    self.step = jax.jit(step, donate_argnums=0, out_shardings=self.everywhere)

  def steps(self, rows: int) -> int:
    """Updates that the options ask for on so many rows."""
    return self.options.steps or self.options.epochs * self.batcher.steps_per_epoch(rows)

  def start(self, learned: Learned) -> TrainState:
    """The state before the first step, copied out of `learned`, as the step donates it."""
    trainable = jax.tree.map(jnp.copy, self.method.trainable(learned))
    return TrainState(jnp.zeros((), jnp.int32), trainable, self.optimizer.init(trainable))

  def fit(self, learned: Learned, rows: Sequence[Row], plan: Plan) -> Learned:
    """`learned` after training its trainable part on the rows; continues from a checkpoint in
    plan.folder if there is one.

    Raises:
      DivergedError: the loss became NaN or infinite.
      Stopped: the run was asked to stop; a checkpoint has been saved if there is a plan.folder.
    """
    learned = sharding.place(learned, self.everywhere)
    state = sharding.place(self.start(learned), self.everywhere)
    best, best_score = state.trainable, -math.inf
    folder = plan.folder
    if folder is not None and processes.first_says(lambda: checkpoint.is_finished(folder)):
      (state, best), record = checkpoint.load(folder, (state, best))
      best_score = record["best_score"]
    best = jax.tree.map(jnp.copy, best)
    start = int(state.step)
    every = (
      self.options.validate_every
      or self.options.validate_epochs * self.batcher.steps_per_epoch(len(rows))
    )
    meter = Meter(plan, start, self.options.log_every)
    for step, batch in enumerate(self.batcher.training(rows, start, plan.steps), start + 1):
      state, metrics = self.step(
        state, self.backbone.params, learned, sharding.place(batch, self.placement)
      )
      meter.add(step, batch, metrics)
      last = step == plan.steps
      if plan.validate and (last or (every and step % every == 0)):
        score = plan.validate(self.method.merge(learned, state.trainable))
        plan.log({"step": step, "dev": score})
        if score > best_score:
          best, best_score = jax.tree.map(jnp.copy, state.trainable), score
      stopping = processes.stop_asked()
      due = self.options.checkpoint_every and (last or step % self.options.checkpoint_every == 0)
      if folder is not None and (due or stopping):
        meter.flush(look=True)
        checkpoint.save(folder, (state, best), {"step": step, "best_score": best_score})
      if stopping:
        meter.close()
        raise Stopped(
          f"SIGTERM came; {plan.label}, step {step} of {plan.steps}{' is saved' if folder is not None else ''}"
        )
    meter.close()
    return self.method.merge(learned, best if plan.validate else state.trainable)


class Meter:
  """Progress bar and log. Metrics are read one step late, so that the device never waits for the
  host to look.
  """

  def __init__(self, plan: Plan, start: int, every: int):
    self.plan, self.every = plan, every
    self.bar = tqdm(
      total=plan.steps,
      initial=start,
      desc=plan.label,
      unit="step",
      mininterval=1.0,
      dynamic_ncols=True,
      disable=not processes.is_first(),
    )
    self.pending: tuple[int, dict[str, jax.Array]] | None = None
    self.tokens, self.since = 0, time.monotonic()

  def add(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
    """Takes a step's metrics; shows and logs those of the step before."""
    self.flush()
    self.pending = (step, metrics)
    for part in (batch, batch.lm_pairs):
      self.tokens += 0 if part is None else int(part.source_mask.sum() + part.target_mask.sum())

  def flush(self, look: bool = False) -> None:
    """Takes the metrics that are still pending; reads them if they are to be logged, or if the
    caller wants them looked at.

    Raises:
      DivergedError: they are no numbers.
    """
    if self.pending is None:
      return
    (step, metrics), self.pending = self.pending, None
    self.bar.update(1)
    logged = step % self.every == 0 or step == self.plan.steps
    if not (logged or look):
      return
    figures = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(figures["loss"] + figures["gradient_norm"]):
      norm = figures["gradient_norm"]
      raise DivergedError(
        f"{self.plan.label}, step {step}: loss {figures['loss']}, gradient norm {norm}; lower fit.learning_rate"
      )
    if not logged:
      return
    rate = self.tokens / (time.monotonic() - self.since)
    self.tokens, self.since = 0, time.monotonic()
    self.bar.set_postfix(
      {
        "loss": f"{figures['loss']:.3f}",
        "own": f"{figures['own_weight']:.2f}",
        "tokens/s": f"{rate:,.0f}",
      }
    )
    self.plan.log({"step": step, **figures, "tokens_per_s": round(rate)})

  def close(self) -> None:
    self.flush()
    self.bar.close()
