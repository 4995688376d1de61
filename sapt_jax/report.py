"""Compares finished runs: figures, mean and spread over seeds, and pictures.

    python -m sapt_jax.report runs/mini-* --output runs/report

Leaves index.html, one page with everything in it: figures with their spread and paired differences,
score matrices, mixtures in learning beside those in answering, losses, answers gained and lost,
pseudo inputs, cost, and the options that differ. Beside it stand the tables as CSV and LaTeX (all
scores of all runs as comparison.csv), curves over the stream, matrices and mixtures as PNG, losses
as CSV. Prints the table of means, and that of the differences between the best method and
each other, as Markdown. A run that is still learning is reported as far as it is.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from sapt_jax import cli
from sapt_jax.errors import InputError
from sapt_jax.paired import HEADING, learned, pairs_of
from sapt_jax.remote import readable
from sapt_jax.run_identity import FREE
from sapt_jax.run_lock import check_not_own
from sapt_jax.run_story import options_of, read_scores, story

FIGURES = ("AP", "F.Ra", "BWT", "FWT")
PAGE = "report_page.html"
# What may differ between runs of one method, besides the seed.
DIFFERING = "backbone protocol metric pet dtype precision steps learned".split()
# Options that say how a task is learned, and of these such as change nothing but the cost, or are
# said otherwise.
LEARNING = ("method.", "fit.", "generator.")
SAID = (*FREE, "fit.steps", "fit.epochs", "fit.shapes", "fit.accumulation", "generator.folder")

Rows = Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class ReportOptions:
  """Which runs, and where the report goes."""

  runs: Annotated[tuple[str, ...], tyro.conf.Positional]
  """Folders of runs; one that is not finished is reported as far as it is."""
  output: str
  """Folder of the report."""


def grouped(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """Runs that differ in their seeds alone together, by the method's label and what else tells them
  from the others. Best mean AP first.
  """
  groups: dict[str, list[dict[str, Any]]] = {}
  for run in runs:
    values = [
      f"{learned(run)} of {len(run['tasks'])} tasks learned"
      if name == "learned"
      else steps_of(run)
      if name == "steps"
      else str(run.get(name, "?"))
      for name in DIFFERING
      if any(differ(name, run, other) for other in runs) or (name == "learned" and name in run)
    ]
    label = ", ".join([run["label"], *values, *learned_otherwise(run, runs)])
    groups.setdefault(label, []).append(run)
  groups = {
    label: runs for name, group in groups.items() for label, runs in by_run(name, group).items()
  }
  return dict(
    sorted(
      groups.items(),
      key=lambda item: -statistics.mean(run["metrics"]["AP"] or 0 for run in item[1]),
    )
  )


def learned_otherwise(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> list[str]:
  """The options of learning that not all of the runs with its label have alike, with its values."""
  others = [other.get("options", {}) for other in runs if other["label"] == run["label"]]
  return [
    f"{name} {value}"
    for name, value in run.get("options", {}).items()
    if name.startswith(LEARNING) and not name.startswith(SAID)
    if any(other.get(name, value) != value for other in others)
  ]


def differ(name: str, run: dict[str, Any], other: dict[str, Any]) -> bool:
  """Whether two runs differ in what this is called. Methods differ in their steps by nature, so
  these tell runs of one method apart only, by the tasks that both have learned.
  """
  if name == "learned":
    return learned(run) != learned(other)
  if name != "steps":
    return bool(run.get(name) != other.get(name))
  if run["label"] != other["label"]:
    return False
  steps, others = run.get(name, []), other.get(name, [])
  return any(a != b for a, b in zip(steps, others, strict=False)) or (not steps) != (not others)


def steps_of(run: dict[str, Any]) -> str:
  """The steps of every task, or of each where they differ."""
  steps = run.get("steps", [])
  if not steps:
    return "?"
  return f"{steps[0]} steps a task" if len({*steps}) == 1 else f"{'+'.join(map(str, steps))} steps"


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
  lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
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


def latex(rows: Rows) -> str:
  """The rows as a LaTeX table; what is bold in Markdown is bold here."""
  special = {character: f"\\{character}" for character in "&%$#_{}"}
  special |= {"±": r"$\pm$", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}
  special |= {"^": r"\textasciicircum{}"}

  def cell(text: str) -> str:
    bold = re.fullmatch(r"\*\*(.*)\*\*", text)
    plain = "".join(special.get(character, character) for character in (bold[1] if bold else text))
    return rf"\textbf{{{plain}}}" if bold else plain

  lines = [" & ".join(map(cell, row)) + r" \\" for row in rows]
  columns = "l" + "r" * (len(rows[0]) - 1)
  body = [r"\hline", lines[0], r"\hline", *lines[1:], r"\hline"]
  return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", ""])


def write_table(folder: pathlib.Path, name: str, rows: Rows) -> None:
  """A table as CSV and as LaTeX."""
  write_rows(folder / f"{name}.csv", rows)
  (folder / f"{name}.tex").write_text(latex(rows), encoding="utf-8")


def differing_options(stories: Sequence[dict[str, Any]]) -> list[list[str]]:
  """A row for each option that is not the same in all runs, a column for each run; all options of
  a run that stands alone.
  """
  rows = [["option", *(story["run"] for story in stories)]]
  names = sorted({name for story in stories for name in story["options"]})
  for name in names:
    values = [story["options"].get(name, "-") for story in stories]
    if len(set(values)) > 1 or len(stories) == 1:
      rows.append([name, *values])
  return rows


def write_page(
  file: pathlib.Path,
  groups: dict[str, list[dict[str, Any]]],
  stories: Sequence[dict[str, Any]],
  tables: Sequence[Rows],
) -> None:
  """index.html with everything in it, so that it can be sent on as one file; it asks for nothing
  else.
  """
  runs = [run for group in groups.values() for run in group]
  first, places = runs[0], {story["run"]: place for place, story in enumerate(stories)}
  data = {
    "intro": f"Backbone {first['backbone']}, protocol {first['protocol']} where the table names no "
    f"other; tasks in order: {', '.join(first['tasks'])}.",
    "table": tables[0],
    "pairs": tables[1] if len(tables) > 1 else [],
    "groups": {label: [places[run["run"]] for run in group] for label, group in groups.items()},
    "runs": stories,
    "options": differing_options(stories),
  }
  text = json.dumps(data).replace("<", "\\u003c")  # no text of a run can end the script
  page = (pathlib.Path(__file__).with_name(PAGE)).read_text(encoding="utf-8")
  file.write_text(page.replace("{data}", text), encoding="utf-8")


def write_run(folder: pathlib.Path, story: dict[str, Any]) -> None:
  """The tables and pictures of one run."""
  from sapt_jax import plots

  name, tasks = story["run"], story["tasks"]
  shown = [["-" if x is None else f"{x:.1f}" for x in row] for row in story["scores"]]
  after = [[task, *row] for task, row in zip(tasks, shown, strict=False)]
  write_table(folder, f"scores_{name}", [["after", *tasks], *after])
  plots.score_heatmap(folder / f"scores_{name}.png", story["scores"], tasks)
  for when in ("learning", "answering"):
    if any(story[when]):
      plots.mixture_heatmap(folder / f"mixture_{when}_{name}.png", story[when], tasks, when)
  losses = [
    [curve["task"], curve["phase"], *point]
    for curve in story["losses"]
    for point in curve["points"]
  ]
  if losses:
    write_rows(folder / f"losses_{name}.csv", [["task", "phase", "step", "loss"], *losses])
  if story["cost"]:
    columns = list(dict.fromkeys(key for row in story["cost"] for key in row))
    rows = [[str(row.get(key, "-")) for key in columns] for row in story["cost"]]
    write_table(folder, f"cost_{name}", [columns, *rows])


def names_of(folders: Sequence[pathlib.Path]) -> list[str]:
  """What the runs are called: their folders' names, where two are alike with as many of those above
  as tell them apart.

  Raises:
    InputError: one stands there twice, or two have names that read alike all the same.
  """
  parts = [folder.resolve().parts[1:] for folder in folders]
  taken = [1] * len(parts)
  while True:
    names = ["-".join(each[-count:]) for each, count in zip(parts, taken, strict=True)]
    alike = {name for name, times in Counter(names).items() if times > 1}
    if not alike:
      return names
    places = [place for place, name in enumerate(names) if name in alike]
    longer = [place for place in places if taken[place] < len(parts[place])]
    if not longer or len({parts[place] for place in places}) < len(places):
      raise InputError(f"{folders[places[-1]]}: stands there twice; name each run once")
    for place in longer:
      taken[place] += 1


def main(arguments: Sequence[str]) -> None:
  """Parses, reads, compares, writes."""
  options = cli.parse(ReportOptions, arguments, "sapt_jax.report", cli.summary(__doc__))
  folders = [readable(folder) for folder in options.runs]
  if not folders:
    raise InputError("no run given: name the folders of runs")
  names = names_of(folders)
  runs = [
    read_scores(x) | {"run": name, "options": options_of(x)}
    for x, name in zip(folders, names, strict=True)
  ]
  for run in runs[1:]:
    if run["tasks"] != runs[0]["tasks"]:
      raise InputError(
        f"{run['run']} and {runs[0]['run']} are runs on different streams of tasks, which cannot "
        "be compared; make a report of each"
      )
  output = cli.output_folder(options.output)
  check_not_own("--output", output)
  if (output / "config.json").exists():
    raise InputError(f"--output {output}: is the folder of a run; name one for the report alone")
  from sapt_jax import plots  # here, so that --help and wrong input answer at once

  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"--output {output}: cannot be made ({error.strerror}); choose another"
    ) from None
  groups = grouped(runs)
  scores = {label: [run["scores"] for run in group] for label, group in groups.items()}
  plots.learning_curves(output / "average_so_far.png", scores)
  last = {label: [rows[-1] for rows in group] for label, group in scores.items()}
  plots.final_scores(output / "final_scores.png", last, runs[0]["tasks"])
  write_csv(output / "comparison.csv", runs)
  pairs = pairs_of(groups)
  if pairs:
    write_table(output, "pairs", [HEADING, *(pair.cells() for pair in pairs)])
  best = [HEADING, *(pair.cells() for pair in pairs if pair.first == next(iter(groups)))]
  tables = [table(groups), best] if pairs else [table(groups)]
  write_table(output, "figures", tables[0])
  stories = [story(folder, run) for folder, run in zip(folders, runs, strict=True)]
  for one in stories:
    write_run(output, one)
  if len(differing := differing_options(stories)) > 1:
    write_table(output, "options", differing)
  write_page(output / "index.html", groups, stories, tables)
  print("\n\n".join([*map(markdown, tables), f"{output / 'index.html'}"]))


if __name__ == "__main__":
  cli.run(main)
