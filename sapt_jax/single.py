"""Scores of blocks trained alone on each task: a0 of FWT, from another run or one made now."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from sapt_jax.config import Config
from sapt_jax.errors import InputError
from sapt_jax.methods.per_task import PerTaskOptions
from sapt_jax.scoring import metric_of


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
    alone = dataclasses.replace(config, method=PerTaskOptions(), evaluation=evaluation, single="")
    run(alone, place)
  finished, its_weights = _finished_run(config.single, place)
  scores = {name: finished["scores"][j][j] for j, name in enumerate(finished["tasks"])}
  missing = [name for name in names if name not in scores]
  if finished["method"] != "per_task" or missing:
    raise InputError(
      f"single {config.single!r}: a per_task run of all tasks is needed, not "
      f"{finished['method']} without {missing}"
    )
  _check_comparable(config, fingerprint, finished, its_weights)
  return [scores[name] for name in names]


def _check_comparable(
  config: Config, fingerprint: str, finished: dict[str, Any], its_weights: str
) -> None:
  """Whether the scores of a finished run may be held beside those of this one.

  Raises:
    InputError: they may not; the message lists what differs.
  """
  pairs = {
    "seed": (finished["seed"], config.seed),
    "data.protocol": (finished["protocol"], config.data.protocol),
    "evaluation.metric": (finished["metric"], metric_of(config)),
    "backbone.weights": (its_weights, fingerprint),
  }
  differing = [f"{name} {its} (here {own})" for name, (its, own) in pairs.items() if its != own]
  if differing:
    raise InputError(
      f"single {config.single!r}: a run with {', '.join(differing)}, whose scores are not to be "
      "held beside this run's"
    )


def _finished_run(asked: str, place: pathlib.Path) -> tuple[dict[str, Any], str]:
  """scores.json of a run, and the fingerprint of its backbone.

  Raises:
    InputError: they are not there, or not what a run writes.
  """
  try:
    finished = json.loads((place / "scores.json").read_text(encoding="utf-8"))
    weights = json.loads((place / "config.json").read_text(encoding="utf-8"))["backbone.weights"]
    for key in ("seed", "protocol", "metric", "method"):
      finished[key]
    for j, _ in enumerate(finished["tasks"]):
      finished["scores"][j][j]
  except OSError:
    raise InputError(
      f"single {asked!r}: no scores.json of a finished run is there; name the folder of one of "
      "per_task"
    ) from None
  except (ValueError, LookupError, TypeError):
    raise InputError(
      f"single {asked!r}: {place / 'scores.json'} is not what a run writes; name a finished "
      "per_task run"
    ) from None
  return finished, weights
