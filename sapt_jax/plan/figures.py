"""A compiled program's figures, whether it fits its device, and what would help if it does not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import jax

from sapt_jax.config import Config
from sapt_jax.plan.hardware import GIB, Target
from sapt_jax.plan.hlo import Module, Work

# What is not known of a program that its compiler gave up on.
UNKNOWN = (
  "arguments temporaries outputs donated flops kernels loops traffic collectives floor_s".split()
)


def measure(
  lowered: jax.stages.Lowered, target: Target, config: Config, longest: int
) -> dict[str, Any]:
  """Compiles a program and reads it.

  Args:
    longest: times that a loop runs whose end depends on data (plan/hlo.py).

  Returns:
    per device, in bytes: arguments, temporaries, outputs (of these `donated` in the arguments'
    place), peak = arguments + temporaries + outputs - donated; flops, kernels, traffic,
    collectives, loops (plan/hlo.py), fits, compile_s, and floor_s: seconds that flops, traffic and
    sent bytes take at least, each at the device's peak (None for the CPU). A TPU's compiler gives
    up on a program that does not fit: then only fits, compile_s and, if it says so, peak are known.
  """
  began = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    used = re.search(r"Used ([\d.]+)([MG]) of", str(error))
    peak = int(float(used[1]) * {"M": 2**20, "G": GIB}[used[2]]) if used else None
    unknown = dict.fromkeys(UNKNOWN)
    return {**unknown, "peak": peak, "fits": False, "compile_s": round(time.monotonic() - began, 1)}
  seconds = round(time.monotonic() - began, 1)
  module = Module(compiled.as_text() or "", target.count, longest)
  work = module.work()
  memory = memory_of(compiled)
  return {
    **memory,
    "fits": memory["peak"] <= target.usable,
    "flops": int(work.flops),
    "kernels": int(work.kernels),
    "loops": module.loops(),
    "traffic": int(work.traffic),
    "collectives": {
      kind: {name: int(value) for name, value in found.items()}
      for kind, found in sorted(work.collectives.items())
    },
    "floor_s": floor(work, target, config.backbone.dtype),
    "compile_s": seconds,
  }


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
  """What a program takes of one device's memory, in bytes."""
  memory: Any = compiled.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  outputs, donated = memory.output_size_in_bytes, memory.alias_size_in_bytes
  return {
    "arguments": arguments,
    "temporaries": temporaries,
    "outputs": outputs,
    "donated": donated,
    "peak": arguments + temporaries + outputs - donated,
  }


def floor(work: Work, target: Target, dtype: str) -> dict[str, float] | None:
  """Seconds that the work takes at least, by each of the device's limits;
  the program takes no less than the largest.
  """
  device = target.device
  if device is None:
    return None
  sent = sum(figures["bytes"] for figures in work.collectives.values())
  return {
    "flops": work.flops / (device.bfloat16 if dtype == "bfloat16" else device.float32),
    "memory": work.traffic / device.bandwidth,
    "links": sent / device.links,
  }


def advice(figures: dict[str, Any], config: Config, target: Target, program: str) -> str:
  """What to change where a program does not fit, in one line; empty where it fits."""
  if figures["fits"]:
    return ""
  usable, devices = target.usable, config.mesh.data * config.mesh.fsdp
  if figures["arguments"] is not None and figures["arguments"] > usable:
    if config.backbone.dtype == "float32":
      return "the arguments alone do not fit: --backbone.dtype bfloat16 halves them"
    more = config.mesh.fsdp
    while figures["arguments"] * config.mesh.fsdp / more > usable:
      more *= 2
    return f"the arguments alone do not fit: at least --mesh.fsdp {more}"
  if program == "step" and config.backbone.remat != "full":
    return "--backbone.remat full"
  rows = config.evaluation.batch_size
  if program == "step":
    rows = config.fit.batch_size // config.fit.accumulation
  # Temporaries follow the rows that one device works on at once.
  half = rows // 2
  if half and half % devices == 0:
    arguments, temporaries = figures["arguments"], figures["temporaries"]
    while half % 2 == 0 and half // 2 % devices == 0:
      if temporaries is None or arguments + temporaries * half / rows <= usable:
        break
      half //= 2
    if program == "step":
      return f"--fit.accumulation {config.fit.batch_size // half}"
    return f"--evaluation.batch-size {half}"
  return "more devices on --mesh.fsdp, or shorter --data.max-source-length"


def table(report: dict[str, Any]) -> str:
  """The report for a reader."""
  mesh = " ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
  lengths = report["lengths"]
  head = [
    f"{report['model']}: {report['parameters'] / 1e9:.3g} B parameters, {report['dtype']}, "
    f"attention by {report['attention']}; "
    f"{report['method']}, {report['blocks']} blocks of {report['capacity']}",
    f"source {lengths['source']}, target {lengths['target']}, new tokens {lengths['new']}",
    f"{report['target']}, mesh {mesh}; {report['usable'] / GIB:.1f} GiB usable per device",
    "",
    f"{'per device':<24}{'step':>14}{'decode':>14}",
  ]
  rows = [
    f"{name:<24}" + "".join(f"{value:>14}" for value in values)
    for name, values in table_rows([report["step"], report["decode"]])
  ]
  tail = [
    f"{name} does not fit: {report[name]['advice']}"
    for name in ("step", "decode")
    if report[name]["advice"]
  ]
  return "\n".join([*head, *rows, *tail])


def table_rows(both: list[dict[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
  """The rows of the table: their names, and what they say of the step and of the decoder."""

  def digits(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"

  yield "rows", [figures["rows"] for figures in both]
  for name in ("arguments", "temporaries", "outputs", "peak"):
    yield f"{name}, GiB", [digits(figures[name], GIB) for figures in both]
  yield "fits", ["yes" if figures["fits"] else "NO" for figures in both]
  yield "products, TFLOP", [digits(figures["flops"], 1e12) for figures in both]
  yield "kernels", ["-" if figures["kernels"] is None else figures["kernels"] for figures in both]
  for kind in sorted({kind for figures in both for kind in figures["collectives"] or {}}):
    cells = [(figures["collectives"] or {}).get(kind, {"count": 0, "bytes": 0}) for figures in both]
    yield f"{kind}, GiB", [f"{cell['count']}x {cell['bytes'] / GIB:.3g}" for cell in cells]
  if both[0]["floor_s"]:
    for limit in ("flops", "memory", "links"):
      floors = [figures["floor_s"] for figures in both]
      yield f"floor by {limit}, s", [digits(known and known[limit], 1) for known in floors]
  yield "compiled in, s", [figures["compile_s"] for figures in both]
