"""Pictures of a run: mean mixtures of the tasks (the paper's Figure 3)."""
from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

mpl.use("Agg")  # files only, no screen


def mixture_heatmap(file: pathlib.Path, mixtures: np.ndarray, tasks: Sequence[str], title: str) -> None:
  """Draws rows of weights: mixtures (tasks, blocks), each row a task's mean mixture, nan where a block did not exist yet."""
  size = 1.6 + 0.45 * len(tasks)
  figure, axes = plt.subplots(figsize=(size + 1.6, size), layout="constrained")
  image = axes.imshow(mixtures, vmin=0.0, vmax=1.0, cmap="viridis")
  names = [task if len(task) <= 20 else task[:19] + "…" for task in tasks]
  axes.set_xticks(range(len(tasks)), names, rotation=60, ha="right", fontsize=7)
  axes.set_yticks(range(len(tasks)), names, fontsize=7)
  axes.set_xlabel("block of task")
  axes.set_ylabel("input of task")
  axes.set_title(title, fontsize=9)
  for row, column in zip(*np.nonzero(np.nan_to_num(mixtures) >= 0.005), strict=True):
    weight = mixtures[row, column]
    axes.text(column, row, f"{weight:.2f}".lstrip("0"), ha="center", va="center", fontsize=6, color="black" if weight > 0.6 else "white")
  figure.colorbar(image, shrink=0.8)
  figure.savefig(file, dpi=130)
  plt.close(figure)
