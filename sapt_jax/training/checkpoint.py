"""Trees on disk, through Orbax: written whole or not at all, read back before they count, and
checked by SHA-256 when read.

A saved folder holds `tree/` (Orbax), `record.json` (plain values that belong to it) and, written
last, `manifest.json` with the hash of every other file. Without a manifest a folder is an
unfinished save and is passed over; with one that does not fit, it is damaged and named.

A folder is written as NAME.draft. While it takes the place of an older one, that one is
NAME.before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
from functools import partial
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sapt_jax import processes
from sapt_jax.errors import InputError
from sapt_jax.text_files import read_object, remove, sync_folder, write_json

MANIFEST, RECORD, TREE = "manifest.json", "record.json", "tree"

LONGEST_NAME = 255  # bytes, on all usual file systems

Shape = tuple[int, ...]


class DamagedError(RuntimeError):
  """A saved folder whose files are not those that were written."""


def _flat(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
  return {str(path.relative_to(folder)): sha256(path) for path in files}


def sha256(file: pathlib.Path) -> str:
  """Of a file's content, in hex digits."""
  with file.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def save(folder: pathlib.Path, tree: Any, record: dict[str, Any]) -> None:
  """Saves a tree of arrays and the plain values that go with it; a folder of that name is replaced.
  All processes take part.

  The folder that is there stays until the new one is written.
  """
  draft = folder.with_name(folder.name + ".draft")

  def make_room() -> None:
    remove(draft)
    draft.mkdir(parents=True)

  def seal() -> None:
    write_json(draft / RECORD, record)
    _sync(draft)
    write_json(draft / MANIFEST, _hashes(draft))
    before = folder.with_name(folder.name + ".before")
    remove(before)
    if folder.is_symlink() or folder.exists():
      folder.rename(before)
    draft.rename(folder)
    sync_folder(folder.parent)
    remove(before)

  processes.first_does(make_room)
  flat = _flat(tree)
  # Each of Orbax's threads would log the traceback of an error that it raises here anyway, some of
  # them after it has been raised: so it stays quiet then.
  logger = logging.getLogger("absl")
  usual = logger.level
  logger.setLevel(logging.CRITICAL)
  ocp.save(str((draft / TREE).absolute()), flat)
  logger.setLevel(usual)
  _read_back(draft, flat)
  processes.first_does(seal)


def _sync(folder: pathlib.Path) -> None:
  """Has all files in a folder, and the names of them, written to the disk."""
  for path in folder.rglob("*"):
    if path.is_file():
      with path.open("rb") as file:
        os.fsync(file.fileno())
  for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
    sync_folder(place)


def _read_back(folder: pathlib.Path, flat: dict[str, Any]) -> None:
  """Whether Orbax reads what it has just written.

  Raises:
    OSError: it does not.
  """
  try:
    here = any(isinstance(x, jax.Array) for x in flat.values())
    found = ocp.load(str((folder / TREE).absolute()), _abstract(flat) if here else flat)
    same = all(_bits(found[name]) == _bits(value) for name, value in flat.items())
  except (ValueError, KeyError) as error:
    reason = _first_line(error)
    raise OSError(f"{folder}: what was written there cannot be read ({reason})") from None
  if not same:
    raise OSError(f"{folder}: other numbers are read there than were written; is the disk sound?")


def _bits(array: Any) -> bytes:
  """The bytes of the part of an array that this process has."""
  return np.asarray(array.addressable_data(0) if isinstance(array, jax.Array) else array).tobytes()


def _abstract(flat: dict[str, Any], sizes: dict[str, Shape] | None = None) -> dict[str, Any]:
  """The shapes of arrays, some of them as `sizes` says, and where they stand; NumPy's are read to
  the first device.
  """
  here, sizes = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), sizes or {}
  return {
    name: jax.ShapeDtypeStruct(
      sizes.get(name, x.shape), x.dtype, sharding=getattr(x, "sharding", here)
    )
    for name, x in flat.items()
  }


def _saved_shapes(tree: str, wanted: dict[str, Any]) -> dict[str, Shape]:
  """The shapes of the saved arrays that are smaller than those wanted.

  Raises:
    KeyError: an array is not there.
    ValueError: one is larger, or has another number of axes.
  """
  metadata = ocp.metadata(tree).metadata
  saved = {name: tuple(metadata[name].shape) for name in wanted}
  for name, shape in saved.items():
    room = wanted[name].shape
    if len(shape) != len(room) or any(x > y for x, y in zip(shape, room, strict=True)):
      raise ValueError(f"{name} has the shape {shape} there, and {room} here")
  return {name: shape for name, shape in saved.items() if shape != wanted[name].shape}


@partial(jax.jit, static_argnums=2)
def _enlarged(room: jax.Array, saved: jax.Array, size: Shape) -> jax.Array:
  return room.at[tuple(slice(length) for length in size)].set(saved)


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:120]


def check_path(path: pathlib.Path) -> None:
  """Whether Orbax can read what it writes below a path.

  Raises:
    InputError: it cannot.
  """
  text = str(path.absolute())
  if path.name.endswith((".draft", ".before")):
    raise InputError(f"{text!r}: .draft and .before are ends of unfinished folders; rename it")
  if len(f"{path.name}.jsonl.draft".encode()) > LONGEST_NAME:
    raise InputError(f"{path.name[:60]!r}...: is too long for the name of a file; rename it")
  if re.search(r"[\\\[]|[\ud800-\udfff]", text):
    raise InputError(
      f"{text!r}: what is saved there could not be read back, as the path holds a backslash, a "
      "bracket or bytes that are not UTF-8; choose another"
    )


def settle(place: pathlib.Path) -> None:
  """Ends what a killed process left half done among the saved folders of a place: a draft that was
  finished takes its name, or else what it was to replace takes it back; other drafts go.
  """
  for left in [*place.glob("*.draft"), *place.glob("*.before")]:
    folder = left.with_suffix("")
    if left.is_dir() and (left / MANIFEST).is_file() and not (folder / MANIFEST).is_file():
      remove(folder)
      left.rename(folder)
  for left in [*place.glob("*.draft"), *place.glob("*.before")]:
    remove(left)


def save_record(folder: pathlib.Path, record: dict[str, Any]) -> None:
  """Writes a saved folder as if its arrays had been pruned."""
  folder.mkdir(parents=True)
  write_json(folder / RECORD, record)
  write_json(folder / MANIFEST, {RECORD: sha256(folder / RECORD)})


def prune(folder: pathlib.Path) -> None:
  """Removes the arrays of a saved folder; its record stays. Killed at any moment, it leaves all of
  them or none.
  """
  aside = folder.with_name(folder.name + ".before")  # which `settle` removes
  remove(aside)
  (folder / TREE).rename(aside)
  write_json(folder / MANIFEST, {RECORD: sha256(folder / RECORD)})
  remove(aside)


def has_arrays(folder: pathlib.Path) -> bool:
  """Whether this is a finished folder that has not been pruned, by its manifest too: a kill in an
  older version's pruning left some of the arrays.
  """
  if not is_finished(folder) or not (folder / TREE).is_dir():
    return False
  try:
    return any(name.startswith(f"{TREE}/") for name in _read(folder / MANIFEST))
  except DamagedError:
    return True  # `verify` says what is wrong


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
  if _read(folder / MANIFEST).get(RECORD) != sha256(folder / RECORD):
    raise DamagedError(f"{folder / RECORD}: changed since it was written")
  return record


def _read(file: pathlib.Path) -> dict[str, Any]:
  try:
    return read_object(file)
  except InputError as error:
    raise DamagedError(str(error)) from None


def load(folder: pathlib.Path, abstract: Any, grow: bool = False) -> tuple[Any, dict[str, Any]]:
  """The tree and the record of a saved folder, whatever mesh they were saved from. All processes
  take part.

  Args:
    abstract: a tree of the same structure, of arrays or ShapeDtypeStructs with shardings, which say
      where each array is to go.
    grow: `abstract` holds arrays, which may be larger than the saved ones along any axis: the saved
      numbers take the places that come first, and the others keep what they hold.

  Raises:
    DamagedError: see verify.
  """
  verify(folder)
  wanted = _flat(abstract)
  try:
    tree = str((folder / TREE).absolute())
    sizes = _saved_shapes(tree, wanted) if grow else {}
    flat = ocp.load(tree, _abstract(wanted, sizes))
  except (ValueError, KeyError) as error:
    raise DamagedError(
      f"{folder}: other arrays than this version of the library reads ({_first_line(error)}); use "
      "the version that wrote them"
    ) from error
  for name, size in sizes.items():
    flat[name] = _enlarged(wanted[name], flat[name], size)
  leaves = [flat[name] for name in wanted]
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves), read_record(folder)
