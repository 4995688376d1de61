"""What a finished run leaves for the reader: scores.json, all answers, pictures of the mixtures."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

import sapt_jax
from sapt_jax.config import Config, Pet
from sapt_jax.evaluation.continual_metrics import alignment, blocks_used, continual_metrics
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned
from sapt_jax.run_folder import RunFolder
from sapt_jax.scoring import metric_of
from sapt_jax.text_files import json_lines, write_json, write_lines

Records = list[dict[str, Any]]

TAKEN = 0.05  # the least weight of another task's block that is named


def summary(
  config: Config,
  method: Method,
  names: list[str],
  records: Records,
  single: list[float] | None,
  learned: Learned | None = None,
) -> dict[str, Any]:
  """The content of scores.json, from the records of all tasks and, where it is at hand, from what
  has been learned.
  """
  rows = [record["scores"] for record in records]
  metrics = [record.get("metric") for record in records]
  result = {
    "method": config.method.name,
    "label": method.label,
    "backbone": config.backbone.path,
    "tasks": names,
    "scores": [row + [None] * (len(names) - len(row)) for row in rows],
    "single": single,
    "metrics": continual_metrics(rows, single),
    "metric": metrics[0] or metric_of(config),
    "protocol": config.data.protocol,
    "pet": block_words(config.pet),
    "dtype": config.backbone.dtype,
    "precision": config.backbone.precision,
    "attention": ", ".join(dict.fromkeys(record.get("attention", "xla") for record in records)),
    "seed": config.seed,
    "steps": [record["steps"] for record in records],
    "wall_s": round(sum(record["wall_s"] for record in records), 1),
    "versions": versions(),
    "made": records[-1].get("made"),
    "rows": records[-1].get("rows"),
    "changed": records[-1].get("changed"),
  }
  if len(set(metrics)) > 1:
    result["metric"], result["metrics_of_tasks"] = "as each task says", metrics
  mixtures = {j: row for j, row in enumerate(records[-1]["testing_mixture"]) if row is not None}
  if method.block_per_task and mixtures:
    result["own_weight"] = round(float(np.mean([row[j] for j, row in mixtures.items()])), 4)

    def by_task(row: list[float]) -> Sequence[float]:
      return method.by_task(learned, row) if row and learned is not None else row

    learning = [by_task(records[j]["training_mixture"]) for j in mixtures]
    result["alignment"] = alignment(learning, [by_task(row) for row in mixtures.values()])
  if method.block_per_task:
    result["taken"] = taken(names, records)
  result["blocks_used"] = round(blocks_used(list(mixtures.values())), 2) if mixtures else None
  notes = []
  last = records[-1]
  if lost := last.get("without_test_rows"):
    notes.append(f"not scored, as their test rows are not there: {', '.join(lost)}")
  if foreign := [record["task"] for record in records if record.get("imported")]:
    notes.append(f"learned by another program, and not scored: {', '.join(foreign)}")
  if last.get("joined"):
    notes.append("two runs made one: each task was scored by the run that learned it")
  if last.get("forgotten"):
    notes.append(f"scores are from before {last['forgotten']} task(s) were forgotten")
  if notes:
    result["note"] = "; ".join(notes)
  return result


def taken(names: list[str], records: Records) -> dict[str, dict[str, float]]:
  """What each task took of other tasks' blocks while it was learned: their mean weights, from TAKEN
  on. Tasks that took nothing are left out.
  """
  found = {
    name: {
      other: round(weight, 3)
      for other, weight in zip(names, record.get("training_mixture") or (), strict=False)
      if other != name and abs(weight) >= TAKEN
    }
    for name, record in zip(names, records, strict=True)
  }
  return {name: others for name, others in found.items() if others}


def publish(
  folder: RunFolder, method: Method, names: list[str], records: Records, result: dict[str, Any]
) -> None:
  """Writes what the whole run leaves for the reader, scores.json last."""
  from sapt_jax import plots  # here, as it is needed at the end alone

  path = folder.path
  if method.block_per_task:
    training = [record["training_mixture"] for record in records]
    for when, mixtures in (("training", training), ("testing", records[-1]["testing_mixture"])):
      file = path / f"mixture_{when}.png"
      plots.mixture_heatmap(file, mixtures, names, f"mean mixture in {when}")
  parts = [folder.lines_of("predictions", index, name) for index, name in enumerate(names)]
  write_lines(path / "predictions.jsonl", (row for part in parts for _, row in json_lines(part)))
  write_json(path / "scores.json", result)


def block_words(pet: Pet) -> str:
  """The kind and size of a block, for tables."""
  return f"lora of rank {pet.rank}" if pet.kind == "lora" else f"prompt of {pet.prompt_length}"


def versions() -> dict[str, str]:
  """Versions of what the numbers depend on."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers")
  own = {"sapt_jax": sapt_jax.__version__, "python": platform.python_version()}
  return own | {name: importlib.metadata.version(name) for name in names}


def score_table(names: Sequence[str], rows: Sequence[Sequence[float | None]]) -> str:
  """The score matrix as text: a row per task learned, a column per task seen."""
  width = max(len(name) for name in names[: len(rows)])
  lines = [" " * width + "".join(f"{j + 1:>6}" for j in range(len(rows)))]
  for name, row in zip(names, rows, strict=False):
    cells = ("-" if value is None else format(value, ".1f") for value in row)
    lines.append(f"{name:<{width}}" + "".join(f"{cell:>6}" for cell in cells))
  return "\n".join(lines)
