"""A finished (or half finished) run, ready to answer: its newest sound snapshot on its backbone."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from sapt_jax import config, learner, saved_options
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Row
from sapt_jax.errors import InputError
from sapt_jax.snapshots import sound_snapshots
from sapt_jax.text_files import read_object
from sapt_jax.training import checkpoint


class Answering:
  """Restores a run, on a mesh that need not be the run's; without one, on one device.

  Args:
    batch_size: inputs answered at once; 0: as in the run.
    backbone: where the run's backbone is now; empty: where it was.

  Raises:
    InputError: the folder is no run's, has no snapshot yet, or its backbone has changed.
  """

  def __init__(
    self,
    run: pathlib.Path,
    batch_size: int = 0,
    mesh: config.Mesh | None = None,
    backbone: str = "",
  ):
    values = read_object(run / "config.json", f"--run {run}: config.json of a run")
    options = self.options_of(run, values)
    mesh, rows = mesh or config.Mesh(), batch_size or options.evaluation.batch_size
    per_step = mesh.data * mesh.fsdp  # nothing is trained: any size that the mesh can split
    options = dataclasses.replace(
      options,
      mesh=mesh,
      # Attention as these devices can, which need not be those that it was learned on.
      backbone=dataclasses.replace(
        options.backbone, path=backbone or options.backbone.path, attention="auto"
      ),
      evaluation=dataclasses.replace(options.evaluation, batch_size=rows),
      fit=dataclasses.replace(options.fit, batch_size=per_step, accumulation=1),
      generator=dataclasses.replace(options.generator, batch_size=per_step, accumulation=1),
    )
    snapshots = sound_snapshots(run)
    folder = learner.backbone_folder(options)
    if hf.fingerprint(folder) != values.get("backbone.weights"):
      raise InputError(
        f"--run {run}: {folder} does not hold the weights that it was trained on; name the folder "
        "that does with --backbone.path"
      )
    record = checkpoint.read_record(snapshots[-1])
    self.tasks = [snapshot.name.split("_", 1)[1] for snapshot in snapshots]
    self.codec = learner.make_codec(options, folder)
    self.built = learner.build(options, folder, record["capacity"], record["memory_inputs"])
    try:
      self.learned, _ = checkpoint.load(snapshots[-1], self.built.start(options.seed))
    except checkpoint.DamagedError as error:
      raise InputError(f"--run {run}: {error}") from None
    self.max_new = options.data.max_target_length

  @staticmethod
  def options_of(run: pathlib.Path, values: Any) -> config.Config:
    """The options that a run's config.json holds."""
    try:
      return saved_options.config_from_json(values)
    except InputError as error:
      raise InputError(f"--run {run}: {error}") from None

  def check(self, pairs: Sequence[tuple[str | None, str]]) -> None:
    """Whether it can answer these (definition, input).

    Raises:
      InputError: its method needs the task's identity, or an input has no tokens or no room beside
        its definition.
    """
    if self.built.method.knows_task:
      raise InputError(
        f"method {self.built.method.options.name} needs to know the task of an input, which is "
        "not given here"
      )
    for number, (definition, text) in enumerate(pairs, 1):
      if definition is not None and not self.codec.has_room(definition):
        raise InputError(
          f"input {number}: its definition leaves no room for it in the {self.codec.max_source} "
          "tokens of a prompt that the run was trained with; shorten it"
        )
      if not self.source(definition, text):
        raise InputError(f"input {number}: {text!r} has no tokens, and no definition goes with it")

  def __call__(
    self, pairs: Sequence[tuple[str | None, str]]
  ) -> Iterator[tuple[str, dict[str, float]]]:
    """(definition, input) -> (answer, {task (or block): weight}), in order; without a definition
    the input is the whole prompt.
    """
    answers = self.built.answerer.answer(
      self.learned,
      [Row(self.source(*pair), [self.codec.eos_id], 0) for pair in pairs],
      self.max_new,
    )
    for ids, mixture in zip(answers.tokens, answers.mixtures, strict=True):
      blocks = (
        self.tasks
        if self.built.method.block_per_task
        else [f"block {number}" for number in range(1, len(mixture) + 1)]
      )
      weights = {
        block: round(float(weight), 6) for block, weight in zip(blocks, mixture, strict=False)
      }
      yield self.codec.text(ids), weights

  def source(self, definition: str | None, text: str) -> list[int]:
    """Token ids of one prompt."""
    if definition is not None:
      return self.codec.source(definition, text)
    return self.codec.cut_to_fit(text, lambda part: part)
