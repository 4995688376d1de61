"""A stream that grows by one task at a time: what each start of the program takes.

    python benchmarks/growing.py --output runs/growing --tasks 40

Writes that many small tasks as CSV files, one after another, and starts the same command after each
one, with the files of earlier tasks removed. A line of JSON for each start: seconds in all, and
seconds until the first update (imports, reading, restoring, compiled programs). The first starts
compile. Started again, it goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from sapt_jax import cli
from sapt_jax.mini.tasks import mini_stream
from sapt_jax.text_files import json_lines

OPTIONS = (
  "--data.benchmark tasks --fit.steps 20 --generator.steps 20 --generator.keep 0.02 "
  "--evaluation.no-every-task --keep-snapshots 1"
).split()


def write_task(folder: pathlib.Path, number: int) -> None:
  """The number-th task: those of the mini stream, then the same with other rows, and so on."""
  tasks = mini_stream(number // 10)
  task = tasks[number % 10]
  name = f"{number:03d}_{task.name}"
  with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
    rows = csv.writer(out)
    rows.writerow(["input", "output"])
    rows.writerows([row.input, row.references[0]] for row in task.train)
  (folder / f"{name}.toml").write_text(f"instruction = {json.dumps(task.definition)}\n")


def start(output: pathlib.Path, number: int) -> dict[str, float]:
  """Seconds of the start that learns the number-th task."""
  command = [sys.executable, "-m", "sapt_jax.train", *OPTIONS]
  command += ["--data.root", str(output / "tasks"), "--output", str(output / "run")]
  log, began, first = output / "run/metrics.jsonl", time.monotonic(), 0.0
  with (output / "log").open("wb") as out:
    process = subprocess.Popen(command, stdout=out, stderr=out)
    while process.poll() is None:
      time.sleep(0.02)
      if not first and f'"index": {number},' in (log.read_text() if log.exists() else ""):
        first = time.monotonic() - began
  if process.returncode:
    sys.exit(f"the start that learns task {number} failed; see {output / 'log'}")
  return {"tasks": number + 1, "s": time.monotonic() - began, "until_first_s": first}


def main(arguments: Sequence[str]) -> None:
  """Starts the program once for each task."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of it all")
  parser.add_argument("--tasks", type=int, default=40, help="how many (default 40)")
  options = parser.parse_args(arguments)
  folder, file = options.output / "tasks", options.output / "starts.jsonl"
  folder.mkdir(parents=True, exist_ok=True)
  done = [row for _, row in json_lines(file)] if file.exists() else []
  for number in range(len(done), options.tasks):
    for old in folder.iterdir():
      old.unlink()
    write_task(folder, number)
    done.append({name: round(value, 2) for name, value in start(options.output, number).items()})
    with file.open("a", encoding="utf-8") as out:
      out.write(json.dumps(done[-1]) + "\n")
    print(json.dumps(done[-1]), flush=True)
  for name in ("s", "until_first_s"):
    parts = [statistics.median(row[name] for row in part) for part in (done[-20:-10], done[-10:])]
    print(f"{name}: median {parts[1]:.1f} in the last ten starts, {parts[0]:.1f} in the ten before")


if __name__ == "__main__":
  cli.run(main)
