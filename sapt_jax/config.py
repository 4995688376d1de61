"""The options of a run, with their defaults. Each class checks its own values.

The options of a method stand in the method's own file (sapt_jax/methods/); nothing else in the
library holds a default of an option.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from sapt_jax.checks import at_least, at_most, in_range, positive, require, share


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
  """LoRA's scale is alpha / rank."""
  prompt_length: int = 10
  """Soft tokens of a prompt block."""
  new_block: Literal["fresh", "mixture", "directions"] = "fresh"
  """What a block starts as, in every method with a block per task that does not design it: fresh;
  as the mixture of earlier blocks that the method gives the new task's inputs before it has
  learned them, brought down to rank; or adding nothing, with the main input directions of that
  mixture as its A (soft prompts: fresh).
  """
  top_k: int = 0
  """LoRA: an input uses the so many blocks with the largest weights, so that a step on a pool of
  hundreds costs what it costs on a small one; 0: all blocks."""

  def __post_init__(self) -> None:
    at_least(self, "pet", 1, "rank", "prompt_length")
    at_least(self, "pet", 0, "top_k")
    positive(self, "pet", "alpha")


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
  accumulation: int = 1
  """Parts that a batch is computed in, one after the other, to save memory; gradients are those of
  the whole batch.
  """
  learning_rate: float = 3e-4
  """Of the blocks: constant, AdamW without weight decay. A method's other parts have their own
  rates, which are options of that method.
  """
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
      "checkpoint_every",
      "validate_every",
      "validate_epochs",
      "max_gradient_norm",
    )
    at_least(self, "fit", 1, "batch_size", "length_window", "accumulation", "log_every")
    positive(self, "fit", "learning_rate")
    require(
      self.steps > 0 or self.epochs > 0,
      "fit.steps and fit.epochs are both 0: nothing would be learned",
    )
    require(
      self.batch_size % self.accumulation == 0,
      f"fit.accumulation {self.accumulation}: must divide fit.batch_size {self.batch_size}",
    )


@dataclasses.dataclass(frozen=True)
class Stream:
  """Which tasks come, in which order."""

  tasks: tuple[str, ...] = ()
  """Task names; a name may be cut short where that is unambiguous (task363). Empty: all tasks of
  the benchmark, in its order.
  """
  fit: tuple[str, ...] = ()
  """What is learned otherwise than the other tasks: TASK:OPTION=VALUE, an option of fit.* for one
  task, such as cb:steps=100.
  """

  def __post_init__(self) -> None:
    require(
      len(set(self.tasks)) == len(self.tasks),
      f"stream.tasks: a task stands twice in {' '.join(self.tasks)}",
    )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from and how they are cut."""

  benchmark: Literal["mini", "superni", "long_sequence"] = "mini"
  """mini is generated; the others are folders of data.root and differ in their prompt and their
  score.
  """
  root: str = ""
  """Folder that holds BENCHMARK/TASK/{train,dev,test}.json, with SuperNI or Long_Sequence for
  BENCHMARK.
  """
  protocol: Literal["published", "clean"] = "clean"
  """published: dev.json as it is, even where it holds the test rows; clean: dev is carved out of
  train.
  """
  max_source_length: int = 512
  """Most tokens of a prompt; longer inputs are cut, the frame around them is kept."""
  max_target_length: int = 50
  """Most tokens of an answer, in training and when answering."""
  max_train: int = 0
  """Use the first so many training rows; 0: all."""
  max_test: int = 0
  """Use the first so many test rows; 0: all."""

  def __post_init__(self) -> None:
    require(
      self.benchmark == "mini" or bool(self.root),
      f"data.root is empty: benchmark {self.benchmark} needs a folder",
    )
    at_least(self, "data", 1, "max_source_length")
    at_least(self, "data", 2, "max_target_length")
    at_least(self, "data", 0, "max_train", "max_test")
    at_most(self, "data", 2**20, "max_source_length", "max_target_length")


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The frozen language model."""

  path: str = "t5-mini"
  """A Hugging Face model folder or hub id; t5-mini: the model that comes with the library."""
  dtype: Literal["float32", "bfloat16"] = "float32"
  """Of the weights and of compute; norms, softmax and loss are float32 always."""
  precision: Literal["default", "high", "highest"] = "highest"
  """Of float32 products: highest is true float32; default is what the device takes for it, TF32 on
  a GPU and one pass of bfloat16 on a TPU, which is faster; high lies between (three passes on a
  TPU). A CPU computes in float32 always, and bfloat16 weights are not concerned.
  """
  bits: Literal[0, 8, 4] = 0
  """Of the weights in the layers: 8 or 4 quantises them while loading, with a scale for every 64
  (embeddings, head and norms stay in dtype); 0: as dtype says."""
  remat: Literal["none", "full", "dots"] = "dots"
  """What a layer recomputes in its backward pass: nothing, everything, or all but the products with
  its weights.
  """
  unroll: int = 1
  """Layers per iteration of the loop over layers."""
  dropout: float = 0.0
  """Of a T5 while it is learned with, where it was pretrained with dropout: the share of entries
  that are zero; 0.1 in the public scripts of the paper."""

  def __post_init__(self) -> None:
    at_least(self, "backbone", 1, "unroll")
    require(0 <= self.dropout < 1, f"backbone.dropout {self.dropout}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class BackbonePlace:
  """Where a finished run's backbone is now."""

  path: str = ""
  """A folder or hub id that holds the weights the run was trained on; empty: where it was then."""


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: data x fsdp x tensor."""

  data: int = 1
  """Copies of the backbone, each with a share of the batch."""
  fsdp: int = 1
  """Devices that share one copy of the backbone by model width, each with a share of the batch."""
  tensor: int = 1
  """Devices that share one copy by heads and mlp width."""

  def __post_init__(self) -> None:
    at_least(self, "mesh", 1, "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Distributed:
  """Processes that share the mesh. All left alone: as SLURM (inside srun), Open MPI or a TPU says,
  else one process (docs/cluster.md).
  """

  address: str = ""
  """HOST:PORT where process 0 is to be found by all; the port is free there. Needs processes and
  process_id.
  """
  processes: int = 0
  """How many there are."""
  process_id: int | None = None
  """Which one this is, from 0."""
  local_devices: int = 0
  """Devices of this process; 0: one under SLURM and Open MPI, else all that it sees. On the CPU:
  simulated ones.
  """
  heartbeat: int = 10
  """Seconds of silence after which a process is given up and the others end; more where machines
  may be paused for a while.
  """

  def __post_init__(self) -> None:
    given = {
      "address": bool(self.address),
      "processes": self.processes != 0,
      "process_id": self.process_id is not None,
    }
    missing = [f"distributed.{name}" for name, there in given.items() if not there]
    require(
      len(missing) in (0, len(given)),
      f"{', '.join(missing)}: not given, but address, processes and process_id go together",
    )
    require(
      not self.address or self.address.rpartition(":")[2].isdigit(),
      f"distributed.address {self.address!r}: must be HOST:PORT",
    )
    require(
      self.process_id is None or 0 <= self.process_id < self.processes,
      f"distributed.process_id {self.process_id}: must be at least 0 and less than "
      f"distributed.processes {self.processes}",
    )
    at_least(self, "distributed", 0, "local_devices")
    at_least(self, "distributed", 1, "heartbeat")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scoring."""

  batch_size: int = 32
  """Inputs answered, or pseudo inputs sampled, at once."""
  metric: Literal["benchmark", "rouge_l", "rouge_l_multilingual", "exact_match"] = "benchmark"
  """benchmark: rouge_l for superni, exact_match for the others; rouge_l_multilingual: for answers
  that are not in Latin script.
  """
  every_task: bool = True
  """Score all tasks seen after each task; false: only after the last."""

  def __post_init__(self) -> None:
    at_least(self, "evaluation", 1, "batch_size")


@dataclasses.dataclass(frozen=True)
class Config:
  """One run: a stream of tasks learned by one method on one backbone."""

  method: MethodOptions
  pet: Pet = Pet()
  fit: Fit = Fit()
  generator: Generator = Generator()
  stream: Stream = Stream()
  data: Data = Data()
  backbone: Backbone = Backbone()
  mesh: Mesh = Mesh()
  distributed: Distributed = Distributed()
  evaluation: Evaluation = Evaluation()
  seed: int = 0
  """Of blocks, batches, sampling and the mini stream."""
  keep_snapshots: int = 0
  """Snapshots whose arrays are kept, the newest; of those before, the records stay, so that the run
  can go on and be scored, but not from there. 0: all."""
  single: str = ""
  """A finished per_task run on the same stream with the same seed and backbone, for FWT; "train":
  make one inside this run's folder first."""

  def __post_init__(self) -> None:
    in_range(self)
    require(self.seed >= 0, f"seed {self.seed}: must not be negative")
    require(self.keep_snapshots >= 0, f"keep_snapshots {self.keep_snapshots}: must not be negative")
    devices = self.mesh.data * self.mesh.fsdp
    fit, generator = self.fit, self.generator
    computed_at_once = {
      "fit.batch_size / fit.accumulation": fit.batch_size // fit.accumulation,
      "generator.batch_size / generator.accumulation": (
        generator.batch_size // generator.accumulation
      ),
      "evaluation.batch_size": self.evaluation.batch_size,
    }
    for name, rows in computed_at_once.items():
      message = f"{name} {rows}: must be a multiple of mesh.data * mesh.fsdp = {devices}"
      require(rows % devices == 0, message)
