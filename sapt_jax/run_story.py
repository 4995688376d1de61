"""What a run's folder says for the reader, finished or not: scores, mixtures, losses, answers that
were gained and lost, pseudo inputs, cost, options.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from sapt_jax import learner, results, saved_options
from sapt_jax.errors import InputError
from sapt_jax.run_identity import tasks_of
from sapt_jax.run_log import RunLog
from sapt_jax.snapshots import finished_snapshots, number_of, numbered, records_of
from sapt_jax.text_files import (
  flat,
  is_number,
  object_lines,
  parse_json,
  read_object,
)

NEEDED = ("method", "backbone", "tasks", "scores", "metrics", "protocol", "seed", "wall_s")
KINDS = {"seed": int, "label": str, "method": str, "rows": list}  # of what is read as it is
# What config.json holds of a run's tasks beside its options.
HASHES = ("tasks", "pseudo_inputs", "blocks")
MOST_POINTS = 200  # of a curve
MOST_EXAMPLES = 4  # of each kind, of a task

Row = dict[str, Any]


def read_scores(folder: pathlib.Path) -> Row:
  """scores.json of a run, with the label that its method goes by; of a run that is not finished
  what it would say now, with all of its tasks and "learned", how many it has.

  Raises:
    InputError: the folder is not that of a run, or no task has been learned there.
  """
  if not folder.is_dir():
    raise InputError(f"{folder}: there is no such folder")
  file, asked = folder / "scores.json", folder / "config.json"
  result = read_object(file) if file.is_file() else scores_so_far(folder)
  missing = [key for key in NEEDED if key not in result]
  if missing:
    raise InputError(f"{file}: {', '.join(missing)} missing; not the scores of a run")
  if not fits(result["tasks"], result["scores"], result["metrics"]):
    raise InputError(f"{file}: its tasks, scores and metrics do not fit; put it back as it was")
  wrong = [key for key, kind in KINDS.items() if not isinstance(result.get(key, kind()), kind)]
  wrong += [] if is_number(result["wall_s"]) else ["wall_s"]
  if wrong:
    raise InputError(f"{file}: {', '.join(wrong)}: not what a run writes; put it back as it was")
  more = tasks_of(read_object(asked)) if file.is_file() and asked.is_file() else []
  if len(more) > len(result["tasks"]):  # a finished run that learns more tasks
    result = scores_so_far(folder)
  return result | {"label": result.get("label", result["method"])}


def fits(tasks: Any, scores: Any, metrics: Any) -> bool:
  """Whether there is a score or null for each task, after at most as many of them, and metrics."""
  if not (isinstance(tasks, list) and isinstance(scores, list) and isinstance(metrics, dict)):
    return False
  if not all(isinstance(task, str) for task in tasks):
    return False
  if not (0 < len(scores) <= len(tasks) and {"AP", "F.Ra", "BWT", "FWT"} <= metrics.keys()):
    return False
  if not all(isinstance(row, list) and len(row) == len(tasks) for row in scores):
    return False
  return all(figure is None or is_number(figure) for figure in chain(*scores, metrics.values()))


def scores_so_far(folder: pathlib.Path) -> Row:
  """What scores.json would hold of the tasks that have been learned."""
  file = folder / "config.json"
  if not file.is_file():
    raise InputError(f"{folder}: no scores.json and no config.json; not the folder of a run")
  values = read_object(file)
  records = records_of(finished_snapshots(folder))
  if not records:
    raise InputError(f"{folder}: has learned no task yet")
  config = saved_options.config_from_json(values)
  sizes = [records[-1][name] for name in ("capacity", "memory_inputs")]
  method, _ = learner.abstract(config, learner.backbone_folder(config), *sizes)
  names = [record["task"] for record in records]
  tasks = tasks_of(values) or names
  result = results.summary(config, method, names, records, None)
  rows = [row + [None] * (len(tasks) - len(row)) for row in result["scores"]]
  return result | {"tasks": tasks, "scores": rows, "learned": len(names)}


def story(folder: pathlib.Path, scores: Mapping[str, Any]) -> Row:
  """All of it, as values that JSON can hold; what the folder does not have is empty.

  Args:
    scores: of read_scores.
  """
  records, log = records_of(finished_snapshots(folder)), log_of(folder / "metrics.jsonl")
  kept = ("run", "label", "seed", "tasks", "scores", "metrics", "learned")
  return {key: scores[key] for key in kept if key in scores} | {
    "learning": [
      (record.get("training_mixture") or [])[: index + 1] for index, record in enumerate(records)
    ],
    "answering": [row or [] for row in records[-1].get("testing_mixture") or []] if records else [],
    "losses": losses_of(log),
    "answers": answers_of(folder, records),
    "pseudo": pseudo_inputs_of(folder, log),
    "cost": cost_of(log, records),
    "options": options_of(folder),
  }


def log_of(file: pathlib.Path) -> list[Row]:
  """The lines of metrics.jsonl; what is no line of a log is left out, and if it is not the last
  line, which may be being written, the log is named.
  """
  rows, content = [], RunLog(file).check() or b""
  for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
    try:
      row = parse_json(line, f"{file}:{number}")
    except InputError:
      continue
    named = isinstance(row, dict) and isinstance(row.get("task"), str)
    if named and isinstance(row.get("phase", ""), str):
      rows.append(row)
  return rows


def losses_of(log: Sequence[Row]) -> list[Row]:
  """A curve for each task and phase: {"task", "phase", "points": [[step, loss], ...]}, and dev
  scores as a phase.
  """
  curves: dict[tuple[str, str], list[list[float]]] = {}
  for row in log:
    for name, phase in (("loss", row.get("phase", "learn")), ("dev", "dev")):
      if is_number(row.get(name)) and is_number(row.get("step")):
        curves.setdefault((row["task"], phase), []).append([row["step"], row[name]])
  return [
    {"task": task, "phase": phase, "points": points[:: max(1, len(points) // MOST_POINTS)]}
    for (task, phase), points in curves.items()
  ]


def answers_of(folder: pathlib.Path, records: Sequence[Row]) -> list[Row]:
  """Of each earlier task examples of answers that were wrong when it had been learned and are right
  now, or worse by then: {"task", "gained": [...], "lost": [...]} and how many there are of each.
  """
  found: list[Row] = []
  last = len(records) - 1
  for index in range(last):
    rows = [records[when].get("rows") or [] for when in (index, last)]
    before, after = (of[index] if index < len(of) else None for of in rows)
    if not before or not after or len(before) != len(after):
      continue
    task = records[index]["task"]
    more = [now - then for then, now in zip(before, after, strict=True)]
    changed = {
      "gained": [place for place, difference in enumerate(more) if difference > 0],
      "lost": [place for place, difference in enumerate(more) if difference < 0],
    }
    then, now = (predictions_of(folder, when, task) for when in (index, last))
    row: Row = {"task": task, "rows": len(before)}
    for kind, places in changed.items():
      row[f"{kind}_count"] = len(places)
      row[kind] = [
        {"input": now[place]["input"], "references": now[place]["references"]}
        | {"before": then[place]["prediction"], "after": now[place]["prediction"]}
        for place in places[:MOST_EXAMPLES]
        if place < min(len(then), len(now))
      ]
    found.append(row)
  return found


def predictions_of(folder: pathlib.Path, index: int, task: str) -> list[Row]:
  """The answers to a task that were given after the index-th."""
  files = [x for x in numbered(folder / "predictions", "*.jsonl") if number_of(x) == index]
  needed = ("task", "input", "references", "prediction")
  rows = [row for file in files for _, row in object_lines(file, *needed)]
  return [row for row in rows if row["task"] == task]


def pseudo_inputs_of(folder: pathlib.Path, log: Sequence[Row]) -> list[Row]:
  """{"task", "figures": what was drawn, dropped and kept, "examples": [...]} of each task."""
  figures = {row["task"]: row["pseudo_inputs"] for row in log if "pseudo_inputs" in row}
  found: list[Row] = []
  for file in numbered(folder / "pseudo_inputs", "*.jsonl"):
    rows = [row for _, row in object_lines(file)]
    task = file.stem.partition("_")[2]
    examples = [str(row.get("input", row)) for row in rows[:MOST_EXAMPLES]]
    found.append({"task": task, "figures": figures.get(task, {}), "examples": examples})
  return found


def cost_of(log: Sequence[Row], records: Sequence[Row]) -> list[Row]:
  """A row for each task: steps, tokens a second (the median of its lines), and its cost line."""
  rows = []
  for record in records:
    of_task = [row for row in log if row["task"] == record["task"]]
    rates = sorted(x["tokens_per_s"] for x in of_task if is_number(x.get("tokens_per_s")))
    costs = [row for row in of_task if "compile_s" in row]
    cost = (costs or [{}])[-1].items()
    rate = rates[len(rates) // 2] if rates else None
    what = {"task": record["task"], "steps": record.get("steps"), "tokens/s": rate}
    rows.append(what | {key: value for key, value in cost if key not in ("index", "task")})
  return rows


def options_of(folder: pathlib.Path) -> dict[str, str]:
  """The options of a run by their names, as text."""
  file = folder / "config.json"
  values = read_object(file) if file.is_file() else {}
  options = flat({name: value for name, value in values.items() if name not in HASHES})
  return {
    name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
    for name, value in sorted(options.items())
  }
