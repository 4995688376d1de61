"""The two programs of a run, the training step and the decoder, on arrays that are shapes and
placements alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
from functools import partial
from typing import Any

import jax

from sapt_jax import learner, methods, sharding
from sapt_jax.backbones import hf
from sapt_jax.config import Config
from sapt_jax.data.batches import Batch, bucket
from sapt_jax.methods.lesson import Learned
from sapt_jax.pet.blocks import capacity_for
from sapt_jax.training.fit import Trainer


def placed(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """The tree as ShapeDtypeStructs that stand like this on the mesh."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class Programs:
  """What a run with this configuration would compile on this mesh.

  Args:
    raw: the backbone's config.json.
    blocks: tasks of the stream; the pool has the capacity that a run would give it.
    examples: training examples per task; they say how many pseudo inputs are remembered.
  """

  def __init__(
    self, config: Config, mesh: jax.sharding.Mesh, raw: dict[str, Any], blocks: int, examples: int
  ):
    self.config, self.mesh = config, mesh
    c = config.backbone
    model = hf.build_model(
      raw,
      c.dtype,
      c.remat,
      c.unroll,
      bits=c.bits,
      dropout=c.dropout,
      attention=c.attention,
      platform=mesh.devices.flat[0].platform,
    )
    params = sharding.abstract_params(lambda: hf.init_params(model, jax.random.key(0)), mesh)
    backbone = hf.Backbone(model, params, pathlib.Path(), raw)
    self.built = learner.put_together(
      config, mesh, backbone, capacity_for(blocks), config.generator.kept_of(examples)
    )
    self.trainer = Trainer(backbone, self.built.method, config.fit, self.built.batcher, mesh)

  def learned(self) -> Learned:
    """What the method knows, on every device (Learner.start)."""

    def start(table: jax.Array) -> Learned:
      # A method of its own, as soft prompts are read from the embeddings, which are not there.
      return methods.build(
        self.config.method, dataclasses.replace(self.built.setting, embedding_table=table)
      ).start(jax.random.key(0))

    return placed(
      jax.eval_shape(start, self.built.setting.embedding_table), sharding.replicated(self.mesh)
    )

  @property
  def lengths(self) -> dict[str, int]:
    """Tokens of the longest sources and targets, padded as the batcher pads them, but where it
    joins both.
    """
    return {
      "source": bucket(self.config.data.max_source_length),
      "target": bucket(self.config.data.max_target_length),
    }

  def batch(self, rows: int, learning: bool) -> Batch:
    """A batch of the greatest lengths, as the batcher makes it."""
    data, batcher = self.config.data, self.built.batcher
    longest = self.built.method.longest_row(
      data.max_source_length, data.max_target_length, self.config.generator.max_length
    )
    one = batcher.collate([longest], joined=learning and batcher.left)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one)
    return placed(shapes, sharding.batch_sharded(self.mesh))

  def step(self) -> jax.stages.Lowered:
    """The training step, as Trainer.fit calls it."""
    learned = self.learned()
    begun = jax.eval_shape(partial(self.trainer.start, steps=1), learned)
    state = placed(begun, sharding.replicated(self.mesh))
    with jax.set_mesh(self.mesh):
      return self.trainer.step.lower(
        state,
        self.trainer.backbone.params,
        learned,
        self.batch(self.config.fit.batch_size, learning=True),
      )

  def decode(self) -> jax.stages.Lowered:
    """Answering one batch whole, as on several devices; where rows take places
    (evaluation/slots.py), fewer sources are read at once.
    """
    answerer = self.built.answerer
    rng = placed(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(self.mesh))
    with jax.set_mesh(self.mesh):
      return answerer.answer_batch.lower(
        max_new=self.config.data.max_target_length,
        choose=answerer.choose,
        params=answerer.backbone.params,
        learned=self.learned(),
        batch=self.batch(self.config.evaluation.batch_size, learning=False),
        rng=rng,
      )
