"""--track: a tool that shows a run while it runs. What is logged of the run stays the truth; the
tool is sent each of its figures once, however often the run is started.

What the tool has been sent is kept in the run's folder, in tracking/TOOL.json. A run that goes on
sends what is missing there and nothing else. So figures that were sent before a run was killed, and
that it computes again, stay as they were sent; and a tool that is named later gets all that was
logged before. What a tool itself had not yet written when the process was killed is missing there:
a figure that is lacking can be looked up in metrics.jsonl, one that is there twice misleads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.text_files import flat, read_object, remove

PROJECT = "sapt-jax"  # what a tool has the runs under, where no variable of its own names another
SENT = "tracking"  # the folder in which a run keeps what its tools have been sent


@dataclasses.dataclass(frozen=True)
class Point:
  """Figures of one kind at one step.

  Attributes:
    group: their kind: learn, inputs, dev, cost, score, pseudo_inputs.
    step: of learn, inputs and dev: the updates made since the beginning of the stream; of the rest:
      the tasks learned. Each group has a step once, and they grow.
    number: how many points of the run were sent before.
  """

  group: str
  step: int
  figures: dict[str, float]
  number: int = 0

  @property
  def named(self) -> dict[str, float]:
    """The figures as a tool calls them: GROUP/NAME, in letters that all the tools take."""
    return {
      re.sub(r"[^\w./ -]", "_", f"{self.group}/{name}"): value
      for name, value in self.figures.items()
    }


class Points:
  """Rows of metrics.jsonl as points; a pure function of the rows so far."""

  def __init__(self) -> None:
    self.made: dict[tuple[str, int], int] = {}  # (phase, task) -> updates

  def of(self, row: dict[str, Any]) -> Iterator[Point]:
    """The points of the next row."""
    index, phase = row["index"], row.get("phase", "learn")
    figures = {name: value for name, value in row.items() if name not in ("index", "phase", "step")}
    if "step" in row:
      self.made[phase, index] = max(row["step"], self.made.get((phase, index), 0))
      before = sum(made for (of, task), made in self.made.items() if of == phase and task < index)
      group = phase
      if "dev" in figures:
        group, figures = "dev", {"score": figures["dev"]}
      # The task beside the curve: where it changes, the next one begins.
      yield Point(group, before + row["step"], numbers(figures) | {"task": index + 1})
      return
    inner = {name: value for name, value in figures.items() if isinstance(value, dict)}
    for group, values in ({"cost": figures} | inner).items():
      if found := numbers(values):
        yield Point(group, index + 1, found)


def numbers(figures: dict[str, Any]) -> dict[str, float]:
  """Those of the figures that are numbers which every tool can draw."""
  return {
    name: value
    for name, value in figures.items()
    if isinstance(value, int | float) and math.isfinite(value)
  }


@dataclasses.dataclass(frozen=True)
class Shown:
  """A run as it is handed to a tool.

  Attributes:
    folder: the run's.
    place: the same, or the URL of which it is a copy.
    options: as config.json has them.
    id: what the tool found it under before; empty: it does not have it yet.
  """

  folder: pathlib.Path
  place: str
  options: dict[str, Any]
  id: str = ""

  @property
  def name(self) -> str:
    """The end of its place, such as runs/mini."""
    return "/".join(pathlib.Path(self.place).absolute().parts[-2:])


class Tracker(Protocol):
  """A run that a tool shows.

  Attributes:
    package: what has to be installed for it, as it is imported.
    id: what the tool will find the run under.
  """

  package: ClassVar[str]
  id: str

  def __init__(self, run: Shown): ...

  def log(self, point: Point) -> None:
    """Sends a point, so that it is there if this process is killed, as far as the tool can."""

  def close(self, done: bool) -> None:
    """Sends what is left; `done`: the whole stream has been learned."""


class TensorBoard:
  """Event files in RUN/tensorboard."""

  package: ClassVar[str] = "tensorboardX"

  def __init__(self, run: Shown):
    import tensorboardX

    self.id = run.id or "tensorboard"
    if not run.id:
      remove(run.folder / "tensorboard")
    self.writer = tensorboardX.SummaryWriter(str(run.folder / "tensorboard"))
    if not run.id:
      self.writer.add_text("options", f"```\n{json.dumps(run.options, indent=2)}\n```")

  def log(self, point: Point) -> None:
    for name, value in point.named.items():
      self.writer.add_scalar(name, value, point.step)
    self.writer.flush()

  def close(self, done: bool) -> None:
    self.writer.close()


class Wandb:
  """A run of Weights & Biases. What it keeps on this machine is in RUN/wandb."""

  package: ClassVar[str] = "wandb"

  def __init__(self, run: Shown):
    import wandb

    self.id, self.axes = run.id or uuid.uuid4().hex[:12], set[str]()
    self.run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      dir=os.environ.get("WANDB_DIR", str(run.folder)),
      id=self.id,
      name=run.name,
      config=run.options,
      allow_val_change=True,  # a run may go on with a longer stream
      resume="allow",
      reinit="finish_previous",
    )

  def log(self, point: Point) -> None:
    # W&B's own step has to grow from call to call, over all figures. So each group brings its own.
    axis = f"step/{point.group}"
    if axis not in self.axes:
      self.axes.add(axis)
      self.run.define_metric(f"{point.group}/*", step_metric=axis)
    self.run.log(point.named | {axis: point.step}, step=point.number)

  def close(self, done: bool) -> None:
    self.run.finish(exit_code=0 if done else 1)


class Mlflow:
  """A run of MLflow: in a database in RUN/mlflow, or where MLFLOW_TRACKING_URI says."""

  package: ClassVar[str] = "mlflow"

  def __init__(self, run: Shown):
    from mlflow import MlflowClient
    from mlflow.entities import Param

    own = (run.folder / "mlflow").absolute()
    if "MLFLOW_TRACKING_URI" not in os.environ:
      own.mkdir(exist_ok=True)
    self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{own}/mlflow.db"))
    self.id = run.id
    if run.id:
      self.client.update_run(run.id, status="RUNNING")
      return
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = self.client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else self.client.create_experiment(name)
    self.id = self.client.create_run(experiment, run_name=run.name).info.run_id
    options = [Param(name, str(value)) for name, value in flat(run.options).items()]
    for start in range(0, len(options), 100):  # more at once are refused
      self.client.log_batch(self.id, params=options[start : start + 100])

  def log(self, point: Point) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, point.step) for name, value in point.named.items()]
    self.client.log_batch(self.id, metrics=metrics)

  def close(self, done: bool) -> None:
    self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")


class Trackio:
  """A run of Trackio, where Trackio keeps its runs."""

  package: ClassVar[str] = "trackio"

  def __init__(self, run: Shown):
    import trackio

    # It finds a run by its name alone, so the name has to be the run's own.
    self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
    self.run = trackio.init(PROJECT, name=self.id, config=run.options, resume="allow")

  def log(self, point: Point) -> None:
    self.run.log(point.named, step=point.step)

  def close(self, done: bool) -> None:
    self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {
  "tensorboard": TensorBoard,
  "wandb": Wandb,
  "mlflow": Mlflow,
  "trackio": Trackio,
}


def check(tool: str) -> None:
  """Whether the tool is there; empty: none is wanted.

  Raises:
    InputError: it is not; the message says how to install it.
  """
  if not tool:
    return
  if tool not in TRACKERS:
    raise InputError(f"track {tool!r}: must be one of {', '.join(TRACKERS)}")
  package = TRACKERS[tool].package
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"--track {tool}: {package} is not installed; pip install 'sapt-jax[{tool}]', or leave "
      "--track out"
    )


def forget(folder: pathlib.Path) -> None:
  """Has a run be a new one to every tool, since it is learned anew."""
  remove(folder / SENT)


class Tracking:
  """Sends a run to a tool, or to none. Whatever fails there is one warning, and ends no run."""

  def __init__(self, tool: str, folder: pathlib.Path, place: str):
    self.tool, self.folder, self.place = tool, folder, place
    self.file = folder / SENT / f"{tool}.json"
    self.tracker: Tracker | None = None
    self.points, self.tasks = Points(), list[str]()
    self.sent: dict[str, int] = {}  # group -> its newest step
    self.number = 0

  @contextlib.contextmanager
  def _only_warns(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # noqa: BLE001 (each tool has errors of its own)
      self.tracker = None
      print(
        f"warning: --track {self.tool}: {cli.reason_of(error)}; the run goes on without it, and "
        "started again it sends what is missing",
        file=sys.stderr,
      )

  def begin(
    self,
    options: dict[str, Any],
    rows: Iterable[dict[str, Any]],
    records: Iterable[dict[str, Any]],
  ) -> None:
    """Opens the tool, and sends what has been logged and is not there yet.

    Args:
      options: as config.json has them.
      rows: of metrics.jsonl.
      records: of the tasks that are learned.
    """
    if not self.tool:
      return
    with self._only_warns():
      before: dict[str, Any] = {}
      with contextlib.suppress(InputError):  # there is none, or it was harmed: it is a new run
        before = read_object(self.file)
      self.sent, self.number = dict(before.get("sent", {})), before.get("number", 0)
      run = Shown(self.folder, self.place, options, before.get("id", ""))
      self.tracker = TRACKERS[self.tool](run)
      self._keep()
      for row in rows:
        self.add(row)
      for record in records:
        self.scored(record)

  def add(self, row: dict[str, Any]) -> None:
    """Sends a row of metrics.jsonl."""
    if self.tracker is None:
      return
    with self._only_warns():
      for point in self.points.of(row):
        if point.step > self.sent.get(point.group, 0):
          # Kept before it is sent: a kill in between loses a point, and sends none twice.
          numbered = dataclasses.replace(point, number=self.number)
          self.sent[point.group], self.number = point.step, self.number + 1
          self._keep()
          self.tracker.log(numbered)

  def scored(self, record: dict[str, Any]) -> None:
    """Sends the scores after a task, given its record."""
    self.tasks.append(record["task"])
    scores = dict(zip(self.tasks, record["scores"], strict=False))
    self.add({"index": len(self.tasks) - 1, "score": scores})

  def _keep(self) -> None:
    """Writes what has been sent. Nothing waits for the disk: this is done at every point."""
    assert self.tracker is not None
    kept = {"id": self.tracker.id, "number": self.number, "sent": self.sent}
    self.file.parent.mkdir(exist_ok=True)
    draft = self.file.with_suffix(".draft")
    draft.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    draft.replace(self.file)

  def close(self, done: bool) -> None:
    """Ends it; `done`: the whole stream has been learned."""
    if self.tracker is not None:
      with self._only_warns():
        self.tracker.close(done)
      self.tracker = None
