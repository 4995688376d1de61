"""Pictures of runs: mean mixtures of the tasks (the paper's Figure 3), scores, curves."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

mpl.use("Agg")  # files only, no screen
mpl.rcParams["text.parse_math"] = False  # a $ in a task's name is no formula


def mixture_heatmap(
  file: pathlib.Path, mixtures: Sequence[Sequence[float]], tasks: Sequence[str], title: str
) -> None:
  """Draws rows of weights, each a task's mean mixture, over the blocks that existed then."""
  table = np.full((len(tasks), len(tasks)), np.nan)
  for row, mixture in enumerate(mixtures):
    table[row, : len(mixture or ())] = mixture or ()
  heatmap(file, table, tasks, (title, "block of task", "input of task"), 1.0, 0.005)


def score_heatmap(
  file: pathlib.Path, scores: Sequence[Sequence[float | None]], tasks: Sequence[str]
) -> None:
  """Draws the score matrix: a row after each task that was learned, a column for each task."""
  table = np.full((len(tasks), len(tasks)), np.nan)
  table[: len(scores)] = np.array(scores, float)
  heatmap(file, table, tasks, ("scores", "task", "after task"), 100.0, -1.0)


def heatmap(
  file: pathlib.Path,
  table: np.ndarray,
  tasks: Sequence[str],
  words: tuple[str, str, str],
  most: float,
  least: float,
) -> None:
  """Draws a square of numbers, nan where there is none.

  Args:
    words: the title, and what columns and rows are.
    most: the largest number that is expected; weights that are no shares go beyond it, and below 0.
    least: numbers of a smaller size are not written into their squares.
  """
  title, across, down = words
  size = 1.6 + 0.45 * len(tasks)
  figure, axes = plt.subplots(figsize=(size + 1.6, size), layout="constrained")
  there = np.nan_to_num(table)
  low, high = there.min(initial=0.0), there.max(initial=most)
  image = axes.imshow(table, vmin=low, vmax=high, cmap="viridis")
  names = [task if len(task) <= 20 else task[:19] + "…" for task in tasks]
  axes.set_xticks(range(len(tasks)), names, rotation=60, ha="right", fontsize=7)
  axes.set_yticks(range(len(tasks)), names, fontsize=7)
  axes.set_xlabel(across)
  axes.set_ylabel(down)
  axes.set_title(title, fontsize=9)
  for row, column in np.argwhere(np.where(np.isnan(table), -np.inf, np.abs(table)) >= least):
    value = table[row, column]
    text = f"{value:.2f}".replace("0.", ".", 1) if most == 1.0 else f"{value:.0f}"
    color = "black" if value > low + 0.6 * (high - low) else "white"
    axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
  figure.colorbar(image, shrink=0.8)
  figure.savefig(file, dpi=130)
  plt.close(figure)


def known_mean(scores: np.ndarray) -> float:
  """The mean of the scores that are known; nan: none is."""
  known = scores[~np.isnan(scores)]
  return float(known.mean()) if known.size else float("nan")


def learning_curves(file: pathlib.Path, groups: dict[str, list[list[list[float | None]]]]) -> None:
  """Mean score on all tasks seen so far, after each task: a line per method, its seeds averaged."""
  figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
  for label, matrices in groups.items():
    scores = np.array(matrices, float)  # (seeds, tasks learned, tasks); None becomes nan
    seen = [known_mean(scores[:, learned, : learned + 1]) for learned in range(scores.shape[1])]
    axes.plot(range(1, len(seen) + 1), seen, marker="o", markersize=3, label=label)
  axes.set_xlabel("tasks learned")
  axes.set_ylabel("mean score on tasks seen")
  axes.set_ylim(0, 100)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  figure.savefig(file, dpi=130)
  plt.close(figure)


def final_scores(
  file: pathlib.Path, groups: dict[str, list[list[float | None]]], tasks: Sequence[str]
) -> None:
  """Score on every task at the end of the stream: a bar per method and task, its seeds averaged."""
  figure, axes = plt.subplots(figsize=(2 + 0.8 * len(tasks), 4), layout="constrained")
  width = 0.8 / len(groups)
  for place, (label, rows) in enumerate(groups.items()):
    heights = [known_mean(column) for column in np.array(rows, float).T]
    axes.bar(np.arange(len(tasks)) + place * width, heights, width, label=label)
  ticks, names = np.arange(len(tasks)) + 0.4 - width / 2, [task[:20] for task in tasks]
  axes.set_xticks(ticks, names, rotation=40, ha="right", fontsize=7)
  axes.set_ylabel("score at the end")
  axes.set_ylim(0, 100)
  axes.legend(fontsize=8)
  figure.savefig(file, dpi=130)
  plt.close(figure)
