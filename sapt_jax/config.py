"""Every option of a run, with its default. Each class checks its own values; nothing else in the
library holds a default of an option.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from sapt_jax.errors import InputError

MethodName = Literal[
  "sapt",
  "sequential",
  "per_task",
  "multi_task",
  "replay",
  "o_lora",
  "n_lora",
  "inflora",
  "gainlora",
  "l2p",
  "lfpt5",
  "prog_prompt",
  "epi",
]


def _check(condition: bool, message: str) -> None:
  if not condition:
    raise InputError(message)


def _at_least(options: Any, part: str, least: int, *names: str) -> None:
  """Whether the values of these options, of one part of the configuration, are no less."""
  for name in names:
    value = getattr(options, name)
    _check(
      value >= least,
      f"{part}.{name} {value}: must {f'be at least {least}' if least else 'not be negative'}",
    )


def _positive(options: Any, part: str, *names: str) -> None:
  """Whether the values of these options are above zero, where they are given."""
  for name in names:
    value = getattr(options, name)
    _check(value is None or value > 0, f"{part}.{name} {value}: must be positive")


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
  top_k: int = 0
  """LoRA: an input uses the so many blocks with the largest weights, so that a step on a pool of
  hundreds costs what it costs on a small one; 0: all blocks."""

  def __post_init__(self) -> None:
    _at_least(self, "pet", 1, "rank", "prompt_length")
    _at_least(self, "pet", 0, "top_k")
    _positive(self, "pet", "alpha")


@dataclasses.dataclass(frozen=True)
class Method:
  """How the stream is learned and how blocks are chosen when answering."""

  name: MethodName = "sapt"
  """sapt; sequential (one block trained on and on); per_task (one block each, task known: the upper
  reference); multi_task (one block, all tasks at once); the others are published methods, one file
  each in sapt_jax/methods."""
  attention: Literal["published", "routed"] = "published"
  """sapt: published trains query and keys with the blocks alone; routed centres the pooled
  embeddings and first fits query and new key on pooled embeddings, which short budgets need
  (docs/short_budgets.md)."""
  reflection_weight: float = 0.5
  """sapt: lambda, the weight of the reflection term (ARM); 0: no reflection and no pseudo inputs,
  for ablation.
  """
  routing_steps: int = 300
  """sapt, routed: Adam steps on query and new key before the blocks are trained."""
  routing_learning_rate: float = 3e-4
  """sapt, routed: learning rate of these steps."""
  new_block: Literal["fresh", "mixture", "directions"] = "fresh"
  """sapt: what a new block starts as: fresh; as the mixture of earlier blocks that the new task's
  inputs get before it has a key of its own, brought down to pet.rank; or adding nothing, with the
  main input directions of that mixture as its A (soft prompts: fresh)."""
  uniform: Literal["never", "answering", "always"] = "never"
  """sapt, for ablation: mix all blocks alike instead of by attention."""
  paper_nonlinearity: bool = False
  """sapt: SiLU between the two query matrices (the paper's Eq. 1) instead of after them (the public
  code).
  """
  reference_quirks: bool = False
  """Reproduce the public code's quirks: no gradient through earlier blocks to the hidden states,
  and max-pooling over padding. Its pooling over the answers of replayed inputs is in
  benchmarks/parity.py alone, as pseudo inputs have no answer here. For parity only."""
  replay_share: float = 0.02
  """replay: share of every earlier task's training rows that is kept and learned from again."""
  orthogonality_weight: float = 0.5
  """o_lora: weight of the overlap between the new block's A and the earlier ones; the authors give
  up to 5 for fifteen tasks.
  """
  sparsity_weight: float = 0.4
  """n_lora: weight of the L1 norm of the new block's update; the authors give 0.4 to 1.8."""
  kept_energy: float = 0.995
  """inflora, gainlora: share of the energy of a task's inputs in the directions that later blocks
  leave alone; it rises towards 1 over the stream, by equal steps that would reach it as the pool's
  capacity (the next power of two) is full."""
  pool_prompts: int = 10
  """l2p: soft prompts in the pool, each of pet.prompt_length."""
  chosen_prompts: int = 4
  """l2p: prompts that are put before an input."""
  key_weight: float = 1.0
  """l2p: weight of the cosines that draw chosen keys towards the inputs; text ports give 0.5."""
  lm_weight: float = 0.25
  """lfpt5: lambda, the weight of learning to write a task's examples; its authors give 0.25 for
  classification, 0.10 for named entities and summaries."""
  kd_weight: float = 0.01
  """lfpt5: weight of answering pseudo examples as before the task, the rest of 1 is for learning;
  its authors give 0.01 for classification, 0.03 for named entities, 0.04 for summaries."""
  pseudo_examples: int = 20
  """lfpt5: most pseudo examples of each earlier task; its authors take 2 per class, or 4 per domain
  of summaries. generator.* says how they are sampled."""
  task_known: bool = False
  """prog_prompt: tell it the task when answering, as its paper does: task k then reads the prompts
  of tasks 1 to k alone.
  """
  lookup_shrinkage: float = 0.1
  """epi: how far the covariance of the look-up is drawn towards a multiple of the identity, above 0
  and up to 1.
  """

  def __post_init__(self) -> None:
    _at_least(
      self,
      "method",
      0,
      "reflection_weight",
      "routing_steps",
      "orthogonality_weight",
      "sparsity_weight",
      "key_weight",
      "lm_weight",
    )
    _at_least(self, "method", 1, "pseudo_examples")
    _positive(self, "method", "routing_learning_rate")
    _check(
      0 < self.replay_share <= 1, f"method.replay_share {self.replay_share}: must be in (0, 1]"
    )
    _check(0 < self.kept_energy <= 1, f"method.kept_energy {self.kept_energy}: must be in (0, 1]")
    _check(
      0 < self.lookup_shrinkage <= 1,
      f"method.lookup_shrinkage {self.lookup_shrinkage}: must be in (0, 1]",
    )
    _check(
      0 < self.chosen_prompts <= self.pool_prompts,
      f"method.chosen_prompts {self.chosen_prompts}: must be at least 1 and at most method.pool_prompts {self.pool_prompts}",
    )
    _check(0 <= self.kd_weight < 1, f"method.kd_weight {self.kd_weight}: must be in [0, 1)")


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

  def __post_init__(self) -> None:
    _at_least(
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
    _check(
      self.batch_size % self.accumulation == 0,
      f"generator.accumulation {self.accumulation}: must divide generator.batch_size {self.batch_size}",
    )
    _at_least(self, "generator", 1, "keep_at_least")
    _positive(self, "generator", "learning_rate", "repetition_penalty", "temperature")
    _check(self.oversample >= 1, f"generator.oversample {self.oversample}: must be at least 1")
    _check(0 < self.keep <= 1, f"generator.keep {self.keep}: must be in (0, 1]")
    _check(
      0 < self.max_overlap <= 1, f"generator.max_overlap {self.max_overlap}: must be in (0, 1]"
    )


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
  """Constant, AdamW without weight decay."""
  attention_learning_rate: float | None = None
  """Of the query projection and the key; none: the same as learning_rate."""
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
    _at_least(
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
    _at_least(self, "fit", 1, "batch_size", "length_window", "accumulation", "log_every")
    _positive(self, "fit", "learning_rate", "attention_learning_rate")
    _check(
      self.steps > 0 or self.epochs > 0,
      "fit.steps and fit.epochs are both 0: nothing would be learned",
    )
    _check(
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

  def __post_init__(self) -> None:
    _check(
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
    _check(
      self.benchmark == "mini" or bool(self.root),
      f"data.root is empty: benchmark {self.benchmark} needs a folder",
    )
    _at_least(self, "data", 1, "max_source_length")
    _at_least(self, "data", 2, "max_target_length")
    _at_least(self, "data", 0, "max_train", "max_test")


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The frozen language model."""

  path: str = "t5-mini"
  """A Hugging Face model folder or hub id; t5-mini: the model that comes with the library."""
  dtype: Literal["float32", "bfloat16"] = "float32"
  """Of the weights and of compute; norms, softmax and loss are float32 always."""
  bits: Literal[0, 8, 4] = 0
  """Of the weights in the layers: 8 or 4 quantises them while loading, with a scale for every 64
  (embeddings, head and norms stay in dtype); 0: as dtype says."""
  remat: Literal["none", "full", "dots"] = "dots"
  """What a layer recomputes in its backward pass: nothing, everything, or all but the products with
  its weights.
  """
  unroll: int = 1
  """Layers per iteration of the loop over layers."""

  def __post_init__(self) -> None:
    _at_least(self, "backbone", 1, "unroll")


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
    _at_least(self, "mesh", 1, "data", "fsdp", "tensor")


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
    _check(
      len(missing) in (0, len(given)),
      f"{', '.join(missing)}: not given, but address, processes and process_id go together",
    )
    _check(
      not self.address or self.address.rpartition(":")[2].isdigit(),
      f"distributed.address {self.address!r}: must be HOST:PORT",
    )
    _check(
      self.process_id is None or 0 <= self.process_id < self.processes,
      f"distributed.process_id {self.process_id}: must be at least 0 and less than distributed.processes {self.processes}",
    )
    _at_least(self, "distributed", 0, "local_devices")
    _at_least(self, "distributed", 1, "heartbeat")


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
    _at_least(self, "evaluation", 1, "batch_size")


@dataclasses.dataclass(frozen=True)
class Config:
  """One run: a stream of tasks learned by one method on one backbone."""

  method: Method = Method()
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
  single: str = ""
  """A finished per_task run on the same stream with the same seed and backbone, for FWT; "train":
  make one inside this run's folder first."""

  def __post_init__(self) -> None:
    _check(self.seed >= 0, f"seed {self.seed}: must not be negative")
    devices = self.mesh.data * self.mesh.fsdp
    for name, rows in (
      ("fit.batch_size / fit.accumulation", self.fit.batch_size // self.fit.accumulation),
      (
        "generator.batch_size / generator.accumulation",
        self.generator.batch_size // self.generator.accumulation,
      ),
      ("evaluation.batch_size", self.evaluation.batch_size),
    ):
      _check(
        rows % devices == 0,
        f"{name} {rows}: must be a multiple of mesh.data * mesh.fsdp = {devices}",
      )


def from_dict(kind: Any, values: dict[str, Any]) -> Any:
  """The inverse of dataclasses.asdict for Config and its parts, from JSON values; keys that are not
  fields are passed over.
  """
  hints = typing.get_type_hints(kind)

  def value_of(name: str) -> Any:
    value = values[name]
    return (
      from_dict(hints[name], value)
      if dataclasses.is_dataclass(hints[name])
      else tuple(value)
      if isinstance(value, list)
      else value
    )

  return kind(
    **{
      field.name: value_of(field.name) for field in dataclasses.fields(kind) if field.name in values
    }
  )
