"""A server under load, on this machine: many clients, bad requests among them, a task that comes
while it answers.

    python benchmarks/serve_load.py --run runs/mini --output runs/serve_load

The questions are the test rows of the mini stream. The server starts on a copy of the run without
its newest snapshot; halfway through the load the snapshot is put there. Every answer is compared
with what predict says, for the state of the run that answered. A line of JSON for each figure.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sapt_jax import cli
from sapt_jax.mini.tasks import mini_stream
from sapt_jax.text_files import json_lines, parse_json, write_lines

Question = dict[str, str]
Said = tuple[str, dict[str, float]]  # answer, mixture

BAD: list[tuple[int, bytes]] = [
  (400, b"{"),
  (400, b"[]"),
  (400, b"{}"),
  (400, b'{"prompt": 1}'),
  (400, b'{"prompt": "\xff"}'),
  (400, b'{"prompt": "\\ud800"}'),
  (400, b'{"prompt": "x", "temperature": 1}'),
  (400, b'{"prompt": "x", "n": 3}'),
  (400, json.dumps({"prompt": "x" * 100_000}).encode()),
  (400, b'{"prompt": "x", "model": 3}'),
  (413, b" " * 2_000_000),
  (0, b""),  # cut off in the middle
]


def say(figure: str, value: Any, **more: Any) -> None:
  """One figure."""
  value = round(value, 4) if isinstance(value, float) else value
  print(json.dumps({"figure": figure, "value": value} | more), flush=True)


def questions_of(folder: pathlib.Path) -> pathlib.Path:
  """A file of the test rows of the mini stream, as predict reads them."""
  file = folder / "questions.jsonl"
  rows = [
    {"definition": task.definition, "input": example.input}
    for task in mini_stream(0)
    for example in task.test
  ]
  write_lines(file, rows)
  return file


def predicted(run: pathlib.Path, questions: pathlib.Path) -> list[Said]:
  """What predict answers, by a process of its own."""
  answers = questions.with_name("answers.jsonl")
  command = [sys.executable, "-m", "sapt_jax.predict", "--run", str(run)]
  subprocess.run([*command, "--input", str(questions), "--output", str(answers)], check=True)
  return [(row["output"], row["mixture"]) for _, row in json_lines(answers)]


class Client:
  """A connection that asks again and again; slim, as it runs beside the server.

  Args:
    rows: (number, question), without an end.
  """

  def __init__(self, port: int, questions: Sequence[Question], start: int):
    self.port, self.questions, self.number = port, questions, start
    self.answers: list[tuple[int, str, Said]] = []  # question, snapshot, answer
    self.seconds: list[float] = []
    self.failures: Counter[str] = Counter()

  async def ask_until(self, end: float) -> None:
    """Asks one question after another, until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
    while time.monotonic() < end:
      number = self.number % len(self.questions)
      self.number += 1
      question = self.questions[number]
      asked = {"prompt": question["input"], "definition": question["definition"]}
      began = time.monotonic()
      try:
        status, text = await exchange(reader, writer, json.dumps(asked).encode())
      except (OSError, asyncio.IncompleteReadError) as error:
        self.failures[type(error).__name__] += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        continue
      self.seconds.append(time.monotonic() - began)
      if status != 200:
        self.failures[str(status)] += 1
        continue
      said = parse_json(text, "an answer")
      choice = said["choices"][0]
      self.answers.append((number, said["system_fingerprint"], (choice["text"], choice["mixture"])))
    writer.close()


async def exchange(
  reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, str]:
  """(status, body) of a completion that is asked for on an open connection."""
  head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
  writer.write(head.encode() + body)
  lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
  [length] = re.findall(r"content-length: (\d+)", lines)
  return int(lines.split()[1]), (await reader.readexactly(int(length))).decode()


async def ask_badly(port: int, times: int) -> int:
  """Sends bad requests of every kind, each on a connection of its own; how many did not get their
  status.
  """
  wrong = 0
  for number in range(times):
    status, body = BAD[number % len(BAD)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if status:
      wrong += (await exchange(reader, writer, body))[0] != status
    else:
      writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
      await writer.drain()
    writer.close()
    await asyncio.sleep(0.02)
  return wrong


async def load(
  port: int, questions: Sequence[Question], clients: int, seconds: float, change: Any
) -> tuple[list[Client], int]:
  """So many clients for so long; halfway through, `change` is called. The clients, and how many bad
  requests did not get their status.
  """
  end, step = time.monotonic() + seconds, max(len(questions) // clients, 1)
  asking = [Client(port, questions, number * step) for number in range(clients)]
  tasks = [asyncio.create_task(client.ask_until(end)) for client in asking]
  bad = asyncio.create_task(ask_badly(port, 200 if change else 0))
  await asyncio.sleep(seconds / 2)
  if change:
    change()
  await asyncio.gather(*tasks)
  return asking, await bad


def compared(
  clients: Sequence[Client], expected: dict[str, list[Said]]
) -> tuple[int, list[dict[str, Any]], float]:
  """Answers by both states, those whose text differs from predict's, and the largest difference of
  a weight.
  """
  answers = [one for client in clients for one in client.answers]
  differing, largest = [], 0.0
  for number, snapshot, (text, mixture) in answers:
    other, weights = expected[snapshot][number]
    if text != other:
      differing.append({"question": number, "state": snapshot, "served": text, "predicted": other})
    largest = max(largest, *(abs(mixture[task] - weights[task]) for task in weights))
  return len(answers), differing, largest


def figures(port: int) -> dict[str, float]:
  """What /metrics has."""
  with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
    return dict(pairs_of(answer.read().decode()))


def pairs_of(text: str) -> Iterator[tuple[str, float]]:
  """(name, value) of Prometheus' text."""
  for line in text.splitlines():
    if not line.startswith("#"):
      name, value = line.rsplit(" ", 1)
      yield name.removeprefix("sapt_"), float(value)


@dataclasses.dataclass
class Phase:
  """What so many clients have seen, and what the server counted meanwhile."""

  clients: list[Client] = dataclasses.field(default_factory=list)
  counted: Counter[str] = dataclasses.field(default_factory=Counter)
  seconds: float = 0.0

  @property
  def rate(self) -> float:
    """Answers per second."""
    return sum(len(client.seconds) for client in self.clients) / self.seconds

  def say(self, number: int) -> None:
    """Its figures."""
    times = np.array([one for client in self.clients for one in client.seconds])
    failures = sum((client.failures for client in self.clients), Counter())
    some = {"clients": number}
    say("failed requests", sum(failures.values()), kinds=dict(failures), of=len(times), **some)
    say("answers per second", self.rate, **some)
    for share in (50, 99, 100):
      say(f"p{share} seconds", float(np.percentile(times, share)), **some)
    rows = self.counted["batch_rows_sum"]
    say("prompts per batch", rows / self.counted["batch_rows_count"], **some)
    say("batch fill", rows / self.counted["batch_places_total"], **some)
    for name in ("queue", "batch"):
      mean = self.counted[f"{name}_seconds_sum"] / self.counted[f"{name}_seconds_count"]
      say(f"mean {name} seconds", mean, **some)


def main(arguments: Sequence[str]) -> None:
  """Starts the server, loads it, and says what came of it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", type=pathlib.Path, default="runs/mini", help="a finished mini run")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of it all")
  parser.add_argument("--clients", type=int, default=64, help="clients at once (default 64)")
  parser.add_argument("--seconds", type=float, default=60, help="of load (default 60)")
  options, of_server = parser.parse_known_args(arguments)
  shutil.rmtree(options.output, ignore_errors=True)
  run = shutil.copytree(options.run, options.output / "run")
  file = questions_of(options.output)
  questions = [row for _, row in json_lines(file)]
  newest = max((run / "snapshots").iterdir())
  aside = options.output / newest.name
  expected = {newest.name: predicted(run, file)}
  newest.rename(aside)
  expected[max((run / "snapshots").iterdir()).name] = predicted(run, file)
  command = [sys.executable, "-m", "sapt_jax.serve", "--run", str(run), "--port", "0"]
  began = time.monotonic()
  with subprocess.Popen([*command, *of_server], stdout=subprocess.PIPE, text=True) as server:
    assert server.stdout is not None
    [port] = map(int, re.findall(r":(\d+)/", server.stdout.readline()))
    next(line for line in server.stdout if line == "ready\n")
    say("seconds until ready", time.monotonic() - began)
    try:
      measure(port, questions, expected, options, lambda: aside.rename(newest))
    finally:
      server.terminate()
      say("exit code after SIGTERM", server.wait())


def measure(
  port: int,
  questions: Sequence[Question],
  expected: dict[str, list[Said]],
  options: argparse.Namespace,
  change: Any,
) -> None:
  """One client alone and all of them in turn, so that what else the machine does hits both alike; a
  task comes in the second of the three turns.
  """
  alone, together, wrong = Phase(), Phase(), 0
  for turn in range(3):
    for phase, number, seconds in (
      (alone, 1, options.seconds / 12),
      (together, options.clients, options.seconds / 3),
    ):
      before, changes = figures(port), turn == 1 and phase is together
      begun = time.monotonic()
      clients, bad = asyncio.run(
        load(port, questions, number, seconds, change if changes else None)
      )
      phase.seconds += time.monotonic() - begun
      phase.clients += clients
      phase.counted.update(
        {key: value - before.get(key, 0) for key, value in figures(port).items()}
      )
      wrong += bad
  alone.say(1)
  together.say(options.clients)
  quiet = together.clients[: options.clients] + together.clients[-options.clients :]
  times = np.array([one for client in quiet for one in client.seconds])
  say("p99 seconds but for the turn in which the task comes", float(np.percentile(times, 99)))
  say("throughput beside one by one", together.rate / alone.rate)
  say("bad requests without their status", wrong, of=200)
  clients = alone.clients + together.clients
  by_state = Counter(state for client in clients for _, state, _ in client.answers)
  count, differing, largest = compared(clients, expected)
  say("answers whose text is not predict's", len(differing), of=count, states=dict(by_state))
  write_lines(options.output / "differing.jsonl", differing)
  say("largest difference of a weight", largest)


if __name__ == "__main__":
  cli.run(main)
