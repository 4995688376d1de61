"""The library in a few calls, for notebooks and other programs.

    from sapt_jax.mini.default import config

    result = sapt_jax.learn(config, "runs/mini")    # or go on, as the command does
    result["metrics"]["AP"]
    pool = sapt_jax.load("runs/mini")
    asked = "Tell how the viewer felt after this evening at the cinema."
    [answer] = pool.answer(["The hero was rotten and the villain boring."], instruction=asked)
    answer.text, answer.mixture

Everything that ends a program with exit code 2 is an errors.InputError here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any

from sapt_jax import processes
from sapt_jax.answering import Answering
from sapt_jax.config import Config
from sapt_jax.continual import run
from sapt_jax.errors import InputError
from sapt_jax.remote import readable

Place = str | os.PathLike[str]


def text_of(name: str, place: Place) -> str:
  """A path as text.

  Raises:
    InputError: no path can be so.
  """
  text = os.fspath(place)
  if not isinstance(text, str) or "\0" in text:
    raise InputError(f"{name} {text!r}: must be a text or a path, without a zero character")
  return text


def learn(config: Config, output: Place, start_from: Place = "") -> dict[str, Any]:
  """Learns a stream of tasks, or goes on learning it (python -m sapt_jax.train).

  Args:
    config: what is learned, and how; tasks behind those that the run has are learned alone.
    output: the run's folder, or its URL.
    start_from: a finished run, with whose tasks a new one begins; empty: none.

  Returns:
    What scores.json holds: "tasks", "scores" (0-100, tasks x tasks), "metrics" and so on.

  Raises:
    InputError: something is not as it must be; nothing has been computed then.
    Stopped: the process was asked to stop; the same call goes on.
    DivergedError: the loss is no number any more.
  """
  if not isinstance(config, Config):
    raise InputError(f"config {config!r}: must be a sapt_jax.config.Config, see configs/")
  with processes.joined(config.distributed):
    return run(config, text_of("output", output), source=text_of("start_from", start_from))


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a pool says to one input.

  Attributes:
    mixture: task -> the weight of its block, from 0 to 1 (of any size with method.sharing); "block
      1" and so on of a method without a block per task.
  """

  text: str
  mixture: dict[str, float]


class Pool:
  """All that a run has learned, on its backbone, ready to answer.

  Attributes:
    tasks: those that it has learned, in order.
  """

  def __init__(self, answering: Answering):
    self._answering = answering
    self.tasks: tuple[str, ...] = tuple(answering.tasks)

  def answer(self, inputs: Iterable[str], instruction: str | None = None) -> list[Answer]:
    """The answers to some inputs, in order; no task is given.

    Args:
      instruction: put before each input in the run's frame; None: an input is the whole prompt.

    Raises:
      InputError: an input has no tokens, or no room beside the instruction; the method has to be
        told the task.
    """
    if isinstance(inputs, str):
      raise TypeError("inputs is one text; give a list of them")
    inputs = list(inputs)
    for given in (*inputs, *([] if instruction is None else [instruction])):
      if not isinstance(given, str):
        raise TypeError(f"inputs and instruction must be text, not {given!r:.40}")
      if re.search("[\ud800-\udfff]", given):
        raise InputError(f"the text {given!r:.40} holds half of a surrogate pair; take it out")
    pairs = [(instruction, text) for text in inputs]
    if not pairs:
      return []
    self._answering.check(pairs)
    return [Answer(text, mixture) for text, mixture in self._answering(pairs)]


def load(run: Place, backbone: Place = "", batch_size: int = 0) -> Pool:
  """The pool of a run, finished or not.

  Args:
    run: its folder, or its URL.
    backbone: where its backbone is now; empty: where it was.
    batch_size: inputs answered at once; 0: as in the run.

  Raises:
    InputError: no run, no task learned yet, or another backbone.
  """
  if type(batch_size) is not int or batch_size < 0:
    raise InputError(f"batch_size {batch_size!r}: must be a whole number, not negative")
  folder = readable(text_of("run", run))
  return Pool(Answering(folder, batch_size, backbone=text_of("backbone", backbone)))
