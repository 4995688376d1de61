"""What the server does where there is too much, too slow, too early or at fault: in this process,
with answers that a test holds back.
"""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from sapt_jax.data.batches import Row
from sapt_jax.errors import InputError
from sapt_jax.evaluation.stepwise import Written
from sapt_jax.serve import __main__ as program
from sapt_jax.serve.metrics import Metrics
from sapt_jax.serve.options import Limits, ServeOptions
from sapt_jax.serve.queue import FullError, Job, Waiting
from sapt_jax.serve.serving import Serving
from sapt_jax.serve.watch import Watcher, sight_of

pytest.importorskip("starlette", reason="needs the extra serve: pip install -e '.[serve]'")
pytest.importorskip("uvicorn", reason="needs the extra serve: pip install -e '.[serve]'")

END = 1


class Parrot:
  """Stands for a run that is ready: answers with the prompt's letters, one by one, each only when
  the test lets it.
  """

  mesh = jax.sharding.Mesh(np.empty((), object), ())
  sizes, max_new, end, shapes = [1, 2], 4, END, 2
  tasks, snapshot, instructions = ("a",), "00_a", {"a": "Say it again."}

  def __init__(self):
    self.let, self.batches = threading.Semaphore(0), []
    self.warm = threading.Event()
    self.fault = None

  def warm_up(self):
    self.warm.wait()
    yield

  def row(self, definition, text, called):
    return Row([ord(letter) for letter in text], [END], 0)

  def text(self, ids):
    return "".join(map(chr, ids)).rstrip("\x01")

  def mixture(self, weights):
    return {"a": float(weights[0])}

  def padded(self, row):
    return 8

  def places(self, rows):
    return self.sizes[-1]

  def answer(self, rows):
    self.batches.append([self.text(row.source) for row in rows])
    written = np.array([[*row.source, END, 0, 0, 0][:4] for row in rows])
    for count in range(1, 5):
      self.let.acquire()
      if self.fault:
        raise self.fault
      ended = (written[:, :count] == END).any(axis=1)
      yield Written(written[:, :count], ended, np.ones((len(rows), 1)))
      if ended.all():
        return


@contextlib.contextmanager
def serving(key="", **limits):
  """A server on loopback and its parrot."""
  from sapt_jax.serve.app import make_app, make_server

  parrot = Parrot()
  options = ServeOptions("", limits=Limits(**limits), look_every=0, wait_ms=0)
  place = program.bound("127.0.0.1", 0)
  place.listen()
  served = Serving(parrot, (), options, lambda: None)
  server = make_server(make_app(served, options.limits, "parrot", key), options.limits)
  thread = threading.Thread(target=lambda: server.run(sockets=[place]))
  served.start()
  thread.start()
  try:
    yield SimpleNamespace(parrot=parrot, port=place.getsockname()[1], served=served)
  finally:
    parrot.warm.set()
    parrot.let.release(1000)
    server.should_exit = True
    thread.join()
    served.stop()


def request(server, value=None, path="/v1/completions", **headers):
  """(status, body, headers)"""
  connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
  with contextlib.closing(connection):
    method = "GET" if value is None else "POST"
    connection.request(method, path, value and json.dumps(value), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def until(condition):
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.fixture
def clients():
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    yield pool


def test_nothing_is_answered_before_all_is_compiled():
  with serving() as server:
    assert request(server, path="/health")[0] == 503
    status, said, headers = request(server, {"prompt": "x"})
    assert (status, "warming up" in said, headers["Retry-After"]) == (503, True, "2")
    server.parrot.warm.set()
    until(lambda: request(server, path="/health")[0] == 200)
    server.parrot.let.release(9)
    assert request(server, {"prompt": "x"})[0] == 200


def test_more_prompts_than_may_wait_are_refused_and_the_others_answered(clients):
  with serving(queue=3, prompts=3) as server:
    server.parrot.warm.set()
    until(server.served.warm.is_set)
    asked = [clients.submit(request, server, {"prompt": "x"})]
    until(lambda: server.parrot.batches)
    asked += [clients.submit(request, server, {"prompt": ["y"]}) for _ in range(2)]
    until(lambda: len(server.served.waiting) == 2)
    status, said, headers = request(server, {"prompt": ["z", "z"]})
    assert (status, "2 prompts wait already" in said, headers["Retry-After"]) == (429, True, "1")
    assert "sapt_queue_length 2" in request(server, path="/metrics")[1]
    server.parrot.let.release(99)
    assert [one.result()[0] for one in asked] == [200] * 3
    assert server.parrot.batches == [["x"], ["y", "y"]]


def test_what_is_not_answered_in_time_is_left_and_costs_nothing_more(clients):
  with serving(seconds=0.3) as server:
    server.parrot.warm.set()
    until(server.served.warm.is_set)
    late = [clients.submit(request, server, {"prompt": "abc"}) for _ in range(3)]
    assert [one.result()[0] for one in late] == [504] * 3
    server.parrot.let.release(1)  # the batch is looked at once more, and given up
    server.parrot.let.release(2)
    status, said, _ = request(server, {"prompt": "x"})
    assert (status, json.loads(said)["choices"][0]["text"]) == (200, "x")
    assert sum(map(len, server.parrot.batches)) <= 3  # not the third one of those that were late


def test_a_stream_that_takes_too_long_ends_with_an_error():
  with serving(seconds=0.5) as server:
    server.parrot.warm.set()
    server.parrot.let.release(2)
    until(server.served.warm.is_set)
    status, said, _ = request(server, {"prompt": "abc", "stream": True})
    parts = [json.loads(line[6:]) for line in said.splitlines() if line]
    assert status == 200
    assert [part["choices"][0]["text"] for part in parts[:-1]] == ["a", "b"]
    assert "no answer within 0.5 s" in parts[-1]["error"]["message"]


def test_a_batch_that_fails_is_said_to_those_that_wait_and_the_next_one_is_answered(capsys):
  with serving() as server:
    server.parrot.warm.set()
    server.parrot.let.release(99)
    until(server.served.warm.is_set)
    server.parrot.fault = MemoryError("no room on the device")
    status, said, _ = request(server, {"prompt": "x"})
    assert (status, "the batch has failed" in said) == (500, True)
    assert request(server, path="/health")[0] == 503
    server.parrot.fault = None
    assert request(server, {"prompt": "x"})[0] == 200
    assert request(server, path="/health")[0] == 200
  assert "a batch of 1 failed: out of memory (no room on the device)" in capsys.readouterr().err


def test_a_request_that_comes_too_slowly_or_in_pieces_too_large_is_ended():
  with serving(upload=0.2, body=100) as server:
    server.parrot.warm.set()
    until(server.served.warm.is_set)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    for sent, status in (
      (b"Content-Length: 20\r\n\r\n{", b"408"),
      (b"Transfer-Encoding: chunked\r\n\r\n80\r\n" + b" " * 128 + b"\r\n", b"413"),
    ):
      with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(head + sent)
        said = b"".join(iter(lambda opened=connection: opened.recv(4096), b""))
      assert said.split()[1] == status
      assert b"connection: close" in said.lower()


def test_a_client_that_leaves_is_not_waited_for():
  with serving() as server:
    server.parrot.warm.set()
    until(server.served.warm.is_set)
    body = b'{"prompt": "abc"}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n"
    for number in (1, 2, 3):
      with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + body)
        until(lambda: server.parrot.batches)
      left = f'status="499"}} {number}'
      until(lambda left=left: left in request(server, path="/metrics")[1])
    assert len(server.served.waiting) == 0
    server.parrot.let.release(99)
    assert request(server, {"prompt": "x"})[0] == 200
    assert server.parrot.batches == [["abc"], ["x"]]


def test_only_who_has_the_key_is_answered():
  with serving(key="secret") as server:
    server.parrot.warm.set()
    server.parrot.let.release(99)
    until(server.served.warm.is_set)
    for path in ("/", "/health"):
      assert request(server, path=path)[0] == 200
    for path in ("/metrics", "/v1/models", "/nowhere"):
      assert request(server, path=path)[0] == 401
    assert "a key is needed" in request(server, {"prompt": "x"})[1]
    for given in ("secret", "Bearer secre", "Bearer secret2", "Basic secret", "Bearer sécret"):
      status, said, headers = request(server, {"prompt": "x"}, Authorization=given)
      assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
      error = json.loads(said)["error"]
      assert error["code"] == "invalid_api_key"
      assert "not this server's key" in error["message"]
    for given in ("Bearer secret", "bearer  secret"):
      assert request(server, {"prompt": "x"}, Authorization=given)[0] == 200
    assert server.parrot.batches == [["x"]] * 2


def jobs(*lengths):
  return [Job(Row([0] * length, [END], 0), length, 4, False, None) for length in lengths]


def test_a_batch_is_the_oldest_prompt_and_those_most_like_it():
  waiting = Waiting(9, 0)
  given = jobs(30, 100, 28, 31, 5, 99)
  waiting.put(given)
  assert waiting.take([1, 3]) == [given[0], given[3], given[2]]
  given[4].left = True
  assert waiting.take([1, 3]) == [given[1], given[5]]
  assert len(waiting) == 0
  with pytest.raises(FullError, match="0 prompts wait"):
    waiting.put(jobs(*range(10)))
  waiting.close()
  assert waiting.take([1, 3]) == []


def test_a_lone_prompt_waits_for_others_no_longer_than_it_is_told():
  waiting = Waiting(9, 0.2)
  waiting.put(jobs(1))
  later = threading.Timer(0.05, lambda: waiting.put(jobs(2, 3)))
  later.start()
  assert len(waiting.take([1, 3])) == 3  # at once when the batch is full
  waiting.put(jobs(1))
  start = time.monotonic()
  assert len(waiting.take([1, 3])) == 1
  assert 0.1 < time.monotonic() - start < 5


def test_a_server_whose_programs_do_not_compile_ends():
  error, ended = MemoryError("no room"), threading.Event()

  def warm_up():
    raise error

  served = Serving(
    SimpleNamespace(mesh=Parrot.mesh, warm_up=warm_up), (), ServeOptions(""), ended.set
  )
  served.start()
  assert ended.wait(20)
  assert served.failure is error
  served.stop()


class Folder:
  """A run's folder as a watcher sees it, and the worker beside it."""

  def __init__(self, path):
    self.path, self.answers, self.refuses = path, [], None
    self.ready = self
    self.snapshot, self.tasks = "00_a", ["a"]
    self.save("00_a")

  def save(self, name):
    (self.path / "snapshots" / name).mkdir(parents=True)
    (self.path / "snapshots" / name / "manifest.json").write_text("{}")

  def warm_up(self):
    yield

  def renewed(self):
    if self.refuses:
      raise self.refuses
    names = sorted(place.name for place in (self.path / "snapshots").iterdir())
    self.answers.append(names)
    return SimpleNamespace(snapshot=names[-1], tasks=names, warm_up=self.warm_up, renewed=None)


def test_a_change_is_taken_over_when_it_is_seen_twice_and_what_cannot_be_read_is_not(
  tmp_path, capsys
):
  folder, metrics = Folder(tmp_path), Metrics()
  seen = sight_of(tmp_path)
  watcher = Watcher(tmp_path, seen, 1.0, folder, metrics)
  watcher.look()
  assert folder.answers == []
  (tmp_path / "snapshots").rename(tmp_path / "away")  # as while a run is being replaced
  watcher.look()
  watcher.look()
  (tmp_path / "away").rename(tmp_path / "snapshots")
  folder.refuses = InputError("01_b: damaged")
  folder.save("01_b")
  (tmp_path / "snapshots" / "02_c.draft").mkdir()  # half written
  for _ in range(5):
    watcher.look()
  assert capsys.readouterr().err == "warning: 01_b: damaged; goes on with 00_a\n"
  assert 'renewals_total{outcome="refused"} 1' in metrics.text({})
  (tmp_path / "snapshots" / "02_c.draft").rmdir()
  (tmp_path / "snapshots" / "01_b" / "manifest.json").write_text("{ }")  # written anew
  folder.refuses = None
  watcher.look()
  assert folder.answers == []
  watcher.look()
  watcher.look()
  assert folder.answers == [["00_a", "01_b"]]
  assert folder.ready.snapshot == "01_b"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--port", "70000"], "--port 70000: must be from 0 to 65535"),
    (["--port", "PORT"], "cannot be listened at"),
    (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    (["--key", "@/nowhere/key"], "no such folder as /nowhere"),
    (["--key", "schlüssel"], "printable ASCII"),
    (["--limits.queue", "0"], "limits.queue 0: must be at least 1"),
    (["--limits.prompts", "999"], "must be at most limits.queue 256"),
    (["--limits.seconds", "nan"], "limits.seconds nan"),
    (["--wait-ms", "-1"], "--wait-ms -1.0: must not be negative"),
    ([], "not the folder of a run"),
  ],
  ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else "",
)
def test_wrong_options_end_with_one_line(arguments, words, tmp_path, monkeypatch, capsys):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = str(taken.getsockname()[1])
    given = ["--run", str(tmp_path), *(port if one == "PORT" else one for one in arguments)]
    if "--port" not in given:
      given += ["--port", "0"]
    code, line = tiny.run_program(program, given, monkeypatch, capsys)
  assert (code, words in line, line.count("\n")) == (2, True, 1), line


def test_what_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "starlette", None)
  monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
  code, line = tiny.run_program(program, ["--run", str(tmp_path)], monkeypatch, capsys)
  assert (code, "pip install 'sapt-jax[serve]'" in line) == (2, True)


def test_a_key_may_stand_in_a_file_or_in_the_environment(tmp_path, monkeypatch):
  (tmp_path / "key").write_text(" secret \nmore")
  assert program.key_of(ServeOptions("", key=f"@{tmp_path}/key")) == "secret"
  assert program.key_of(ServeOptions("")) == ""
  monkeypatch.setenv("SAPT_JAX_KEY", "of environment ")
  assert program.key_of(ServeOptions("")) == "of environment"
  monkeypatch.setenv("SAPT_JAX_KEY", " ")
  with pytest.raises(InputError, match="SAPT_JAX_KEY ' ': the key is empty"):
    program.key_of(ServeOptions(""))


def test_a_server_that_all_can_reach_says_so(tmp_path, monkeypatch, capsys):
  given = ["--run", str(tmp_path), "--port", "0", "--host", "0.0.0.0"]
  code, lines = tiny.run_program(program, given, monkeypatch, capsys)
  assert (code, "whoever reaches the port can ask" in lines) == (2, True)
  _, lines = tiny.run_program(program, [*given, "--key", "secret"], monkeypatch, capsys)
  assert "whoever" not in lines
