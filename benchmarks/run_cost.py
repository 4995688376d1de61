"""What a whole run costs, split into compiling, training, generating and answering.

    python benchmarks/run_cost.py --json
    python benchmarks/run_cost.py --tasks 5 --steps 50 --method.attention published

A short run of the embedded default (python -m sapt_jax.train) in a process and a folder of its own;
options that are not listed here go to it. The figures are those of its metrics.jsonl
(sapt_jax/cost.py), one row per task and their sum:
    compilations  programs compiled; from_cache: read from JAX's persistent cache instead, if the
                  run has one
    compile_s     seconds that compiling and reading took; in none of the following
    train_s       making room for the task (features, routing) and learning it
    generate_s    learning to write the task's pseudo inputs, and sampling them
    evaluate_s    answering the test inputs of all tasks so far, and scoring
    save_s        the snapshot
and, of the sum, wall_s: the whole process; other_s: what is left of it (imports, loading the
backbone, drawing the stream, pictures). Tracing, and lowering to XLA, count where they happen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sizes

from sapt_jax import cli
from sapt_jax.mini.tasks import mini_stream
from sapt_jax.text_files import json_lines

# What a row calls the phases of the log.
PHASES = {
  "train_s": ("begin_s", "learn_s"),
  "generate_s": ("remember_s",),
  "evaluate_s": ("evaluate_s",),
  "save_s": ("save_s",),
}
COUNTS = ("compilations", "from_cache", "compile_s")


def run(folder: Path, options: Sequence[str]) -> float:
  """Wall seconds of a run; its failure is this program's."""
  began = time.monotonic()
  command = [sys.executable, "-m", "sapt_jax.train", "--output", str(folder), *options]
  done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
  if done.returncode:
    sys.exit(done.returncode)
  return time.monotonic() - began


def task_rows(folder: Path) -> list[dict[str, Any]]:
  """A row for each task of a finished run."""
  logged = [row for _, row in json_lines(folder / "metrics.jsonl") if "compilations" in row]
  return [
    {"task": row["task"]}
    | {name: row[name] for name in COUNTS}
    | {name: sum(row.get(phase, 0.0) for phase in phases) for name, phases in PHASES.items()}
    for row in logged
  ]


def main(arguments: Sequence[str]) -> None:
  """Runs, and prints."""
  parser = sizes.Parser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  sizes.add_number(parser, "--tasks", 3, "the first N tasks of the mini stream (default 3)")
  sizes.add_number(parser, "--steps", 20, "steps per task, of block and generator (default 20)")
  parser.add_argument(
    "--json", action="store_true", help="one JSON line, the tasks in it, in place of a table"
  )
  options, others = parser.parse_known_args(arguments)
  names = [task.name for task in mini_stream(0)][: options.tasks]
  steps = ["--fit.steps", str(options.steps), "--generator.steps", str(options.steps)]
  with tempfile.TemporaryDirectory() as folder:
    wall = run(Path(folder) / "run", [*steps, "--stream.tasks", *names, *others])
    rows = task_rows(Path(folder) / "run")
  total = {name: sum(row[name] for row in rows) for name in (*COUNTS, *PHASES)}
  total |= {"wall_s": wall, "other_s": wall - sum(total[name] for name in ("compile_s", *PHASES))}
  if options.json:
    print(json.dumps({**total, "steps": options.steps, "tasks": rows}))
    return
  for row in ({"task": "sum"} | total, *rows):
    cells = [x if isinstance(x, str) else f"{name} {x:.5g}" for name, x in row.items()]
    print("   ".join(cells))


if __name__ == "__main__":
  cli.run(main)
