"""A small classroom for methods: tiny backbones, tasks to study, and a few steps of learning."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from sapt_jax import config, methods
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batch
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.tasks import Example, Task
from sapt_jax.methods.base import StepView
from sapt_jax.methods.lesson import Setting
from sapt_jax.training.state import TrainState, make_optimizer
from sapt_jax.training.step import train_step

WIDTH = 32


@dataclasses.dataclass
class Study:
  """A task as methods see it (methods.base.Study), made of what a test says of it.

  Attributes:
    train, dev: features of the task's inputs; dev None: those of train.
    pseudo: features of its pseudo inputs; None: asking for them is a failure.
    answers: of the training inputs; none: free text.
    measure: gives the moments of what has been learned.
    compare: losses of mixtures (n, T), given what has been learned; None: no earlier task helps.
    write: texts for the rows of `sample`, given what has been learned.
    left: what was to be kept for the reader, by folder.
  """

  train: jax.Array
  dev: jax.Array | None = None
  pseudo: jax.Array | None = None
  measure: Callable[[Any], Any] | None = None
  compare: Callable[[Any, np.ndarray], np.ndarray] | None = None
  answers: Sequence[str] = ()
  index: int = 0
  stream: Sequence[Any] = ()
  seed: int = 0
  codec: Any = None
  sampling: config.Generator = dataclasses.field(default_factory=config.Generator)
  write: Callable[[Any, Sequence[Any]], list[str]] | None = None
  left: dict[str, tuple] = dataclasses.field(default_factory=dict)
  block: Any = None
  begun: Any = None

  @property
  def task(self):
    if self.stream:
      return self.stream[self.index]
    answers = self.answers or [f"answer {number}" for number in range(len(self.train))]
    train = tuple(Example("input", (answer,)) for answer in answers)
    return SimpleNamespace(task=Task("task", "", train, (), ()))

  def features(self, split):
    return self.train if split == "train" or self.dev is None else self.dev

  def moments(self, learned):
    return self.measure(learned)

  def losses(self, learned, mixtures):
    return np.ones(len(mixtures)) if self.compare is None else self.compare(learned, mixtures)

  def begins_with(self, taken, loss):
    self.begun = (taken, loss)

  def check_pseudo_inputs(self):
    assert self.pseudo is not None, "there are no pseudo inputs here"

  def pseudo_inputs(self):
    self.check_pseudo_inputs()
    return self.pseudo

  def sample(self, learned, rows):
    return self.write(learned, rows)

  def leave(self, folder, rows, figures):
    self.left[folder] = (list(rows), figures)


def studied(features, **more):
  """A task all of whose inputs have these features, which also stand for it later."""
  return Study(features, pseudo=features, **more)


def backbone(name="t5"):
  return tiny.random_model({"t5": tiny.T5, "llama": tiny.LLAMA}[name])


def random_model_in(dtype):
  """The T5 with weights of this dtype."""
  _, params = backbone()
  return hf.build_model(tiny.T5, dtype), jax.tree.map(lambda x: x.astype(dtype), params)


def build(name, on="t5", kind="lora", new_block="fresh", **options):
  """A method with room for four blocks of rank 2 or two soft tokens."""
  model, params = backbone(on)
  setting = Setting(
    config.Pet(kind=kind, rank=2, prompt_length=2, new_block=new_block),
    model.config.lora_sites(),
    params["embedding"]["table"],
    4,
    3,
  )
  return methods.build(methods.METHODS[name].Options(**options), setting)


def noisy(tree, seed, scale=0.1):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(
    structure,
    [x + scale * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)],
  )


def through(method, tasks):
  """What the method has learned when it is at the last of these tasks (features of each);
  every block is moved by noise.
  """
  learned = method.start(jax.random.key(0))
  for index, features in enumerate(tasks):
    study = Study(features, pseudo=features[:0])
    learned = method.begin(learned, jax.random.key(index), study)
    trainable = method.trainable(learned)
    learned = method.merge(learned, trainable | {"block": noisy(trainable["block"], index)})
    if index < len(tasks) - 1:
      learned = method.remember(learned, study)
  return learned


def clusters(tasks, seed=0, rows=24):
  """Pooled embeddings that are nearly one vector, with a small part of their own per task: what
  real prompts look like.
  """
  rng = np.random.default_rng(seed)
  common, own = 3 * rng.normal(size=WIDTH), 0.3 * rng.normal(size=(tasks, WIDTH))
  return [
    jnp.asarray(common + own[t] + 0.05 * rng.normal(size=(rows, WIDTH)), jnp.float32)
    for t in range(tasks)
  ]


def some_batch(on="t5", task=0):
  rng = np.random.default_rng(0)
  source, target = rng.integers(2, 270, (4, 8)), rng.integers(2, 270, (4, 4))
  places = np.arange(8)[::-1] if on == "llama" else np.arange(8)
  mask = places < np.array([8, 5, 7, 3])[:, None]
  return Batch(
    *map(
      jnp.asarray,
      (np.where(mask, source, 0), mask, target, np.ones((4, 4), bool), np.full(4, task, np.int32)),
    )
  )


def state_of(method, learned, optimizer, steps=1):
  """The state before the first of `steps` steps."""
  trainable = method.trainable(learned)
  running = method.running(learned, steps)
  return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), running)


def at_start(trainable):
  """A state with this trainable part, of a method that carries nothing else from step to step."""
  return TrainState(jnp.zeros((), jnp.int32), trainable, None)


def uneven_batch(on="t5"):
  """Four rows of different lengths, of sources and of answers."""
  batch, lengths = some_batch(on), np.array([[1], [3], [2], [4]])
  there = np.arange(4) < lengths
  return batch.replace(
    target=jnp.asarray(np.where(there, batch.target, 0)), target_mask=jnp.asarray(there)
  )


def joined(batch):
  """The same rows, each computed in 9 places; the longest has 8 tokens without its answer's last,
  source and answer apart take 11.
  """

  def one_more(x):
    return jnp.pad(x, ((0, 0), (1, 0)))

  return batch.replace(
    source=one_more(batch.source), source_mask=one_more(batch.source_mask), joined=True
  )


@cache
def sapt(on="t5"):
  """SAPT, and what it has learned when it is at the second of two tasks, no block zero."""
  method = build("sapt", on)
  features = jax.random.normal(jax.random.key(1), (5, WIDTH))
  return method, through(method, [features, features + 1])


@cache
def program(on="t5", accumulation=1, rate=1e-2):
  """SAPT's compiled training step, and its first state."""
  method, learned = sapt(on)
  optimizer = make_optimizer(method, config.Fit(learning_rate=rate))
  step = jax.jit(partial(train_step, backbone(on)[0], method, optimizer, accumulation))
  return step, state_of(method, learned, optimizer)


def one_step(batch, on="t5", accumulation=1, learned=None):
  """State and figures after SAPT's first step on a batch."""
  method, usual = sapt(on)
  learned = usual if learned is None else learned
  step, state = program(on, accumulation)
  return step(state.replace(trainable=method.trainable(learned)), backbone(on)[1], learned, batch)


def stepper(model, method, optimizer):
  """The compiled training step."""
  return jax.jit(partial(train_step, model, method, optimizer, 1))


def teach(method, learned, on="t5", steps=5, rate=1e-2):
  """`learned` after a few steps on one batch, and the figures of the first and the last step."""
  model, params = backbone(on)
  optimizer = make_optimizer(method, config.Fit(learning_rate=rate))
  state = state_of(method, learned, optimizer, steps)
  step = stepper(model, method, optimizer)
  figures = []
  for _ in range(steps):
    state, metrics = step(state, params, learned, some_batch(on))
    figures.append(metrics)
  return method.settle(learned, state.trainable, state.running), figures[0], figures[-1]


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch, adapters):
  return model.apply(
    {"params": params}, batch.source, batch.source_mask, batch.target, batch.target_mask, adapters
  )


def logits(adapters, on="t5"):
  model, params = backbone(on)
  return logits_of(model, params, some_batch(on), adapters)


def factors_of(block):
  """(A, B) of every site and layer of a LoRA block on T5, as NumPy arrays."""
  sites = [
    block["lora"][stack][kind][projection]
    for stack, kind in (("encoder", "self"), ("decoder", "self"), ("decoder", "cross"))
    for projection in ("q", "v")
  ]
  return [
    tuple(np.asarray(site[factor][layer], np.float64) for factor in ("a", "b"))
    for site in sites
    for layer in range(2)
  ]


class Plain:
  """A codec whose tokens are the bytes of a text, and whose prompts are the inputs."""

  def source(self, definition, text):
    return list(text.encode())

  def target(self, text):
    return list(text.encode())


def stream(*sizes):
  """Tasks of so many training rows."""
  return [
    PreparedTask(index, Task(f"task{index}", "", examples(size), (), ()), Plain())
    for index, size in enumerate(sizes)
  ]


def examples(count):
  return tuple(Example(f"input {number}", (f"answer {number}",)) for number in range(count))


def view_of(features):
  """What a penalty sees of a batch with these features, before the first step."""
  return StepView(features, {}, jnp.zeros((), jnp.int32), None)


def same(left, right):
  return jax.tree.all(jax.tree.map(np.array_equal, left, right))


NOWHERE = jnp.zeros((4, WIDTH))  # features for methods that do not look at them
FIRST = jnp.zeros(4, jnp.int32)  # four inputs of the first task
