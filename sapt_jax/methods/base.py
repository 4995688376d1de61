"""What every continual-learning method has to say, and nothing of how it is trained.

A method keeps all that it has learned in one pytree ("learned"). The loop calls, for each task of
the stream:

    learned = method.open(learned, rng, inputs)              make room for the task
    ... train method.trainable(learned), used through method.merge, with method.loss (the cross-entropy) + method.penalty ...
    learned = method.close(learned, inputs)                  remember what later tasks need

Learning and answering go through the same `mixture` and `adapters`; while learning, `learned` has
the trainable part merged into it. Letters: B batch, T capacity of the pool, D embedding width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sapt_jax import config
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from sapt_jax.pet.lora import Sites

Learned = Any
Trainable = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a method is built for.

  Attributes:
    pet: the shape of the blocks.
    sites: where LoRA sits in the backbone.
    embedding_table: (V, D), the backbone's token embeddings; soft prompts start from its rows.
    capacity: tasks that the pool has room for.
    memory_inputs: most pseudo inputs that are remembered of one task.
  """

  pet: config.Pet
  sites: Sites
  embedding_table: jax.Array
  capacity: int
  memory_inputs: int

  @property
  def width(self) -> int:
    return self.embedding_table.shape[1]


@dataclasses.dataclass(frozen=True)
class TaskInputs:
  """What a method may see of one task's inputs.

  Attributes: train, held_out, pseudo: pooled embeddings (n, D) float32 of those it trains on,
    held-out ones, and pseudo inputs (none before close). moments: sum x x' of what enters each LoRA
    site, nested like the sites, (layers, D_in, D_in) float32 at each (training/site_moments.py),
      with the blocks as they are at that time; None unless the method wants_moments.
  """

  train: jax.Array
  held_out: jax.Array
  pseudo: jax.Array
  moments: Any = None


class Pool(flax.struct.PyTreeNode):
  """The least that a method learns: blocks, and how many slots are taken (() int32)."""

  blocks: blocks.Blocks
  count: jax.Array


class Method:
  """One block per task, all frozen but the newest. Subclasses say how blocks are mixed.

  Attributes: knows_task: whether it may look at the task's identity when answering.
    wants_pseudo_inputs: whether the loop should train a generator for it. wants_moments: whether
    the loop should measure TaskInputs.moments, before open and before close. writes_examples:
    whether it learns to write each task's examples as well as to answer them; the loop then gives
    every row its
      language-modelling pair, and before a task has pseudo examples of all earlier tasks written,
      which are learned from with the task's.
    waits: whether nothing is learned before the last task is there; its training then makes the
      steps of all tasks.
    selects: whether blocks have unequal weights, so that the largest can be chosen
      (config.Pet.top_k).
    block_per_task: whether block t is task t's, so that a mixture says which tasks an input takes
      from.
    kinds: the kinds of block (config.Pet.kind) that it can use.
  """

  knows_task = False
  wants_pseudo_inputs = False
  wants_moments = False
  writes_examples = False
  waits = False
  selects = True
  block_per_task = True
  kinds: tuple[str, ...] = ("lora", "prompt")

  def __init__(self, options: config.Method, setting: Setting):
    self.options, self.setting = options, setting

  @property
  def label(self) -> str:
    """What tables call it: the name, and the form where there are several."""
    return self.options.name

  @property
  def rehearsal(self) -> float:
    """Share of every earlier task's training rows that stand among a task's own
    (data/rehearsal.py).
    """
    return 0.0

  @property
  def pools_padding(self) -> bool:
    """Reference quirk: whether padding takes part in the max-pooled embedding."""
    return self.options.reference_quirks

  def new_block(self, rng: jax.Array) -> blocks.Block:
    """A fresh block of the setting's kind."""
    return blocks.init_block(
      rng, self.setting.pet, self.setting.sites, self.setting.embedding_table
    )

  def start(self, rng: jax.Array) -> Learned:
    """What is there before the first task."""
    return Pool(
      blocks.empty_pool(self.new_block(rng), self.setting.capacity), jnp.zeros((), jnp.int32)
    )

  def open(self, learned: Learned, rng: jax.Array, inputs: TaskInputs) -> Learned:
    """Makes room for a new task: here, a fresh block in the next slot."""
    del inputs
    return learned.replace(
      blocks=blocks.write(learned.blocks, self.new_block(rng), learned.count),
      count=learned.count + 1,
    )

  def trainable(self, learned: Learned) -> Trainable:
    """The part that learning the newest task changes: "block", and "attention" (which may have its
    own learning rate) if there is one.
    """
    return {"block": blocks.read(learned.blocks, learned.count - 1)}

  def merge(self, learned: Learned, trainable: Trainable) -> Learned:
    """`learned` with the trainable part written into it; gradients reach that part alone."""
    return learned.replace(
      blocks=blocks.write(learned.blocks, trainable["block"], learned.count - 1)
    )

  def mixture(self, learned: Learned, pooled: jax.Array, task: jax.Array) -> jax.Array:
    """The weight of every block for every input: pooled (B, D) float32, task (B,) int32 (to be
    ignored unless knows_task) -> (B, T).
    """
    raise NotImplementedError

  def adapters(self, learned: Learned, mixture: jax.Array) -> Adapters:
    """What the backbone applies, given the mixture."""
    return blocks.mixed(learned.blocks, mixture, self.setting.pet, newest=learned.count - 1)

  def teacher(self, learned: Learned, task: jax.Array) -> tuple[Learned, jax.Array] | None:
    """What some rows of a batch are to be answered like, and which of them, (B,) bool; None:
    nothing is compared.

    Args:
      learned: as it was when the training of the newest task began, without what is being trained.
      task: (B,) int32, the rows' places in the stream.
    """
    del learned, task
    return None

  def loss(self, terms: dict[str, jax.Array]) -> jax.Array:
    """What a batch's terms add up to, all () float32; must be linear in them, since a batch may be
    computed in parts.

    Args: terms: "cross_entropy", nats per token of the answers; "lm_cross_entropy", nats per token
      of the examples written, if the rows have
        language-modelling pairs; "distillation", KL(teacher || now) summed over an answer's tokens
        and over the rows that the teacher names, divided by the number of all rows, if there is a
        teacher.
    """
    return terms["cross_entropy"]

  def penalty(self, learned: Learned, pooled: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What is added to the loss of a batch with these pooled embeddings (B, D), and figures for the
    log.
    """
    del learned, pooled
    return jnp.zeros(()), {}

  def close(self, learned: Learned, inputs: TaskInputs) -> Learned:
    """Remembers what later tasks need."""
    del inputs
    return learned
