"""The options of a run, with their defaults. Each class checks its own values.

The options of a method stand in the method's own file (sapt_jax/methods/); nothing else in the
library holds a default of an option.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from sapt_jax.checks import in_range, require, typed
from sapt_jax.config.hardware import Backbone, BackbonePlace, Distributed, Mesh
from sapt_jax.config.learning import Fit, Generator, MethodOptions, Pet
from sapt_jax.config.tasks import Data, Evaluation, Stream

__all__ = [
  "Backbone",
  "BackbonePlace",
  "Config",
  "Data",
  "Distributed",
  "Evaluation",
  "Fit",
  "Generator",
  "Mesh",
  "MethodOptions",
  "Pet",
  "Stream",
]


@dataclasses.dataclass(frozen=True)
class Config:
  """One run: a stream of tasks learned by one method on one backbone."""

  method: MethodOptions
  pet: Pet = dataclasses.field(default_factory=Pet)
  fit: Fit = dataclasses.field(default_factory=Fit)
  generator: Generator = dataclasses.field(default_factory=Generator)
  stream: Stream = dataclasses.field(default_factory=Stream)
  data: Data = dataclasses.field(default_factory=Data)
  backbone: Backbone = dataclasses.field(default_factory=Backbone)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  distributed: Distributed = dataclasses.field(default_factory=Distributed)
  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  seed: int = 0
  """Of blocks, batches, sampling and the mini stream."""
  keep_snapshots: int = 0
  """Snapshots whose arrays are kept, the newest; of those before, the records stay, so that the run
  can go on and be scored, but not from there. 0: all."""
  profile: str = ""
  """FIRST:LAST, steps of the first task that this start learns: a trace of them is written into the
  run's folder `profile`, which TensorBoard and Perfetto open; empty: none."""
  track: Literal["", "tensorboard", "wandb", "mlflow", "trackio"] = ""
  """A tool that shows what is logged and scored while the run runs; it has to be installed, with
  pip install 'sapt-jax[TOOL]'. Empty: none."""
  single: str = ""
  """A finished per_task run on the same stream with the same seed and backbone, for FWT; "train":
  make one inside this run's folder first."""

  def __post_init__(self) -> None:
    if type(self) is Config:  # a program's own options are typed by its command line
      typed(self)
    in_range(self)
    require(self.seed >= 0, f"seed {self.seed}: must not be negative")
    steps = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", self.profile)
    require(
      not self.profile or (steps is not None and int(steps[1]) <= int(steps[2])),
      f"profile {self.profile!r}: must be FIRST:LAST, such as 10:15",
    )
    require(self.keep_snapshots >= 0, f"keep_snapshots {self.keep_snapshots}: must not be negative")
    devices = self.mesh.data * self.mesh.fsdp
    fit, generator = self.fit, self.generator
    computed_at_once = {
      "fit.batch_size / fit.accumulation": fit.batch_size // fit.accumulation,
      "generator.batch_size / generator.accumulation": (
        generator.batch_size // generator.accumulation
      ),
      "evaluation.batch_size": self.evaluation.batch_size,
    }
    for name, rows in computed_at_once.items():
      message = f"{name} {rows}: must be a multiple of mesh.data * mesh.fsdp = {devices}"
      require(rows % devices == 0, message)
