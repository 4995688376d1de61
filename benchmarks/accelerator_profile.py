"""What the kernels of a call take, by a profile of the device."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from accelerator_parts import Figures

# Words in the names of kernels.
KINDS = {
  "products": ("nvjet", "gemm", "cublas", "cutlass", "triton_gemm", "dot_"),
  "attention": ("attention", "flash"),
  "copies": ("memcpy", "copy", "dynamic_update_slice", "dynamic_slice", "concatenate", "memset"),
}
KERNELS_SHOWN = 6
KERNELS_KEPT = 80  # in PART.kernels.json


def add_kernels_of(figures: Figures, call: Callable[[], object], calls: int) -> None:
  """Adds what kernels of a call take: all, those of each kind, the longest; and writes more of
  them to PART.kernels.json.
  """
  kernels = kernels_of(call, calls)
  total = sum(kernel.ms for kernel in kernels)
  if not total:
    return
  figures.add("kernels", sum(kernel.number for kernel in kernels))
  figures.add("all kernels", total, "ms")
  kinds: dict[str, float] = dict.fromkeys(sorted({kernel.kind for kernel in kernels}), 0.0)
  for kernel in kernels:
    kinds[kernel.kind] += kernel.ms
  for kind, ms in kinds.items():
    figures.add(f"kernels: {kind}", ms / total, "of the device's time")
  for kernel in kernels[:KERNELS_SHOWN]:
    figures.add(f"kernel {kernel.name[:60]}", kernel.ms / total, "of the device's time")
  rows = [kernel._asdict() for kernel in kernels[:KERNELS_KEPT]]
  file = figures.folder / f"{figures.part.replace(' ', '_')}.kernels.json"
  file.write_text(json.dumps(rows, indent=0), encoding="utf-8")


class Kernel(NamedTuple):
  """What a kernel takes in one call."""

  name: str
  number: float
  ms: float

  @property
  def kind(self) -> str:
    """What it does, by its name."""
    for kind, words in KINDS.items():
      if any(word in self.name.lower() for word in words):
        return kind
    return "fused loops, sums and others"


def kernels_of(call: Callable[[], object], calls: int) -> list[Kernel]:
  """The kernels of a call, by a profile of `calls` of them, longest first; none: the profile has no
  device.
  """
  import jax

  with tempfile.TemporaryDirectory() as place:
    with jax.profiler.trace(place, create_perfetto_trace=True):
      for _ in range(calls):
        call()
    [file] = Path(place).rglob("perfetto_trace.json.gz")
    with gzip.open(file, "rt", encoding="utf-8") as opened:
      events = json.load(opened)["traceEvents"]
  devices = {
    event["pid"]
    for event in events
    if event.get("name") == "process_name" and "/device:" in event["args"]["name"]
  }
  times, numbers = Counter[str](), Counter[str]()
  for event in events:
    if event.get("ph") == "X" and event["pid"] in devices:
      times[event["name"]] += event["dur"]
      numbers[event["name"]] += 1
  return [
    Kernel(name, numbers[name] / calls, 1e-3 * taken / calls) for name, taken in times.most_common()
  ]
