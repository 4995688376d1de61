"""Trees on disk, through Orbax: written whole or not at all, read back before they count, and
checked by SHA-256 when read. One process does it, alone or for all.

A saved folder holds `tree/` (the arrays), `record.json` (plain values that belong to it) and,
written last, `manifest.json` with the hash of every other file. Without a manifest a folder is an
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
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from jax.experimental import multihost_utils
from safetensors import SafetensorError

from sapt_jax import processes, sharding
from sapt_jax.errors import InputError
from sapt_jax.text_files import read_object, remove, sync_folder, write_json

MANIFEST, RECORD, TREE = "manifest.json", "record.json", "tree"
ONE_FILE = "tree.safetensors"  # in TREE, in place of Orbax's

UNREADABLE = (ValueError, KeyError, AttributeError, SafetensorError)

LONGEST_NAME = 255  # bytes, on all usual file systems


class DamagedError(InputError):
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


def on_host(tree: Any) -> Any:
  """NumPy copies of a tree's arrays, whole ones, however they are spread. All processes take
  part.
  """

  def copied(x: Any) -> Any:
    if not isinstance(x, jax.Array):
      return x
    if not (x.is_fully_addressable or x.is_fully_replicated):
      x = multihost_utils.process_allgather(x, tiled=True)
    return np.array(x)

  return jax.tree.map(copied, tree)


def save(
  folder: pathlib.Path, tree: Any, record: dict[str, Any], in_one_file: bool = False
) -> None:
  """Saves a tree of arrays that this process has, and the plain values that go with it; a folder of
  that name is replaced.

  The folder that is there stays until the new one is written.

  Args:
    in_one_file: of safetensors, not by Orbax: this is written many times, and each time Orbax
      would keep some memory for each array, and take longer.
  """
  draft, before = (folder.with_name(folder.name + end) for end in (".draft", ".before"))
  remove(draft)
  draft.mkdir(parents=True)
  # safetensors takes arrays as if they were in the order of C.
  flat = {name: np.asarray(x, order="C") for name, x in _flat(tree).items()}
  # Each of Orbax's threads would log the traceback of an error that it raises here anyway, some of
  # them after it has been raised: so it stays quiet then.
  logger = logging.getLogger("absl")
  usual = logger.level
  logger.setLevel(logging.CRITICAL)
  _put(draft / TREE, flat, in_one_file)
  logger.setLevel(usual)
  _read_back(draft, flat)
  write_json(draft / RECORD, record)
  _sync(draft)
  write_json(draft / MANIFEST, _hashes(draft))
  remove(before)
  if folder.is_symlink() or folder.exists():
    folder.rename(before)
  draft.rename(folder)
  sync_folder(folder.parent)
  remove(before)


def _orbax() -> ocp.Checkpointer:
  """What saves and reads trees in this process, and waits for no other one."""
  here = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process {here}"
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _put(place: pathlib.Path, flat: dict[str, np.ndarray], in_one_file: bool) -> None:
  if in_one_file:
    place.mkdir()
    (place / ONE_FILE).write_bytes(safetensors.numpy.save(flat))
    return
  try:
    with _orbax() as orbax:
      orbax.save(place.absolute(), args=ocp.args.PyTreeSave(flat))
  except ValueError as error:  # a long one, in which the system's own reason comes last
    code = re.search(r"os_error_code='(\d+)'", str(error))
    raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else error) from error


def _get(place: pathlib.Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
  # Earlier versions of the library had Orbax write them into a folder of their own there.
  metadata = next(place.absolute().rglob("_METADATA"), None)
  if metadata is None:
    return safetensors.numpy.load_file(place / ONE_FILE)
  with _orbax() as orbax:
    if names is None:  # each time it is asked, some memory is never freed: name them
      names = orbax.metadata(metadata.parent).item_metadata.tree
    restore = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
    return orbax.restore(metadata.parent, args=ocp.args.PyTreeRestore(restore_args=restore))


def _sync(folder: pathlib.Path) -> None:
  """Has all files in a folder, and the names of them, written to the disk."""
  for path in folder.rglob("*"):
    if path.is_file():
      with path.open("rb") as file:
        os.fsync(file.fileno())
  for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
    sync_folder(place)


def _read_back(folder: pathlib.Path, flat: dict[str, Any]) -> None:
  """Whether what has just been written is read.

  Raises:
    OSError: it is not.
  """
  try:
    found = _get(folder / TREE, flat)
    same = all(found[name].tobytes() == value.tobytes() for name, value in flat.items())
  except UNREADABLE as error:
    reason = _first_line(error)
    raise OSError(f"{folder}: what was written there cannot be read ({reason})") from None
  if not same:
    raise OSError(f"{folder}: other numbers are read there than were written; is the disk sound?")


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of a saved folder, by their names in its tree; nothing is checked.

  Raises:
    *UNREADABLE, OSError: they cannot be read.
  """
  return _get(folder / TREE)


def _fitted(name: str, saved: np.ndarray, wanted: Any, grow: bool) -> np.ndarray:
  """A saved array, in one as large as the array that is wanted, which has what is not saved.

  Raises:
    ValueError: it has another shape, or one that is larger if it may grow.
  """
  if saved.shape == wanted.shape:
    return saved.astype(wanted.dtype, copy=False)
  smaller = len(saved.shape) == len(wanted.shape) and all(
    x <= y for x, y in zip(saved.shape, wanted.shape, strict=True)
  )
  if not (grow and smaller):
    raise ValueError(f"{name} has the shape {saved.shape} there, and {wanted.shape} here")
  room = np.array(wanted)
  room[tuple(map(slice, saved.shape))] = saved
  return room


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
  """As `read`, by process 0 for all, and each array goes where that of `abstract` says by its
  sharding; to the first device, if it has none.
  """
  tree, record = processes.first_tells(lambda: read(folder, abstract, grow))
  here: Any = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def placed(x: np.ndarray, like: Any) -> jax.Array:
    return sharding.to_devices(x, getattr(like, "sharding", None) or here)

  return jax.tree.map(placed, tree, abstract), record


def read(folder: pathlib.Path, abstract: Any, grow: bool = False) -> tuple[Any, dict[str, Any]]:
  """The tree, of NumPy's arrays, and the record of a saved folder, whatever they were saved from.

  Args:
    abstract: a tree of the same structure, of arrays or ShapeDtypeStructs.
    grow: `abstract` holds arrays, which may be larger than the saved ones along any axis: the saved
      numbers take the places that come first, and the others keep what they hold.

  Raises:
    DamagedError: see verify.
  """
  verify(folder)
  wanted = _flat(abstract)
  try:
    saved = _get(folder / TREE, wanted)
    leaves = [_fitted(name, saved[name], x, grow) for name, x in wanted.items()]
  except UNREADABLE as error:
    raise DamagedError(
      f"{folder}: other arrays than this version of the library reads ({_first_line(error)}); use "
      "the version that wrote them"
    ) from error
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves), read_record(folder)
