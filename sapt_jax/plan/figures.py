"""A compiled program's figures, whether it fits its device, and what would help if it does not."""

from __future__ import annotations

import re
import time
from typing import Any

import jax

from sapt_jax.config import Config
from sapt_jax.plan.hardware import GIB, Target
from sapt_jax.plan.hlo import Module, Work


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
    unknown = dict.fromkeys(
      (
        "arguments",
        "temporaries",
        "outputs",
        "donated",
        "flops",
        "kernels",
        "loops",
        "traffic",
        "collectives",
        "floor_s",
      )
    )
    peak = int(float(used[1]) * {"M": 2**20, "G": GIB}[used[2]]) if used else None
    return {**unknown, "peak": peak, "fits": False, "compile_s": round(time.monotonic() - began, 1)}
  seconds = round(time.monotonic() - began, 1)
  memory: Any = compiled.memory_analysis()
  module = Module(compiled.as_text() or "", target.count, longest)
  work = module.work()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  outputs, donated = memory.output_size_in_bytes, memory.alias_size_in_bytes
  peak = arguments + temporaries + outputs - donated
  return {
    "arguments": arguments,
    "temporaries": temporaries,
    "outputs": outputs,
    "donated": donated,
    "peak": peak,
    "fits": peak <= target.usable,
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


def floor(work: Work, target: Target, dtype: str) -> dict[str, float] | None:
  """Seconds that the work takes at least, by each of the device's limits; the program takes no less
  than the largest.
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
  rows = (
    config.fit.batch_size // config.fit.accumulation
    if program == "step"
    else config.evaluation.batch_size
  )
  # Temporaries follow the rows that one device works on at once.
  half = rows // 2
  if half and half % devices == 0:
    if figures["temporaries"] is not None:
      while (
        half % 2 == 0
        and half // 2 % devices == 0
        and figures["arguments"] + figures["temporaries"] * half / rows > usable
      ):
        half //= 2
    return (
      f"--fit.accumulation {config.fit.batch_size // half}"
      if program == "step"
      else f"--evaluation.batch-size {half}"
    )
  return "more devices on --mesh.fsdp, or shorter --data.max-source-length"


def table(report: dict[str, Any]) -> str:
  """The report for a reader."""
  mesh = " ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
  lengths = report["lengths"]
  lines = [
    f"{report['model']}: {report['parameters'] / 1e9:.3g} B parameters, {report['dtype']}; {report['method']}, "
    f"{report['blocks']} blocks of {report['capacity']}",
    f"source {lengths['source']}, target {lengths['target']}, new tokens {lengths['new']}",
    f"{report['target']}, mesh {mesh}; {report['usable'] / GIB:.1f} GiB usable per device",
    "",
    f"{'per device':<24}{'step':>14}{'decode':>14}",
  ]
  both = [report["step"], report["decode"]]

  def row(name, values):
    return lines.append(f"{name:<24}" + "".join(f"{value:>14}" for value in values))

  row("rows", [figures["rows"] for figures in both])
  for name in ("arguments", "temporaries", "outputs", "peak"):
    row(
      f"{name}, GiB",
      ["-" if figures[name] is None else f"{figures[name] / GIB:.3g}" for figures in both],
    )
  row("fits", ["yes" if figures["fits"] else "NO" for figures in both])
  row(
    "products, TFLOP",
    ["-" if figures["flops"] is None else f"{figures['flops'] / 1e12:.3g}" for figures in both],
  )
  row("kernels", ["-" if figures["kernels"] is None else figures["kernels"] for figures in both])
  for kind in sorted({kind for figures in both for kind in figures["collectives"] or {}}):
    cells = [(figures["collectives"] or {}).get(kind, {"count": 0, "bytes": 0}) for figures in both]
    row(f"{kind}, GiB", [f"{cell['count']}x {cell['bytes'] / GIB:.3g}" for cell in cells])
  for limit in ("flops", "memory", "links"):
    if report["step"]["floor_s"]:
      row(
        f"floor by {limit}, s",
        [
          "-" if figures["floor_s"] is None else f"{figures['floor_s'][limit]:.3g}"
          for figures in both
        ],
      )
  row("compiled in, s", [figures["compile_s"] for figures in both])
  return "\n".join(
    lines
    + [
      f"{name} does not fit: {report[name]['advice']}"
      for name in ("step", "decode")
      if report[name]["advice"]
    ]
  )
