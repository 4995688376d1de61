"""Whether a run that is gone on with is the one that was begun: the same options, the same inputs,
and a library that computes the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from sapt_jax import saved_options
from sapt_jax.config import Config
from sapt_jax.errors import InputError

# What the same options compute: raised when a new version computes something else, so that no run
# is half the one and half the other.
NUMBERS = 2
# Options that change no result.
FREE = ("mesh.", "keep_snapshots")
# Options that say where something is, and the hash by which it is known wherever it is.
PLACES = {
  "backbone.path": "backbone.weights",
  "data.root": "tasks",
  "generator.folder": "pseudo_inputs",
}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix: value}
  return {
    key: leaf
    for name, inner in value.items()
    for key, leaf in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
  }


def asked(config: Config, identity: dict[str, Any]) -> dict[str, Any]:
  """What config.json holds: the options, what the run is made from, and what they compute."""
  options = json.loads(json.dumps(dataclasses.asdict(config)))
  del options["distributed"]  # each process has its own
  return options | identity | {"numbers": NUMBERS}


def check_begun(
  where: pathlib.Path, values: dict[str, Any], config: Config, identity: dict[str, Any]
) -> None:
  """Whether the run in a folder was begun with these options and these inputs. The mesh changes no
  result, nor does the place of what is known by its hash. An option that is younger than the run
  has its default there.

  Args:
    values: what the run's config.json holds.

  Raises:
    InputError: it was not; the message names what has changed.
  """
  if values.get("numbers", 1) != NUMBERS:
    raise InputError(
      f"{where}: begun with an older version of the library, which computed other numbers; "
      "it can be asked and exported, but not gone on with: choose another --output"
    )
  begun, now = (_flat(asked(one, {})) for one in (saved_options.config_from_json(values), config))
  free = [place for place, known in PLACES.items() if known in values and known in identity]
  changed = [
    f"{key}: {begun.get(key)} -> {now.get(key)}"
    for key in sorted(begun | now)
    if begun.get(key) != now.get(key) and not key.startswith(FREE) and key not in free
  ]
  if changed:
    raise InputError(
      f"{where}: begun with another configuration ({'; '.join(changed)}); use the same "
      "one, or another --output"
    )
  known = {name: values[name] for name in identity if name in values}
  then, now = _flat(known), _flat({name: identity[name] for name in known})
  others = [key for key in sorted(then | now) if then.get(key) != now.get(key)]
  if others:
    raise InputError(
      f"{where}: changed since the run was begun: {', '.join(others)}; put it back as it "
      "was, or choose another --output"
    )
