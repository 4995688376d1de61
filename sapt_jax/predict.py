"""Answers new inputs with all that a run has learned; no task is given.

    python -m sapt_jax.predict --run runs/mini --input questions.jsonl --output answers.jsonl

Each line of the input is {"input": TEXT}: the whole prompt, as the model reads it; or
{"definition": TEXT, "input": TEXT}, which is put into the frame of the run's benchmark. Each line
of the output adds "output" and "mixture", {task: weight}; an "output" of the question itself, the
right answer as a rule, is kept as "reference".
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from sapt_jax import cli
from sapt_jax.config import BackbonePlace, Mesh
from sapt_jax.errors import InputError
from sapt_jax.remote import readable
from sapt_jax.run_lock import check_not_own
from sapt_jax.text_files import json_lines, write_lines


@dataclasses.dataclass(frozen=True)
class PredictOptions:
  """Which run answers what."""

  run: str
  """The run's folder, or its URL."""
  input: str
  """JSON lines with "input" (and, if wanted, "definition")."""
  output: str
  """Where the answers go: a file, which is replaced, or a pipe or a device."""
  batch_size: int = 0
  """Inputs answered at once; 0: as in the run."""
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  backbone: BackbonePlace = dataclasses.field(default_factory=BackbonePlace)


def read_questions(file: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a file, each an object with a text "input".

  Raises:
    InputError: no such file, or a line that is not that; the message names it.
  """
  questions = []
  for place, question in json_lines(file, f"--input {file}", pipe=True):
    if not isinstance(question, dict):
      raise InputError(f'{place}: must be an object with "input", not {type(question).__name__}')
    for field, usual in (("input", None), ("definition", "")):
      if field == "input" and field not in question:
        raise InputError(f'{place}: has no "input"; it has {", ".join(question) or "nothing"}')
      if not isinstance(question.get(field, usual), str):
        raise InputError(f"{place}: field {field!r} must be text")
    try:
      json.dumps(question, allow_nan=False)  # it stands beside its answer
    except ValueError:
      raise InputError(f"{place}: holds NaN or Infinity, which JSON has not; write null") from None
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
  output = pathlib.Path(options.output)
  check_output(output)
  check_not_own("--output", output)
  if output.resolve() == pathlib.Path(options.input).resolve():
    raise InputError(f"--output {output}: is the file of the questions; name another")
  cli.keep_compiled_programs()
  from sapt_jax.answering import Answering  # here, so that --help and wrong input answer at once

  answering = Answering(
    readable(options.run), options.batch_size, options.mesh, options.backbone.path
  )
  pairs = [(question.get("definition"), question["input"]) for question in questions]
  answering.check(pairs)
  rows = (
    question
    | ({"reference": question["output"]} if "output" in question else {})
    | {"output": text, "mixture": mixture}
    for question, (text, mixture) in zip(questions, answering(pairs), strict=True)
  )
  write_answers(output, rows)
  count, alone = len(questions), sum(definition is None for definition, _ in pairs)
  print(
    f"{count} answer{'' if count == 1 else 's'} in {options.output}"
    + (f"; {alone} to inputs without a definition, as whole prompts" if alone else ""),
    file=sys.stderr,
  )


def check_output(file: pathlib.Path) -> None:
  """Whether answers can be written there.

  Raises:
    InputError: they cannot.
  """
  if file.is_dir():
    raise InputError(f"--output {file}: is a folder; name a file")
  place = file if file.exists() else file.absolute().parent
  if place != file and not place.is_dir():
    raise InputError(f"--output {file}: there is no folder {place}; make it first")
  if not os.access(place, os.W_OK):
    raise InputError(f"--output {file}: cannot be written; choose another")


def write_answers(file: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  """Writes JSON lines: a file whole or not at all, the one that a link points to; into a pipe or a
  device line by line.
  """
  if not file.exists() or file.is_file():
    whole = file.resolve()
    own = whole.with_name(f"{whole.name}.{os.getpid()}")  # another program may write there too
    try:
      write_lines(own, rows)
      own.replace(whole)
    finally:
      for left in (own, own.with_name(own.name + ".draft")):
        left.unlink(missing_ok=True)
    return
  with file.open("w", encoding="utf-8") as out:
    out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
  cli.run(main)
