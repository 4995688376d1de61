"""Rows of Hugging Face `datasets` and of TensorFlow Datasets; the latter are read without
TensorFlow. Numbers of a class label become its names.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sapt_jax.data.tables import PlacedRow
from sapt_jax.data.task_file import HubSource
from sapt_jax.errors import InputError


def hub_rows(source: HubSource, split: str, limit: int | None, where: str) -> list[PlacedRow]:
  """The first rows of a split.

  Args:
    limit: so many; None: all.
    where: what an error calls the file that names the source.

  Raises:
    InputError: the library cannot find or read it, there is no such split, it has no row, or a row
      of it has no label.
  """
  called = f"{where}: [source] {source.path}"
  readers = {"datasets": _datasets, "tfds": _tfds}
  try:
    rows, names = readers[source.kind](source, split)
    found = list(itertools.islice(rows, limit))
  except InputError as error:
    raise InputError(f"{called}: {error}") from None
  except Exception as error:  # noqa: BLE001 (each kind of source has errors of its own)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(f"{called}: {source.kind} cannot read it ({reason})") from None
  if not found:
    raise InputError(f"{called}: split {split!r} has no row")
  return [
    (place, {column: _named(value, names.get(column), place) for column, value in row.items()})
    for place, row in (
      (f"{called}, {split}: row {number}", row) for number, row in enumerate(found, 1)
    )
  ]


def _named(value: Any, names: Sequence[str] | None, place: str) -> Any:
  """A value as Python has it: bytes as text, a label by its name."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list):
    return [_named(one, names, place) for one in value]
  if names is None:
    return value
  if value is None or not 0 <= value < len(names):
    raise InputError(f"{place}: has no label, as test splits of hubs often do; name another split")
  return names[value]


def _no_split(split: str, there: Sequence[str]) -> InputError:
  return InputError(f"no split {split!r}; it has {', '.join(map(str, there))}")


def _datasets(
  source: HubSource, split: str
) -> tuple[Iterator[Any], Mapping[str, Sequence[str] | None]]:
  import datasets  # here: it takes seconds to import

  path = pathlib.Path(source.path).expanduser()
  saved = [path / name for name in ("dataset_dict.json", "dataset_info.json", "state.json")]
  if any(file.exists() for file in saved):
    found = datasets.load_from_disk(str(path))
  else:
    place = str(path) if path.exists() else source.path
    found = datasets.load_dataset(place, source.config or None, streaming=source.streaming)
  if isinstance(found, dict):
    if split not in found:
      raise _no_split(split, list(found))
    found = found[split]
  features = (found.features or {}).items()
  names = {column: getattr(_inner(feature), "names", None) for column, feature in features}
  return iter(found), names


def _inner(feature: Any) -> Any:
  """The feature of a list's values."""
  return getattr(feature, "feature", feature)


def _tfds(
  source: HubSource, split: str
) -> tuple[Iterator[Any], Mapping[str, Sequence[str] | None]]:
  import tensorflow_datasets as tfds  # here: it takes seconds to import

  path = pathlib.Path(source.path).expanduser()
  if (path / "dataset_info.json").exists():
    builder = tfds.builder_from_directory(str(path))
  else:
    name = f"{source.path}/{source.config}" if source.config else source.path
    builder = tfds.builder(name, file_format="array_record")
    builder.download_and_prepare()
  if split not in builder.info.splits:
    raise _no_split(split, list(builder.info.splits))
  rows = builder.as_data_source(split=split)
  names = {
    column: getattr(feature, "names", None) for column, feature in builder.info.features.items()
  }
  return (rows[number] for number in range(len(rows))), names
