"""A finished (or half finished) run, ready to answer: its newest sound snapshot on its backbone."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sapt_jax import config, learner, saved_options
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Row
from sapt_jax.errors import InputError
from sapt_jax.snapshots import finished_snapshots, record_of, sound_snapshots, unbroken
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
    self.run, self.backbone, mesh = run, backbone, mesh or config.Mesh()
    self.options, self.weights = self._options(batch_size, mesh)
    snapshots = sound_snapshots(run)
    folder = learner.backbone_folder(self.options)
    if hf.fingerprint(folder) != self.weights:
      raise InputError(
        f"--run {run}: {folder} does not hold the weights that it was trained on; name the folder "
        "that does with --backbone.path"
      )
    self.sizes = self._sizes(snapshots)
    self.codec = learner.make_codec(self.options, folder)
    self.built = learner.build(self.options, folder, *self.sizes)
    self._restore(snapshots)
    self.max_new = self.options.data.max_target_length

  def _options(self, batch_size: int, mesh: config.Mesh) -> tuple[config.Config, str | None]:
    """The run's options on this mesh, and what identifies its backbone's weights."""
    if not self.run.is_dir():
      raise InputError(f"--run {self.run}: there is no such folder")
    if not (file := self.run / "config.json").is_file():
      raise InputError(f"--run {self.run}: not the folder of a run, it has no config.json")
    values = read_object(file, f"--run {self.run}: config.json of a run")
    options = self.options_of(self.run, values)
    rows = batch_size or options.evaluation.batch_size
    per_step = mesh.data * mesh.fsdp  # nothing is trained: any size that the mesh can split
    options = dataclasses.replace(
      options,
      mesh=mesh,
      # Attention as these devices can, which need not be those that it was learned on.
      backbone=dataclasses.replace(
        options.backbone, path=self.backbone or options.backbone.path, attention="auto"
      ),
      evaluation=dataclasses.replace(options.evaluation, batch_size=rows),
      fit=dataclasses.replace(options.fit, batch_size=per_step, accumulation=1),
      generator=dataclasses.replace(options.generator, batch_size=per_step, accumulation=1),
    )
    return options, values.get("backbone.weights")

  def _restore(self, snapshots: list[pathlib.Path]) -> None:
    """Reads what was learned up to the last of these snapshots."""
    self.snapshot = snapshots[-1].name
    self.tasks = [snapshot.name.split("_", 1)[1] for snapshot in snapshots]
    try:
      self.learned, _ = checkpoint.load(snapshots[-1], self.built.start(self.options.seed))
    except InputError as error:
      raise InputError(f"--run {self.run}: {error}") from None

  def renewed(self) -> Answering:
    """The run as its folder holds it now, on the backbone that is in memory; compiled programs are
    shared where the pool has room for as many tasks as before.

    Raises:
      InputError: it has no snapshot, the newest one is damaged, or another run is there, whose
        blocks do not fit this one's programs.
    """
    new = copy.copy(self)
    new.options, new.weights = new._options(self.options.evaluation.batch_size, self.options.mesh)
    differing = [
      name for name, value in shared(self.options).items() if value != shared(new.options)[name]
    ]
    if new.weights != self.weights or differing:
      raise InputError(
        f"{self.run}: another run is there now (its {', '.join(differing) or 'weights'} differ)"
      )
    snapshots = unbroken(self.run, finished_snapshots(self.run))
    new.sizes = self._sizes(snapshots)
    if new.sizes != self.sizes:
      new.built = learner.put_together(
        new.options, self.built.mesh, self.built.backbone, *new.sizes
      )
    new._restore(snapshots)
    return new

  @staticmethod
  def _sizes(snapshots: list[pathlib.Path]) -> tuple[int, int]:
    """capacity and memory_inputs (methods.base.Setting) of the last of these snapshots."""
    record = record_of(snapshots[-1])
    return record["capacity"], record["memory_inputs"]

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
    for number, pair in enumerate(pairs, 1):
      self.row(*pair, f"input {number}")

  def row(self, definition: str | None, text: str, called: str) -> Row:
    """The prompt of one input, which an error calls `called`.

    Raises:
      InputError: it has no tokens, or no room beside its definition.
    """
    if definition is not None and not self.codec.has_room(definition):
      raise InputError(
        f"{called}: its definition leaves no room for it in the {self.codec.max_source} "
        "tokens of a prompt that the run was trained with; shorten it"
      )
    if not (source := self.source(definition, text)):
      raise InputError(f"{called}: {text!r} has no tokens, and no definition goes with it")
    return Row(source, [self.codec.eos_id], 0)

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
      yield self.codec.text(ids), self.mixture(mixture)

  def mixture(self, weights: np.ndarray) -> dict[str, float]:
    """{task (or block): weight} of weights (T,), for the reader."""
    blocks = (
      self.tasks
      if self.built.method.block_per_task
      else [f"block {number}" for number in range(1, len(weights) + 1)]
    )
    return {block: round(float(weight), 6) for block, weight in zip(blocks, weights, strict=False)}

  def source(self, definition: str | None, text: str) -> list[int]:
    """Token ids of one prompt."""
    if definition is not None:
      return self.codec.source(definition, text)
    return self.codec.cut_to_fit(text, lambda part: part)


def shared(options: config.Config) -> dict[str, Any]:
  """What answering is compiled for, as far as options say it: the same for all tasks of a run."""
  data = options.data
  return {
    "backbone": dataclasses.replace(options.backbone, path=""),
    "frame": (data.benchmark, data.frame),
    "lengths": (data.max_source_length, data.max_target_length),
    "method": options.method,
    "pet": options.pet,
    "seed": options.seed,
  }
