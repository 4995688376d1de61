"""What a task costs: wall seconds by phase, programs compiled, and the seconds that compiling took,
told by JAX's own events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from jax import monitoring

# Sent once for every program that is made ready (jax._src.dispatch.BACKEND_COMPILE_EVENT, the same
# in jax 0.10 and 0.12), and before it when the program was not compiled but read from the
# persistent cache (jax._src.compiler).
COMPILED = "/jax/core/compile/backend_compile_duration"
READ = "/jax/compilation_cache/cache_hits"


class Cost:
  """Counts as long as it is entered; the first phase is "start".

  Tracing and lowering to XLA are part of the phase that needs them; compiling, and reading compiled
  programs back, is not.
  """

  def __init__(self) -> None:
    self._count: Counter[str] = Counter()
    self._compile_s, self._phases = 0.0, dict[str, float]()
    self._since, self._compiled_before, self._phase = time.monotonic(), 0.0, "start"
    self._task_since = self._since

  def __enter__(self) -> Cost:
    monitoring.register_event_duration_secs_listener(self._add_seconds)
    monitoring.register_event_listener(self._add)
    self._since = time.monotonic()
    return self

  def __exit__(self, *_: object) -> None:
    monitoring.unregister_event_duration_listener(self._add_seconds)
    monitoring.unregister_event_listener(self._add)

  def _add(self, event: str, **_: str | int) -> None:
    self._count[event] += 1

  def _add_seconds(self, event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED:
      self._count[event] += 1
      self._compile_s += duration_secs

  def phase(self, name: str) -> None:
    """What passes from now on is put down to this phase."""
    now, compiled = time.monotonic(), self._compile_s - self._compiled_before
    earlier = self._phases.get(self._phase, 0.0)
    self._phases[self._phase] = earlier + now - self._since - compiled
    self._since, self._compiled_before, self._phase = now, self._compile_s, name

  def task(self, earlier: Mapping[str, int | float]) -> None:
    """A task begins, or is gone on with: its phase "begin".

    Args:
      earlier: what so_far said of it in the starts before; empty: none.
    """
    self.phase("begin")
    self._task_since = self._since - earlier.get("wall_s", 0.0)
    self._count[READ] += int(earlier.get("from_cache", 0))
    self._count[COMPILED] += int(earlier.get("from_cache", 0) + earlier.get("compilations", 0))
    self._compile_s += earlier.get("compile_s", 0.0)
    self._compiled_before = self._compile_s
    for name, seconds in earlier.items():
      if name.endswith("_s") and name not in ("wall_s", "compile_s"):
        phase = name.removesuffix("_s")
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

  def so_far(self) -> dict[str, int | float]:
    """What `take` would say now, and "wall_s": all seconds since the task began, in all of its
    starts, without the time between them.
    """
    self.phase(self._phase)
    wall_s = round(self._since - self._task_since, 3)
    return self._figures() | {"wall_s": wall_s}

  def take(self) -> dict[str, int | float]:
    """What has been counted since it was last taken.

    Returns:
      "compilations": programs compiled; "from_cache": programs read from the persistent cache;
      "compile_s": seconds that both took; "PHASE_s": the other wall seconds of each phase.
    """
    self.phase(self._phase)
    figures = self._figures()
    self._count, self._compile_s, self._phases, self._compiled_before = Counter(), 0.0, {}, 0.0
    return figures

  def _figures(self) -> dict[str, int | float]:
    figures: dict[str, int | float] = {
      "compilations": self._count[COMPILED] - self._count[READ],
      "from_cache": self._count[READ],
      "compile_s": round(self._compile_s, 3),
    }
    return figures | {f"{phase}_s": round(seconds, 3) for phase, seconds in self._phases.items()}
