"""Text files: those that others wrote are read here, and whatever is wrong with one becomes a line
that names the file, the place and what is wrong there; our own are written whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from sapt_jax.errors import InputError

# How a file begins that is not what its name says.
STRANGERS = {
  "version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with git lfs pull",
  "<": "a page of markup, not JSON; download the file again",
}


def read_text(file: pathlib.Path, called: str = "", pipe: bool = False) -> str:
  """A UTF-8 file's text; a byte-order mark is allowed.

  Args:
    called: what an error calls the file.
    pipe: it may be a pipe or a device, for whose writer the program then waits.

  Raises:
    InputError: no such file, one that cannot be read, not UTF-8, or with a zero byte.
  """
  called = called or str(file)
  try:
    if file.exists() and not (pipe or file.is_file() or file.is_dir()):
      raise InputError(f"{called}: is a pipe or a device; put a file in its place")
    text = file.read_bytes().decode("utf-8-sig")
  except FileNotFoundError:
    there = "file" if file.parent.is_dir() else f"folder as {file.parent}"
    raise InputError(f"{called}: no such {there}") from None
  except UnicodeDecodeError as error:
    line = error.object[: error.start].count(b"\n") + 1
    raise InputError(
      f"{called}:{line}: not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"
    ) from None
  except InputError:
    raise
  except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"{called}: cannot be read ({reason})") from None
  before, zero, _ = text.partition("\0")
  if zero:  # a disk's empty block after a crash, or UTF-16
    line = before.count("\n") + 1
    raise InputError(f"{called}:{line}: holds a zero byte, so it is no text; save it as UTF-8")
  return text


def parse_json(text: str, where: str) -> Any:
  """The value of a JSON text; `where` is what an error calls it.

  Raises:
    InputError: it is no JSON, an object has a key twice, or it holds what cannot be written again
      as UTF-8: half of a surrogate pair.
  """
  try:
    value = json.loads(text, object_pairs_hook=_once)
  except json.JSONDecodeError as error:
    raise InputError(_complaint(text, where, error)) from None
  except KeyError as error:
    raise InputError(
      f"{where}: the key {error!s:.80} stands twice in an object; keep one"
    ) from None
  except RecursionError:
    raise InputError(f"{where}: JSON that is nested too deeply") from None
  except ValueError as error:  # int() refuses thousands of digits
    raise InputError(f"{where}: a number that is too long ({error})") from None
  if re.search(r"\\u[dD][89a-fA-F]", text):
    for place, part in _texts(value):
      half = re.search("[\ud800-\udfff]", part)
      if half:
        raise InputError(
          f"{where}: {_words_of(place)[:200] or 'the text'} holds half of a surrogate pair "
          f"(\\u{ord(half.group()):04x}), which is no character; take it out"
        )
  return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of these keys and values.

  Raises:
    KeyError: a key stands there twice; the last one would be taken.
  """
  values: dict[str, Any] = {}
  for key, value in pairs:
    if key in values:
      raise KeyError(key)
    values[key] = value
  return values


def _complaint(text: str, where: str, error: json.JSONDecodeError) -> str:
  if not text.strip():
    return f"{where}: is empty"
  for beginning, what in STRANGERS.items():
    if text.lstrip().startswith(beginning):
      return f"{where}: {what}"
  line = f":{error.lineno}" if "\n" in text.strip() or error.lineno > 1 else ""
  return f"{where}{line}: not JSON ({error.msg}, column {error.colno})"


# Where a value stands in another: that one's place, and a key, a number, or KEY: it is a key there.
# Words are made of it only where they are needed: a long list under a long key has many places.
_Place = tuple[Any, str | int | None]
KEY = None


def _texts(value: Any) -> Iterator[tuple[_Place | None, str]]:
  """Every text in a JSON value, keys too, with its place in it."""
  left: list[tuple[_Place | None, Any]] = [(None, value)]  # no recursion: it may be nested deeply
  while left:
    place, inner = left.pop()
    if isinstance(inner, str):
      yield place, inner
    elif isinstance(inner, list):
      left += [((place, number), one) for number, one in enumerate(inner)]
    elif isinstance(inner, dict):
      left += [((place, KEY), key) for key in inner]
      left += [((place, key), one) for key, one in inner.items()]


def _words_of(place: _Place | None) -> str:
  """Such as Instances[3].input."""
  parts: list[str] = []
  is_key = place is not None and place[1] is KEY
  at = place[0] if place is not None and is_key else place
  while at is not None:
    at, part = at
    parts.append(f"[{part}]" if isinstance(part, int) else f".{part}")
  words = "".join(reversed(parts)).removeprefix(".")
  return f"a key of {words or 'the object'}" if is_key else words


def read_json(file: pathlib.Path, called: str = "") -> Any:
  """The value of a JSON file; see read_text and parse_json."""
  return parse_json(read_text(file, called), called or str(file))


def read_object(file: pathlib.Path, called: str = "") -> dict[str, Any]:
  """The same where it must be an object."""
  value = read_json(file, called)
  if not isinstance(value, dict):
    raise InputError(f"{called or file}: must hold an object, not {type(value).__name__}")
  return value


def is_number(value: Any) -> bool:
  """Whether a JSON value is a finite number; one too large for a float is none."""
  try:
    return type(value) in (int, float) and math.isfinite(value)
  except OverflowError:
    return False


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """The values of nested objects by their names with dots."""
  found: dict[str, Any] = {}
  for name, value in values.items():
    found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return found


def json_lines(
  file: pathlib.Path, called: str = "", pipe: bool = False
) -> Iterator[tuple[str, Any]]:
  """The value of each line of a file of JSON lines, with its place, FILE:LINE; blank lines are
  passed over. (splitlines would also split at U+2028 and the like, which texts may hold.)
  """
  for number, line in enumerate(read_text(file, called, pipe).split("\n"), 1):
    if line.strip():
      yield f"{file}:{number}", parse_json(line, f"{file}:{number}")


def object_lines(file: pathlib.Path, *needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The same where each line must be an object that has what is needed."""
  for place, value in json_lines(file):
    if not isinstance(value, dict):
      raise InputError(f"{place}: must be an object, not {type(value).__name__}")
    if lacking := [name for name in needed if name not in value]:
      raise InputError(f"{place}: has no {', '.join(map(repr, lacking))}")
    yield place, value


def write_text(file: pathlib.Path, parts: Iterable[str]) -> None:
  """Writes UTF-8 text so that the file is either the old one or the new one, never half of it, also
  after the machine has lost its power.
  """
  draft = file.with_name(file.name + ".draft")
  with draft.open("w", encoding="utf-8") as out:
    out.writelines(parts)
    out.flush()
    os.fsync(out.fileno())
  draft.replace(file)
  sync_folder(file.parent)


def give_usual_mode(file: pathlib.Path) -> None:
  """Lets those read a file who may read others that this process makes; safetensors makes its files
  for their owner alone.
  """
  mask = os.umask(0o077)
  os.umask(mask)
  file.chmod(0o666 & ~mask)


def remove(place: pathlib.Path) -> None:
  """Removes a file, a folder with all that is in it, or a link: what that points to stays. Where
  there is nothing, nothing happens.
  """
  if place.is_dir() and not place.is_symlink():
    shutil.rmtree(place)
  else:
    place.unlink(missing_ok=True)


def sync_folder(folder: pathlib.Path) -> None:
  """Has the names in a folder written to the disk."""
  opened = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(opened)
  finally:
    os.close(opened)


def write_json(file: pathlib.Path, value: Any) -> None:
  """Writes a JSON file; see write_text."""
  write_text(file, [json.dumps(value, indent=2, ensure_ascii=False) + "\n"])


def write_lines(file: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  """Writes a file of JSON lines; see write_text."""
  file.parent.mkdir(parents=True, exist_ok=True)
  write_text(file, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def add_checked_line(file: pathlib.Path, line: str) -> None:
  """Adds a line with its checksum; nothing waits for the disk."""
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("a", encoding="utf-8") as out:
    out.write(_checked(line))


def write_checked_lines(file: pathlib.Path, lines: Iterable[str]) -> None:
  """Writes lines with their checksums; see write_text."""
  write_text(file, map(_checked, lines))


def checked_lines(file: pathlib.Path) -> list[str]:
  """The lines of such a file, without their checksums, up to the first that is not as it was
  written; none: there is no file.
  """
  sound = []
  for line in file.read_bytes().split(b"\n") if file.exists() else ():
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
      break
    sound.append(text.decode())
  return sound


def _checked(line: str) -> str:
  return f"{zlib.crc32(line.encode()):08x} {line}\n"
