"""How much of what a task's LoRA block reads was read by the blocks before it: the overlap that
O-LoRA penalises, for any finished run.

    python benchmarks/subspaces.py runs/results/mini-lora.{o_lora,sequential}.0

Prints a row per run: the share of the newest A's row space that lies in the span of all earlier
ones, the mean over tasks after the first, sites and layers. 0: orthogonal; 1: nothing new; blocks
drawn at random share about (tasks before * rank) / width. A method with one block for all tasks is
followed through its snapshots.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.snapshots import sound_snapshots
from sapt_jax.training.checkpoint import arrays_of


def shared(earlier: Sequence[np.ndarray], new: np.ndarray) -> float:
  """||Q' N||_F^2 / rank with orthonormal columns Q of all earlier factors and N of the new one,
  (D, R) each.
  """
  basis, fresh = np.linalg.qr(np.concatenate(earlier, axis=1))[0], np.linalg.qr(new)[0]
  return float(np.square(basis.T @ fresh).sum() / fresh.shape[1])


def factors_by_task(run: Path) -> list[list[np.ndarray]]:
  """[task][site and layer] -> A of the block that the task left, (D, R) float64."""
  trees = [arrays_of(snapshot) for snapshot in sound_snapshots(run)]
  names = [name for name in trees[-1] if name.startswith("blocks.lora.") and name.endswith(".a")]
  if not names:
    raise InputError(f"{run}: its blocks are not LoRA")
  # By snapshot and site, (layers, D, T, R) each.
  stacks = [[np.asarray(tree[name], np.float64) for name in sorted(names)] for tree in trees]
  tasks = range(len(trees))
  if stacks[-1][0].shape[2] == 1:  # one block for all tasks
    return [[layer[:, 0] for stack in stacks[task] for layer in stack] for task in tasks]
  return [[layer[:, task] for stack in stacks[-1] for layer in stack] for task in tasks]


def mean_shared(earlier: Sequence[Sequence[np.ndarray]], new: Sequence[np.ndarray]) -> float:
  """The mean of `shared` over sites and layers."""
  shares = [shared([task[place] for task in earlier], a) for place, a in enumerate(new)]
  return float(np.mean(shares))


def main(arguments: Sequence[str]) -> None:
  """Reads, measures, prints."""
  if not arguments:
    raise InputError("no run given: name the folders of finished runs with LoRA blocks")
  for run in map(Path, arguments):
    tasks = factors_by_task(run)
    shares = [mean_shared(tasks[:task], tasks[task]) for task in range(1, len(tasks))]
    print(f"{run.name:<24} {np.mean(shares):.3f}   {' '.join(f'{share:.2f}' for share in shares)}")


if __name__ == "__main__":
  if {"-h", "--help"} & set(sys.argv[1:]):
    print(__doc__)
    sys.exit()
  cli.run(main)
