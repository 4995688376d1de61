"""Options of the server."""

from __future__ import annotations

import dataclasses

from sapt_jax.checks import at_least, in_range, positive, require
from sapt_jax.config import BackbonePlace, Mesh


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may ask for; each limit has its status code."""

  body: int = 1_000_000
  """Bytes of a request; more: 413."""
  prompt: int = 20_000
  """Characters of a prompt, its definition counted; more: 400."""
  prompts: int = 64
  """Prompts of one request; more: 400."""
  queue: int = 256
  """Prompts that wait for their batch; more: 429."""
  seconds: float = 60.0
  """Until all answers of a request are written; later: 504."""
  upload: float = 10.0
  """Seconds in which a request must have come in whole; later: 408."""

  def __post_init__(self) -> None:
    in_range(self, "limits.")
    at_least(self, "limits", 1, "body", "prompt", "prompts", "queue")
    positive(self, "limits", "seconds", "upload")
    require(
      self.prompts <= self.queue,
      f"limits.prompts {self.prompts}: must be at most limits.queue {self.queue}, or a request of "
      "so many would always be too much",
    )


@dataclasses.dataclass(frozen=True)
class ServeOptions:
  """Which run answers, and where."""

  run: str
  """The run's folder, or its URL, which is read once. A folder is looked at again and again: a task
  that it learns or forgets is there for the next batch."""
  port: int = 8000
  """Port; 0: any that is free, which the first line printed says."""
  host: str = "127.0.0.1"
  """Address to listen at; 0.0.0.0: all of this machine. Connections are not encrypted."""
  key: str = ""
  """What clients must send as their API key; @FILE: the first line of this file; empty: the
  environment variable SAPT_JAX_KEY, and without that no key is asked for."""
  name: str = ""
  """The model's name; empty: that of the run's folder."""
  batch_size: int = 0
  """Most prompts answered at once; 0: as in the run."""
  wait_ms: float = 2.0
  """How long a prompt that finds the device idle waits for others to share its batch."""
  look_every: float = 2.0
  """Seconds between two looks at the run's folder; 0: it is read once."""
  limits: Limits = dataclasses.field(default_factory=Limits)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  backbone: BackbonePlace = dataclasses.field(default_factory=BackbonePlace)

  def __post_init__(self) -> None:
    in_range(self)
    require(0 <= self.port < 65536, f"--port {self.port}: must be from 0 to 65535")
    for name in ("batch_size", "wait_ms", "look_every"):
      value = getattr(self, name)
      require(value >= 0, f"--{name.replace('_', '-')} {value}: must not be negative")
