"""Writes what a run has learned for other programs: a block or a fixed mixture for peft, a whole
model, or the pool for the authors' code.

    python -m sapt_jax.export --run runs/mini --what block --task TASK --output adapter
    python -m sapt_jax.export --run runs/mini --what mixture --task TASK --output adapter
    python -m sapt_jax.export --run runs/mini --what merged --task TASK --output model
    python -m sapt_jax.export --run runs/mini --what pool --output weights

peft has one adapter for all inputs, and no mixture of its own per input: "mixture" fixes it at the
task's mean over held-out inputs, as it was when the task had been learned. "merged" adds that
mixture (the task's block, where a method has no shared attention) to the backbone's weights: a
Hugging Face folder with its tokenizer, which needs no adapter.
"pool" writes everything, a folder per task (layout: sapt_jax/interop/public.py).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from sapt_jax import cli
from sapt_jax.config import BackbonePlace
from sapt_jax.errors import InputError
from sapt_jax.remote import readable
from sapt_jax.run_lock import check_not_own
from sapt_jax.text_files import remove

# Where a folder is written before its files take their places: what a killed process leaves is not
# taken for all of it.
UNFINISHED = ".sapt_jax.unfinished"


@dataclasses.dataclass(frozen=True)
class ExportOptions:
  """What of which run goes where."""

  run: str
  """The run's folder, or its URL."""
  output: str
  """A folder, made if it is not there."""
  what: Literal["block", "mixture", "merged", "pool"] = "block"
  """block: one task's block, for peft; mixture: all blocks in a task's mean mixture, for peft;
  merged: the backbone with that mixture in its weights; pool: for the authors' code.
  """
  task: str = ""
  """Of all but the pool: a task of the run; its name may be cut short where that is
  unambiguous.
  """
  suffix: Literal[".safetensors", ".npz", ".pt"] = ".safetensors"
  """Of a pool's files; .pt is what the authors' code reads, and needs torch."""
  backbone: BackbonePlace = dataclasses.field(default_factory=BackbonePlace)


def find_task(tasks: list[str], name: str) -> int:
  """The place of the task whose name begins so.

  Raises:
    InputError: there is none, or several.
  """
  found = [index for index, task in enumerate(tasks) if task == name]
  found = found or [index for index, task in enumerate(tasks) if name and task.startswith(name)]
  if len(found) != 1:
    what = "fits several" if found else "not a task" if name else "must name one"
    raise InputError(f"--task {name!r}: {what} of the run: {', '.join(tasks)}")
  return found[0]


def export(answering: Any, options: ExportOptions, output: pathlib.Path) -> str:
  """Writes what is asked for into a folder; returns what was written, in words."""
  import jax

  from sapt_jax.interop import merged, peft, public
  from sapt_jax.pet import blocks

  built, learned = answering.built, answering.learned
  backbone, pet, base = built.backbone.config, built.setting.pet, str(built.backbone.folder)
  method, shared = built.method.options.name, hasattr(learned, "memory")
  if options.what in ("mixture", "pool") and not shared:
    raise InputError(
      f"--what {options.what}: method {method} has no shared attention; export a block of it"
    )
  if options.what == "pool":
    folders = [
      output / f"{number}-{task}" / "saved_weights"
      for number, task in enumerate(answering.tasks, 1)
    ]
    public.write_pool(learned, backbone, folders, options.suffix)
    return f"{len(folders)} tasks"
  task = find_task(answering.tasks, options.task)
  if not built.method.block_per_task:
    raise InputError(f"--what {options.what}: method {method} has no block for each task")
  if options.what == "block":
    peft.export_block(
      output,
      blocks.read(learned.blocks, task),
      pet,
      backbone,
      base,
      f"the block of {answering.tasks[task]}",
    )
    return f"the block of {answering.tasks[task]}"
  mixture = learned.taken(task) if shared else jax.nn.one_hot(task, built.setting.capacity)
  if options.what == "merged":
    merged.export_merged(output, learned.blocks, mixture, pet, built.backbone)
    what = f"the backbone with what {answering.tasks[task]} takes of all blocks"
    said = f"# {pathlib.Path(base).name}: {what}\n\nWritten by sapt_jax.export.\n"
    (output / "README.md").write_text(said, encoding="utf-8")
    return what
  peft.export_mixture(output, learned.blocks, mixture, pet, backbone, base)
  return f"the mean mixture of {answering.tasks[task]}"


def main(arguments: Sequence[str]) -> None:
  """Parses, restores, writes."""
  options = cli.parse(ExportOptions, arguments, "sapt_jax.export", cli.summary(__doc__))
  output = cli.output_folder(options.output)
  check_not_own("--output", output)
  unfinished = output / UNFINISHED
  if output.is_dir() and any(entry != unfinished for entry in output.iterdir()):
    raise InputError(f"--output {output}: is not empty; name another folder")
  from sapt_jax.answering import Answering  # here, so that --help and wrong input answer at once

  answering = Answering(readable(options.run), backbone=options.backbone.path)
  remove(unfinished)
  said = export(answering, options, unfinished)
  for entry in unfinished.iterdir():
    entry.rename(output / entry.name)
  unfinished.rmdir()
  print(f"{said} in {output}")


if __name__ == "__main__":
  cli.run(main)
