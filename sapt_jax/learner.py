"""A backbone, a method and a tokenizer put together, as learning and answering both need them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from sapt_jax import methods, sharding, streams
from sapt_jax.backbones import hf
from sapt_jax.config import Config, Fit, Pet
from sapt_jax.data.batches import Batcher
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec, chat_frame, frame_of_template, load_tokenizer
from sapt_jax.data.shapes import Shape, choose_shapes
from sapt_jax.errors import InputError
from sapt_jax.evaluation.evaluate import Answerer, FeatureReader
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned, Setting
from sapt_jax.mini import T5_MINI
from sapt_jax.pet.lora import Sites
from sapt_jax.training.fit import Trainer


def backbone_folder(config: Config) -> pathlib.Path:
  """Where the backbone's files are: the model that comes with the library, a folder, or the hub's
  snapshot.
  """
  return hf.find_folder(str(T5_MINI) if config.backbone.path == "t5-mini" else config.backbone.path)


def make_codec(config: Config, folder: pathlib.Path) -> Codec:
  """The tokenizer of a model folder with the run's frame and lengths; needs no weights."""
  backbone = hf.build_model(hf.read_config(folder), where=str(folder / "config.json")).config
  chat = config.data.frame == "chat"
  if chat:
    frame = chat_frame(folder)
  elif config.data.frame == "benchmark":
    frame = BENCHMARKS[config.data.benchmark].frame
  else:
    frame = frame_of_template(config.data.frame)
  return Codec(
    load_tokenizer(folder),
    frame,
    config.data.max_source_length,
    config.data.max_target_length,
    backbone.eos_id,
    backbone.vocab_size,
    backbone.is_decoder_only,
    special_tokens=not chat,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
  """mesh: the devices; batcher: for training; answerer and features: compiled answering, and what
  the method looks at of inputs.
  """

  mesh: jax.sharding.Mesh
  backbone: hf.Backbone
  setting: Setting
  method: Method
  batcher: Batcher
  answerer: Answerer
  features: FeatureReader

  @cache  # noqa: B019 (a learner lives as long as its run)
  def trainer(self, fit: Fit) -> Trainer:
    """Compiled learning with these options; the same one whenever they are asked for."""
    return Trainer(self.backbone, self.method, fit, batcher_for(fit, self.batcher), self.mesh)

  def start(self, seed: int) -> Learned:
    """What the method knows before the first task, on every device."""
    return sharding.to_devices(
      self.method.start(streams.of_seed(seed, "start")), sharding.replicated(self.mesh)
    )


def batcher_for(fit: Fit, batcher: Batcher) -> Batcher:
  """The batcher with a task's own options."""
  return dataclasses.replace(batcher, size=fit.batch_size, window=fit.length_window)


def shapes_of(
  config: Config, tasks: Sequence[PreparedTask], fits: Sequence[Fit], left: bool
) -> tuple[Shape, ...]:
  """The shapes that the batches of these tasks are padded to; none: fixed ones (Fit.shapes).

  Args:
    fits: the options of each task.
    left: see Batcher.
  """
  if not config.fit.shapes:
    return ()
  batcher = Batcher(left, 0, 0, config.seed)
  needs = [
    need
    for task, fit in zip(tasks, fits, strict=True)
    for need in batcher_for(fit, batcher).needs(task.train.rows)
  ]
  return choose_shapes(needs, config.fit.shapes, joined=left)


def build(
  config: Config,
  folder: pathlib.Path,
  capacity: int,
  memory_inputs: int,
  shapes: tuple[Shape, ...] = (),
) -> Learner:
  """Loads the backbone onto the mesh and builds the method on it.

  Args:
    capacity, memory_inputs: see methods.base.Setting.
    shapes: see Batcher.

  Raises:
    InputError: the folder's weights do not fit, or there are too few devices.
  """
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  jax.set_mesh(mesh)
  c = config.backbone
  jax.config.update("jax_default_matmul_precision", c.precision)
  backbone = hf.load_backbone(
    str(folder), c.dtype, mesh, c.remat, c.unroll, c.bits, c.dropout, c.attention
  )
  return put_together(config, mesh, backbone, capacity, memory_inputs, shapes)


def abstract(
  config: Config, folder: pathlib.Path, capacity: int, memory_inputs: int
) -> tuple[Method, Learned]:
  """The method on a backbone whose weights are not read, and a tree of NumPy arrays of any content
  that has the shapes of what it learns.

  Args:
    capacity, memory_inputs: see methods.base.Setting.
  """
  backbone = hf.build_model(hf.read_config(folder), where=str(folder / "config.json")).config
  table = jax.ShapeDtypeStruct((backbone.vocab_size, backbone.width), config.backbone.dtype)

  def method_on(table: Any) -> Method:
    return methods.build(
      config.method, setting_of(config.pet, backbone, table, capacity, memory_inputs)
    )

  shapes = jax.eval_shape(lambda table: method_on(table).start(jax.random.key(0)), table)
  return method_on(table), jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)


def sites_of(pet: Pet, backbone: hf.ModelConfig) -> Sites:
  """Where the blocks' LoRA sits in a backbone.

  Raises:
    InputError: it has no such place.
  """
  sites = backbone.lora_sites(pet.targets)
  places = jax.tree_util.tree_leaves_with_path(sites, is_leaf=lambda x: isinstance(x, tuple))
  missing = set(pet.targets) - {path[-1].key for path, _ in places}
  if missing:
    raise InputError(f"pet.targets {' '.join(sorted(missing))}: the backbone has no such map")
  return sites


def setting_of(
  pet: Pet, backbone: hf.ModelConfig, table: Any, capacity: int, memory_inputs: int
) -> Setting:
  """What a method on this backbone, with this table of token embeddings, is built for."""
  sites, scale = sites_of(pet, backbone), backbone.embedding_scale
  return Setting(pet, sites, table, capacity, memory_inputs, scale)


def put_together(
  config: Config,
  mesh: jax.sharding.Mesh,
  backbone: hf.Backbone,
  capacity: int,
  memory_inputs: int,
  shapes: tuple[Shape, ...] = (),
) -> Learner:
  """The method and the compiled functions that go with a backbone; its parameters may be abstract
  (plan/programs.py).
  """
  table = backbone.params["embedding"]["table"]
  setting = setting_of(config.pet, backbone.config, table, capacity, memory_inputs)
  method = methods.build(config.method, setting)
  batcher = Batcher(
    backbone.config.is_decoder_only,
    backbone.config.pad_id,
    config.fit.batch_size,
    config.seed,
    divisor=config.mesh.data * config.mesh.fsdp,
    window=config.fit.length_window,
    shapes=shapes,
  )
  of_sources = tuple(sorted({(source, 0) for source, _ in shapes}))  # answers are not there yet
  answering = dataclasses.replace(batcher, size=config.evaluation.batch_size, shapes=of_sources)
  return Learner(
    mesh,
    backbone,
    setting,
    method,
    batcher,
    Answerer(backbone, method, answering, mesh),
    FeatureReader(backbone, method, answering, mesh),
  )
