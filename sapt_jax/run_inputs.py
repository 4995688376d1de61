"""All that a run reads before it computes anything, checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sapt_jax import learner, methods
from sapt_jax.backbones import hf
from sapt_jax.config import Config, Fit, Stream
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec, hash_of_tokenizer
from sapt_jax.data.sources import choose, load_stream
from sapt_jax.data.tasks import Task
from sapt_jax.errors import InputError
from sapt_jax.generator import Stored, prompt_rows
from sapt_jax.interop.peft import read_block
from sapt_jax.pet.blocks import Block


@dataclasses.dataclass(frozen=True)
class RunInputs:
  """What a run is made from.

  Attributes:
    stream: the tasks, in order.
    fits: how each of them is learned.
    backbone: the model's folder.
    identity: what tells these inputs from others: hashes of the backbone's weights, of the
      tokenizer's files, of each split of each task, and of stored pseudo inputs.
    stored: pseudo inputs that exist already; None: they are generated.
    blocks: task -> what its block starts as, where that is given.
  """

  stream: list[PreparedTask]
  fits: list[Fit]
  backbone: pathlib.Path
  identity: dict[str, Any]
  codec: Codec
  stored: Stored | None
  blocks: dict[str, Block]

  @property
  def names(self) -> list[str]:
    return [task.name for task in self.stream]

  @property
  def fingerprint(self) -> str:
    """Of the backbone's weights."""
    return self.identity["backbone.weights"]


def read_inputs(config: Config, begun: Sequence[str] = ()) -> RunInputs:
  """Reads tasks, tokenizer and pseudo inputs, and identifies the backbone.

  Args:
    begun: tasks that the run has already; see load_stream.

  Raises:
    InputError: something is missing, or is not as it must be.
  """
  methods.named(config.method.name).check(config.method, config.pet)
  tasks = load_stream(config.data, config.stream, config.seed, begun)
  backbone = learner.backbone_folder(config)
  codec = learner.make_codec(config, backbone)
  for task in tasks:
    if task.definition and "{d}" not in "".join(codec.frame):
      raise InputError(
        f"data.frame {config.data.frame!r}: has no {{definition}}, where the instruction of "
        f"{task.name} would go; add it, or take the instruction away"
      )
    if not codec.has_room(task.definition):
      raise InputError(
        f"data.max_source_length {config.data.max_source_length}: the instruction of {task.name} "
        "leaves no room for an input; raise it"
      )
  stored = None
  if config.generator.folder:
    names = [task.name for task in tasks if task.train]
    stored = Stored.read(config.generator.folder, config.data.benchmark, names, codec.has_room)
  stream = [PreparedTask(index, task, codec) for index, task in enumerate(tasks)]
  if codec.may_not_fit:
    check_tokens(stream)
    for pairs in stored.pairs.values() if stored else ():
      prompt_rows(codec, pairs)
  blocks = blocks_of(config, [task.name for task in tasks], backbone, begun)
  identity: dict[str, Any] = {
    "backbone.weights": hf.fingerprint(backbone),
    "tokenizer": hash_of_tokenizer(backbone),
    "tasks": {task.name: hashes_of(task) for task in tasks},
  }
  if program := content_of(config.evaluation.metric):
    identity["metric"] = hash_of(program)
  if config.data.frame == "chat":
    identity["frame"] = hash_of(codec.frame)
  if blocks:
    identity["blocks"] = {name: hash_of_arrays(block) for name, block in blocks.items()}
  if stored is not None:
    identity["pseudo_inputs"] = {name: hash_of(pairs) for name, pairs in stored.pairs.items()}
  return RunInputs(stream, fits_of(config, tasks), backbone, identity, codec, stored, blocks)


def hash_of(value: Any) -> str:
  """SHA-256, in hex digits, of what can be written as JSON."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def hashes_of(task: Task) -> dict[str, str]:
  """Of a task's instruction and of each of its splits, as far as they are there."""
  splits = {"train": task.train, "dev": task.dev, "test": task.test}
  rows = {
    name: hash_of([(one.input, one.references) for one in split])
    for name, split in splits.items()
    if split
  }
  said = {"definition": hash_of(task.definition)} if task.train else {}
  if task.metric or task.labels:
    said["metric"] = hash_of([task.metric, task.labels, content_of(task.metric)])
  return said | rows


def content_of(metric: str) -> str:
  """The program that a metric of the user's is in; empty for others."""
  file = pathlib.Path(metric.rpartition(":")[0])
  return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def fits_of(config: Config, tasks: Sequence[Task]) -> list[Fit]:
  """How each task is learned: config.fit, but for what stream.fit says of it.

  Raises:
    InputError: no such task or option, or a value that does not fit.
  """
  fits = [config.fit] * len(tasks)
  for entry in config.stream.fit:
    match = re.fullmatch(r"(.+):(\w+)=(.+)", entry)
    if match is None:
      raise InputError(f"stream.fit {entry!r}: must be TASK:OPTION=VALUE, such as cb:steps=100")
    name, option, value = match.groups()
    if option == "shapes":
      raise InputError(f"stream.fit {entry!r}: shapes are those of the whole stream: --fit.shapes")
    [full] = choose([task.name for task in tasks], [name], "the stream", "stream.fit: task")
    index = [task.name for task in tasks].index(full)
    fits[index] = with_option(fits[index], option, value, entry)
    dataclasses.replace(config, fit=fits[index])  # checks it beside the other options
  return fits


def blocks_of(
  config: Config, names: Sequence[str], backbone: pathlib.Path, begun: Sequence[str]
) -> dict[str, Block]:
  """task -> what its block starts as, as stream.blocks says; one that the run has begun with may be
  gone, as it may be learned (check_rows).

  Raises:
    InputError: no such task or adapter, or one that does not fit.
  """
  found: dict[str, Block] = {}
  if config.stream.blocks and not methods.named(config.method.name).takes_blocks():
    raise InputError(
      f"stream.blocks: method {config.method.name} makes its blocks itself; leave it out"
    )
  for name, folder in folders_of_blocks(config.stream, names).items():
    if folder.is_dir() or name not in begun:
      model = hf.build_model(hf.read_config(backbone), where=str(backbone / "config.json"))
      found[name] = read_block(folder, config.pet, model.config)
  return found


def folders_of_blocks(stream: Stream, names: Sequence[str]) -> dict[str, pathlib.Path]:
  """task -> the adapter that stream.blocks names for it.

  Raises:
    InputError: an entry has another form, or there is no such task.
  """
  found: dict[str, pathlib.Path] = {}
  for entry in stream.blocks:
    name, _, folder = entry.partition("=")
    if not folder:
      raise InputError(f"stream.blocks {entry!r}: must be TASK=FOLDER, such as cb=adapters/cb")
    [full] = choose(names, [name], "the stream", "stream.blocks: task")
    found[full] = pathlib.Path(folder).expanduser()
  return found


def hash_of_arrays(tree: Any) -> str:
  """SHA-256, in hex digits, of the arrays of a tree."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def with_option(fit: Fit, option: str, value: str, entry: str) -> Fit:
  """The same with one option changed, given as text; `entry` is what an error calls it."""
  options = {field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)}
  if option not in options:
    raise InputError(f"stream.fit {entry!r}: fit has no {option}: {', '.join(options)}")
  kind = type(options[option])
  try:
    return dataclasses.replace(fit, **{option: kind(value)})
  except InputError as error:
    raise InputError(f"stream.fit {entry!r}: {error}") from None
  except ValueError:
    raise InputError(f"stream.fit {entry!r}: {value!r} is no {kind.__name__}") from None


def check_tokens(stream: Sequence[PreparedTask]) -> None:
  """Whether the backbone has every token of every row.

  Raises:
    InputError: it lacks one; the message names the task and the token.
  """
  for task in stream:
    for name, split in (("train", task.train), ("dev", task.dev), ("test", task.test)):
      try:
        _ = split.rows
      except InputError as error:
        raise InputError(f"task {task.name}, {name}: {error}") from None


def check_rows(inputs: RunInputs, stream: Stream, learned: int) -> None:
  """Whether tasks that are to be learned now, so behind those that are learned, have rows to learn
  from, and the block to start from.

  Raises:
    InputError: one has none, because it counted as learned already.
  """
  folders = folders_of_blocks(stream, inputs.names)
  for task in inputs.stream[learned:]:
    if task.name in folders.keys() - inputs.blocks.keys():
      raise InputError(f"stream.blocks: no such folder as {folders[task.name]}; put it back")
    if not (len(task.train) and len(task.dev) and len(task.test)):
      raise InputError(
        f"task {task.name}: its rows are not all there, and it has to be learned: its snapshot is "
        "not finished, damaged, or was removed; put its files back, or begin anew with --fresh or "
        "another --output"
      )


def most_pseudo_inputs(config: Config, inputs: RunInputs) -> int:
  """Most pseudo inputs that are remembered of one task of the run."""
  if inputs.stored is not None:
    return inputs.stored.most
  return max(config.generator.kept_of(len(task.train)) for task in inputs.stream)
