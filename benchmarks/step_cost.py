"""What one training step of SAPT-LoRA costs as the pool grows.

    python benchmarks/step_cost.py --tasks 1,2,4,8,15 --json

The step is the trainer's own (sapt_jax.training.fit.Trainer.step: loss, reflection, gradient,
AdamW), compiled for a random T5 in float32 without dropout, on one batch without padding. The pool
has the room that a stream of so many tasks gives it, all blocks but the newest are frozen, and
reflection remembers every earlier task. torch_peer.py measures the same work on PyTorch.

One row per pool size:
    tasks         filled blocks
    s_per_step    median seconds of a step; all_s: of every timed step
    peak_rss_mb   most memory that the process held, compiling included, in MiB
    compile_s     tracing, lowering and compiling the step
    gemm_gflops   measured rate of a 2048 x 2048 x 2048 float32 product in the same process, in
                  GFLOP/s
    model_gflops  work of the backbone in one step by formula, in GFLOP (sizes.Sizes.step_gflops
                  says what is counted)
    reflection_ratio    with --pairs: median over pairs of a step's seconds over those of the step
                        without ARM that follows it
so that model_gflops / s_per_step / gemm_gflops is the share of the machine's rate that the step
makes use of.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sizes

from sapt_jax import cli, config, sharding
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batch, Batcher
from sapt_jax.methods.base import Method
from sapt_jax.methods.lesson import Learned, Setting, Study
from sapt_jax.methods.sapt import Sapt, SaptLearned, SaptOptions
from sapt_jax.pet import blocks
from sapt_jax.training.fit import Trainer


class SaptWithoutReflection(Sapt):
  """SALS alone: its step less than Sapt's is what ARM costs."""

  penalty = Method.penalty


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A random backbone, a method on it, a pool that holds so many tasks, and one batch."""

  mesh: jax.sharding.Mesh
  backbone: hf.Backbone
  method: Sapt
  learned: Learned
  batcher: Batcher
  batch: Batch


def random_backbone(
  raw: dict, mesh: jax.sharding.Mesh, remat: str, dtype: str = "float32", unroll: int = 1
) -> hf.Backbone:
  """A model with random weights, placed as a loaded one is; no token ends its answers."""
  platform = mesh.devices.flat[0].platform
  model = hf.build_model(raw, dtype, remat, unroll, attention="auto", platform=platform)
  model = type(model)(dataclasses.replace(model.config, eos_id=model.config.vocab_size))
  init = partial(hf.init_params, model, jax.random.key(0))
  places = jax.tree.map(lambda x: x.sharding, sharding.abstract_params(init, mesh))
  params = jax.jit(lambda: nn.meta.unbox(init()), out_shardings=places)()
  return hf.Backbone(model, params, pathlib.Path(), raw)


@dataclasses.dataclass(frozen=True)
class RandomTask:
  """What SAPT asks for of a task: pooled embeddings of its inputs, and of its pseudo inputs.

  Attributes:
    block: what its block starts as; None: as the method says.
  """

  pooled: jax.Array
  block: None = None

  def features(self, split: str) -> jax.Array:
    del split
    return self.pooled

  def pseudo_inputs(self) -> jax.Array:
    return self.pooled


def filled(method: Sapt, tasks: int) -> SaptLearned:
  """What the method holds while it learns the last of `tasks` tasks: random blocks, every earlier
  task remembered. They are drawn all at once: task by task, a pool of hundreds of blocks would be
  copied hundreds of times.
  """
  setting, rngs = method.setting, iter(jax.random.split(jax.random.key(0), 1000))
  earlier = jnp.arange(setting.capacity) < tasks - 1

  def of_earlier(x: jax.Array, axis: int = 0) -> jax.Array:
    """x with random numbers in the slots of earlier tasks."""
    there = earlier.reshape(-1, *[1] * (x.ndim - axis - 1))
    return x + 0.02 * there * jax.random.normal(next(rngs), x.shape)

  learned = method.start(next(rngs))
  memory = learned.memory
  learned = learned.replace(
    count=jnp.asarray(tasks - 1, jnp.int32),
    blocks=jax.tree_util.tree_map_with_path(
      lambda path, x: of_earlier(x, blocks.task_axis(path)), learned.blocks
    ),
    keys=of_earlier(learned.keys),
    memory=memory.replace(
      pooled=of_earlier(memory.pooled),
      valid=memory.valid | earlier[:, None],
      target=earlier[:, None] * jnp.eye(setting.capacity),
    ),
  )
  pooled = jax.random.normal(next(rngs), (setting.memory_inputs, setting.width))
  learned = method.begin(learned, next(rngs), cast(Study, RandomTask(pooled)))
  # A new block adds nothing: its second half is zeros.
  trainable = method.trainable(learned)
  block = jax.tree.map(
    lambda x: x + 0.02 * jax.random.normal(next(rngs), x.shape), trainable["block"]
  )
  return method.merge(learned, trainable | {"block": block})


def prepare(
  s: sizes.Sizes,
  tasks: int,
  memory: int,
  reflection: bool = True,
  top_k: int = 0,
  remat: str = config.Backbone().remat,
  llama: bool = False,
  dtype: str = "float32",
  unroll: int = 1,
) -> Prepared:
  """Everything that a step or an answer needs.

  Args:
    memory: pseudo inputs remembered of each earlier task.
    reflection: False leaves ARM out of the step.
    top_k, remat, dtype, unroll: as config.Pet and config.Backbone have them.
    llama: a LLaMA of these sizes in place of the T5.
  """
  mesh = sharding.make_mesh()
  backbone = random_backbone(s.llama() if llama else s.t5(), mesh, remat, dtype, unroll)
  # As continual.Continual has it for a stream of so many tasks.
  capacity = 1 << (tasks - 1).bit_length()
  pet, table = config.Pet(rank=s.rank, top_k=top_k), backbone.params["embedding"]["table"]
  setting = Setting(pet, backbone.model.config.lora_sites(), table, capacity, memory)
  method = (Sapt if reflection else SaptWithoutReflection)(SaptOptions(), setting)
  # On the host: hundreds of small programs, each of which an accelerator's compiler takes long for.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    learned = filled(method, tasks)
  jax.set_mesh(mesh)
  learned = jax.device_put(learned, sharding.replicated(mesh))
  batch = jax.device_put(random_batch(s, tasks - 1), sharding.batch_sharded(mesh))
  batcher = Batcher(llama, backbone.config.pad_id, s.batch)
  return Prepared(mesh, backbone, method, learned, batcher, batch)


def random_batch(s: sizes.Sizes, task: int) -> Batch:
  """Rows of one task, without padding."""
  rng = np.random.default_rng(0)
  source, target = (
    jnp.asarray(rng.integers(2, s.vocab, (s.batch, length), np.int32)) for length in (s.src, s.tgt)
  )
  there = jnp.ones(source.shape, bool), jnp.ones(target.shape, bool)
  return Batch(source, there[0], target, there[1], jnp.full(s.batch, task, jnp.int32))


def step_of(p: Prepared, fit: config.Fit) -> tuple[Callable[[], None], float, jax.stages.Compiled]:
  """A call that takes the next training step and waits for it, the seconds that compiling it took,
  and the program.
  """
  trainer = Trainer(p.backbone, p.method, fit, p.batcher, p.mesh)
  state = trainer.start(p.learned, steps=1)
  began = time.perf_counter()
  step = trainer.step.lower(state, p.backbone.params, p.learned, p.batch).compile()
  compile_s = time.perf_counter() - began

  def call() -> None:
    nonlocal state
    state, metrics = jax.block_until_ready(step(state, p.backbone.params, p.learned, p.batch))
    if not np.isfinite(metrics["loss"]):
      raise FloatingPointError(
        f"the loss became {metrics['loss']}: arithmetic on such numbers is not what is to be timed"
      )

  return call, compile_s, step


def measure(
  s: sizes.Sizes,
  memory: int,
  reflection: bool,
  top_k: int,
  remat: str,
  pairs: bool,
  warmup: int,
  repeat: int,
  tasks: int,
) -> sizes.Row:
  """The row of one pool size."""
  # What compiling costs, not what reading back does.
  jax.config.update("jax_enable_compilation_cache", False)
  prepared = partial(prepare, s, tasks, memory, top_k=top_k, remat=remat)
  fit = config.Fit(batch_size=s.batch)
  step, compile_s, _ = step_of(prepared(reflection), fit)
  calls = [step]
  if pairs:
    calls.append(step_of(prepared(False), fit)[0])
  seconds = sizes.timed_in_turn(calls, warmup, repeat)
  peak = sizes.peak_rss_mb()
  left, right = (jax.random.normal(jax.random.key(i), (sizes.GEMM, sizes.GEMM)) for i in range(2))
  product = jax.jit(jnp.matmul)
  rate = sizes.gemm_gflops(lambda: jax.block_until_ready(product(left, right)))
  row = {
    "tasks": tasks,
    "s_per_step": statistics.median(seconds[0]),
    "all_s": seconds[0],
    "peak_rss_mb": peak,
    "compile_s": compile_s,
    "gemm_gflops": rate,
    "model_gflops": s.step_gflops(),
  }
  if pairs:
    row["reflection_ratio"] = statistics.median(a / b for a, b in zip(*seconds, strict=True))
  return row


def main(arguments: Sequence[str]) -> None:
  """Parses, measures, prints."""
  parser = sizes.parser(__doc__ or "")
  memory = (
    "pseudo inputs remembered of each earlier task (default 20: 2 %% of SuperNI's 1,000 rows)"
  )
  sizes.add_number(parser, "--memory", 20, memory)
  arm = parser.add_mutually_exclusive_group()
  arm.add_argument("--no-reflection", action="store_true", help="leave ARM out")
  arm.add_argument(
    "--pairs",
    action="store_true",
    help="after each step one without ARM, to see ARM's share: adds reflection_ratio",
  )
  sizes.add_number(parser, "--top-k", 0, "blocks that each example uses (default: all)")
  remats, default = ("none", "full", "dots"), config.Backbone().remat
  parser.add_argument("--remat", choices=remats, default=default, help="as backbone.remat")
  options = parser.parse_args(arguments)
  one = partial(
    measure,
    sizes.sizes_of(options),
    options.memory,
    not options.no_reflection,
    options.top_k,
    options.remat,
    options.pairs,
    options.warmup,
    options.repeat,
  )
  sizes.report(__file__, arguments, options, one)


if __name__ == "__main__":
  cli.run(main)
