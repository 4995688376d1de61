"""Rows of files that users have: JSON lines, JSON, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Iterator
from typing import Any

from sapt_jax.errors import InputError
from sapt_jax.text_files import json_lines, read_json, read_text

# A row, and what an error calls it: FILE:LINE, or FILE: row NUMBER.
PlacedRow = tuple[str, dict[str, Any]]


def read_table(file: pathlib.Path) -> list[PlacedRow]:
  """All rows of a file, by the ending of its name (FORMATS).

  Raises:
    InputError: the file is not what its ending says, a row has no columns, or there is no row.
  """
  rows = list(FORMATS[file.suffix.lower()](file))
  if not rows:
    raise InputError(f"{file}: no row in it; a split needs at least one")
  return rows


def _objects(values: Iterator[tuple[str, Any]]) -> Iterator[PlacedRow]:
  for place, value in values:
    if not isinstance(value, dict):
      raise InputError(f"{place}: a row must be an object, not {type(value).__name__}")
    yield place, value


def _json_lines(file: pathlib.Path) -> Iterator[PlacedRow]:
  yield from _objects(json_lines(file))


def _json(file: pathlib.Path) -> Iterator[PlacedRow]:
  content = read_json(file)
  if isinstance(content, dict) and "Instances" in content:
    raise InputError(
      f'{file}: holds "Instances", as files of natural-instructions and SuperNI do; '
      "give --data.benchmark natural_instructions or superni"
    )
  if not isinstance(content, list):
    raise InputError(f"{file}: must hold a list of rows, not {type(content).__name__}")
  yield from _objects((f"{file}: row {number}", row) for number, row in enumerate(content, 1))


def _separated(file: pathlib.Path, delimiter: str) -> Iterator[PlacedRow]:
  """Rows under a heading; cells may be quoted, and then hold the delimiter and line ends."""
  csv.field_size_limit(2**31 - 1)
  text = read_text(file)
  first = text.lstrip().partition("\n")[0]
  others = [other for other in ";\t|," if other in first]
  if delimiter not in first and others:
    raise InputError(
      f"{file}:1: its heading has {others[0]!r} between its names, not {delimiter!r}; save it "
      "with commas as .csv, or with tabs as .tsv"
    )
  # newline="": line ends inside of quotes stay what they are.
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  heading: list[str] = []
  try:
    for cells in reader:
      place = f"{file}:{reader.line_num}"
      if not cells:
        continue
      if not heading:
        heading = [cell.strip() for cell in cells]
        if "" in heading or len(set(heading)) < len(heading):
          twice = next(name for name in heading if not name or heading.count(name) > 1)
          raise InputError(
            f"{place}: the heading needs a name of its own for each column; it has {twice!r} "
            + ("where one should be" if not twice else f"{heading.count(twice)} times")
          )
        continue
      if len(cells) != len(heading):
        raise InputError(
          f"{place}: {len(cells)} cells under a heading of {len(heading)} "
          f"({', '.join(heading)}); is a cell that needs quotes without them?"
        )
      yield place, dict(zip(heading, cells, strict=True))
  except csv.Error as error:
    raise InputError(f"{file}:{reader.line_num}: cannot be read as a table ({error})") from None


def _parquet(file: pathlib.Path) -> Iterator[PlacedRow]:
  import pyarrow as arrow  # here: it takes a second to import, and most runs have no such file
  import pyarrow.parquet as parquet

  place, columns = str(file), []
  try:
    table = parquet.read_table(file)
    for name, values in zip(table.column_names, table.itercolumns(), strict=True):
      place = f"{file}: column {name!r}"
      columns.append(values.to_pylist())
  except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f"{place}: cannot be read as Parquet ({reason})") from None
  for number, row in enumerate(zip(*columns, strict=True), 1):
    yield f"{file}: row {number}", dict(zip(table.column_names, row, strict=True))


FORMATS = {
  ".jsonl": _json_lines,
  ".json": _json,
  ".csv": lambda file: _separated(file, ","),
  ".tsv": lambda file: _separated(file, "\t"),
  ".parquet": _parquet,
}
