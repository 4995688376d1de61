"""Trees on disk, through Orbax: written whole or not at all, checked by SHA-256 when read.

A saved folder holds `tree/` (Orbax), `record.json` (plain values that belong to it) and, written
last, `manifest.json` with the hash of every other file. Without a manifest a folder is an
unfinished save and is passed over; with one that does not fit, it is damaged and named.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from sapt_jax import processes
from sapt_jax.errors import InputError
from sapt_jax.text_files import read_object

MANIFEST, RECORD, TREE = "manifest.json", "record.json", "tree"


class DamagedError(RuntimeError):
  """A saved folder whose files are not those that were written."""


def _flat(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
  return {str(path.relative_to(folder)): _hash(path) for path in files}


def _hash(file: pathlib.Path) -> str:
  with file.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def write_json(file: pathlib.Path, value: Any) -> None:
  """Writes JSON so that the file is either the old one or the new one, never half of it."""
  draft = file.with_name(file.name + ".draft")
  draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  draft.replace(file)


def save(folder: pathlib.Path, tree: Any, record: dict[str, Any]) -> None:
  """Saves a tree of arrays and the plain values that go with it; a folder of that name is replaced.
  All processes take part.

  The folder that is there stays until the new one is written.
  """
  draft = folder.with_name(folder.name + ".draft")

  def make_room() -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)

  def seal() -> None:
    write_json(draft / RECORD, record)
    write_json(draft / MANIFEST, _hashes(draft))
    before = folder.with_name(folder.name + ".before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
      folder.rename(before)
    draft.rename(folder)
    shutil.rmtree(before, ignore_errors=True)

  processes.first_does(make_room)
  ocp.save(str((draft / TREE).absolute()), _flat(tree))
  processes.first_does(seal)


def is_finished(folder: pathlib.Path) -> bool:
  """Whether this is a folder whose save was completed; a draft of one, or what it replaced, is
  none.
  """
  return (folder / MANIFEST).is_file() and folder.suffix not in (".draft", ".before")


def verify(folder: pathlib.Path) -> None:
  """Compares a saved folder with its manifest.

  Raises:
    DamagedError: a file is missing, or is not the one that was written; the message names it.
  """
  written = _read(folder / MANIFEST)
  found = _hashes(folder)
  for name, digest in written.items():
    if found.get(name) != digest:
      raise DamagedError(
        f"{folder / name}: {'changed since it was written' if name in found else 'missing'}"
      )


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """The plain values of a saved folder, whose arrays are not looked at.

  Raises:
    DamagedError: they are missing, or are not those that were written.
  """
  record = _read(folder / RECORD)
  if _read(folder / MANIFEST).get(RECORD) != _hash(folder / RECORD):
    raise DamagedError(f"{folder / RECORD}: changed since it was written")
  return record


def _read(file: pathlib.Path) -> dict[str, Any]:
  try:
    return read_object(file)
  except InputError as error:
    raise DamagedError(str(error)) from None


def load(folder: pathlib.Path, abstract: Any) -> tuple[Any, dict[str, Any]]:
  """The tree and the record of a saved folder, whatever mesh they were saved from. All processes
  take part.

  Args:
    abstract: a tree of the same structure, of arrays or ShapeDtypeStructs with shardings, which say
      where each array is to go.

  Raises:
    DamagedError: see verify.
  """
  verify(folder)
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _flat(abstract)
  )
  try:
    flat = ocp.load(str((folder / TREE).absolute()), target)
  except (ValueError, KeyError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise DamagedError(
      f"{folder}: other arrays than this version of the library reads ({reason[:120]}); use the "
      "version that wrote them"
    ) from error
  leaves = [flat[name] for name in _flat(abstract)]
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves), read_record(folder)
