"""A trace of a few steps, for TensorBoard (its profile plugin) and Perfetto."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from sapt_jax import processes


class Profile:
  """Traces some steps of the first training that comes to them. They are `missed` as long as steps
  have been made, but none of these. A training is made within it: however that ends, so does its
  trace.

  The parts of a step have names in it: mixture, lora, attention, mlp, logits, reflection. The first
  steps compile, so choose later ones.

  Args:
    steps: "FIRST:LAST"; empty: none.
    folder: where the trace goes: perfetto_trace.json.gz, and what TensorBoard reads.
  """

  def __init__(self, steps: str, folder: pathlib.Path):
    self.first, self.last = map(int, steps.split(":")) if steps else (0, 0)
    self.folder, self.tracing, self.missed = folder, False, False

  def __enter__(self) -> Profile:
    return self

  def __exit__(self, *error: object) -> None:
    self.end()

  def step(self, number: int, f: Callable[..., tuple[Any, Any]], *given: Any) -> tuple[Any, Any]:
    """What f gives, a step of this number, traced if it is one of those that were asked for."""
    if self.first <= number <= self.last and processes.is_first() and not self.tracing:
      jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
      self.tracing = True
    self.missed = bool(self.first) and not self.tracing
    result = f(*given)
    if self.tracing and number >= self.last:
      jax.block_until_ready(result)
      self.end()
    return result

  def end(self) -> None:
    """Writes the trace, if there is one."""
    if self.tracing:
      jax.profiler.stop_trace()
      self.tracing, self.missed, self.first, self.last = False, False, 0, 0
