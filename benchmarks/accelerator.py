"""What the library does on the accelerator that is here, in a few minutes, without a network.

    python benchmarks/accelerator.py --output DIR [--phases facts,truth,...] [--limit 900]

facts     the device, the versions, how fast it copies and multiplies
truth     the goldens in float32 (--goldens FOLDER), each kernel of attention against plain XLA
steps     seconds of a training step of T5-Large, T5-XXL and LLaMA-2-7B in bfloat16, its share of
          the product rate, its memory beside what the compiled program says (as `plan` has it),
          and its longest kernels
forms     the step of T5-Large with its layers unrolled, and with nothing or all recomputed
peer      the same work of T5-Large on PyTorch, in its forms (torch_peer.py)
answers   tokens a second, beside what reading the weights and the cache takes
mini      the mini stream from end to end

Each part is a process of its own, with a limit of its own. A figure is a line of DIR/results.jsonl
as soon as it is known; what fails is a line too. At the end a table of all of them is printed. On a
CPU all sizes are tiny: it is the rehearsal, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerator_parts import PARTS, Figures, find_platform
from sizes import Parser, positive

from sapt_jax import cli
from sapt_jax.errors import InputError

# Parts of each phase, and the seconds that each may take on a GPU.
PHASES = {
  "facts": {"facts": 60},
  "truth": {"goldens": 200, "attention": 150},
  "steps": {
    "t5-large 1": 75,
    "t5-large 15": 75,
    "t5-large 256": 90,
    "t5-xxl 15": 110,
    "llama 15": 90,
  },
  "forms": {"t5-large 15 unrolled": 240, "t5-large 15 none": 75, "t5-large 15 full": 75},
  "peer": {"peer sdpa": 150, "peer sdpa compiled": 100, "peer eager": 150},
  "answers": {"answers t5-large": 110, "answers llama": 110},
  "mini": {"mini": 180},
}
REHEARSAL = 6  # times as long, on a CPU
LEAST = 10.0  # seconds without which a part is not begun


def phases(text: str) -> list[str]:
  """facts,truth -> [facts, truth]."""
  named = text.split(",")
  if unknown := [name for name in named if name not in PHASES]:
    raise argparse.ArgumentTypeError(f"no phase {unknown[0]!r}: {', '.join(PHASES)}")
  return named


def started(part: str, options: argparse.Namespace, seconds: float) -> str:
  """Runs a part in a process of its own; returns what went wrong, if anything did. Programs that it
  has started end with it: the next part has the device alone.
  """
  command = [sys.executable, __file__, "--output", str(options.output), "--part", part]
  command += ["--goldens", str(options.goldens)] if options.goldens else []
  command += ["--tiny"] if options.tiny else []
  environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TF_CPP_MIN_LOG_LEVEL": "2"}
  with subprocess.Popen(
    command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
  ) as process:
    try:
      said = " ".join(process.communicate(timeout=seconds)[1].split())
    except subprocess.TimeoutExpired:
      return f"not done in {seconds:.0f} s"
    finally:
      with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
  return f"exit code {process.returncode}: {said[-300:]}" if process.returncode else ""


def table(rows: Sequence[dict[str, Any]]) -> str:
  """All figures in Markdown."""
  lines = ["| part | figure | value |", "|---|---|---|"]
  for row in rows:
    value = row["value"]
    shown = f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
    words = " ".join([shown, *([row["unit"]] if "unit" in row else [])])
    lines.append(f"| {row['part']} | {row['figure']} | {words} |")
  return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
  """Runs the parts one after another, or one of them."""
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--output", type=Path, required=True, help="folder of results.jsonl")
  parser.add_argument("--phases", type=phases, default=list(PHASES), help="default: all")
  parser.add_argument("--limit", type=positive, default=900, help="seconds in all (default 900)")
  parser.add_argument("--goldens", type=Path, help="folder of *.npz, see parity.py")
  parser.add_argument("--part", choices=PARTS, help="one part alone, in this process")
  parser.add_argument("--tiny", action="store_true", help="tiny sizes, as on a CPU")
  options = parser.parse_args(arguments)
  if options.goldens and not list(options.goldens.glob("*.npz")):
    raise InputError(f"--goldens {options.goldens}: holds no *.npz")
  try:
    options.output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"--output {options.output}: no folder can be made there: {error.strerror}"
    ) from None
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # parts end too
  if options.part:
    PARTS[options.part](Figures(options.output, options.part, options.tiny), options.goldens)
    return
  Figures(options.output, "").rows()  # before anything is measured: they can be read
  ends = time.monotonic() + options.limit
  # Asked once: a part that asks JAX has taken the device's memory from the processes it starts.
  options.tiny = options.tiny or find_platform() == "cpu"
  times = REHEARSAL if options.tiny else 1
  for phase in options.phases:
    for part, seconds in PHASES[phase].items():
      figures, began = Figures(options.output, part), time.monotonic()
      left = min(ends - began, seconds * times)
      failed = started(part, options, left) if left >= LEAST else "no time left"
      if failed:
        figures.add("failed", failed)
      figures.add("took", time.monotonic() - began, "s")
  print(table(Figures(options.output, "").rows()))


if __name__ == "__main__":
  cli.run(main)
