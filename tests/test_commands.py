"""The commands of README.md, CONTRIBUTING.md and docs/, as a shell reads them there.

Those of the library's programs are run on tiny data, in the order of the pages, with few steps and
two tasks; a command that stands in several pages, or differs in its seed alone, once. The others
are run by the test that is named here, or by none for the reason that is named here. Commands
between backticks must be taken by their program. tests/test_docs.py has docs/your_own_tasks.md.
"""

import contextlib
import csv
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tyro

from sapt_jax.mini.tasks import mini_stream
from tests.runs import scores

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCES = re.compile(r"^```\w*\n.*?^```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"python -m sapt_jax\.([a-z]+)|sapt-jax ([a-z]+)")
FOLDERS = ("plan", "serve")  # programs of several files
GIVEN = {"S": "0", "METHOD": "sapt"}  # for words that stand for any seed, any method
OTHERS = ("make", "git", "pip", "curl", "vllm", "tensorboard", "python", ".venv/bin/python")

ELSEWHERE = {
  "curl": "tests/test_serve.py",
  "python -m sapt_jax.import": "tests/test_import.py",
  "python -m sapt_jax.mini.make_backbone": "tests/test_mini.py",
  "python -m sapt_jax.serve": "tests/test_serve.py",
  "python -m sapt_jax.train --output runs/mine --track": "tests/test_tracking.py",
  "python -c": "tests/test_cost.py",
  "python benchmarks/accelerator.py": "tests/test_accelerator.py",
  "python benchmarks/decode_cost.py": "tests/test_cost.py",
  "python benchmarks/growing.py": "tests/test_growing.py",
  "python benchmarks/load_cost.py": "tests/test_quantize.py",
  "python benchmarks/padding.py": "tests/test_data.py",
  "python benchmarks/results.py": "tests/test_results.py",
  "python benchmarks/routing.py": "tests/test_routing.py",
  "python benchmarks/starts.py": "tests/test_transfer.py",
  "python benchmarks/step_cost.py": "tests/test_cost.py",
  "python benchmarks/torch_peer.py": "tests/test_cost.py",
  "python benchmarks/transfer.py": "tests/test_transfer.py",
}
NOWHERE = {
  ".venv/bin/python -m pytest": "runs this test",
  "git clone": "needs a network",
  "launch/results.sh": "takes hours; each of its runs is a train command",
  "launch/superni_on_gpu.sh": "needs an accelerator, SmolLM2 and SuperNI",
  "make": "runs this test, or a program of another project; .ci/run is make test",
  "pip install": "needs a network",
  "python -m sapt_jax.plan": "needs JAX's plug-in for an accelerator that is not there",
  "python -m sapt_jax.train --config configs/paper": "needs T5-Large, and in practice a GPU",
  "python benchmarks/plan_table.py": "needs JAX's plug-ins for accelerators that are not there",
  "python benchmarks/serve_load.py": "a minute of load; each of its requests is one of test_serve",
  "tensorboard": "a program of another project, for people to look at",
  "vllm serve": "a program of another project that needs an accelerator",
}


def blocks_of(text):
  """The indented blocks of commands. Behind three spaces stands what the page says of one."""
  blocks = re.findall(r"^(?: {4,}.*\n)+", FENCES.sub("", text), re.MULTILINE)
  programs = "|".join([*map(re.escape, OTHERS), r"launch/\S+", "[a-z]=", "export"])
  begins = rf"\s*(?:[A-Za-z_]+=\S+ )*(?:{programs})"
  for block in blocks:
    if re.match(begins, block):
      yield re.sub(r"(?<=\S) {3,}(?!#).*$", "", block, flags=re.MULTILINE)


def commands_of(page):
  """The words of each command in a page's blocks, its variables and loops resolved by a shell that
  runs none of them.
  """
  blocks = "".join(blocks_of(page.read_text(encoding="utf-8"))).replace("<this repository>", "URL")
  blocks = re.sub(r"^ *\. \S+activate.*$|&& cd .*$", "", blocks, flags=re.MULTILINE)
  scripts = {*OTHERS, *re.findall(r"launch/\w+\.sh", blocks)}
  noted = "".join(f'{name}() {{ note {name} "$@"; }}\n' for name in sorted(scripts))
  note = r"""note() { printf '%s\x1f' "$@"; printf '\x1e'; }"""
  done = subprocess.run(
    ["bash", "-e", "-c", f"{note}\n{noted}{blocks}"], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")
  for words in done.stdout.split("\x1e")[:-1]:
    yield tuple(GIVEN.get(word, word) for word in words.split("\x1f")[:-1])


def mentions_of(page):
  """The program and the arguments of each command between backticks that has options."""
  text = FENCES.sub("", page.read_text(encoding="utf-8"))
  for words in (" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)):
    if "--" in words and (found := PROGRAM.search(words)):
      rest = re.split(r"\s[|>&;]|\s2>", words[found.end() :])[0]
      arguments = [GIVEN.get(word, word) for word in shlex.split(rest) if word != "..."]
      if arguments and not {"--help", "--help-all"} & set(arguments):
        yield found[1] or found[2], *arguments


def begins_one_of(words, starts):
  return any(" ".join(words).startswith(start) for start in starts)


def essence(words):
  """What tells a command from another: all but seed, steps and the numbers of folders."""
  text = re.sub(r"--(seed|fit.steps) \d+", "", " ".join(words))
  return re.sub(r"([./-])\d+\b", r"\1N", text) if "sapt_jax.train" in text else text


ALL = [words for page in PAGES if page.name != "your_own_tasks.md" for words in commands_of(page)]
KNOWN = {essence(words): words for words in reversed(ALL)}
RUN = [
  words for words in reversed(KNOWN.values()) if not begins_one_of(words, {**ELSEWHERE, **NOWHERE})
]
MENTIONS = sorted({words for page in PAGES for words in mentions_of(page)})


def module_of(name):
  return importlib.import_module(f"sapt_jax.{name}" + (".__main__" if name in FOLDERS else ""))


def test_the_commands_are_found():
  assert len(RUN) > 30
  assert len(MENTIONS) > 5
  for start in {**ELSEWHERE, **NOWHERE}:
    assert any(begins_one_of(words, [start]) for words in ALL), start
  for start, file in ELSEWHERE.items():
    name = re.search(r"\w+$", start.removesuffix(".py").replace("python -c", "sizes"))[0]
    assert name in (ROOT / file).read_text(), start


@pytest.mark.parametrize("words", MENTIONS, ids=" ".join)
def test_a_command_between_backticks_is_taken(words, monkeypatch):
  class ParsedError(Exception):
    """The program has taken its options."""

  def parsed(original):
    def parse(*given, **named):
      original(*given, **named)
      raise ParsedError

    return parse

  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(tyro, "cli", parsed(tyro.cli))
  with pytest.raises(ParsedError):
    module_of(words[0]).main(list(words[1:]))


FEW = (
  "--fit.steps 2 --generator.steps 2 --generator.max-length 64 --data.max-train 12 "
  "--data.max-test 2 --fit.batch-size 4 --generator.batch-size 4"
).split()
TWO = {
  "mini": "film_mood parcel_town",
  "mini_related": "memo_sender memo_mood",
  "configs/superni_smollm2.py": "task363 task1510",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """The folders that the pages speak of."""
  folder = tmp_path_factory.mktemp("commands")
  for name in ("configs", "benchmarks"):
    (folder / name).symlink_to(ROOT / name)
  tiny.model_folder(folder / "MODEL", tiny.T5)
  (folder / "TASKS").mkdir()
  for name, task in zip(("billing", "sales"), mini_stream(0), strict=False):
    with (folder / "TASKS" / f"{name}.csv").open("w", newline="") as out:
      rows = [("input", "output"), *((row.input, row.references[0]) for row in task.train[:12])]
      csv.writer(out).writerows(rows)
    (folder / "TASKS" / f"{name}.toml").write_text(f'instruction = "Say {name}."\n')
  named = {word for words in ALL for word in words if re.fullmatch(r"task\d+", word)}
  tasks = zip(sorted(named), [*tiny.TASKS.values()] * len(named), strict=False)
  tiny.benchmark_folder(folder / "DATA", {f"{name}_x": task for name, task in tasks})
  for name in ("SMOL", "SMOLLM2_FOLDER"):
    (folder / name).symlink_to(folder / "MODEL")
  for name in ("CL_Benchmark", "CL_BENCHMARK_FOLDER"):
    (folder / name).symlink_to(folder / "DATA")
  (folder / "questions.jsonl").write_text('{"definition": "Say.", "input": "The hero."}\n')
  with contextlib.chdir(folder):
    run("train", [])  # which `make train` is
    published = "--method.attention published --generator.folder runs/mini/pseudo_inputs"
    run("train", [*published.split(), "--output", "RUN"])  # `export --what pool` takes no other
  for name in ("one", "other"):
    shutil.copytree(folder / "runs/mini", folder / "runs" / name)
  return folder


def run(program, arguments):
  """A program of the library; what learns has less to do."""
  if program == "train":
    arguments = [*arguments, *FEW]
    streams = [tasks for word, tasks in TWO.items() if word in arguments]
    if "--stream.tasks" in arguments:
      start = arguments.index("--stream.tasks") + 3
      stop = next(i for i in range(start, len(arguments)) if arguments[i].startswith("--"))
      del arguments[start:stop]
    elif "TASKS" not in arguments:
      arguments += ["--stream.tasks", *(streams or [TWO["mini"]])[0].split()]
  module_of(program).main(arguments)


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_a_command_of_the_docs_is_run(words, world, monkeypatch):
  monkeypatch.chdir(world)
  arguments = ["film_mood" if word == "TASK" else word for word in words]
  arguments = [
    part
    for word in arguments
    for part in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
  ]
  if words[:2] == ("python", "-m"):
    program, arguments = words[2].removeprefix("sapt_jax."), arguments[3:]
    if "--help" in arguments or "--help-all" in arguments:
      with pytest.raises(SystemExit) as end:
        run(program, arguments)
      assert not end.value.code
      return
    if "--output" not in arguments:
      run(program, arguments)
      return
    place = arguments.index("--output") + 1
    if program != "train":  # several pages write to one place, and some to where others read
      arguments[place] = f"{program}.{len(list(world.iterdir()))}"
    run(program, arguments)
    assert Path(arguments[place]).exists()
    assert program != "train" or scores(Path(arguments[place]))["metrics"]
  else:
    command = [sys.executable, *arguments[1:], *FEW, "--stream.tasks", *TWO["mini"].split()]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
