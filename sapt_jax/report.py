"""Compares finished runs: figures, mean and spread over seeds, and pictures.

    python -m sapt_jax.report runs/mini-* --output runs/report

Leaves comparison.csv (a row per run), pairs.csv (paired differences between methods, with their
intervals), PNG plots and index.html. Prints the table of means, and that of the differences between
the best method and each other, as Markdown.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.paired import HEADING, pairs_of
from sapt_jax.remote import readable
from sapt_jax.text_files import read_object

FIGURES = ("AP", "F.Ra", "BWT", "FWT")
NEEDED = ("method", "backbone", "tasks", "scores", "metrics", "protocol", "seed", "wall_s")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
  """Which runs, and where the report goes."""

  runs: Annotated[tuple[str, ...], tyro.conf.Positional]
  """Folders of finished runs."""
  output: str
  """Folder of the report."""


def read_run(folder: pathlib.Path) -> dict[str, Any]:
  """scores.json of a run, with the folder's name and the label its method goes by.

  Raises:
    InputError: the folder is not that of a finished run.
  """
  file = folder / "scores.json"
  if not file.exists():
    raise InputError(f"{file}: no such file; the run is not finished")
  result = read_object(file)
  missing = [key for key in NEEDED if key not in result]
  if missing:
    raise InputError(f"{file}: {', '.join(missing)} missing; not the scores of a run")
  return result | {"run": folder.name, "label": result.get("label", result["method"])}


def grouped(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """Runs that differ in their seeds alone together, by the method's label and what else tells them
  from the others. Best mean AP first.
  """
  groups: dict[str, list[dict[str, Any]]] = {}
  for run in runs:
    # Methods differ in their steps by nature, so that these tell runs of one method apart only.
    alike = {"steps": [other for other in runs if other["label"] == run["label"]]}
    differing = [
      name
      for name in ("backbone", "protocol", "metric", "pet", "dtype", "precision", "steps")
      if any(other.get(name) != run.get(name) for other in alike.get(name, runs))
    ]
    values = {
      name: f"{sum(run['steps'])} steps"
      if name == "steps" and name in run
      else str(run.get(name, "?"))
      for name in differing
    }
    groups.setdefault(", ".join([run["label"], *values.values()]), []).append(run)
  groups = {
    label: runs for name, group in groups.items() for label, runs in by_run(name, group).items()
  }
  return dict(
    sorted(
      groups.items(),
      key=lambda item: -statistics.mean(run["metrics"]["AP"] or 0 for run in item[1]),
    )
  )


def by_run(name: str, group: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """The group as it is; where a seed stands in it twice, something else differs, and each run is a
  group of its own, named by its folder.
  """
  if len({run["seed"] for run in group}) == len(group):
    return {name: group}
  return {f"{name}, {run['run']}": [run] for run in group}


def spread(values: Sequence[float | None]) -> str:
  """Mean and, of several, standard deviation (n - 1)."""
  known = [value for value in values if value is not None]
  if not known:
    return "-"
  mean = f"{statistics.mean(known):.1f}"
  return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.1f}"


def table(groups: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
  """Rows of text, the heading first. `own block` is the weight, in percent, of a task's own block
  in the mixture of its test inputs, for a method that looks blocks up the accuracy of that; `blocks
  used` see continual_metrics.blocks_used.
  """
  rows = [["method", "runs", *FIGURES, "own block", "blocks used", "minutes"]]
  for label, runs in groups.items():
    figures = [spread([run["metrics"][figure] for run in runs]) for figure in FIGURES]
    own = [100 * run["own_weight"] if "own_weight" in run else None for run in runs]
    rest = (own, [run.get("blocks_used") for run in runs], [run["wall_s"] / 60 for run in runs])
    rows.append([label, str(len(runs)), *figures, *map(spread, rest)])
  return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """The rows as a Markdown table."""
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write_rows(file: pathlib.Path, rows: Sequence[Sequence[Any]]) -> None:
  """Writes a CSV file."""
  with file.open("w", newline="", encoding="utf-8") as out:
    csv.writer(out).writerows(rows)


def write_csv(file: pathlib.Path, runs: Sequence[dict[str, Any]]) -> None:
  """A row per run: what it was, its four figures, its final score on each task."""
  last = [f"{task} at the end" for task in runs[0]["tasks"]]
  heading = ["run", "method", "backbone", "protocol", "seed", *FIGURES, "wall_s", *last]
  rows = []
  for run in runs:
    what = [run[key] for key in ("run", "label", "backbone", "protocol", "seed")]
    figures = [run["metrics"][name] for name in FIGURES]
    rows.append([*what, *figures, run["wall_s"], *run["scores"][-1]])
  write_rows(file, [heading, *rows])


PAGE = """<!doctype html><meta charset="utf-8"><title>Comparison of runs</title>
<style>body{{font:15px/1.5 sans-serif;margin:2em auto;max-width:60em}}
td,th{{padding:.2em .8em;text-align:right}} td:first-child,th:first-child{{text-align:left}}
tr:nth-child(even){{background:#f4f4f4}} img{{max-width:100%}}</style>
<h1>Comparison of runs</h1><p>{stream}</p>{table}{pictures}
"""


def html_table(rows: Sequence[Sequence[str]]) -> str:
  """The rows, the heading first, as an HTML table; what is bold in Markdown is bold here."""
  text = table_row(rows[0], "th") + "".join(table_row(row, "td") for row in rows[1:])
  return "<table>" + re.sub(r"[*]{2}(.+?)[*]{2}", r"<b>\1</b>", text) + "</table>"


def table_row(cells: Sequence[str], tag: str) -> str:
  """A row of an HTML table, its cells of this tag."""
  return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def write_page(
  file: pathlib.Path,
  runs: Sequence[dict[str, Any]],
  tables: Sequence[Sequence[Sequence[str]]],
  pictures: Sequence[pathlib.Path],
) -> None:
  """index.html with everything in it, so that it can be sent on as one file."""
  encoded = {picture.stem: base64.b64encode(picture.read_bytes()).decode() for picture in pictures}
  images = "".join(
    f'<p><img alt="{name}" src="data:image/png;base64,{content}">'
    for name, content in encoded.items()
  )
  first = runs[0]
  intro = (
    f"Backbone {first['backbone']}, protocol {first['protocol']} where the table names no other; "
    f"tasks in order: {', '.join(first['tasks'])}."
  )
  comparison = "".join(html_table(rows) for rows in tables)
  file.write_text(
    PAGE.format(stream=html.escape(intro), table=comparison, pictures=images), encoding="utf-8"
  )


def main(arguments: Sequence[str]) -> None:
  """Parses, reads, compares, writes."""
  options = cli.parse(ReportOptions, arguments, "sapt_jax.report", cli.summary(__doc__))
  runs = [read_run(readable(folder)) for folder in options.runs]
  if not runs:
    raise InputError("no run given: name the folders of finished runs")
  for run in runs[1:]:
    if run["tasks"] != runs[0]["tasks"]:
      raise InputError(
        f"{run['run']} and {runs[0]['run']} are runs on different streams of tasks, which cannot "
        "be compared"
      )
  output = cli.output_folder(options.output)
  from sapt_jax import plots  # here, so that --help and wrong input answer at once

  output.mkdir(parents=True, exist_ok=True)
  groups = grouped(runs)
  scores = {label: [run["scores"] for run in group] for label, group in groups.items()}
  plots.learning_curves(output / "average_so_far.png", scores)
  last = {label: [rows[-1] for rows in group] for label, group in scores.items()}
  plots.final_scores(output / "final_scores.png", last, runs[0]["tasks"])
  write_csv(output / "comparison.csv", runs)
  pairs = pairs_of(groups)
  write_rows(output / "pairs.csv", [HEADING, *(pair.cells() for pair in pairs)])
  best = [HEADING, *(pair.cells() for pair in pairs if pair.first == next(iter(groups)))]
  tables = [table(groups), best] if pairs else [table(groups)]
  pictures = [output / "average_so_far.png", output / "final_scores.png"]
  write_page(output / "index.html", runs, tables, pictures)
  print("\n\n".join(map(markdown, tables)))


if __name__ == "__main__":
  cli.run(main)
