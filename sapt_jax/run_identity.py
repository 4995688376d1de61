"""Whether a run that is gone on with is the one that was begun: the same options, the same inputs,
and a library that computes the same numbers. Its stream may have become longer.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from sapt_jax import saved_options
from sapt_jax.config import Config
from sapt_jax.errors import InputError
from sapt_jax.remote import Mirror
from sapt_jax.text_files import flat, parse_json

# What the same options compute: raised when a new version computes something else, so that no run
# is half the one and half the other.
NUMBERS = 2
# Options that change no result.
FREE = ("mesh.", "keep_snapshots", "profile", "track", "fit.checkpoint_every", "fit.log_every")
# Options that say how a task is learned and scored; other ones may hold for tasks that come later.
OF_A_TASK = ("fit.", "generator.", "evaluation.batch", "evaluation.every", "stream.", "single")
# The job in which --fresh or --from-task was obeyed.
BEGUN_IN = "begun_in"
# Hashes of what belongs to a task, by its name.
BY_TASK = {"tasks", "pseudo_inputs", "blocks"}
# Options that say where something is, and the hash by which it is known wherever it is.
PLACES = {
  "backbone.path": "backbone.weights",
  "data.root": "tasks",
  "generator.folder": "pseudo_inputs",
  "stream.blocks": "blocks",
}


def asked(
  config: Config, identity: dict[str, Any], values: dict[str, Any] | None = None
) -> dict[str, Any]:
  """What config.json holds: the options, what the run is made from, and what they compute.

  Args:
    values: what it held before: hashes of files of its tasks that are no longer there stay, and
      which run it was begun with, and in which job (requeued.py).
  """
  options = json.loads(json.dumps(dataclasses.asdict(config)))
  del options["distributed"]  # each process has its own
  merged = {name: _merged((values or {}).get(name), now) for name, now in identity.items()}
  for hashes in BY_TASK & merged.keys():
    merged[hashes] = {
      task: one for task, one in merged[hashes].items() if task in identity["tasks"]
    }
  kept = {key: (values or {})[key] for key in ("started_from", BEGUN_IN) if (values or {}).get(key)}
  return options | merged | kept | {"numbers": NUMBERS}


def shared(config: Config, identity: dict[str, Any]) -> dict[str, Any]:
  """What all processes of a run must have alike: all that config.json holds, but for where the
  things are that are known by their hashes.
  """
  return {name: x for name, x in flat(asked(config, identity)).items() if name not in PLACES}


def _merged(then: Any, now: Any) -> Any:
  if not (isinstance(then, dict) and isinstance(now, dict)):
    return now
  return then | {name: _merged(then.get(name), value) for name, value in now.items()}


def values_in(path: pathlib.Path, mirror: Mirror | None) -> dict[str, Any]:
  """What config.json of the run in a folder holds, before it is entered; nothing: there is no run
  yet, or what it says cannot be read, which entering finds out.
  """
  file = path / "config.json"
  try:
    content = mirror.peek(file.name) if mirror else file.read_bytes() if file.is_file() else None
    values = parse_json((content or b"").decode(), str(file))
  except (InputError, UnicodeDecodeError, PermissionError):
    return {}
  return values if isinstance(values, dict) else {}


def tasks_of(values: dict[str, Any]) -> list[str]:
  """The tasks of the run whose config.json holds these values, in order; none: it is of a version
  that did not write them.
  """
  tasks = values.get("tasks")
  return list(tasks) if isinstance(tasks, dict) else []


def check_begun(
  where: pathlib.Path,
  values: dict[str, Any],
  config: Config,
  identity: dict[str, Any],
  finished: int = 0,
  learning: bool = False,
  again: bool = False,
) -> None:
  """Whether the run in a folder was begun with these options and these inputs. The mesh changes no
  result, nor does the place of what is known by its hash. An option that is younger than the run
  has its default there. New tasks may stand behind those that the run has learned or is to learn,
  and such as it has not learned may be left out. When it has learned all of its tasks, new ones may
  be learned in another way (OF_A_TASK), and so may those that are to be learned again; when the
  rest is left out, how it was to be learned does not matter.

  Args:
    values: what the run's config.json holds.
    finished: how many tasks it has learned.
    learning: whether it has begun to learn one more.
    again: whether others have been learned, and are to be learned again.

  Raises:
    InputError: it was not; the message names what has changed.
  """
  if values.get("numbers", 1) != NUMBERS:
    raise InputError(
      f"{where}: by its config.json begun with an older version of the library, which computed "
      "other numbers; it can be asked and exported, but not gone on with: choose another --output"
    )
  begun, now = (flat(asked(one, {})) for one in (saved_options.config_from_json(values), config))
  tasks, wanted = tasks_of(values), list(identity.get("tasks", ()))
  check_stream(where, tasks, wanted, finished + learning)
  free = tuple(place for place, known in PLACES.items() if known in values and known in identity)
  if tasks:
    free += ("stream.tasks",)
  new = len(wanted) > finished and (again or finished == len(tasks))
  if tasks and (new or len(wanted) < len(tasks)):
    free += OF_A_TASK
  if begun["method.name"] != now["method.name"]:
    free += ("method.",)  # but for the name, all options differ
    begun, now = (one | {"method": one["method.name"]} for one in (begun, now))
  if changed := changes(begun, now, FREE + free):
    anew = all(entry.startswith(OF_A_TASK) for entry in changed) and finished < len(wanted)
    raise InputError(
      f"{where}: by its config.json learned with another configuration ({'; '.join(changed)}); use "
      "the same one, "
      + (f"--from-task {finished + 1} to learn the rest anew with this one, " if anew else "")
      + "or another --output"
    )
  known = {name: values[name] for name in identity if name in values}
  then, now = flat(known), flat({name: identity[name] for name in known})
  others = [key for key in sorted(then.keys() & now.keys()) if then[key] != now[key]]
  if others:
    raise InputError(
      f"{where}: by its config.json, changed since the run was begun: {', '.join(others)}; put it "
      f"back as it was, or choose another --output{learned_anew(where, others)}"
    )


def learned_anew(where: pathlib.Path, changed: Sequence[str]) -> str:
  """How tasks are learned as they are now, in words; empty: more than tasks has changed."""
  names = {key.removeprefix("tasks.").rpartition(".")[0] for key in changed}
  if not all(key.startswith("tasks.") for key in changed):
    return ""
  forgotten = " and ".join(
    f"python -m sapt_jax.forget --run {where} --task {name}" for name in sorted(names)
  )
  return f"; to learn it as it is now: {forgotten}, then the same command again"


def changes(then: dict[str, Any], now: dict[str, Any], free: tuple[str, ...] = ()) -> list[str]:
  """What differs between two sets of options, nested or not, but for names that begin as `free`."""
  then, now = flat(then), flat(now)
  return [
    f"{key}: {then.get(key)} -> {now.get(key)}"
    for key in sorted(then.keys() | now.keys())
    if then.get(key) != now.get(key) and not key.startswith(free)
  ]


def check_stream(where: pathlib.Path, tasks: list[str], wanted: list[str], learned: int) -> None:
  """Whether the wanted tasks are those of the run, and perhaps more behind them, or less, as far as
  it has not learned them.

  Raises:
    InputError: they are not.
  """
  less = wanted == tasks[: len(wanted)] and len(wanted) >= learned
  if tasks and wanted[: len(tasks)] != tasks and not less:
    missing = [name for name in tasks if name not in wanted]
    raise InputError(
      f"{where}: by its config.json the stream of this run begins with {' '.join(tasks)}, not with "
      f"{' '.join(wanted[: len(tasks)])}; new tasks go behind them: name "
      + (f"{' '.join(missing)} too" if missing else "them in this order")
      + " in --stream.tasks, or choose another --output"
    )
