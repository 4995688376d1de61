"""Random changes of files and command lines, for stress.py."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any


def changed_text(text: str, rng: random.Random) -> str:
  """A text with something in it that does not belong there."""
  at = rng.randrange(len(text) + 1)
  odd = [
    "",
    "\0",
    "\\ud83d",
    "\ufeff",
    '"',
    "{",
    "[" * 5000,
    "9" * 5000,
    "null",
    "-1",
    "1e999",
    "é",
  ]
  length = rng.choice([0, 1, 10, len(text)])
  return text[:at] + rng.choice(odd) + text[at + length :]


def changed_value(value: Any, rng: random.Random) -> Any:
  """A JSON value with one of its parts replaced, removed or doubled."""
  odd: list[Any] = [
    None,
    True,
    -1,
    0,
    1e30,
    "",
    "text",
    [],
    {},
    [[]],
    {"a": []},
    "\ud83d",
    "x" * 10000,
    2**70,
  ]
  if isinstance(value, dict) and value and rng.random() < 0.9:
    key = rng.choice(sorted(value))
    if rng.random() < 0.2:
      return {name: inner for name, inner in value.items() if name != key}
    return value | {key: changed_value(value[key], rng)}
  if isinstance(value, list) and value and rng.random() < 0.8:
    at = rng.randrange(len(value))
    return [*value[:at], changed_value(value[at], rng), *value[at + 1 :]]
  return rng.choice(odd)


def mutated_file(file: pathlib.Path, rng: random.Random) -> None:
  """Changes a file as text, as JSON or as bytes."""
  content = file.read_bytes()
  how = rng.choice(["bytes", "text", "json"]) if file.suffix == ".json" else "bytes"
  if how == "json":
    file.write_text(json.dumps(changed_value(json.loads(content), rng)))
  elif how == "text":
    file.write_text(changed_text(content.decode(), rng))
  else:
    limit = len(content) if file.suffix == ".json" else 2000  # the header of the weights
    at = rng.randrange(limit)
    file.write_bytes(content[:at] + rng.randbytes(rng.choice([0, 1, 8])) + content[at + 1 :])


def mutated_options(options: list[str], rng: random.Random) -> list[str]:
  """The command line with one of its words changed."""
  at = rng.randrange(len(options))
  word = changed_text(options[at], rng).replace("\0", "")[:2000]
  return [*options[:at], word, *options[at + 1 :]]
