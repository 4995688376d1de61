"""A pool that the authors' PyTorch code has learned, as a run's values."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sapt_jax import arm, learner
from sapt_jax.config import Config
from sapt_jax.data.sources import source_of
from sapt_jax.errors import InputError
from sapt_jax.generator import Pairs, Stored, prompt_rows
from sapt_jax.interop import public
from sapt_jax.methods.sapt import Sapt, SaptLearned
from sapt_jax.pet.blocks import capacity_for
from sapt_jax.provenance import provenance
from sapt_jax.run_identity import asked
from sapt_jax.run_inputs import RunInputs, read_inputs
from sapt_jax.scoring import metric_of
from sapt_jax.stored_run import StoredRun


def imported(folders: Sequence[pathlib.Path], config: Config) -> StoredRun:
  """A run that holds such a pool, and whose tasks are those of config.stream.

  A task's target of reflection is the mean mixture that the pool has with it; where it has none, it
  is that of the task's pseudo inputs with all blocks.

  Args:
    folders: see public.read_pool.
    config: of the run; generator.folder holds the pseudo inputs of all tasks, or is empty.

  Raises:
    InputError: not a pool of this method, backbone, rank, or number of tasks; see read_inputs.
  """
  attention = getattr(config.method, "attention", "")
  if config.method.name != "sapt" or attention != "published":
    asked_for = f"attention {attention}" if attention else f"name {config.method.name}"
    raise InputError(
      "such a pool is of --method.name sapt --method.attention published, not of "
      f"--method.{asked_for}"
    )
  if not config.stream.tasks:
    raise InputError("stream.tasks is empty: name the pool's tasks, in the order they were learned")
  # The run's later tasks write pseudo inputs of their own.
  plain = dataclasses.replace(config, generator=dataclasses.replace(config.generator, folder=""))
  there = source_of(config.data, config.seed).names
  absent = [
    name for name in config.stream.tasks if not any(known.startswith(name) for known in there)
  ]
  inputs = read_inputs(plain, absent)
  if (count := len(public.saved_keys(folders[-1]))) != len(inputs.names):
    raise InputError(
      f"{folders[-1]}: a pool of {count} tasks; stream.tasks names {len(inputs.names)}: "
      f"{' '.join(inputs.names)}"
    )
  for folder, name in zip(folders, inputs.names[-len(folders) :], strict=False):
    label = folder.resolve().parent.name.partition("-")[2]
    if label in inputs.names and label != name:
      raise InputError(f"{folder}: is of {label}, where stream.tasks has {name}; put them in order")
  pairs: dict[str, Pairs] = {}
  if place := config.generator.folder:
    has_room = inputs.codec.has_room
    pairs = Stored.read(place, config.data.benchmark, inputs.names, has_room).pairs
  sizes = {
    "capacity": capacity_for(len(inputs.names)),
    "memory_inputs": max([1, *map(len, pairs.values())]),
  }
  built = learner.build(plain, inputs.backbone, sizes["capacity"], sizes["memory_inputs"])
  assert isinstance(built.method, Sapt)
  learned = public.read_pool(folders, built.method, built.backbone.config)
  for index, name in enumerate(inputs.names):
    if pairs:
      features = built.features(prompt_rows(inputs.codec, pairs[name]))
      learned = remembered(built.method, learned, index, features)
  records = [record_of(plain, inputs, learned, index) | sizes for index in range(len(inputs.names))]
  lines: dict[str, list[list[dict[str, Any]] | None]] = {"predictions": [[] for _ in inputs.names]}
  if pairs:
    lines["pseudo_inputs"] = [
      [{"definition": definition, "input": text} for definition, text in pairs[name]]
      for name in inputs.names
    ]
  values = asked(plain, inputs.identity)
  return StoredRun(values, records, lines, [], built.method, learned, None)


def remembered(method: Sapt, learned: SaptLearned, task: int, features: Any) -> SaptLearned:
  """The pool with the features (m, D) of a task's pseudo inputs in its memory."""
  target = learned.memory.target[task]
  if not jnp.any(target):
    target = jnp.mean(jnp.exp(method.log_mixture(learned, features)), axis=0)
  return learned.replace(memory=arm.remember(learned.memory, task, features, target))


def record_of(
  config: Config, inputs: RunInputs, learned: SaptLearned, index: int
) -> dict[str, Any]:
  """What is known of a task that another program has learned."""
  target = np.asarray(learned.memory.target)[index, : index + 1]
  mixture = [float(weight) for weight in target] if np.any(target) else None
  unknown = [None] * (index + 1)
  return {
    "task": inputs.names[index],
    "steps": 0,
    "data": {},
    "metric": metric_of(config, inputs.stream[index].task),
    "scores": unknown,
    "rows": unknown,
    "training_mixture": mixture,
    "testing_mixture": [*unknown[1:], mixture],
    "wall_s": 0.0,
    "made": provenance(),
    "changed": {},
    "imported": True,
  }
