"""The table in docs/scale.md: plans of large backbones on hardware that is not here, one process each.

    pip install -e '.[plan-gpu,plan-tpu]'
    python benchmarks/plan_table.py --only h100        rows whose target begins so; without it all, TPUs last, as their compiler is slow

Every report is kept in the output file as a line of JSON; rows that are there are not made again. The table is printed at the end.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

from sapt_jax.plan.hardware import GIB

COMMON = ["--method.name", "sapt", "--method.attention", "published", "--pet.rank", "4", "--blocks", "15", "--examples", "1000",
          "--generator.keep", "0.02", "--backbone.dtype", "bfloat16", "--backbone.remat", "full", "--fit.batch-size", "32",
          "--evaluation.batch-size", "32", "--data.max-target-length", "50"]

# (model, target, source length), the mesh being all devices on fsdp.
ROWS = [("t5-xxl", "h100:1", 512), ("t5-xxl", "h100:8", 512), ("llama2-13b", "h100:1", 1024), ("llama2-13b", "h100:8", 1024),
        ("xuanyuan-70b", "h100:8", 1024), ("t5-xxl", "v5e:2x4", 512), ("t5-xxl", "v5p:2x2x2", 512), ("llama2-13b", "v5e:2x4", 1024),
        ("llama2-13b", "v5p:2x2x2", 1024)]


def reports(file: pathlib.Path) -> list[dict]:
  """What has been planned before."""
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(found: list[dict]) -> str:
  """Markdown, two lines per report."""
  lines = ["| model | target | mesh | program | lengths | arguments, GiB | temporaries, GiB | peak, GiB | fits | products, TFLOP "
           "| sent, GiB | floor, s | compiled in, s |", "|" + "---|" * 13]
  gib = lambda value: "-" if value is None else f"{value / GIB:.1f}"
  for report in found:
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1) or "1"
    for program in ("step", "decode"):
      figures, lengths = report[program], report["lengths"]
      known = figures["flops"] is not None
      sent = sum(kind["bytes"] for kind in figures["collectives"].values()) / GIB if known else 0
      new = lengths["target"] if program == "step" else lengths["new"]
      cells = [report["model"], report["target"], mesh, program, f"{lengths['source']} + {new}", gib(figures["arguments"]),
               gib(figures["temporaries"]), gib(figures["peak"]), "yes" if figures["fits"] else f"no: {figures['advice']}",
               f"{figures['flops'] / 1e12:.0f}" if known else "-", f"{sent:.1f}" if known else "-",
               f"{max(figures['floor_s'].values()):.2g}" if known else "-", figures["compile_s"]]
      lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def main() -> int:
  """Makes the rows that are missing, then prints the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--output", default="runs/plan_table.jsonl", help="where reports are kept, one line of JSON each")
  parser.add_argument("--only", default="", help="make only rows whose target begins so")
  options = parser.parse_args()
  file = pathlib.Path(options.output)
  file.parent.mkdir(parents=True, exist_ok=True)
  failed = 0
  for model, target, source in ROWS:
    there = any((r["model"], r["target"], r["lengths"]["source"]) == (model, target, source) for r in reports(file))
    if there or not target.startswith(options.only):
      continue
    own = ["--model", model, "--target", target, "--data.max-source-length", str(source)]
    command = [sys.executable, "-m", "sapt_jax.plan", *own, *COMMON]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    failed += done.returncode != 0
    if done.returncode == 0:
      with file.open("a") as lines:
        lines.write(done.stdout.splitlines()[-1] + "\n")
  order = [row[:2] for row in ROWS]
  print(table(sorted(reports(file), key=lambda r: order.index((r["model"], r["target"])))))
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
