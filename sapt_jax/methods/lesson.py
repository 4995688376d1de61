"""What a method is built for, what it may ask about a task, and what it says is to be learned from.

Letters: D embedding width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from sapt_jax import config
from sapt_jax.data.batches import Row
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec
from sapt_jax.errors import InputError
from sapt_jax.pet.blocks import Block
from sapt_jax.pet.lora import Sites

Learned = Any


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a method is built for.

  Attributes:
    pet: the shape of the blocks.
    sites: where LoRA sits in the backbone.
    embedding_table: (V, D), the backbone's token embeddings; soft prompts start from its rows,
      times embedding_scale.
    capacity: tasks that the pool has room for.
    memory_inputs: most pseudo inputs that are remembered of one task.
  """

  pet: config.Pet
  sites: Sites
  embedding_table: jax.Array
  capacity: int
  memory_inputs: int
  embedding_scale: float = 1.0

  @property
  def width(self) -> int:
    return self.embedding_table.shape[1]


class Study(Protocol):
  """The task that is being learned, as a method sees it, and what it may ask about it.

  Whatever is asked for is measured or generated then, and nothing else is.

  Attributes:
    index: the task's place in the stream.
    stream: all tasks of the run. Of earlier ones a continual method looks only at what it says
      that it stores.
    seed: of the run.
    codec: turns texts into tokens and back.
    sampling: how texts are sampled (config.Generator).
    block: what the task's block starts as, where the run says so for the task; None: it does not.
  """

  index: int
  stream: Sequence[PreparedTask]
  seed: int
  codec: Codec
  sampling: config.Generator
  block: Block | None

  @property
  def task(self) -> PreparedTask:
    """The task itself."""

  def features(self, split: str) -> jax.Array:
    """Features (n, D) float32 of the inputs of "train" or "dev" (Method.features)."""

  def moments(self, learned: Learned) -> Any:
    """sum x x' of what enters the LoRA sites as the training inputs pass, with these blocks.

    (layers, D_in, D_in) float32 for each input of the sites (pet/site_inputs.py, at_inputs).
    """

  def losses(self, learned: Learned, mixtures: np.ndarray) -> np.ndarray:
    """The mean cross-entropy of the answers of the batch that is learned from first, in nats a
    token, with each of these mixtures (n, T) for all of its rows: (n,) float32.
    """

  def begins_with(self, taken: Mapping[int, float], loss: float) -> None:
    """Has the run say and keep with which earlier tasks this one begins.

    Args:
      taken: their places in the stream, in the order of choice -> the loss that is left then.
      loss: without them.
    """

  def check_pseudo_inputs(self) -> None:
    """Whether pseudo inputs of this task can be had.

    Raises:
      InputError: they cannot.
    """

  def pseudo_inputs(self) -> jax.Array:
    """Features (m, D) float32 of generated inputs that stand for the task (generator.py)."""

  def sample(self, learned: Learned, rows: Sequence[Row]) -> list[str]:
    """Texts that the backbone with these blocks writes after the rows' sources, one each; the
    same ones whenever this task asks.
    """

  def leave(self, folder: str, rows: Iterable[dict[str, Any]], figures: Any) -> None:
    """Has the run keep rows for the reader, in a file of that folder, and figures by its name."""


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What a task is learned from.

  Attributes:
    rows: to learn from; none: nothing is learned yet, and nothing can be scored.
    counted: task -> rows; the steps that each asks for (fit.steps, or fit.epochs over so many rows)
      add up to the lesson's. None: all rows together, as the task itself asks for.
    judged: places in the stream of the tasks whose dev rows say how good the weights are; None:
      the task itself.
  """

  rows: Sequence[Row]
  counted: Mapping[int, int] | None = None
  judged: Sequence[int] | None = None


def need_rows(study: Study, what: str) -> None:
  """Whether the training rows of all earlier tasks are there, for a method that takes `what` from
  them.

  Raises:
    InputError: those of a task are not.
  """
  for task in study.stream[: study.index]:
    if not len(task.train):
      raise InputError(
        f"task {task.name}: its training rows are not there, and the method takes {what} from "
        "them; put its files back"
      )
