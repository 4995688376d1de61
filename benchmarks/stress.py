"""The library under stress: killed at any moment, harmed in any file, fed anything, for long.

    python benchmarks/stress.py --output runs/stress --kills 100 --damage 300 --mutations 1000 \
        --places 20 --tasks 200

Kills: a run of two tasks, with generator and evaluation, gets SIGKILL at random moments, is started
again each time, and must end with the scores, the answers and the arrays of a run that was left
alone. A fifth of the kills hit runs of two processes.
Damage: a file of a finished or a half finished run is cut, emptied, deleted, or has one bit
flipped. Started again, the run must end as it would have, with the file named or as it should be;
or it must end with exit code 2 and name the file.
Mutations: data, model folder, tokenizer, questions or the command line are changed at random. The
program must end well, or with exit code 2 and one line; it must not hang for a minute.
Places: a disk that is full from one of so many moments on; a read-only one; no HOME; a terminal of
ASCII alone; a user without a name. The program must say one line, and go on to the same end.
Tasks: one process learns that many tiny tasks, and its memory after each of them is noted; then
another one that keeps its snapshots in memory, without the storage library.

Each case is a line of DIR/cases.jsonl as soon as it is known; started again, only cases that are
missing are tried. The random numbers of a case depend on its number alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from growth import grown
from mutations import changed_text, mutated_file, mutated_options
from places import Place, places, tried
from programs import FORKS, PATIENCE, end, start

from sapt_jax import cli
from sapt_jax.mini import T5_MINI
from sapt_jax.mini.tasks import mini_stream
from sapt_jax.snapshots import finished_snapshots
from sapt_jax.text_files import json_lines, write_json
from sapt_jax.training import checkpoint

OPTIONS = (
  "--data.benchmark superni --data.max-train 24 --data.max-test 8 --data.max-target-length 8 "
  "--data.max-source-length 96 --fit.steps 6 --fit.batch-size 4 --fit.checkpoint-every 2 "
  "--fit.log-every 1 --generator.steps 4 --generator.batch-size 4 --generator.keep 0.2 "
  "--generator.oversample 1.5 --generator.max-length 64 --generator.rank 2 "
  "--evaluation.batch-size 4 --evaluation.metric exact_match --pet.rank 2"
).split()
KILLS_OF_A_RUN = 5
START = 4  # seconds that a program of its own takes to import the library

Case = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class World:
  """Where everything is: a model folder, data, and the folder of the cases."""

  folder: pathlib.Path

  @property
  def options(self) -> list[str]:
    places = {"--backbone.path": self.folder / "model", "--data.root": self.folder / "data"}
    return [*OPTIONS, *(str(x) for pair in places.items() for x in pair)]

  def task(self, number: int, root: str, rows: int) -> None:
    """Writes the number-th generated task with so many rows of each split, in the benchmark's form:
    those of the mini stream, then the same with other texts, and so on.
    """
    task = mini_stream(number // 10)[number % 10]
    place = self.folder / root / "SuperNI" / f"task{number:03d}_{task.name}"
    place.mkdir(parents=True, exist_ok=True)
    for name, split in (("train", task.train), ("dev", task.dev), ("test", task.test)):
      lines = [{"input": one.input, "output": list(one.references)} for one in split[:rows]]
      write_json(place / f"{name}.json", {"Definition": [task.definition], "Instances": lines})

  def make(self) -> None:
    """The embedded model and two generated tasks, as files."""
    if (self.folder / "data").exists():
      return
    shutil.copytree(T5_MINI, self.folder / "model")
    for number in range(2):
      self.task(number, "data", 40)


def outcome(run: pathlib.Path) -> dict[str, Any]:
  """What must be the same however a run came to its end."""
  last = finished_snapshots(run)[-1]
  arrays, digest = checkpoint.arrays_of(last), hashlib.sha256()
  for name in sorted(arrays):
    digest.update(name.encode() + arrays[name].tobytes())
  return {
    "scores": json.loads((run / "scores.json").read_text())["scores"],
    "answers": hashlib.sha256((run / "predictions.jsonl").read_bytes()).hexdigest(),
    "arrays": digest.hexdigest(),
  }


def two(arguments: Sequence[str], log: pathlib.Path) -> list[BaseProcess]:
  """The same run as two processes of one device each."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  shared = ["--distributed.address", address, "--distributed.processes", "2", "--mesh.fsdp", "2"]
  return [
    start(
      [*arguments, *shared, "--distributed.process-id", str(number)],
      log.with_suffix(f".{number}.log"),
    )
    for number in range(2)
  ]


def killed(world: World, number: int, whole: dict[str, Any], seconds: float) -> Case:
  """A run that is killed a few times and then left alone; compared with the whole one."""
  rng, run = random.Random(f"kill {number}"), world.folder / f"kill{number}"
  together = number % KILLS_OF_A_RUN == 4
  arguments, log = [*world.options, "--output", str(run)], world.folder / f"kill{number}.log"
  moments = []
  for _ in range(KILLS_OF_A_RUN):
    processes = two(arguments, log) if together else [start(arguments, log)]
    moments.append(round(rng.uniform(0, 2 * seconds if together else seconds), 2))
    victim = rng.choice(processes)
    if end(victim, moments[-1]) == 0:
      break  # it was done before
    for process in processes:
      end(process, PATIENCE)
  processes = two(arguments, log) if together else [start(arguments, log)]
  codes = [end(process, 10 * seconds + PATIENCE) for process in processes]
  found = outcome(run) if codes == [0] * len(codes) else {"codes": codes}
  exact = found == whole["two" if together else "one"]
  if exact:
    shutil.rmtree(run)
  how = {"moments": moments, "processes": len(processes), "kills": len(moments)}
  return how | {"exact": len(moments) if exact else 0}


def harms(content: bytes, rng: random.Random) -> dict[str, bytes | None]:
  """What may happen to a file; None: it is gone."""
  middle = rng.randrange(len(content)) if content else 0
  flipped = bytearray(content)
  if content:
    flipped[middle] ^= 1 << rng.randrange(8)
  return {"cut": content[:middle], "emptied": b"", "deleted": None, "flipped": bytes(flipped)}


def damaged(world: World, number: int, whole: dict[str, Any], seconds: float) -> Case:
  """A run's folder with one file harmed, gone on with."""
  rng = random.Random(f"damage {number}")
  kept = world.folder / ("half" if number % 2 else "whole")
  files = sorted(path for path in kept.rglob("*") if path.is_file() and path.name != "lock")
  file = files[rng.randrange(len(files))].relative_to(kept)
  kind = list(harms(b"", rng))[number // 2 % 4]
  run = shutil.copytree(kept, world.folder / f"damage{number}")
  content = harms((run / file).read_bytes(), rng)[kind]
  (run / file).unlink() if content is None else (run / file).write_bytes(content)
  log = world.folder / f"damage{number}.log"
  code = end(start([*world.options, "--output", str(run)], log), 10 * seconds + PATIENCE)
  said = log.read_text(errors="replace")
  named = str(file) in said or any(part in said for part in file.parts[:2] if "_" in part)
  case = {"run": kept.name, "file": str(file), "harm": kind, "code": code, "named": named}
  if code == 0:
    kept = world.folder / "whole" / file
    mended = not (run / file).exists() or (
      kept.exists() and (run / file).read_bytes() == kept.read_bytes()
    )
    fine = outcome(run) == whole["one"] and (named or mended)
  else:
    fine = code == 2 and named and "Traceback" not in said
  if fine:
    shutil.rmtree(run)
  return case | {"fine": fine}


def mutated(world: World, number: int, seconds: float) -> Case:
  """A program that is fed something changed at random."""
  rng, place = random.Random(f"mutation {number}"), world.folder / f"mutation{number}"
  place.mkdir()
  log = place / "log"
  what = rng.choice(["data", "model", "questions", "command"])
  module, arguments = "train", [*world.options, "--output", str(place / "run")]
  arguments += ["--fit.steps", "1", "--generator.steps", "1", "--evaluation.no-every-task"]
  if rng.random() < 0.9:  # the method that takes the least time
    arguments += ["--method.name", "sequential"]
  if what in ("data", "model"):
    shutil.copytree(world.folder / what, place / what)
    changed = sorted(path for path in (place / what).rglob("*.*") if path.suffix != ".md")
    file = rng.choice([path for path in changed if path.suffix != ".csv"])
    mutated_file(file, rng)
    what = str(file.relative_to(place))
    option = {"data": "--data.root", "model": "--backbone.path"}[what.split("/")[0]]
    arguments += [option, str(place / what.split("/")[0])]
  elif what == "command":
    arguments = mutated_options(arguments, rng)
  else:
    module, questions = "predict", place / "in.jsonl"
    lines = [json.dumps({"definition": "Say.", "input": f"text {i}", "id": i}) for i in range(3)]
    questions.write_text(changed_text("\n".join(lines), rng), errors="surrogatepass")
    arguments = ["--run", str(world.folder / "whole"), "--input", str(questions)]
    arguments += ["--output", str(place / "out.jsonl")]
  code = end(start(arguments, log, module), 10 * seconds + PATIENCE)
  said = log.read_text(errors="replace").strip()
  line = said.splitlines()[-1] if said else ""
  fine = "Traceback" not in said and (code == 0 or (code == 2 and line.startswith("error: ")))
  if fine:
    shutil.rmtree(place)
  return {"what": what, "code": code, "said": line[-300:], "fine": fine}


def placed(world: World, number: int, whole: dict[str, Any], place: Place) -> Case:
  """A run in a hard place, then on in a usual one."""
  folder = world.folder / f"place{number}"
  code, said = tried(place, world.options, folder, world.folder / "half")
  line = said.strip().splitlines()[-1] if said.strip() else ""
  spoken = code == 0 or (code in (1, 2) and line.startswith("error: ") and "Traceback" not in said)
  exact = code < 97 and outcome(folder / "kept") == whole["one"]
  if spoken and exact:
    shutil.rmtree(folder)
  return {"what": place.what, "code": code, "said": line[-300:], "fine": spoken and exact}


def references(world: World) -> tuple[dict[str, Any], float]:
  """What undisturbed runs end with, of one process and of two, and the seconds that one takes when
  its programs are compiled; leaves the folders whole and half.
  """
  file = world.folder / "references.json"
  if not file.exists():
    for name in ("first", "whole"):  # the first one compiles
      shutil.rmtree(world.folder / name, ignore_errors=True)
      began = time.monotonic()
      log = world.folder / f"{name}.log"
      arguments = [*world.options, "--output", str(world.folder / name)]
      if end(start(arguments, log), 3600):
        sys.exit(f"the undisturbed run failed; see {log}")
      seconds = time.monotonic() - began
    half = shutil.copytree(world.folder / "whole", world.folder / "half", dirs_exist_ok=True)
    stop_in_second_task(world, half, seconds)
    shutil.rmtree(world.folder / "both", ignore_errors=True)
    log = world.folder / "both.log"
    pair = two([*world.options, "--output", str(world.folder / "both")], log)
    if any(end(process, 3600) for process in pair):
      sys.exit(f"the undisturbed run of two processes failed; see {log}")
    whole = {"one": outcome(world.folder / "whole"), "two": outcome(world.folder / "both")}
    write_json(file, {"whole": whole, "seconds": seconds})
  found = json.loads(file.read_text())
  return found["whole"], found["seconds"]


def stop_in_second_task(world: World, half: pathlib.Path, seconds: float) -> None:
  """Makes a finished run one that was stopped in its second task."""
  log = world.folder / "half.log"
  process = start([*world.options, "--output", str(half), "--from-task", "2"], log)
  while process.is_alive() and not list(half.glob("progress/01/*/manifest.json")):
    time.sleep(0.05)
  process.terminate()
  if end(process, 10 * seconds + PATIENCE) != 75:
    sys.exit(f"the run that is to be half finished was not stopped; see {log}")


def cases(
  file: pathlib.Path, kind: str, count: int, try_one: Callable[[int], Case]
) -> Iterator[Case]:
  """All cases of a kind, those that are missing tried now."""
  known = [row for _, row in json_lines(file)] if file.exists() else []
  done = {row["case"]: row for row in known if row["kind"] == kind}
  for number in range(count):
    if number not in done:
      shutil.rmtree(file.with_name(f"{kind.rstrip('s')}{number}"), ignore_errors=True)  # cut off
      done[number] = {"kind": kind, "case": number} | try_one(number)
      with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(done[number]) + "\n")
      print(json.dumps(done[number]), flush=True)
    yield done[number]


def main(arguments: Sequence[str]) -> None:
  """Tries all cases and counts them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the cases")
  usual = {"kills": 100, "damage": 300, "mutations": 1000, "places": 20, "tasks": 200}
  for name, count in usual.items():
    parser.add_argument(f"--{name}", type=int, default=count, help=f"how many (default {count})")
  options = parser.parse_args(arguments)
  options.output.mkdir(parents=True, exist_ok=True)
  world, file = World(options.output.absolute()), options.output / "cases.jsonl"
  os.environ["JAX_PLATFORMS"] = "cpu"
  FORKS.set_forkserver_preload(["sapt_jax.continual", "sapt_jax.predict"])
  world.make()
  whole, seconds = references(world)
  hard = places(START + seconds, options.places)
  runs = -(-options.kills // KILLS_OF_A_RUN)
  kills = list(cases(file, "kill", runs, lambda number: killed(world, number, whole, seconds)))
  count, exact = (sum(case[name] for case in kills) for name in ("kills", "exact"))
  words = [f"kills {exact} of {count} exact"]
  for name, number, try_one in (
    ("damage", options.damage, lambda number: damaged(world, number, whole, seconds)),
    ("mutations", options.mutations, lambda number: mutated(world, number, seconds)),
    ("places", len(hard), lambda number: placed(world, number, whole, hard[number])),
  ):
    known = list(cases(file, name, number, try_one))
    words.append(f"{name} {sum(case['fine'] for case in known)} of {len(known)} named")
  many = world.folder / "many"

  def growth(_: int) -> Case:
    for number in range(options.tasks):
      world.task(number, many.name, 8)
    return grown([*world.options, "--data.root", str(many)], world.folder, options.tasks)

  for case in cases(file, "tasks", int(options.tasks > 0), growth):
    words.append(
      f"memory {case['grew_mib']} MiB more after {len(case['resident_mib'])} tasks than after 25 "
      f"({case['apart_grew_mib']} without the storage library), "
      f"what was learned has {case['learned_mib']}"
    )
  print(f"stress: {', '.join(words)}")


if __name__ == "__main__":
  cli.run(main)
