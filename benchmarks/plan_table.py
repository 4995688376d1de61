"""The table in docs/scale.md: plans of large backbones on hardware that is not here,
one process each.

    pip install -e '.[plan-gpu,plan-tpu]'
    python benchmarks/plan_table.py --only h100        rows with this text in them; without it all,
                                                       TPUs last, as their compiler is slow

Every report is kept in the output file as a line of JSON; rows that are there are not made again.
The table is printed at the end.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import sizes

from sapt_jax import cli
from sapt_jax.plan.hardware import GIB

COMMON = (
  "--method.name sapt --method.attention published --pet.rank 4 --blocks 15 --examples 1000 "
  "--generator.keep 0.02 --backbone.dtype bfloat16 --backbone.remat full --fit.batch-size 32 "
  "--data.max-target-length 50"
).split()

# Model, target, and what the row has of its own; the mesh is all devices on fsdp.
ROWS = [
  "t5-xxl h100:1 --fit.accumulation 2 --evaluation.batch-size 128",
  "t5-xxl h100:8 --evaluation.batch-size 128",
  "t5-xxl rtx4090:1 --backbone.bits 4 --evaluation.batch-size 32",
  "llama2-13b h100:1 --fit.accumulation 16 --evaluation.batch-size 32",
  "llama2-13b h100:8 --fit.accumulation 4 --evaluation.batch-size 128",
  "llama2-13b rtx4090:1 --backbone.bits 4 --fit.accumulation 16 --evaluation.batch-size 8",
  "xuanyuan-70b h100:8 --fit.accumulation 4 --evaluation.batch-size 128",
  "llama3-8b h100:1 --fit.accumulation 16 --evaluation.batch-size 128",
  "llama3-8b rtx4090:1 --backbone.bits 4 --fit.accumulation 32 --evaluation.batch-size 16",
  "qwen3-8b h100:1 --fit.accumulation 16 --evaluation.batch-size 128",
  "qwen3-8b h100:8 --fit.accumulation 4 --evaluation.batch-size 128",
  "gemma2-9b h100:1 --fit.accumulation 16 --evaluation.batch-size 32",
  "gemma2-9b h100:8 --fit.accumulation 4 --evaluation.batch-size 128",
  "t5-xxl v5e:2x4 --evaluation.batch-size 128",
  "t5-xxl v5p:2x2x1 --evaluation.batch-size 128",
  "llama2-13b v5e:2x4 --fit.accumulation 4 --evaluation.batch-size 32",
  "llama2-13b v5p:2x2x1 --fit.accumulation 4 --evaluation.batch-size 128",
]


COLUMNS = (
  *("model", "target", "own options", "program", "rows, lengths"),
  *("arguments, GiB", "temporaries, GiB", "peak, GiB", "fits", "products, TFLOP"),
  *("sent, GiB", "floor, s", "compiled in, s", "host, GiB"),
)


def command(row: str) -> list[str]:
  """What a row is made with."""
  model, target, *own = row.split()
  chosen = ["--model", model, "--target", target]
  length = ["--data.max-source-length", "512" if model == "t5-xxl" else "1024"]
  return ["-m", "sapt_jax.plan", *chosen, *length, *COMMON, *own]


def made(row: str) -> dict | None:
  """A row's report, with `host`: the bytes of memory that making it took here;
  None if the planner fails.
  """
  whole = [sys.executable, *command(row), "--json"]
  process = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True)
  assert process.stdout is not None
  printed = process.stdout.read()
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    return None
  return {"row": row, "host": usage.ru_maxrss * 1024, **json.loads(printed.splitlines()[-1])}


def table(found: list[dict]) -> str:
  """Markdown, two lines per report."""
  lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
  for report in found:
    for program in ("step", "decode"):
      lines.append(f"| {' | '.join(map(str, cells(report, program)))} |")
  return "\n".join(lines)


def cells(report: dict, program: str) -> list[Any]:
  """A line of the table: what a report says of "step" or "decode"."""
  figures, lengths = report[program], report["lengths"]
  known = figures["flops"] is not None
  sent = sum(kind["bytes"] for kind in figures["collectives"].values()) / GIB if known else 0
  new = lengths["target"] if program == "step" else lengths["new"]
  own, others = report["row"].split()[2:], "--eval" if program == "step" else "--fit"
  named = zip(own[::2], own[1::2], strict=True)
  mine = " ".join(f"{name} {value}" for name, value in named if not name.startswith(others))
  return [
    report["model"],
    report["target"],
    f"`{mine}`" if mine else "",
    program,
    f"{figures['rows']}, {lengths['source']} + {new}",
    *(gib(figures[name]) for name in ("arguments", "temporaries", "peak")),
    "yes" if figures["fits"] else f"no: {figures['advice']}",
    f"{figures['flops'] / 1e12:.0f}" if known else "-",
    f"{sent:.1f}" if known else "-",
    f"{max(figures['floor_s'].values()):.2g}" if known else "-",
    figures["compile_s"],
    gib(report["host"]),
  ]


def gib(value: float | None) -> str:
  """Bytes in GiB; a dash where they are not known."""
  return "-" if value is None else f"{value / GIB:.1f}"


def main(arguments: Sequence[str]) -> None:
  """Makes the rows that are missing, then prints the table."""
  parser = sizes.Parser(description=(__doc__ or "").split("\n\n")[0])
  kept_in = "runs/plan_table.jsonl"
  parser.add_argument(
    "--output", default=kept_in, help="where reports are kept, one line of JSON each"
  )
  parser.add_argument("--only", default="", help="make only rows with this text in them")
  options = parser.parse_args(arguments)
  file = pathlib.Path(options.output)
  file.parent.mkdir(parents=True, exist_ok=True)
  kept = file.read_text().splitlines() if file.exists() else []
  reports = {report["row"]: report for report in map(json.loads, kept)}
  failed = 0
  for row in ROWS:
    if row in reports or options.only not in row:
      continue
    print("python", *command(row), file=sys.stderr, flush=True)
    report = made(row)
    if report is None:
      failed += 1
      continue
    reports[row] = report
    with file.open("a") as lines:
      lines.write(json.dumps(report) + "\n")
  print(table([reports[row] for row in ROWS if row in reports]))
  if failed:
    sys.exit(1)


if __name__ == "__main__":
  cli.run(main)
