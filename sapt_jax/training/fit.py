"""Learning one task: steps, progress, checkpoints inside the task, the best dev weights."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from sapt_jax import config, processes, sharding
from sapt_jax.backbones.hf import Backbone
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.errors import FailedError, InputError, Stopped
from sapt_jax.methods.base import Method, Trainable
from sapt_jax.methods.lesson import Learned
from sapt_jax.training.profile import Profile
from sapt_jax.training.saver import Checkpoints
from sapt_jax.training.state import TrainState, make_optimizer, make_schedule
from sapt_jax.training.step import train_step

Log = Callable[[dict[str, Any]], None]
NO_PROFILE = Profile("", pathlib.Path())


class DivergedError(FailedError):
  """The loss is no longer a number; the last checkpoint is from before."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How one task is learned.

  Attributes:
    label: what the progress bar shows.
    steps: updates to make.
    checkpoints: of this training; None: nothing is kept of it before its end.
    log: takes one dict of figures per logged step.
    validate: dev score (higher is better) of what has been learned so far; None: the last weights
      are kept.
    profile: traces some of the steps.
    advice: what to do if the loss ends far above where it was; empty: nothing is said then.
    losses: those that have been logged.
  """

  label: str
  steps: int
  checkpoints: Checkpoints | None
  log: Log
  validate: Callable[[Learned], float] | None = None
  profile: Profile = NO_PROFILE
  advice: str = ""
  losses: list[float] = dataclasses.field(default_factory=list)


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
    self.optimizer, self.schedule = make_optimizer(method, options), make_schedule(options)
    step = partial(
      train_step,
      backbone.model,
      method,
      self.optimizer,
      options.accumulation,
      seed=batcher.seed,
      schedule=self.schedule,
    )
    # Every device keeps the whole state, as it is given it: left alone, XLA spreads parts of it
    # like the gradients that they come from, and the second step would be compiled anew for them.
    self.step = jax.jit(step, donate_argnums=0, out_shardings=self.everywhere)

    self.init_optimizer = jax.jit(self.optimizer.init, out_shardings=self.everywhere)

  def steps(self, rows: int) -> int:
    """Updates that the options ask for on so many rows."""
    return self.options.steps or self.options.epochs * self.batcher.steps_per_epoch(rows)

  def start(self, learned: Learned, steps: int) -> TrainState:
    """The state before the first of `steps` steps, copied out of `learned`: a step donates it."""
    trainable = copied(self.method.trainable(learned))
    return TrainState(
      jnp.zeros((), jnp.int32),
      trainable,
      self.init_optimizer(trainable),
      self.method.running(learned, steps),
      None if self.schedule is None else jnp.asarray(steps, jnp.int32),
    )

  def fit(self, learned: Learned, rows: Sequence[Row], plan: Plan) -> Learned:
    """`learned` after training its trainable part on the rows.

    Goes on from its checkpoint if there is one.

    Raises:
      DivergedError: the loss became NaN or infinite.
      Stopped: the run was asked to stop; its checkpoint has been saved if it keeps any.
    """
    learned = sharding.to_devices(learned, self.everywhere)
    state = sharding.to_devices(self.start(learned, plan.steps), self.everywhere)
    state, best, judged = self.restored(state, plan)
    every = self.validation_interval(len(rows))
    batches = self.batcher.training(rows, int(state.step), plan.steps)
    if not judged:  # it was stopped while dev was scored
      best = self.judged(learned, state, best, plan)
    meter = Meter(plan, int(state.step), self.options.log_every)
    with self.weights_suspected(), plan.profile, meter:
      for step, batch in enumerate(batches, int(state.step) + 1):
        batch_there = sharding.to_devices(batch, self.placement)
        state, metrics = plan.profile.step(
          step, self.step, state, self.backbone.params, learned, batch_there
        )
        meter.add(step, batch, metrics)
        last = step == plan.steps
        if plan.validate and (last or (every and step % every == 0)):
          meter.flush(look=True)
          best = self.judged(learned, state, best, plan)
        stopping = processes.stop_asked()
        due = self.options.checkpoint_every and (last or step % self.options.checkpoint_every == 0)
        if due or stopping:
          meter.flush(look=True)
          self.save(plan, state, best)
        if stopping:
          raise self.stopped(plan, step)
    chosen = best.trainable if plan.validate else state.trainable
    return self.method.settle(learned, chosen, state.running)

  @contextlib.contextmanager
  def weights_suspected(self) -> Iterator[None]:
    """Looks for the reason of a loss that is no number in what the model came with.

    Raises:
      InputError: a weight is no number.
    """
    try:
      yield
    except DivergedError:
      self.check_weights()
      raise

  def check_weights(self) -> None:
    for path, weight in jax.tree_util.tree_leaves_with_path(self.backbone.params):
      if jnp.issubdtype(weight.dtype, jnp.inexact) and not bool(jnp.isfinite(weight).all()):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        raise InputError(
          f"{self.backbone.folder}: the model's weights hold NaN or infinity in {name}; get the "
          "model anew"
        )

  def judged(self, learned: Learned, state: TrainState, best: Best, plan: Plan) -> Best:
    """The best weights when those of the state have been scored on dev.

    Raises:
      Stopped: the run was asked to stop meanwhile; it will go on with this score.
    """
    assert plan.validate is not None
    try:
      score = plan.validate(self.method.merge(learned, state.trainable))
    except Stopped:
      self.save(plan, state, best, judged=False)
      raise self.stopped(plan, int(state.step)) from None
    plan.log({"step": int(state.step), "dev": score})
    return best.or_better(state.trainable, score)

  def save(self, plan: Plan, state: TrainState, best: Best, judged: bool = True) -> None:
    """Writes a checkpoint, if there is a place for it."""
    if plan.checkpoints is not None:
      record: dict[str, Any] = {"step": int(state.step), "losses": plan.losses}
      record |= {"best_score": best.score, "judged": judged}
      plan.checkpoints.save((state, best.trainable), record)

  @staticmethod
  def stopped(plan: Plan, step: int) -> Stopped:
    said = f"{plan.label}, step {step} of {plan.steps}"
    if plan.checkpoints is None:
      return Stopped(said)
    processes.first_does(plan.checkpoints.saver.wait)
    return Stopped(f"{said} is saved")

  def restored(self, state: TrainState, plan: Plan) -> tuple[TrainState, Best, bool]:
    """The state and the best weights of the plan's checkpoint, if there is one, and whether the
    state's score on dev is among those; else the state given.
    """
    best, score, judged = state.trainable, -math.inf, True
    if plan.checkpoints is not None and (found := plan.checkpoints.load((state, best))):
      (state, best), record = found
      score, judged = record["best_score"], record["judged"]
      plan.losses.extend(record.get("losses", []))
    return state, Best(copied(best), score), judged

  def validation_interval(self, rows: int) -> int:
    """Steps between scores on dev when a lesson has so many rows; 0: only after the last."""
    options = self.options
    return options.validate_every or options.validate_epochs * self.batcher.steps_per_epoch(rows)


@jax.jit
def copied(tree: Trainable) -> Trainable:
  """The same arrays in other places, which a donated step leaves alone."""
  return jax.tree.map(jnp.copy, tree)


@dataclasses.dataclass(frozen=True)
class Best:
  """The weights with the best dev score so far."""

  trainable: Trainable
  score: float

  def or_better(self, trainable: Trainable, score: float) -> Best:
    """These weights, or a copy of the others where their score is higher."""
    return Best(copied(trainable), score) if score > self.score else self


WINDOW = 5  # logged losses whose median counts


def rise_of(losses: Sequence[float]) -> tuple[float, float] | None:
  """The least loss and the last one, medians over WINDOW, where the last is more than four times as
  large, and larger by 0.1; else None.
  """
  medians = [
    statistics.median(losses[end - WINDOW : end]) for end in range(WINDOW, len(losses) + 1)
  ]
  if not medians or not medians[-1] > max(4 * min(medians), min(medians) + 0.1):
    return None
  return min(medians), medians[-1]


# Seconds between two lines of progress where there is no terminal.
LINE_EVERY = 10.0


class Meter:
  """Progress and log. Metrics are read one step late, so that the device never waits for the host
  to look. A terminal gets a bar; a file gets a line of its own now and then.
  """

  def __init__(self, plan: Plan, start: int, every: int):
    self.plan, self.every = plan, every
    self.terminal, self.said = sys.stderr.isatty(), time.monotonic()
    self.bar = tqdm(
      total=plan.steps,
      initial=start,
      desc=plan.label,
      unit="step",
      mininterval=1.0,
      dynamic_ncols=True,
      disable=not (self.terminal and processes.is_first()),
    )
    self.pending: tuple[int, dict[str, jax.Array]] | None = None
    self.tokens, self.since = 0, time.monotonic()

  def add(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
    """Takes a step's metrics; shows and logs those of the step before."""
    self.flush()
    self.pending = (step, metrics)
    for part in (batch, *batch.companions.values()):
      self.tokens += int(part.source_mask.sum() + part.target_mask.sum())

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
      loss, norm = figures["loss"], figures["gradient_norm"]
      raise DivergedError(
        f"{self.plan.label}, step {step}: loss {loss}, gradient norm {norm}; "
        "lower fit.learning_rate"
      )
    if not logged:
      return
    rate = self.tokens / (time.monotonic() - self.since)
    self.tokens, self.since = 0, time.monotonic()
    shown = {
      "loss": f"{figures['loss']:.3f}",
      "own": f"{figures['own_weight']:.2f}",
      "tokens/s": f"{rate:,.0f}",
    }
    self.bar.set_postfix(shown)
    if not self.terminal and self.is_time(step):
      words = ", ".join(f"{name} {value}" for name, value in shown.items())
      processes.say(f"{self.plan.label}: step {step} of {self.plan.steps}, {words}", sys.stderr)
    self.plan.log({"step": step, **figures, "tokens_per_s": round(rate)})
    self.plan.losses.append(figures["loss"])
    if step == self.plan.steps and self.plan.advice and (rise := rise_of(self.plan.losses)):
      processes.say(
        f"warning: {self.plan.label}: the loss was {rise[0]:.3g} once, and is {rise[1]:.3g} at the "
        f"end; learn the task again: {self.plan.advice}",
        sys.stderr,
      )

  def is_time(self, step: int) -> bool:
    """Whether a line is due: LINE_EVERY seconds after the last one, and at the end."""
    due = step == self.plan.steps or time.monotonic() - self.said >= LINE_EVERY
    self.said = time.monotonic() if due else self.said
    return due

  def __enter__(self) -> Meter:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      if kind is None:
        self.flush()
    finally:
      self.bar.close()
