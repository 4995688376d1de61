"""Whether an input is sent to its own task's block at the end of a long stream, and what that
takes: how many pseudo inputs are remembered, and how good they are. No block is learned.

    python benchmarks/routing.py --backbone MODEL --data superni:CL_BENCHMARK mini mini_related

The tasks of all these benchmarks stand in one stream, in an order drawn by the seed. For each, SAPT
makes its key, fits the attention (the routing phase, with reflection on what it remembers) and
remembers; then the next one comes. Training inputs that the phase has not seen stand in for pseudo
inputs, so that they are as good as a generator's can be, but for a share (--wrong) that is of other
tasks. With --remembered draws there are none (SaptOptions). EPI's look-up sees the same features.

A row for each count of remembered inputs, and one for EPI:
    right     % of test inputs that give the greatest weight to their own task's block, the mean
              over tasks; half: the same when half of them had come; worst: of the worst task
    own       mean weight of the own block, %
    memory    MiB of what is kept of the tasks besides their blocks
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from sizes import Parser, pool_sizes, positive

from sapt_jax import cli, config, learner, methods, streams
from sapt_jax.backbones import hf
from sapt_jax.data.sources import load_stream
from sapt_jax.data.tasks import Task
from sapt_jax.errors import InputError
from sapt_jax.methods.base import Method
from sapt_jax.methods.epi import EpiOptions
from sapt_jax.methods.lesson import Study
from sapt_jax.methods.sapt import SaptOptions
from sapt_jax.pet import blocks

# Inputs of a task: to make its key and fit the attention by, to remember, and to ask.
SEEN, OTHERS, ASKED = 128, 100, 64


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What a method may see of a task (Study): features (n, D) of its inputs.

  Attributes:
    index: the task's place in the stream.
    task: with the examples of `seen` as its training split.
  """

  index: int
  task: Any
  seen: np.ndarray
  others: np.ndarray
  asked: np.ndarray
  # With draws, as many are remembered as there is room for.
  sampling: ClassVar[config.Generator] = config.Generator(keep_at_least=OTHERS)
  block: None = None
  seed: int = 0

  def features(self, split: str) -> jax.Array:
    return jnp.asarray(self.seen if split == "train" else self.others)

  def pseudo_inputs(self) -> jax.Array:
    return jnp.asarray(self.others)


def tasks_of(places: Sequence[str], seed: int) -> Iterator[Task]:
  """All tasks of the benchmarks that are given as NAME or NAME:ROOT."""
  for place in places:
    name, _, root = place.partition(":")
    data = config.Data(benchmark=cast(Any, name), root=root)
    yield from load_stream(data, config.Stream(), seed)


def figures_of(method: Method, stream: Sequence[Inputs]) -> dict[str, float]:
  """The row of a method."""
  learned, mixture = method.start(jax.random.key(0)), jax.jit(method.mixture)
  found: dict[str, float] = {}
  for index, inputs in enumerate(stream):
    learned = method.begin(learned, jax.random.key(index + 1), cast(Study, inputs))
    learned = method.remember(learned, cast(Study, inputs))
    if index + 1 not in (len(stream) // 2, len(stream)):
      continue
    right, own = [], []
    for task, one in enumerate(stream[: index + 1]):
      nobody = jnp.full(len(one.asked), -1)  # the task is not to be known
      weights = np.asarray(mixture(learned, jnp.asarray(one.asked), nobody))
      right.append(100 * np.mean(weights.argmax(axis=1) == task))
      own.append(100 * np.mean(weights[:, task]))
    name = "right" if index + 1 == len(stream) else "half"
    found |= {name: float(np.mean(right)), "worst": min(right), "own": float(np.mean(own))}
  kept = jax.tree.leaves(learned.replace(blocks=None))
  # Places of tasks and inputs that have not come hold zeros.
  return found | {"memory": sum(4 * int(jnp.count_nonzero(x)) for x in kept) / 2**20}


def read_stream(
  options: argparse.Namespace, asked: config.Config, table: np.ndarray
) -> list[Inputs]:
  """Every task's inputs, in the order of the stream. All have one benchmark's frame, so that tasks
  are not told apart by it.
  """
  codec = learner.make_codec(asked, learner.backbone_folder(asked))
  tasks = list(tasks_of(options.data, options.seed))
  draw = streams.host(options.seed, "stream")
  stream: list[Inputs] = []
  for task in (tasks[place] for place in draw.permutation(len(tasks))[: options.first]):
    definition = options.instruction or task.definition
    train = [task.train[place] for place in draw.permutation(len(task.train))]
    cut = min(SEEN, len(train) // 2)
    seen, others, asked_of = (
      np.stack([table[codec.source(definition, one.input)].max(axis=0) for one in examples])
      for examples in (train[:cut], train[cut:][:OTHERS], task.test[:ASKED])
    )
    there = dataclasses.replace(task, train=tuple(train[:cut]))
    stream.append(Inputs(len(stream), SimpleNamespace(task=there), seen, others, asked_of))
  return [spoiled(one, stream, options.wrong, draw) for one in stream]


def spoiled(
  inputs: Inputs, stream: Sequence[Inputs], share: float, draw: np.random.Generator
) -> Inputs:
  """The inputs, with so large a share of those that stand for pseudo inputs from any task."""
  others = inputs.others.copy()
  for place in np.flatnonzero(draw.random(len(others)) < share):
    of = stream[int(draw.integers(len(stream)))]
    others[place] = of.others[draw.integers(len(of.others))]
  return dataclasses.replace(inputs, others=others)


def main(arguments: Sequence[str]) -> None:
  """Reads the tasks, looks at their inputs once, prints a row for each method."""
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--backbone", required=True, help="a model's folder, or t5-mini")
  parser.add_argument("--data", nargs="+", required=True, metavar="NAME[:ROOT]")
  parser.add_argument("--counts", type=pool_sizes, default=[1, 5, 20, OTHERS])
  parser.add_argument("--wrong", type=float, default=0.0, help="share of them of other tasks")
  parser.add_argument("--remembered", choices=["pseudo_inputs", "draws"], default="pseudo_inputs")
  parser.add_argument("--first", type=positive, help="of so many tasks; all, if not given")
  parser.add_argument("--steps", type=positive, default=SaptOptions.routing_steps)
  parser.add_argument("--instruction", help="one for all tasks, in place of their own")
  parser.add_argument("--source-length", type=positive, default=256)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args(arguments)
  if not 0 <= options.wrong <= 1:
    raise InputError(f"--wrong {options.wrong}: must be between 0 and 1")
  asked = config.Config(
    SaptOptions(),
    backbone=config.Backbone(path=options.backbone),
    data=config.Data(benchmark="mini", max_source_length=options.source_length),
  )
  backbone = hf.load_backbone(str(learner.backbone_folder(asked)))
  table = backbone.params["embedding"]["table"]
  stream = read_stream(options, asked, np.asarray(table, np.float32))
  # The smallest blocks: none is learned.
  pet = config.Pet(kind="prompt", prompt_length=1)
  capacity = blocks.capacity_for(len(stream))
  sapt = SaptOptions("sapt", "routed", remembered=options.remembered, routing_steps=options.steps)
  forms: list[tuple[str, Any, int]] = [("epi", EpiOptions(feature="embeddings"), 0)]
  forms += [(f"sapt, {count}", sapt, count) for count in options.counts]
  for name, form, count in forms:
    given = (pet, backbone.config, table, capacity, max(count, 1))
    method = methods.build(form, learner.setting_of(*given))
    row = {"method": name, "tasks": len(stream), **figures_of(method, stream)}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
  cli.run(main)
