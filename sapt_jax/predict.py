"""Answers new inputs with all that a run has learned; no task is given.

    python -m sapt_jax.predict --run runs/mini --input questions.jsonl --output answers.jsonl

Each line of the input is {"input": TEXT}: the whole prompt, as the model reads it; or
{"definition": TEXT, "input": TEXT}, which is put into the frame of the run's benchmark. Each line
of the output adds "output" and "mixture", {task: weight}.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from sapt_jax import cli
from sapt_jax.config import Mesh
from sapt_jax.errors import InputError
from sapt_jax.text_files import json_lines


@dataclasses.dataclass(frozen=True)
class PredictOptions:
  """Which run answers what."""

  run: str
  """The run's folder."""
  input: str
  """JSON lines with "input" (and, if wanted, "definition")."""
  output: str
  """Where the answers go; a file there is replaced."""
  batch_size: int = 0
  """Inputs answered at once; 0: as in the run."""
  mesh: Mesh = dataclasses.field(default_factory=Mesh)


def read_questions(file: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a file, each an object with a text "input".

  Raises:
    InputError: no such file, or a line that is not that; the message names it.
  """
  questions = []
  for place, question in json_lines(file, f"--input {file}"):
    if not isinstance(question, dict):
      raise InputError(f'{place}: must be an object with "input", not {type(question).__name__}')
    for field, usual in (("input", None), ("definition", "")):
      if not isinstance(question.get(field, usual), str):
        raise InputError(f"{place}: field {field!r} must be text")
    questions.append(question)
  if not questions:
    raise InputError(f'--input {file}: no line in it; give one {{"input": TEXT}} per line')
  return questions


def main(arguments: Sequence[str]) -> None:
  """Parses, restores, answers, writes."""
  options = cli.parse(PredictOptions, arguments, "sapt_jax.predict", cli.summary(__doc__))
  questions = read_questions(pathlib.Path(options.input))
  if options.batch_size < 0:
    raise InputError(f"--batch-size {options.batch_size}: must not be negative")
  if pathlib.Path(options.output).is_dir():
    raise InputError(f"--output {options.output}: is a folder; name a file")
  cli.keep_compiled_programs()
  from sapt_jax.answering import Answering  # here, so that --help and wrong input answer at once

  answering = Answering(pathlib.Path(options.run), options.batch_size, options.mesh)
  pairs = [(question.get("definition"), question["input"]) for question in questions]
  answering.check(pairs)
  rows = (
    question | {"output": text, "mixture": mixture}
    for question, (text, mixture) in zip(questions, answering(pairs), strict=True)
  )
  answering.write(pathlib.Path(options.output), rows)
  print(f"{len(questions)} answers in {options.output}")


if __name__ == "__main__":
  cli.run(main)
