"""--backbone.remat auto: what is fastest of what fits the device."""

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

# The share of a device's memory that a step may take: the rest is for answering's programs, and for
# what the allocator cannot join.
SHARE = 0.9


def resolved(config: Config, folder: pathlib.Path, blocks: int, examples: int) -> Config:
  """The configuration with remat chosen, if it is "auto": "dots" if the training step fits so, by
  the program that the compiler makes of it at the greatest lengths, else "full".

  To recompute nothing is slower than "dots", on CPUs and on a GPU (docs/accelerators.md): what is
  kept of a layer is copied to its place among all layers, and back.

  Args:
    folder: of the backbone.
    blocks, examples: see plan.programs.Programs.
  """
  if config.backbone.remat != "auto":
    return config

  def with_remat(remat: Remat) -> Config:
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, remat=remat))

  def fits() -> bool:
    limit = sharding.device_memory()
    if limit is None:
      return True
    raw, mesh = hf.read_config(folder), sharding.make_mesh(**dataclasses.asdict(config.mesh))
    try:
      step = Programs(with_remat("dots"), mesh, raw, blocks, examples).step().compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      return False
    return bool(memory_of(step)["peak"] <= SHARE * limit)

  here = fits()  # all processes compile: a program of theirs needs all
  remat: Remat = "dots" if processes.first_tells(lambda: here) else "full"
  processes.say(f"remat: {remat}")
  return with_remat(remat)
