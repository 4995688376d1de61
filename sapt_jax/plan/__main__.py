r"""Compiles a run's training step and decoder for hardware that is not here,
and says what they need of it.

    python -m sapt_jax.plan --config configs/mini.py --target h100:8 --mesh data=1,fsdp=8,tensor=1
    python -m sapt_jax.plan --model t5-xxl --target v5e:2x4 --backbone.dtype bfloat16 \
      --backbone.remat full --json

No device and no weights are needed, only the compiler: pip install 'sapt-jax[plan-gpu]' or
'sapt-jax[plan-tpu]'; `cpu:N` simulates N devices, and overstates temporaries in bfloat16, as a CPU
multiplies in float32. --mesh data=D,fsdp=F,tensor=T is short for --mesh.data D --mesh.fsdp F
--mesh.tensor T; without a mesh all devices stand on fsdp. The generator of pseudo inputs is not
planned (docs/scale.md). With --json the report is one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from sapt_jax import cli, run_options
from sapt_jax.config import Config, Mesh
from sapt_jax.errors import InputError
from sapt_jax.mini import T5_MINI
from sapt_jax.mini.default import config as mini_config
from sapt_jax.plan import hardware
from sapt_jax.plan.sizes import SIZES


@dataclasses.dataclass(frozen=True)
class PlanOptions(Config):
  """The options of a run, and what it is planned for."""

  config: str = ""
  """A Python file that defines `config` (see configs/); the other options change it. Empty: that of
  the mini run.
  """
  target: str = ""
  """The hardware: a100-40:N a100-80:N h100:N rtx4090:N for N GPUs, v4:SHAPE v5e:SHAPE v5p:SHAPE
  v6e:SHAPE for a TPU slice, cpu:N.
  """
  model: str = ""
  """A backbone by its size alone, no file needed: t5-large, t5-xl, t5-xxl (v1.1 and Flan),
  llama2-7b, llama2-13b, llama2-70b, xuanyuan-70b, llama3-8b, qwen3-8b, gemma2-9b. Empty: the
  config.json of the folder that backbone.path names."""
  blocks: int = 15
  """Tasks of the stream, so blocks in the pool."""
  examples: int = 1000
  """Training examples per task; they say how many pseudo inputs reflection remembers."""
  json: bool = False
  """Print the report as JSON."""


def spread_mesh(arguments: Sequence[str]) -> list[str]:
  """The arguments with `--mesh data=1,fsdp=8,tensor=1` written
  as --mesh.data 1 --mesh.fsdp 8 --mesh.tensor 1.

  Raises:
    InputError: an axis that there is not, or a size that is no number.
  """
  axes = "|".join(field.name for field in dataclasses.fields(Mesh))
  spread: list[str] = []
  waiting = iter(arguments)
  for argument in waiting:
    if argument != "--mesh" and not argument.startswith("--mesh="):
      spread.append(argument)
      continue
    value = argument[7:] if argument != "--mesh" else next(waiting, "")
    for part in value.split(","):
      match = re.fullmatch(rf"({axes})=([1-9]\d*)", part)
      if match is None:
        raise InputError(
          f"--mesh {value}: give sizes of data, fsdp and tensor, as in data=1,fsdp=8,tensor=1"
        )
      spread += [f"--mesh.{match[1]}", match[2]]
  return spread


def options(arguments: Sequence[str]) -> PlanOptions:
  """All options, those of the file that --config names as defaults."""
  written, about = spread_mesh(arguments), cli.summary(__doc__)
  about += (
    " --mesh data=D,fsdp=F,tensor=T is short for --mesh.data D --mesh.fsdp F --mesh.tensor T."
  )
  return run_options.parse_over_config(PlanOptions, written, "sapt_jax.plan", about, mini_config)


def placed_on(config: Config, target: hardware.Target) -> Config:
  """The configuration with a mesh for the target.

  Raises:
    InputError: its mesh is for another number of devices.
  """
  size = math.prod(dataclasses.astuple(config.mesh))
  if size == 1:
    return dataclasses.replace(config, mesh=Mesh(fsdp=target.count))
  if size != target.count:
    raise InputError(
      f"mesh of {size} devices ({dataclasses.asdict(config.mesh)}): "
      f"--target {target.text} has {target.count}; give as many"
    )
  return config


def backbone_sizes(config: Config, model: str) -> dict[str, Any]:
  """The config.json that a plan is made for.

  Raises:
    InputError: no model of that name; or backbone.path is no folder with a config.json of a
      supported model.
  """
  if model:
    if model not in SIZES:
      raise InputError(
        f"--model {model}: no such size; give one of {', '.join(SIZES)}, "
        "or a folder as --backbone.path"
      )
    return SIZES[model]
  path = config.backbone.path
  folder = T5_MINI if path == "t5-mini" else pathlib.Path(path).expanduser()
  if not folder.is_dir():
    raise InputError(
      f"backbone.path {path!r}: no such folder; give one with a config.json, "
      f"or --model NAME ({', '.join(SIZES)})"
    )
  from sapt_jax.backbones import hf

  return hf.read_config(folder)


def plan(
  config: Config,
  target: hardware.Target,
  raw: dict[str, Any],
  name: str,
  blocks: int,
  examples: int,
) -> dict[str, Any]:
  """The report; starts JAX.

  Raises:
    InputError: the mesh does not fit the target or the model, or the compiler does not know the
      target.
  """
  import jax

  from sapt_jax import sharding
  from sapt_jax.plan.figures import advice, measure
  from sapt_jax.plan.programs import Programs

  config = placed_on(config, target)
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=hardware.devices(target))
  programs = Programs(config, mesh, raw, blocks, examples)
  built, new = programs.built, config.data.max_target_length

  def told(program: str, lowered: jax.stages.Lowered, rows: int, longest: int) -> dict[str, Any]:
    figures = measure(lowered, target, config, longest)
    return {"rows": rows, **figures, "advice": advice(figures, config, target, program)}

  with hardware.as_present(target):
    step, decode = programs.step(), programs.decode()
  return {
    "target": target.text,
    "mesh": dataclasses.asdict(config.mesh),
    "model": name,
    "dtype": config.backbone.dtype,
    "attention": built.backbone.config.attention,
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(built.backbone.params)),
    "method": built.method.label,
    "blocks": blocks,
    "capacity": built.setting.capacity,
    "usable": target.usable,
    "lengths": programs.lengths | {"new": new},
    "step": told("step", step, config.fit.batch_size, 1),
    "decode": told("decode", decode, config.evaluation.batch_size, new - 1),
  }


def main(arguments: Sequence[str]) -> None:
  """Parses, prepares the compiler, plans, prints."""
  chosen = options(arguments)
  config, target = run_options.config_of(chosen), hardware.parse_target(chosen.target)
  if chosen.blocks < 1 or chosen.examples < 1:
    raise InputError(f"--blocks {chosen.blocks}, --examples {chosen.examples}: must be at least 1")
  placed_on(config, target)  # wrong meshes are told before JAX starts
  hardware.prepare(target)
  raw, name = backbone_sizes(config, chosen.model), chosen.model or config.backbone.path
  report = plan(config, target, raw, name, chosen.blocks, chosen.examples)
  from sapt_jax.plan.figures import table

  print(json.dumps(report) if chosen.json else table(report))


if __name__ == "__main__":
  cli.run(main)
