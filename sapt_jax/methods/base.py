"""What every continual-learning method has to say, and nothing of how it is trained.

A method keeps all that it has learned in one pytree ("learned"). For each task of the stream:

    learned = method.begin(learned, rng, study)      make room for the task
    lesson = method.lesson(learned, study)           say what is to be learned from
    ... train method.trainable(learned) on the lesson's rows: loss + penalty ...
    learned = method.remember(learned, study)        keep what later tasks need

Learning and answering go through the same `features`, `mixture` and `adapters`; while learning,
`learned` has the trainable part merged into it. What a method needs beyond that, such as
features, moments or pseudo inputs, it asks its study for.
Letters: B batch, T capacity of the pool, D embedding width, M target length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax import config
from sapt_jax.backbones.hf import Model
from sapt_jax.data.batches import Batch, Row
from sapt_jax.errors import InputError
from sapt_jax.losses import token_losses
from sapt_jax.methods.features import pooled_embeddings
from sapt_jax.methods.lesson import Learned, Lesson, Setting, Study
from sapt_jax.methods.relatives import first_row
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from sapt_jax.streams import stream

RELATIVES = 2  # earlier tasks at most that a new block starts as (config.Pet.new_block)

Trainable = dict[str, Any]
Terms = dict[str, jax.Array]


class StepView(flax.struct.PyTreeNode):
  """What the penalty of a step may look at besides what is learned; no gradient reaches it.

  Attributes:
    features: (B, D) float32, of the batch's inputs.
    terms: the batch's loss terms (Method.loss).
    step: () int32, updates made before in this task.
    running: see Method.running.
  """

  features: jax.Array
  terms: Terms
  step: jax.Array
  running: Any


class Pool(flax.struct.PyTreeNode):
  """The least that a method learns: blocks, and how many slots are taken (() int32)."""

  blocks: blocks.Blocks
  count: jax.Array

  def pool_without(self, slot: int) -> Self:
    """The same without the block in a slot."""
    return self.replace(blocks=blocks.without(self.blocks, slot), count=self.count - 1)

  def pool_beside(self, other: Pool, size: int) -> Self:
    """The same with another's blocks behind its own, in a pool of `size` slots."""
    pool = blocks.beside(self.blocks, int(self.count), other.blocks, size)
    return self.replace(blocks=pool, count=self.count + other.count)


class Method:
  """One block per task, all frozen but the newest. Subclasses say how blocks are mixed.

  Attributes:
    Options: the class of its options, a config.MethodOptions.
    kinds: the kinds of block (config.Pet.kind) that it can use.
    knows_task: whether it looks at the task's identity when answering.
    block_per_task: whether block t is task t's, so that a mixture says which tasks an input
      takes from.
    weights_differ: whether blocks have unequal weights, so that the largest can be chosen
      (config.Pet.top_k).
    designs_blocks: whether it makes each new block from what it measures.
  """

  Options: ClassVar[type[config.MethodOptions]]
  kinds: ClassVar[tuple[str, ...]] = ("lora", "prompt")
  block_per_task: ClassVar[bool] = True
  weights_differ: ClassVar[bool] = True
  designs_blocks: ClassVar[bool] = False
  knows_task = False
  options: Any

  def __init__(self, options: config.MethodOptions, setting: Setting):
    self.options, self.setting = options, setting

  @property
  def label(self) -> str:
    """What tables call it: the name, the form where there are several, and the start of a block."""
    return ", ".join([self.options.name, *self.forms(), *self._start_words()])

  def forms(self) -> list[str]:
    """What tells this form of the method from others, in words for tables."""
    return []

  def _start_words(self) -> list[str]:
    return [f"{self.new_block_start} start"] if self.starts_from_others() else []

  @property
  def new_block_start(self) -> str:
    """config.Pet.new_block, as far as the method can follow it: where all blocks always have the
    same weight, none can be tried alone.
    """
    start = self.setting.pet.new_block
    return "directions" if start == "relatives" and not self.weights_differ else start

  def starts_from_others(self) -> bool:
    """Whether a new block starts from earlier ones; a soft prompt has no input directions."""
    pet = self.setting.pet
    nothing_to_read = pet.kind == "prompt" and pet.new_block in ("directions", "relatives")
    return self.takes_blocks() and pet.new_block != "fresh" and not nothing_to_read

  @classmethod
  def takes_blocks(cls) -> bool:
    """Whether a new block can start as something else than a fresh one."""
    return cls.block_per_task and not cls.designs_blocks

  @classmethod
  def check(cls, options: Any, pet: config.Pet) -> None:
    """Whether the method, with these options, can use such blocks.

    Raises:
      InputError: it cannot.
    """
    if pet.kind not in cls.kinds:
      raise InputError(
        f"method.name {options.name}: cannot use pet.kind {pet.kind}; "
        f"give --pet.kind {' or '.join(cls.kinds)}"
      )
    if pet.top_k and not (pet.kind == "lora" and cls.weights_differ):
      refuse_top_k(options, pet)

  def check_task(self, study: Study) -> None:
    """Whether the task can be learned; called for all tasks before anything is computed.

    Raises:
      InputError: it cannot.
    """

  # What is learned.

  def new_block(self, rng: jax.Array) -> blocks.Block:
    """A fresh block of the setting's kind."""
    s = self.setting
    return blocks.init_block(
      stream(rng, "block"), s.pet, s.sites, s.embedding_table, s.embedding_scale
    )

  def start(self, rng: jax.Array) -> Learned:
    """What is there before the first task."""
    pool = blocks.empty_pool(self.new_block(rng), self.setting.capacity)
    return Pool(pool, jnp.zeros((), jnp.int32))

  def begin(self, learned: Learned, rng: jax.Array, study: Study) -> Learned:
    """Makes room for a new task: here, a block in the next slot."""
    block = self.starting_block(learned, rng, study)
    pool = blocks.write(learned.blocks, block, learned.count)
    return learned.replace(blocks=pool, count=learned.count + 1)

  def starting_block(self, learned: Learned, rng: jax.Array, study: Study) -> blocks.Block:
    """What the new block starts as (config.Stream.blocks, config.Pet.new_block)."""
    if study.block is not None:
      return study.block
    if not self.starts_from_others() or not int(learned.count):
      return self.new_block(rng)
    pet, start = self.setting.pet, self.new_block_start
    if start == "relatives":
      alone = np.eye(self.setting.capacity, dtype=np.float32)
      taken = first_row(
        learned, study, np.zeros_like(alone[0]), alone, int(learned.count), RELATIVES
      )
      if taken.any():
        return blocks.STARTS["mixture"](learned.blocks, jnp.asarray(taken), pet)
      start = "directions"
    weights = self.earlier_weights(learned, study)
    return blocks.STARTS[start](learned.blocks, weights / jnp.sum(jnp.abs(weights)), pet)

  def earlier_weights(self, learned: Learned, study: Study) -> jax.Array:
    """How much the new task's inputs take from each block so far, (T,) float32: here, the mean of
    the mixtures that they get before the task is learned.
    """
    features = study.features("train")
    newest = jnp.full(len(features), learned.count - 1)
    return jnp.mean(self.mixture(learned, features, newest), axis=0)

  def remember(self, learned: Learned, study: Study) -> Learned:
    """Keeps what later tasks need of the task that has just been learned."""
    del study
    return learned

  # How a pool is changed afterwards, for methods whose blocks stand for themselves.

  def takers(self, learned: Learned, slot: int) -> list[int]:
    """The slots of tasks that answer with the block in a slot too, and must go before it."""
    del learned, slot
    return []

  def without(self, learned: Learned, slot: int) -> Learned:
    """What is known when the block in a slot is taken out, with all that is that task's alone.

    Raises:
      InputError: a block of this method does not stand for itself.
    """
    raise InputError(
      f"method {self.options.name}: what it has learned of one task cannot be told from the rest"
    )

  def joined(self, learned: Learned, other: Learned) -> Learned:
    """What is known when the blocks of another run of the same method are put behind these; the
    setting has room for all of them.

    Raises:
      InputError: as above.
    """
    raise InputError(f"method {self.options.name}: two of its pools cannot be made one")

  # How an input is answered.

  def features(self, model: Model, params: Any, batch: Batch) -> jax.Array:
    """What the mixture looks at of each input, (B, D) float32: here, pooled embeddings."""
    return pooled_embeddings(model, params, batch)

  def mixture(self, learned: Learned, features: jax.Array, task: jax.Array) -> jax.Array:
    """The weight of every block for every input.

    Args:
      features: (B, D) float32.
      task: (B,) int32, to be ignored unless knows_task.

    Returns:
      (B, T) float32.
    """
    raise NotImplementedError

  def by_task(self, learned: Learned, mixture: Sequence[float]) -> Sequence[float]:
    """How much a mean mixture of the first k blocks, (k,), is of each of their tasks, (k,): here,
    the same.
    """
    del learned
    return mixture

  def adapters(self, learned: Learned, mixture: jax.Array) -> Adapters:
    """What the backbone applies, given the mixture."""
    newest = learned.count - 1
    return blocks.mixed(learned.blocks, mixture, self.setting.pet, newest=newest)

  def answer_logits(
    self, model: Model, params: Any, learned: Learned, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    """Logits (B, M, V) of the batch's answer tokens, in the compute dtype, and the mixtures
    (B, T) that they were computed with.
    """
    with jax.named_scope("mixture"):
      mixture = self.mixture(learned, self.features(model, params, batch), batch.task)
    return self.logits_with(model, params, learned, batch, mixture), mixture

  def logits_with(
    self, model: Model, params: Any, learned: Learned, batch: Batch, mixture: jax.Array
  ) -> jax.Array:
    """The same logits with a mixture (B, T) that is given."""
    hidden = model.apply(
      {"params": params},
      batch.source,
      batch.source_mask,
      batch.target,
      batch.target_mask,
      self.adapters(learned, mixture),
      method="hidden_joined" if batch.joined else "hidden",
      rngs=None if batch.dropout is None else {"dropout": batch.dropout},
    )
    return model.apply({"params": params}, hidden, method="logits")

  # How a task is learned.

  def lesson(self, learned: Learned, study: Study) -> Lesson:
    """What the task is learned from: here, its own training rows."""
    del learned
    return Lesson(study.task.train.rows)

  def trainable(self, learned: Learned) -> Trainable:
    """The parts that learning the newest task changes, by name; "block" is one of them."""
    return {"block": blocks.read(learned.blocks, learned.count - 1)}

  def rates(self, block: float) -> dict[str, float]:
    """The learning rate of each part of `trainable`; `block` is fit.learning_rate."""
    return {"block": block}

  def merge(self, learned: Learned, trainable: Trainable) -> Learned:
    """`learned` with the trainable part written into it; gradients reach that part alone."""
    pool = blocks.write(learned.blocks, trainable["block"], learned.count - 1)
    return learned.replace(blocks=pool)

  def loss_sums(
    self, model: Model, params: Any, learned: Learned, now: Learned, batch: Batch
  ) -> tuple[Terms, jax.Array]:
    """The terms of a batch's loss before they are divided by `loss_sizes`, () float32 each, and
    the mixtures (B, T) of its answers.

    Args:
      learned: as it was when the task's training began.
      now: the same with what has been trained since.
    """
    del learned
    logits, mixture = self.answer_logits(model, params, now, batch)
    losses = token_losses(logits, batch.target, batch.target_mask)
    return {"cross_entropy": jnp.sum(losses)}, mixture

  def loss_sizes(self, batch: Batch) -> dict[str, Any]:
    """What the terms of a whole batch are divided by: here, its answer tokens."""
    return {"cross_entropy": jnp.sum(batch.target_mask)}

  def loss(self, terms: Terms) -> jax.Array:
    """What a batch's terms add up to, () float32.

    Must be linear in them, since a batch may be computed in parts. "cross_entropy" is in nats per
    answer token.
    """
    return terms["cross_entropy"]

  def penalty(self, now: Learned, view: StepView) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What is added to the loss of a step, () float32, and figures for the log."""
    del now, view
    return jnp.zeros(()), {}

  def running(self, learned: Learned, steps: int) -> Any:
    """What changes from step to step besides what is trained, as it is before the first of
    `steps` steps: a tree of arrays, saved with every checkpoint. Here, nothing.
    """
    del learned, steps

  def observe(self, running: Any, now: Learned, step: jax.Array) -> Any:
    """`running` after an update; step: () int32, updates made before that one."""
    del now, step
    return running

  def settle(self, learned: Learned, trainable: Trainable, running: Any) -> Learned:
    """`learned` after the lesson: what was trained is merged; `running` ends here."""
    del running
    return self.merge(learned, trainable)

  def longest_row(self, source: int, target: int, generated: int) -> Row:
    """A row of the greatest lengths that a lesson can have, in tokens, for programs that are
    compiled without data; `generated` is generator.max_length.
    """
    del generated
    return Row([0] * source, [0] * target, 0)


def refuse_top_k(options: config.MethodOptions, pet: config.Pet) -> None:
  """Says that blocks cannot be chosen by their weights (config.Pet.top_k).

  Raises:
    InputError: always.
  """
  raise InputError(
    f"pet.top_k {pet.top_k}: chooses LoRA blocks by their weights; method.name {options.name} "
    f"with pet.kind {pet.kind} and these options has no unequal ones; give --pet.top-k 0"
  )
