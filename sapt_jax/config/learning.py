"""Options of learning: blocks, methods, steps, pseudo inputs."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from sapt_jax.checks import at_least, positive, require, share

# The maps of attention and of the mlp.
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclasses.dataclass(frozen=True)
class Pet:
  """The PET blocks."""

  kind: Literal["lora", "prompt"] = "lora"
  """lora: low-rank updates of q and v of every attention; prompt: soft prompts before the input
  embeddings.
  """
  rank: int = 4
  """Rank r of a LoRA block."""
  alpha: float = 32.0
  """LoRA's scale is alpha / rank; see scale."""
  targets: tuple[Target, ...] = ("q", "v")
  """Where LoRA sits in every layer: maps of attention (q k v o) and of the mlp (gate up down)."""
  scale: Literal["rank", "sqrt_rank"] = "rank"
  """What alpha is divided by: rank, as published; sqrt_rank: rsLoRA (Kalajdzievski, 2023)."""
  dropout: float = 0.0
  """Of what enters LoRA's A while blocks are learned; one draw for all blocks of the pool."""
  prompt_length: int = 10
  """Soft tokens of a prompt block."""
  new_block: Literal["fresh", "mixture", "directions", "relatives"] = "fresh"
  """What a block starts as, in every method with a block per task that does not design it: fresh;
  as the mixture of earlier blocks that the method gives the new task's inputs before it has
  learned them, brought down to rank; adding nothing, with the main input directions of that
  mixture as its A (soft prompts: fresh); or as the sum of at most two relatives, earlier blocks
  that each halve the task's loss before it is learned, brought down to rank (directions where
  there are none, or where blocks have no weights of their own; soft prompts: fresh).
  """
  top_k: int = 0
  """LoRA: an input uses the so many blocks with the largest weights, so that a step on a pool of
  hundreds costs what it costs on a small one; 0: all blocks."""

  def __post_init__(self) -> None:
    at_least(self, "pet", 1, "rank", "prompt_length")
    at_least(self, "pet", 0, "top_k")
    positive(self, "pet", "alpha")
    require(0 <= self.dropout < 1, f"pet.dropout {self.dropout}: must be in [0, 1)")
    require(
      not self.dropout or self.kind == "lora",
      f"pet.dropout {self.dropout}: soft prompts have no A to drop before; give 0",
    )
    require(
      0 < len(set(self.targets)) == len(self.targets),
      f"pet.targets {' '.join(self.targets) or '(none)'}: name at least one place, each once",
    )

  @property
  def lora_scale(self) -> float:
    """What the product of a block's factors is multiplied by."""
    return self.alpha / (self.rank if self.scale == "rank" else self.rank**0.5)


@dataclasses.dataclass(frozen=True)
class MethodOptions:
  """How the stream is learned and how blocks are chosen when answering.

  Each method extends this in its own file (sapt_jax/methods/) with the options that it alone has.
  """

  name: str
  """The method. Its options are those that --help shows beside this one."""


@dataclasses.dataclass(frozen=True)
class Generator:
  """ARM's source of pseudo inputs: one LoRA block per task that learns to write the task's inputs.

  lfpt5 samples its pseudo examples with max_length, oversample, top_k, repetition_penalty and
  temperature from here.
  """

  steps: int = 5000
  """Most training steps per task; fewer when `epochs` end before."""
  epochs: int = 50
  """Most passes over the task's inputs."""
  batch_size: int = 16
  """Inputs per step."""
  accumulation: int = 1
  """As fit.accumulation."""
  learning_rate: float = 1e-3
  """Constant, AdamW."""
  rank: int = 8
  """Rank of the generator's block."""
  max_length: int = 512
  """Most tokens of a pseudo input with its instruction, or of a pseudo example with its answer."""
  keep: float = 0.02
  """Pseudo inputs kept, as a share of the training examples."""
  keep_at_least: int = 1
  """Pseudo inputs kept at least (when so many are well formed)."""
  oversample: float = 4.0
  """Samples drawn for each one that is to be kept."""
  top_k: int = 20
  """Sampling keeps this many most likely tokens; lfpt5's authors keep 64."""
  repetition_penalty: float = 2.5
  """Scores of tokens written before are divided (or, if negative, multiplied) by this."""
  temperature: float = 1.0
  """Of the sampling."""
  max_overlap: float = 0.8
  """A sample is dropped as a near copy when more than this share of its runs of four words stands
  in one training input.
  """
  folder: str = ""
  """Take pseudo inputs from here and train no generator: a folder that holds
  BENCHMARK/TASK/train.json, as those in the public code's generated_data do, or the pseudo_inputs
  folder of another run on the same tasks."""

  def kept_of(self, examples: int) -> int:
    """Pseudo inputs to keep of a task with so many training examples."""
    return max(self.keep_at_least, int(self.keep * examples))

  def __post_init__(self) -> None:
    at_least(
      self,
      "generator",
      1,
      "steps",
      "epochs",
      "batch_size",
      "accumulation",
      "rank",
      "max_length",
      "top_k",
    )
    require(
      self.batch_size % self.accumulation == 0,
      f"generator.accumulation {self.accumulation}: must divide generator.batch_size "
      f"{self.batch_size}",
    )
    at_least(self, "generator", 1, "keep_at_least")
    positive(self, "generator", "learning_rate", "repetition_penalty", "temperature")
    require(self.oversample >= 1, f"generator.oversample {self.oversample}: must be at least 1")
    share(self, "generator", "keep", "max_overlap")


@dataclasses.dataclass(frozen=True)
class Fit:
  """Learning one task."""

  steps: int = 0
  """Steps per task; 0: as many as `epochs` ask for."""
  epochs: int = 100
  """Passes over a task's training examples, when steps is 0."""
  batch_size: int = 32
  """Examples per step, over all devices."""
  length_window: int = 8
  """Batches whose examples are sorted by length together: the more, the less padding, and the less
  random are the batches.
  """
  shapes: int = 10
  """Most shapes that batches are padded to, chosen from the lengths of the stream's examples: each
  is compiled once, and the more, the less padding; 0: fixed steps, as many as occur.
  """
  accumulation: int = 1
  """Parts that a batch is computed in, one after the other, to save memory; gradients are those of
  the whole batch.
  """
  learning_rate: float = 3e-4
  """Of the blocks, AdamW without weight decay. A method's other parts have their own rates, which
  are options of that method.
  """
  warmup: float = 0.0
  """Share of a task's steps in which all rates rise from 0; 0: they are there from the first."""
  decay: Literal["none", "linear", "cosine"] = "none"
  """How all rates fall to 0 in the steps behind the warm-up; none: they stay."""
  max_gradient_norm: float = 0.0
  """Gradients that are longer, over all that is trained, are cut to this length; 0: none is."""
  validate_every: int = 0
  """Steps between scores on dev, after which the best weights are kept; 0: as validate_epochs says.
  """
  validate_epochs: int = 0
  """The same in passes over a task's examples; both 0: keep the last weights."""
  checkpoint_every: int = 200
  """Steps between checkpoints inside a task; 0: only between tasks."""
  log_every: int = 10
  """Steps between lines of the metrics log."""

  def __post_init__(self) -> None:
    at_least(
      self,
      "fit",
      0,
      "steps",
      "epochs",
      "shapes",
      "checkpoint_every",
      "validate_every",
      "validate_epochs",
      "max_gradient_norm",
    )
    at_least(self, "fit", 1, "batch_size", "length_window", "accumulation", "log_every")
    positive(self, "fit", "learning_rate")
    require(0 <= self.warmup < 1, f"fit.warmup {self.warmup}: must be in [0, 1)")
    require(
      self.steps > 0 or self.epochs > 0,
      "fit.steps and fit.epochs are both 0: nothing would be learned",
    )
    require(
      self.batch_size % self.accumulation == 0,
      f"fit.accumulation {self.accumulation}: must divide fit.batch_size {self.batch_size}",
    )
