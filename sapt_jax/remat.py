"""--backbone.remat auto: what recomputes least of what fits the device."""

from __future__ import annotations

import dataclasses
import pathlib

import jax

from sapt_jax import processes, sharding
from sapt_jax.backbones import hf
from sapt_jax.config import Config
from sapt_jax.config.hardware import Remat
from sapt_jax.plan.figures import memory_of
from sapt_jax.plan.programs import Programs

# By what they recompute, least first; the last needs least memory.
LEAST_FIRST: tuple[Remat, ...] = ("none", "dots", "full")
# The share of a device's memory that a step may take: the rest is for answering's programs, and for
# what the allocator cannot join.
SHARE = 0.9


def device_memory() -> int | None:
  """Bytes that JAX may take of a device; None: the device does not tell, as a CPU."""
  return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def resolved(config: Config, folder: pathlib.Path, blocks: int, examples: int) -> Config:
  """The configuration with remat chosen, if it is "auto": the first whose training step fits, by
  the program that the compiler makes of it at the greatest lengths. A CPU takes "dots", which is
  fastest there.

  Args:
    folder: of the backbone.
    blocks, examples: see plan.programs.Programs.
  """
  if config.backbone.remat != "auto":
    return config

  def with_remat(remat: Remat) -> Config:
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, remat=remat))

  def choose() -> Remat:
    limit = device_memory()
    if limit is None:
      return "dots"
    raw, mesh = hf.read_config(folder), sharding.make_mesh(**dataclasses.asdict(config.mesh))
    for remat in LEAST_FIRST[:-1]:
      try:
        step = Programs(with_remat(remat), mesh, raw, blocks, examples).step().compile()
      except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
          raise
        continue
      if memory_of(step)["peak"] <= SHARE * limit:
        return remat
    return LEAST_FIRST[-1]

  here = LEAST_FIRST.index(choose())  # all processes compile: a program of theirs needs all
  remat = LEAST_FIRST[processes.first_says(lambda: here)]
  processes.say(f"remat: {remat}")
  return with_remat(remat)
