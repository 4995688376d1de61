"""The tables of docs/results.md and README.md, made from the committed scores of their runs.

    python benchmarks/results.py collect runs/results/*    runs into docs/results/, a file each
    python benchmarks/results.py check                     whether the runs of each table are fair
    python benchmarks/results.py rates KIND ROW            the rates that tuning found, as options
    python benchmarks/results.py tables                    writes the tables into the documents

A run's folder is named TABLE.ROW.SEED, as launch/results.sh names it. A table stands in a document
between the lines `<!-- table NAME -->` and `<!-- end -->`; `NAME brief` leaves columns out. What
fair means is written in docs/protocol.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sapt_jax.config import Config, MethodOptions
from sapt_jax.errors import InputError
from sapt_jax.paired import pair_of, words

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "results"
DOCUMENTS = (ROOT / "docs" / "results.md", ROOT / "README.md")
TABLE = re.compile(
  r"(<!-- table (?P<name>[\w-]+)(?P<brief> brief)? -->\n).*?(<!-- end -->)", re.DOTALL
)
HEADING = (
  "method",
  "keeps",
  "AP, each seed",
  "AP",
  "spread",
  "F.Ra",
  "best less this",
  "95 % over seeds",
  "95 % over test rows",
)
BRIEF = ("method", "keeps", "AP", "spread", "F.Ra", "best less this", "95 % over seeds")
# Options that may differ between the runs of one table: what a method is and what was tuned for
# it, and what changes no number.
FREE = (
  "method.",
  "fit.learning_rate",
  "mesh.",
  "fit.checkpoint_every",
  "fit.log_every",
  "generator.folder",
  "keep_snapshots",
  "single",
  "seed",
  "backbone.path",
  "data.root",
)

Run = dict[str, Any]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
  """Nested options by their dotted names."""
  if not isinstance(value, Mapping):
    return {prefix: value}
  inner = (flat(one, f"{prefix}.{name}" if prefix else name) for name, one in value.items())
  return {name: leaf for part in inner for name, leaf in part.items()}


# An option that is younger than a run has its default there.
DEFAULTS = flat(json.loads(json.dumps(dataclasses.asdict(Config(MethodOptions(""))))))


def collect(folders: Sequence[str]) -> None:
  """Copies what finished runs say of themselves into docs/results."""
  DATA.mkdir(exist_ok=True)
  for folder in map(pathlib.Path, folders):
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    asked = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data = {"data": digest(asked.pop("tasks"))} if "tasks" in asked else {}
    asked.pop("pseudo_inputs", None)
    # Where files lay on the machine is no part of what was run.
    options = {name: value for name, value in flat(asked).items() if name not in PLACES}
    kept = {name: scores[name] for name in KEPT if name in scores} | data | {"options": options}
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in kept.items())
    (DATA / f"{folder.name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def digest(value: Any) -> str:
  """SHA-256, in hex digits, of a JSON value."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


PLACES = ("backbone.path", "data.root", "generator.folder", "single")
KEPT = (
  "method",
  "label",
  "backbone",
  "tasks",
  "scores",
  "metrics",
  "metric",
  "protocol",
  "pet",
  "dtype",
  "precision",
  "own_weight",
  "blocks_used",
  "seed",
  "steps",
  "wall_s",
  "versions",
  "made",
  "rows",
)


def read_all() -> dict[str, dict[str, list[Run]]]:
  """All committed runs: table -> method's row -> runs in order of their seeds."""
  tables: dict[str, dict[str, list[Run]]] = {}
  for file in sorted(DATA.glob("*.json")):
    table, rest = file.stem.split(".", 1)
    row = rest.rsplit(".", 1)[0]
    run = json.loads(file.read_text(encoding="utf-8"))
    tables.setdefault(table, {}).setdefault(row, []).append(run)
  for rows in tables.values():
    for runs in rows.values():
      runs.sort(key=lambda run: run["seed"])
  return tables


def unfair(rows: Mapping[str, Sequence[Run]]) -> Iterator[str]:
  """What keeps the runs of one table from being compared, a line each."""
  seeds = {row: [run["seed"] for run in runs] for row, runs in rows.items()}
  if len(set(map(tuple, seeds.values()))) > 1:
    yield f"rows have different seeds: {seeds}"
  data: dict[int, str | None] = {}  # seed -> hash of the rows
  first_row, first = next((row, runs[0]) for row, runs in rows.items())
  for row, runs in rows.items():
    for run in runs:
      its, other = (DEFAULTS | one["options"] for one in (run, first))
      differing = [
        f"{name} {its.get(name)} (in {first_row}: {other.get(name)})"
        for name in sorted(its.keys() | other.keys())
        if not name.startswith(FREE) and its.get(name) != other.get(name)
      ]
      where = f"{row}, seed {run['seed']}"
      if differing:
        yield f"{where}: {'; '.join(differing)}"
      if run["tasks"] != first["tasks"]:
        yield f"{where}: other tasks than {first_row}"
      if run.get("data") != data.setdefault(run["seed"], run.get("data")):
        yield f"{where}: other rows than {first_row} with this seed"
      if (run["made"]["commit"] or "+").endswith("+"):
        yield f"{where}: made from changed files ({run['made']['commit']})"
      share = run["options"].get("method.replay_share")
      if share not in (None, run["options"]["generator.keep"]):
        yield f"{where}: keeps {share} of earlier rows, SAPT {run['options']['generator.keep']}"


def rates(tables: Mapping[str, Mapping[str, Sequence[Run]]], kind: str, row: str) -> dict[str, Any]:
  """The rates of a row's best run of tuning, by their dotted names.

  Raises:
    InputError: there is no such run.
  """
  tried = [
    runs[0] for name, runs in tables.get(f"tune-{kind}", {}).items() if name.split("@")[0] == row
  ]
  if not tried:
    raise InputError(f"{row}: no run of tune-{kind} in {DATA}")
  best = max(tried, key=lambda run: run["metrics"]["AP"])["options"]
  return {
    name: rate
    for name, rate in sorted(best.items())
    if name == "fit.learning_rate"
    or (name.startswith("method.") and name.endswith("_learning_rate"))
  }


def untuned(tables: Mapping[str, Mapping[str, Sequence[Run]]], name: str) -> Iterator[str]:
  """The runs of a table that were not made at the rates that tuning found, a line each."""
  for row, runs in tables[name].items():
    found = rates(tables, name.rsplit("-", 1)[-1], row)
    for run in runs:
      differing = [
        f"{option} {run['options'].get(option)} (tuning found {rate})"
        for option, rate in found.items()
        if run["options"].get(option) != rate
      ]
      if differing:
        yield f"{row}, seed {run['seed']}: {'; '.join(differing)}"


def otherwise_tuned(tables: Mapping[str, Mapping[str, Sequence[Run]]], name: str) -> Iterator[str]:
  """The rows of a table that were not tuned as docs/protocol.md says, a line each: three rates for
  the blocks, and three for each further group, tried beside the best one for the blocks.
  """
  kind = name.rsplit("-", 1)[-1]
  for row in tables[name]:
    groups: dict[str, list[Run]] = {}
    for key, runs in tables.get(f"tune-{kind}", {}).items():
      of_row, _, tried = key.partition("@")
      if of_row == row:
        groups.setdefault(tried.split("=")[0].replace("-", "_"), []).append(runs[0])
    blocks = groups.pop("fit.learning_rate", [])
    if not blocks:
      yield f"{row}: no rate of its blocks was tuned"
      continue
    best = max(blocks, key=lambda run: run["metrics"]["AP"])["options"]["fit.learning_rate"]
    for group, runs in [("fit.learning_rate", []), *groups.items()]:
      beside = {run["options"]["fit.learning_rate"] for run in runs} - {best}
      rates_tried = {run["options"][group] for run in [*blocks, *runs]}
      if beside:
        yield f"{row}: {group} was tried beside blocks at {beside}; their best is {best}"
      if len(rates_tried) != 3:
        yield f"{row}: {group} was tried at {sorted(rates_tried)}, which are not three"


def table(rows: Mapping[str, Sequence[Run]], columns: Sequence[str] = HEADING) -> str:
  """A row per method, the best mean AP first: each seed, mean, spread, and the difference of the
  first row to it. Methods that know more than the others come last.
  """
  order = {row: (bool(told(runs[0])), -mean_of(runs, "AP")) for row, runs in rows.items()}
  ranked = {row: rows[row] for row in sorted(rows, key=lambda row: order[row])}
  best = next(iter(ranked))
  lines: list[Sequence[str]] = [HEADING, ["---"] * len(HEADING)]
  for row, runs in ranked.items():
    aps = [run["metrics"]["AP"] for run in runs]
    forgotten = mean_of(runs, "F.Ra")
    pair = pair_of(best, ranked[best], row, runs) if row != best else None
    lines.append(
      [
        row.replace("_", " ").removesuffix(" known") + told(runs[0]),
        kept(runs[0]),
        ", ".join(f"{ap:.1f}" for ap in aps),
        f"{statistics.mean(aps):.1f}",
        f"{statistics.stdev(aps):.1f}" if len(aps) > 1 else "-",
        "-" if forgotten is None else f"{forgotten:.1f}",
        "-" if pair is None else f"{pair.by_seed.mean:.1f}",
        "-" if pair is None else words(pair.by_seed),
        "-" if pair is None else words(pair.by_row),
      ]
    )
  shown = [HEADING.index(column) for column in columns]
  made = sorted(
    {
      f"{run['made']['commit']} on {run['made']['machine']}"
      for runs in rows.values()
      for run in runs
    }
  )
  return (
    "\n".join(f"| {' | '.join(cells[i] for i in shown)} |" for cells in lines)
    + f"\n\nRun at {'; '.join(made)}.\n"
  )


def told(run: Run) -> str:
  """What a run knows that others do not, in words for a table; empty: nothing."""
  if run["options"].get("method.task_known") or run["options"].get("method.name") == "per_task":
    return " (told the task)"
  return " (all tasks at once)" if run["options"].get("method.name") == "multi_task" else ""


# What a method keeps of the inputs of earlier tasks.
KEEPS = {
  "multi_task": "all rows",
  "epi": "means",
  "inflora": "spaces",
  "gainlora": "spaces",
  "mocl": "keys",
  "tree_lora": "weights",
  "lfpt5": "instructions",
}


def kept(run: Run) -> str:
  """What a run keeps of earlier tasks' inputs, in words for a table."""
  method, options = run["options"].get("method.name"), run["options"]
  if method == "replay":
    share = options["method.replay_share"]
    return f"{options['generator.keep'] if share is None else share:.0%} of rows"
  if method == "sapt":
    return f"{options['generator.keep']:.0%} pseudo inputs"
  return KEEPS.get(method, "nothing")


def mean_of(runs: Sequence[Run], figure: str) -> Any:
  """Mean of a figure over runs; None where one has none."""
  values = [run["metrics"][figure] for run in runs]
  return None if None in values else statistics.mean(values)


def with_tables(text: str, tables: Mapping[str, Mapping[str, Sequence[Run]]]) -> str:
  """A document's text with its tables made anew."""

  def made(match: re.Match[str]) -> str:
    name = match.group("name")
    if name not in tables:
      raise InputError(f"table {name}: no run of it in {DATA}")
    columns = BRIEF if match.group("brief") else HEADING
    return f"{match.group(1)}{table(tables[name], columns)}{match.group(4)}"

  return TABLE.sub(made, text)


def main(arguments: Sequence[str]) -> int:
  """Does what the first argument says; the exit code."""
  action, *rest = arguments or ["help"]
  if action == "collect":
    collect(rest)
  elif action == "check":
    tables = read_all()
    complaints = [f"{name}: {line}" for name, rows in tables.items() for line in unfair(rows)]
    compared = [name for name in tables if not name.startswith("tune-")]
    for tuning in (untuned, otherwise_tuned):
      complaints += [f"{name}: {line}" for name in compared for line in tuning(tables, name)]
    print("\n".join(complaints) or f"{len(tables)} tables, all fair")
    return 1 if complaints else 0
  elif action == "rates":
    kind, row = rest
    found = rates(read_all(), kind, row).items()
    print(*(f"--{name.replace('_', '-')} {rate}" for name, rate in found if rate is not None))
  elif action == "tables":
    for document in DOCUMENTS:
      document.write_text(with_tables(document.read_text("utf-8"), read_all()), encoding="utf-8")
  else:
    print(__doc__)
    return 0 if action in ("help", "--help", "-h") else 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
