"""Runs whose folder is on an object store or another remote place: any URL that fsspec knows, such
as gs://bucket/run or s3://bucket/run.

A run works in a folder of this machine and copies what it has finished. An object store can neither
rename nor lock: so a manifest is copied after the files that it speaks of, and taken away before
they change; and of two runs in one place, the older one ends as soon as it sees the newer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import socket
import uuid
from collections.abc import Callable

from sapt_jax.errors import FailedError, InputError
from sapt_jax.run_lock import recover
from sapt_jax.text_files import remove

OWNER, MANIFEST = "owner", "manifest.json"
# Of this machine alone: the lock, what is being written, and what is about to be replaced.
LOCK, UNFINISHED = "lock", (".draft", ".before")


def is_remote(place: str) -> bool:
  """Whether this is a URL and not a path."""
  return "://" in place


def mirror_of(place: str) -> Mirror | None:
  """The mirror that a run at a URL works in; None where the place is a path."""
  return Mirror(place, scratch(place, "runs")) if is_remote(place) else None


def scratch(url: str, use: str) -> pathlib.Path:
  """The folder that stands for a URL, among those of the user's caches (XDG_CACHE_HOME)."""
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  return cache / "sapt_jax" / use / hashlib.sha256(url.encode()).hexdigest()[:16]


def readable(place: str) -> pathlib.Path:
  """A run's folder to be read: the path itself, or a copy of what is at a URL.

  Raises:
    InputError: see Mirror; there is nothing; the place has no name.
  """
  if not place:
    raise InputError("the name of a run is empty; give its folder")
  if not is_remote(place):
    recover(pathlib.Path(place))
    return pathlib.Path(place)
  mirror = Mirror(place, scratch(place, "read"))
  mirror.fetch()
  if not mirror.known:
    raise InputError(f"{place}: nothing is there")
  return mirror.local


class Mirror:
  """A remote folder and the local one that is copied to it.

  Attributes:
    known: files that are the same in both, with their sizes and times.

  Raises:
    InputError: fsspec does not know the URL, or cannot reach it.
  """

  def __init__(self, url: str, local: pathlib.Path):
    import fsspec  # here: only remote runs need it

    self.url, self.local = url.rstrip("/"), local
    self.token = f"{socket.gethostname()} process {os.getpid()} {uuid.uuid4().hex[:8]}"
    self.known: dict[str, tuple[int, int]] = {}
    options = {"auto_mkdir": True} if self.url.startswith("file://") else {}
    try:
      self.store, self.root = fsspec.core.url_to_fs(self.url, **options)
      self.store.exists(self.root)
    except ImportError as error:
      raise InputError(f"{url}: {error}; install what it names") from None
    except Exception as error:  # noqa: BLE001 (each kind of store has errors of its own)
      raise self._unreachable(error) from None

  def _unreachable(self, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{self.url}: cannot be reached ({reason})")

  def _local_files(self) -> dict[str, tuple[int, int]]:
    files = {}
    for path in self.local.rglob("*"):
      name = path.relative_to(self.local)
      unfinished = any(part.endswith(UNFINISHED) for part in name.parts)
      if path.is_file() and not unfinished and str(name) != LOCK:
        with contextlib.suppress(FileNotFoundError):  # a tracker may remove what is its own
          files[str(name)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return files

  def _remote_files(self) -> list[str]:
    self.store.invalidate_cache()
    found = self.store.find(self.root) if self.store.exists(self.root) else []
    start = self.store._strip_protocol(self.root).rstrip("/") + "/"
    return [name.removeprefix(start) for name in found if name != start + OWNER]

  def peek(self, name: str) -> bytes | None:
    """The content of a remote file; None: there is none."""
    self.store.invalidate_cache()
    place = f"{self.root}/{name}"
    return self.store.cat_file(place) if self.store.exists(place) else None

  def take(self) -> None:
    """Makes this process the owner; an earlier one ends when it copies next.

    Raises:
      InputError: nothing can be written there.
    """
    try:
      self.store.pipe_file(f"{self.root}/{OWNER}", self.token.encode())
    except Exception as error:  # noqa: BLE001 (each kind of store has errors of its own)
      raise self._unreachable(error) from None

  def owner(self) -> str:
    """The token of the process that has taken the place last."""
    self.store.invalidate_cache()
    return self.store.cat_file(f"{self.root}/{OWNER}").decode(errors="replace")

  def fetch(self) -> None:
    """Makes the local folder what the remote one is."""
    self.local.mkdir(parents=True, exist_ok=True)
    for path in self.local.iterdir():
      if path.name != LOCK:
        remove(path)
    for name in self._remote_files():
      file = self.local / name
      file.parent.mkdir(parents=True, exist_ok=True)
      self.store.get_file(f"{self.root}/{name}", str(file))
    self.known = self._local_files()

  def push(self, may_go: Callable[[str], bool] = lambda _: True) -> None:
    """Copies what has changed, and removes what is gone. Killed at any moment, it leaves what was
    there before, or more.

    Args:
      may_go: whether this process itself may have removed a file of this name.

    Raises:
      InputError: another run has taken the place.
      FailedError: something else is gone here, as caches are cleaned; nothing has changed there.
    """
    self._check_owner()
    now = self._local_files()
    changed = {name for name, stamp in now.items() if self.known.get(name) != stamp}
    gone = self.known.keys() - now.keys()
    if lost := [name for name in gone if not may_go(name)]:
      raise FailedError(
        f"{self.local / min(lost)}: was removed while the run was at work; {self.url} still has "
        "it: give the same command again"
      )
    seals = {name for name in changed if name.endswith(MANIFEST)}
    written = {folder for name in changed - seals for folder in pathlib.PurePath(name).parents}
    unsealed = {
      name
      for name in self.known
      if name.endswith(MANIFEST) and pathlib.PurePath(name).parent in written
    }
    open_now = {pathlib.PurePath(name).parent for name in unsealed}
    replaced = {name for name in gone if open_now.intersection(pathlib.PurePath(name).parents)}
    for name in unsealed:
      self._remove(name)
    for name in sorted(changed - seals):
      self._put(name)
    for name in sorted(replaced - unsealed):
      self._remove(name)
    # The newest first: then an older one may lose its arrays.
    for name in sorted(seals | (now.keys() & unsealed), reverse=True):
      self._put(name)
    for name in sorted(gone - replaced, key=_manifests_first):
      self._remove(name)
    self.known = now

  def _check_owner(self) -> None:
    if (owner := self.owner()) != self.token:
      raise InputError(f"{self.url}: {owner} has gone on with this run; this one ends")

  def _put(self, name: str) -> None:
    self.store.put_file(str(self.local / name), f"{self.root}/{name}")

  def _remove(self, name: str) -> None:
    self.store.rm_file(f"{self.root}/{name}")


def _manifests_first(name: str) -> tuple[bool, str]:
  return not name.endswith(MANIFEST), name
