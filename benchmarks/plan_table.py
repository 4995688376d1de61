"""The table in docs/scale.md: plans of large backbones on hardware that is not here, one process
each.

    pip install -e '.[plan-gpu,plan-tpu]'
    python benchmarks/plan_table.py --only h100        rows whose target begins so; without it all, TPUs last, as their compiler is slow

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

import sizes

from sapt_jax import cli
from sapt_jax.plan.hardware import GIB

COMMON = [
  "--method.name",
  "sapt",
  "--method.attention",
  "published",
  "--pet.rank",
  "4",
  "--blocks",
  "15",
  "--examples",
  "1000",
  "--generator.keep",
  "0.02",
  "--backbone.dtype",
  "bfloat16",
  "--backbone.remat",
  "full",
  "--fit.batch-size",
  "32",
  "--data.max-target-length",
  "50",
]

# Model, target, and what the row has of its own; the mesh is all devices on fsdp. T5 reads 512
# tokens, LLaMA 1,024.
ROWS = [
  "t5-xxl h100:1 --fit.accumulation 2 --evaluation.batch-size 128",
  "t5-xxl h100:8 --evaluation.batch-size 128",
  "t5-xxl rtx4090:1 --backbone.bits 4 --evaluation.batch-size 32",
  "llama2-13b h100:1 --fit.accumulation 16 --evaluation.batch-size 32",
  "llama2-13b h100:8 --fit.accumulation 4 --evaluation.batch-size 128",
  "llama2-13b rtx4090:1 --backbone.bits 4 --fit.accumulation 16 --evaluation.batch-size 8",
  "xuanyuan-70b h100:8 --fit.accumulation 4 --evaluation.batch-size 128",
  "t5-xxl v5e:2x4 --evaluation.batch-size 128",
  "t5-xxl v5p:2x2x1 --evaluation.batch-size 128",
  "llama2-13b v5e:2x4 --fit.accumulation 4 --evaluation.batch-size 32",
  "llama2-13b v5p:2x2x1 --fit.accumulation 4 --evaluation.batch-size 128",
]


def command(row: str) -> list[str]:
  """What a row is made with."""
  model, target, *own = row.split()
  return [
    "-m",
    "sapt_jax.plan",
    "--model",
    model,
    "--target",
    target,
    "--data.max-source-length",
    "512" if model == "t5-xxl" else "1024",
    *COMMON,
    *own,
  ]


def made(row: str) -> dict | None:
  """A row's report, with `host`: the bytes of memory that making it took here; None if the planner
  fails.
  """
  process = subprocess.Popen(
    [sys.executable, *command(row), "--json"], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None
  printed = process.stdout.read()
  _, status, usage = os.wait4(process.pid, 0)
  return (
    None
    if status
    else {"row": row, "host": usage.ru_maxrss * 1024, **json.loads(printed.splitlines()[-1])}
  )


def table(found: list[dict]) -> str:
  """Markdown, two lines per report."""
  lines = [
    "| model | target | own options | program | rows, lengths | arguments, GiB | temporaries, GiB | peak, GiB | fits "
    "| products, TFLOP | sent, GiB | floor, s | compiled in, s | host, GiB |",
    "|" + "---|" * 14,
  ]

  def gib(value):
    return "-" if value is None else f"{value / GIB:.1f}"

  for report in found:
    _, _, *own = report["row"].split()
    for program in ("step", "decode"):
      figures, lengths = report[program], report["lengths"]
      known = figures["flops"] is not None
      sent = sum(kind["bytes"] for kind in figures["collectives"].values()) / GIB if known else 0
      new = lengths["target"] if program == "step" else lengths["new"]
      mine = " ".join(
        f"{name} {value}"
        for name, value in zip(own[::2], own[1::2], strict=True)
        if not name.startswith({"step": "--eval", "decode": "--fit"}[program])
      )
      cells = [
        report["model"],
        report["target"],
        f"`{mine}`" if mine else "",
        program,
        f"{figures['rows']}, {lengths['source']} + {new}",
        gib(figures["arguments"]),
        gib(figures["temporaries"]),
        gib(figures["peak"]),
        "yes" if figures["fits"] else f"no: {figures['advice']}",
        f"{figures['flops'] / 1e12:.0f}" if known else "-",
        f"{sent:.1f}" if known else "-",
        f"{max(figures['floor_s'].values()):.2g}" if known else "-",
        figures["compile_s"],
        gib(report["host"]),
      ]
      lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
  """Makes the rows that are missing, then prints the table."""
  parser = sizes.Parser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument(
    "--output",
    default="runs/plan_table.jsonl",
    help="where reports are kept, one line of JSON each",
  )
  parser.add_argument("--only", default="", help="make only rows whose target begins so")
  options = parser.parse_args(arguments)
  file = pathlib.Path(options.output)
  file.parent.mkdir(parents=True, exist_ok=True)
  reports = {
    report["row"]: report
    for report in map(json.loads, file.read_text().splitlines() if file.exists() else [])
  }
  failed = 0
  for row in ROWS:
    if row in reports or not row.split()[1].startswith(options.only):
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
