"""Each command of README.md and docs/ is one that its program takes: its options are there, with
values that can be. tests/test_docs.py runs those of docs/your_own_tasks.md from end to end.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(r"python -m sapt_jax\.([a-z]+)|sapt-jax ([a-z]+)")
FOLDERS = ("plan", "serve")  # programs of several files
GIVEN = {"S": "0", "METHOD": "sapt"}  # for words that stand for any seed, any method


class ParsedError(Exception):
  """The program has taken its options."""


def commands_of(text):
  """The program and the arguments of each call in indented and fenced blocks, and of those between
  backticks that have options. A line that ends with a backslash goes on; behind two spaces stands
  what the page says of it.
  """
  fences = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
  blocks = re.findall(r"^(?: {4,}.*\n)+", text, re.MULTILINE)
  lines = re.sub(r"\\\n\s*", "", "\n".join([*fences.findall(text), *blocks])).split("\n")
  spoken = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", fences.sub("", text))]
  for line in [*lines, *(words for words in spoken if "--" in words)]:
    if found := PROGRAM.search(line):
      name = found[1] or found[2]
      rest = re.split(r"\s{2,}|\s[|>&;]|\s2>", line[found.end() :])[0]
      if rest.count('"') % 2:  # the whole command is quoted
        rest = rest.rstrip('"')
      arguments = [GIVEN.get(word, word) for word in shlex.split(rest) if word != "..."]
      if arguments and not {"--help", "--help-all"} & set(arguments):
        yield name, arguments


COMMANDS = sorted(
  {
    (path.name, name, tuple(arguments))
    for path in PAGES
    for name, arguments in commands_of(path.read_text(encoding="utf-8"))
  }
)


def test_the_commands_are_found():
  assert len(COMMANDS) > 25
  programs = {name for _, name, _ in COMMANDS}
  assert programs >= set("train predict export import join forget serve plan report".split())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c[0]} {c[1]} {' '.join(c[2])}")
def test_a_command_of_the_docs_is_taken(command, monkeypatch):
  _, name, arguments = command

  def parsed(original):
    def parse(*given, **named):
      original(*given, **named)
      raise ParsedError

    return parse

  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(tyro, "cli", parsed(tyro.cli))
  end = ".__main__" if name in FOLDERS else ""
  module = importlib.import_module(f"sapt_jax.{name}{end}")
  with pytest.raises(ParsedError):
    module.main(list(arguments))
