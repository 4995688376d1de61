"""Scores of blocks trained alone on each task: a0 of FWT, from another run or one made now."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from sapt_jax import processes, saved_options
from sapt_jax.config import Config
from sapt_jax.errors import InputError
from sapt_jax.methods.per_task import PerTaskOptions
from sapt_jax.scoring import metric_of
from sapt_jax.text_files import read_object


def single_scores(
  config: Config,
  names: list[str],
  output: pathlib.Path,
  fingerprint: str,
  run: Callable[[Config, pathlib.Path], Any],
) -> list[float] | None:
  """A score for each task, as config.single says; None: not asked for.

  Args:
    run: makes a run; it is made inside the folder `output`.

  Raises:
    InputError: the other run is not finished, not of per_task, or its scores are not to be held
      beside this run's.
  """
  if not config.single:
    return None
  place = pathlib.Path(config.single)
  if config.single == "train":
    place = output / "single"
    evaluation = dataclasses.replace(config.evaluation, every_task=False)
    # Alone, so from a fresh start.
    pet = dataclasses.replace(config.pet, new_block="fresh", top_k=0)
    alone = dataclasses.replace(
      config,
      method=PerTaskOptions(),
      pet=pet,
      evaluation=evaluation,
      stream=dataclasses.replace(config.stream, blocks=()),
      single="",
    )
    run(alone, place)
  finished, asked = processes.first_tells(lambda: _finished_run(config.single, place))
  scores = {name: finished["scores"][j][j] for j, name in enumerate(finished["tasks"])}
  missing = [name for name in names if name not in scores]
  if finished["method"] != "per_task" or missing:
    raise InputError(
      f"single {config.single!r}: a per_task run of all tasks is needed, not "
      f"{finished['method']} without {missing}"
    )
  _check_comparable(config, fingerprint, asked, finished)
  return [scores[name] for name in names]


def _check_comparable(
  config: Config, fingerprint: str, asked: dict[str, Any], finished: dict[str, Any]
) -> None:
  """Whether the scores of a finished run that was asked for so may be held beside those of this
  one: all that changes a score is the same, but for the method.

  Raises:
    InputError: they may not; the message lists what differs.
  """
  its = _what_scores_depend_on(saved_options.config_from_json(asked))
  own = _what_scores_depend_on(config)
  its["backbone.weights"], own["backbone.weights"] = asked["backbone.weights"], fingerprint
  said = {"seed": "seed", "evaluation.metric": "metric", "data.protocol": "protocol"}
  its |= {name: finished[key] for name, key in said.items() if key in finished}
  differing = [
    f"{name} {its.get(name)} (here {own.get(name)})"
    for name in own | its
    if its.get(name) != own.get(name)
  ]
  if differing:
    raise InputError(
      f"single {config.single!r}: a run with {', '.join(differing)}, whose scores are not to be "
      "held beside this run's"
    )


def _what_scores_depend_on(config: Config) -> dict[str, Any]:
  """The values by which runs of one method on one task can differ in their score."""
  pet, fit, data, backbone = config.pet, config.fit, config.data, config.backbone
  unused = (
    {"rank", "alpha", "targets", "scale", "dropout"} if pet.kind == "prompt" else {"prompt_length"}
  )
  parts = {
    "pet": (pet, _names(pet) - {"new_block", "top_k"} - unused),
    "fit": (fit, _names(fit) - {"shapes", "accumulation", "checkpoint_every", "log_every"}),
    "data": (data, _names(data) - {"root"}),
    "backbone": (backbone, {"dtype", "bits", "precision", "dropout"}),
  }
  values = {"seed": config.seed, "evaluation.metric": metric_of(config)} | {
    f"{part}.{name}": getattr(options, name)
    for part, (options, names) in parts.items()
    for name in sorted(names)
  }
  values["stream.fit"] = config.stream.fit
  # Blocks that start from others are not learned alone.
  values["stream.blocks"] = config.stream.blocks if config.method.name == "per_task" else ()
  values["pet.new_block"] = pet.new_block if config.method.name == "per_task" else "fresh"
  return values


def _names(options: Any) -> set[str]:
  return {field.name for field in dataclasses.fields(options)}


def _finished_run(asked: str, place: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """scores.json and config.json of a run.

  Raises:
    InputError: they are not there, or not what a run writes.
  """
  if not (place / "scores.json").is_file():
    raise InputError(
      f"single {asked!r}: no scores.json of a finished run is there; name the folder of one of "
      "per_task"
    )
  finished, config = (read_object(place / name) for name in ("scores.json", "config.json"))
  try:
    for needed in (finished["method"], config["method"]["name"], config["backbone.weights"]):
      str(needed)
    for j, _ in enumerate(finished["tasks"]):
      float(finished["scores"][j][j])
  except (ValueError, LookupError, TypeError):
    raise InputError(
      f"single {asked!r}: {place / 'scores.json'} is not what a run writes; name a finished "
      "per_task run"
    ) from None
  return finished, config
