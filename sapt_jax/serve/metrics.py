"""Figures of the server, in the text form that Prometheus reads."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

# name -> kind, help; all names begin with sapt_.
FIGURES = {
  "requests_total": ("counter", "Requests by path and status; 499: the client left."),
  "request_seconds": ("histogram", "From a request's first byte to its answer's last."),
  "queue_seconds": ("histogram", "How long a prompt waited for its batch."),
  "batch_seconds": ("histogram", "How long a batch took."),
  "batch_rows": ("histogram", "Prompts answered together."),
  "batch_places_total": ("counter", "Rows computed, those included that only fill up a batch."),
  "prompt_tokens_total": ("counter", "Tokens read."),
  "answer_tokens_total": ("counter", "Tokens written."),
  "renewals_total": ("counter", "Looks at a changed run by outcome: taken, refused."),
  "queue_length": ("gauge", "Prompts that wait for their batch."),
  "tasks": ("gauge", "Tasks in the pool."),
  "ready": ("gauge", "1 once all shapes are compiled, else 0."),
}
LABELLED = ("requests_total", "renewals_total")
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Labels = tuple[tuple[str, str], ...]


class Metrics:
  """Counts; may be told by any thread."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
    for name, (kind, _) in FIGURES.items():  # what has not happened counts 0
      if kind == "histogram":
        for bound in (*map(str, bounds_of(name)), "+Inf"):
          self._counts[f"{name}_bucket", (("le", bound),)] = 0
        self._counts[f"{name}_sum", ()] = self._counts[f"{name}_count", ()] = 0
      elif kind == "counter" and name not in LABELLED:
        self._counts[name, ()] = 0

  def count(self, name: str, value: float = 1, **labels: str) -> None:
    """Adds to a counter."""
    with self._lock:
      self._counts[name, tuple(labels.items())] += value

  def observe(self, name: str, value: float) -> None:
    """Adds a value to a histogram, whose buckets each count all values up to their bound."""
    with self._lock:
      for bound in bounds_of(name):
        self._counts[f"{name}_bucket", (("le", str(bound)),)] += value <= bound
      self._counts[f"{name}_bucket", (("le", "+Inf"),)] += 1
      self._counts[f"{name}_sum", ()] += value
      self._counts[f"{name}_count", ()] += 1

  def text(self, gauges: Mapping[str, float]) -> str:
    """All figures; `gauges`: those that are looked up now, by name."""
    with self._lock:
      counts = dict(self._counts)
    lines = []
    for name, (kind, help_text) in FIGURES.items():
      lines += [f"# HELP sapt_{name} {help_text}", f"# TYPE sapt_{name} {kind}"]
      if name in gauges:
        lines.append(f"sapt_{name} {gauges[name]:g}")
      parts = [f"{name}_{part}" for part in ("bucket", "sum", "count")]
      of_name = parts if kind == "histogram" else [name]
      lines += [
        f"sapt_{found}{_braces(labels)} {value:.10g}"
        for (found, labels), value in counts.items()
        if found in of_name
      ]
    return "\n".join(lines) + "\n"


def bounds_of(name: str) -> tuple[float, ...]:
  """Upper bounds of a histogram's buckets."""
  return ROWS if name == "batch_rows" else SECONDS


def _braces(labels: Labels) -> str:
  inner = ",".join(f'{name}="{value}"' for name, value in labels)
  return f"{{{inner}}}" if inner else ""
