"""A server's process for tests, its clients, and what predict says of the same questions."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny

from sapt_jax import predict
from tests.runs import rows_of

ROOT = Path(__file__).parent.parent
COLOUR, COUNT = (definition for definition, _ in tiny.TASKS.values())
QUESTIONS = [
  *({"definition": COLOUR, "input": text} for text, _ in tiny.TASKS["task001_colour"][1]),
  *({"definition": COUNT, "input": text} for text, _ in tiny.TASKS["task002_count"][1]),
  *({"input": f"a prompt of {'many ' * number}words"} for number in (0, 3, 9, 40)),
]


class Server:
  """A server's process, and a plain client."""

  def __init__(self, run, *options):
    pytest.importorskip("starlette", reason="needs the extra serve: pip install -e '.[serve]'")
    pytest.importorskip("uvicorn", reason="needs the extra serve: pip install -e '.[serve]'")
    command = [sys.executable, "-m", "sapt_jax.serve", "--run", str(run), "--port", "0", *options]
    self.errors = run.with_name(run.name + ".errors")
    with self.errors.open("wb") as errors:
      self.process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
      )
    first = self.process.stdout.readline()
    assert first, self.errors.read_text()
    self.url = re.search(r"http://\S+/", first).group()
    self.port = int(self.url.rsplit(":", 1)[1].strip("/"))

  def until_ready(self):
    early = {self.get("/health")[0], self.post({"prompt": "x"})[0]}
    while self.get("/health")[0] == 503:
      time.sleep(0.05)
    assert early <= {200, 503}
    return self

  def request(self, method, path, body=None, **headers):
    """(status, body, headers) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    with contextlib.closing(connection):
      connection.request(method, path, body, headers)
      answer = connection.getresponse()
      return answer.status, answer.read().decode(), answer.headers

  def get(self, path):
    status, text, _ = self.request("GET", path)
    return status, text

  def post(self, value, path="/v1/completions"):
    status, text, _ = self.request("POST", path, json.dumps(value))
    return status, json.loads(text)

  def ask(self, question):
    """(output, mixture) of a question as predict reads it."""
    asked = {"prompt": question["input"], "definition": question.get("definition")}
    status, said = self.post(asked)
    assert status == 200, said
    return said["choices"][0]["text"], said["choices"][0]["mixture"]

  def ask_together(self, questions):
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
      return list(clients.map(self.ask, questions))

  def tasks(self):
    return [task["name"] for task in json.loads(self.get("/v1/models")[1])["data"][0]["tasks"]]

  def figure(self, name):
    line = rf"^sapt_{re.escape(name)} (\S+)$"
    return float(re.search(line, self.get("/metrics")[1], re.MULTILINE)[1])

  def until(self, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < end, self.errors.read_text()
      time.sleep(0.05)


@contextlib.contextmanager
def serving(run, *options):
  server = Server(run, "--batch-size", "4", "--look-every", "0.1", *options)
  try:
    yield server.until_ready()
  finally:
    server.process.kill()
    server.process.wait()
    server.process.stdout.close()


@contextlib.contextmanager
def loaded(server):
  """Clients that ask all the time; afterwards, how often each was answered."""
  done, counts = threading.Event(), []

  def load():
    number = 0
    while not done.is_set():
      server.ask(QUESTIONS[number % len(QUESTIONS)])  # fails where it is not answered
      number += 1
    return number

  with concurrent.futures.ThreadPoolExecutor(8) as clients:
    asking = [clients.submit(load) for _ in range(8)]
    try:
      yield counts
    finally:
      done.set()
    counts += [one.result() for one in asking]


def predicted(run, folder, questions=QUESTIONS):
  """What predict says."""
  given, answers = folder / "questions.jsonl", folder / "answers.jsonl"
  given.write_text("".join(json.dumps(question) + "\n" for question in questions))
  predict.main(["--run", str(run), "--input", str(given), "--output", str(answers)])
  return [(row["output"], row["mixture"]) for row in rows_of(answers)]


def assert_same_answers(answers, others):
  assert [text for text, _ in answers] == [text for text, _ in others]
  for (_, mixture), (_, other) in zip(answers, others, strict=True):
    assert mixture == pytest.approx(other, abs=2e-5)
    assert list(mixture) == list(other)
