"""A run that answers over HTTP, as a process of its own on loopback."""

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny

from sapt_jax import forget
from sapt_jax.answering import Answering
from sapt_jax.config import Mesh
from sapt_jax.errors import InputError
from sapt_jax.learner import put_together
from sapt_jax.serve.__main__ import bound, serve
from sapt_jax.serve.options import ServeOptions
from sapt_jax.serve.ready import Ready
from sapt_jax.training import checkpoint
from tests.browser import browser
from tests.runs import snapshots
from tests.served import (
  COLOUR,
  COUNT,
  QUESTIONS,
  ROOT,
  Server,
  assert_same_answers,
  loaded,
  predicted,
  serving,
)


@pytest.fixture(scope="module")
def young(finished, tmp_path_factory):
  """The run as it was when it had learned one task, to be gone on with."""
  killed = sorted((finished.parent / "killed").iterdir(), key=lambda place: int(place.name))
  [first, *_] = [
    place for place in killed if sum(map(checkpoint.is_finished, snapshots(place))) == 1
  ]
  return shutil.copytree(first, tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="module")
def grown(young, loop, tmp_path_factory):
  """A server that has seen its run learn a second task, and what it has answered meanwhile. The
  last tests of this file change the run again.
  """
  alone = predicted(young, tmp_path_factory.mktemp("young"))
  with serving(young) as server:
    first = server.ask_together(QUESTIONS)
    with loaded(server) as counts:
      loop.run(young)
      server.until(lambda: server.tasks() == list(tiny.TASKS))
    yield SimpleNamespace(server=server, alone=alone, first=first, counts=counts)


@pytest.fixture(scope="module")
def server(grown):
  return grown.server


@pytest.fixture(scope="module")
def client(server):
  openai = pytest.importorskip("openai", reason="needs the openai client: pip install openai")
  with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as made:
    yield made


@pytest.fixture(scope="module")
def expected(finished, tmp_path_factory):
  return predicted(finished, tmp_path_factory.mktemp("predicted"))


def test_a_task_is_learned_under_load_without_a_failed_request(grown):
  assert_same_answers(grown.first, grown.alone)
  assert list(grown.first[0][1]) == list(tiny.TASKS)[:1]
  assert min(grown.counts) > 3
  assert not re.search(r'status="(?!200|503)', grown.server.get("/metrics")[1])


def test_answers_given_together_and_one_by_one_are_those_of_predict(server, expected):
  batches = server.figure("batch_rows_count")
  assert_same_answers(server.ask_together(QUESTIONS), expected)
  assert server.figure("batch_rows_count") - batches < len(QUESTIONS) / 2
  assert_same_answers([server.ask(question) for question in QUESTIONS[::5]], expected[::5])


def test_one_request_may_hold_many_prompts(server, expected):
  prompts = [question["input"] for question in QUESTIONS[:12]]
  status, said = server.post({"prompt": prompts, "definition": COLOUR})
  assert status == 200
  assert [choice["index"] for choice in said["choices"]] == list(range(12))
  found = [(choice["text"], choice["mixture"]) for choice in said["choices"]]
  assert_same_answers(found, expected[:12])


def test_the_openai_client_is_answered(client, server, expected):
  [model] = client.models.list().data
  assert client.models.retrieve(model.id).owned_by == "sapt_jax"
  text, mixture = expected[0]
  said = client.completions.create(
    model=model.id, prompt=QUESTIONS[0]["input"], extra_body={"definition": COLOUR}, temperature=0
  )
  assert (said.choices[0].text, said.object) == (text, "text_completion")
  assert said.choices[0].mixture == said.mixture == pytest.approx(mixture, abs=2e-5)
  assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
  messages = [
    {"role": "system", "content": COLOUR},
    {"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]["input"]}]},
  ]
  chat = client.chat.completions.create(model=model.id, messages=messages)
  assert (chat.choices[0].message.content, chat.object) == (text, "chat.completion")
  assert chat.usage == said.usage
  short = client.chat.completions.create(model="another", messages=messages, max_tokens=1)
  assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (1, "length")
  assert short.model == model.id
  assert text.startswith(short.choices[0].message.content)


def test_the_requests_of_the_docs_are_answered(client, server):
  text = (ROOT / "docs/serving.md").read_text()
  curl = re.search(r"^    (curl (?:.*\n    )*.*)$", text, re.MULTILINE).group(1)
  [python] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
  for program in (["bash", "-c", curl], [sys.executable, "-c", python]):
    here = [part.replace("http://127.0.0.1:8000/", server.url) for part in program]
    done = subprocess.run(here, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "task001_colour" in done.stdout


def test_a_streamed_answer_comes_in_parts_that_make_the_whole(client, server, expected):
  long = max(range(len(QUESTIONS)), key=lambda number: len(expected[number][0]))
  definition, prompt = QUESTIONS[long].get("definition"), QUESTIONS[long]["input"]
  text, mixture = expected[long]
  [model] = client.models.list().data
  counted = {"stream": True, "stream_options": {"include_usage": True}, "model": model.id}
  parts = list(
    client.completions.create(prompt=prompt, extra_body={"definition": definition}, **counted)
  )
  said = [part.choices[0].text for part in parts[:-1]]
  assert "".join(said) == text
  assert sum(map(bool, said)) > 1
  assert parts[0].choices[0].mixture == pytest.approx(mixture, abs=2e-5)
  assert [part.choices[0].finish_reason is None for part in parts[:-1]] == [True] * (
    len(said) - 1
  ) + [False]
  assert parts[-1].usage.completion_tokens > 1
  messages = [{"role": "system", "content": COUNT}, {"role": "user", "content": "ooo here"}]
  whole = client.chat.completions.create(messages=messages, model=model.id)
  chat = list(client.chat.completions.create(messages=messages, **counted))
  assert chat[0].choices[0].delta.role == "assistant"
  assert "".join(part.choices[0].delta.content for part in chat[:-1]) == (
    whole.choices[0].message.content
  )
  assert chat[-1].usage == whole.usage


HI = {"role": "user", "content": "hi"}
BAD = {
  "no JSON": (400, "completions", "{'prompt'", "not JSON"),
  "nothing": (400, "completions", "", "is empty"),
  "no UTF-8": (400, "completions", b'{"prompt": "\xff"}', "not UTF-8"),
  "half a pair": (400, "completions", '{"prompt": "\\ud83d"}', "half of a surrogate pair"),
  "too deep": (400, "completions", "[" * 100_000, "nested too deeply"),
  "a list": (400, "completions", [1], "must be a JSON object"),
  "no prompt": (400, "completions", {}, "prompt: missing"),
  "a number": (400, "completions", {"prompt": 7}, "prompt 7: must be a text"),
  "no prompts": (400, "completions", {"prompt": []}, "must hold a text"),
  "tokens": (400, "completions", {"prompt": [[1, 2]]}, "prompt[0]"),
  "many": (400, "completions", {"prompt": ["x"] * 65}, "at most 64"),
  "long": (400, "completions", {"prompt": "x" * 20_001}, "20001 characters"),
  "empty": (400, "completions", {"prompt": "", "definition": "long " * 200}, "no room"),
  "a typo": (400, "completions", {"prompt": "x", "promt": 1}, "promt: not a field"),
  "warm": (400, "completions", {"prompt": "x", "temperature": 0.7}, "temperature 0.7: must be 0"),
  "NaN": (400, "completions", '{"prompt": "x", "temperature": NaN}', "temperature nan"),
  "several": (400, "completions", {"prompt": "x", "n": 2}, "n 2: must be 1"),
  "true": (400, "completions", {"prompt": "x", "n": True}, "n True"),
  "no tokens": (400, "completions", {"prompt": "x", "max_tokens": 0}, "max_tokens 0"),
  "stream": (400, "completions", {"prompt": "x", "stream": "yes"}, "stream 'yes'"),
  "usage": (
    400,
    "completions",
    {"prompt": "x", "stream_options": {"a": 1}},
    "must be an object of",
  ),
  "slash": (404, "completions/", {"prompt": "x"}, "no such path"),
  "stop": (400, "completions", {"prompt": "x", "stop": ["a"]}, "not served"),
  "scores": (400, "completions", {"prompt": "x", "logprobs": 1}, "logprobs 1"),
  "model": (400, "completions", {"prompt": "x", "model": 3}, "model 3: must be text"),
  "no messages": (400, "chat/completions", {"messages": []}, "messages: missing"),
  "a text": (400, "chat/completions", {"messages": ["hi"]}, "messages[0] 'hi'"),
  "two": (400, "chat/completions", {"messages": [HI, HI]}, "here are 2 and 0"),
  "role": (400, "chat/completions", {"messages": [HI | {"role": "tool"}]}, "messages[0].role"),
  "picture": (
    400,
    "chat/completions",
    {"messages": [HI | {"content": [{"type": "image_url"}]}]},
    "messages[0].content",
  ),
  "tools": (400, "chat/completions", {"messages": [HI], "tools": [{}]}, "tools"),
  "prompt in a chat": (400, "chat/completions", {"messages": [HI], "prompt": "x"}, "prompt: not"),
  "large": (413, "completions", b" " * 1_000_001, "1000000 bytes"),
  "nowhere": (404, "nowhere", {}, "no such path"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_has_its_status_and_a_line_that_says_why(server, kind):
  status, path, body, words = BAD[kind]
  text = body if isinstance(body, str | bytes) else json.dumps(body)
  found, said, _ = server.request("POST", f"/v1/{path}", text)
  error = json.loads(said)["error"]
  assert (found, words in error["message"]) == (status, True), said
  assert set(error) == {"message", "type", "param", "code"}


def test_another_model_is_not_there_to_be_looked_at(server):
  status, said, _ = server.request("GET", "/v1/models/another")
  assert (status, "this server has 'run'" in json.loads(said)["error"]["message"]) == (404, True)


def test_another_method_is_not_served(server):
  status, said, headers = server.request("GET", "/v1/completions")
  assert (status, headers["Allow"]) == (405, "POST")
  assert "GET" in json.loads(said)["error"]["message"]


def test_requests_that_are_cut_off_or_no_http_harm_no_other(server, expected):
  head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
  whole = b'{"prompt": "x", "stream": true}'
  for sent in (
    head + b'50\r\n\r\n{"prompt"',
    head[:20],
    b"\x16\x03\x01 no HTTP\r\n\r\n",
    head + b"-1\r\n\r\n",
    head + str(len(whole)).encode() + b"\r\n\r\n" + whole,  # whole, but nobody reads the answer
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
  ) * 5:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
      connection.sendall(sent)
  assert_same_answers(server.ask_together(QUESTIONS), expected)
  server.until(lambda: server.figure("queue_length") == 0)
  assert 'path="/v1/completions",status="499"' in server.get("/metrics")[1]
  assert "Traceback" not in server.errors.read_text()


def test_figures_add_up(server):
  status, text = server.get("/metrics")
  assert status == 200
  rows, places = server.figure("batch_rows_sum"), server.figure("batch_places_total")
  assert 0 < rows <= places
  assert server.figure('batch_rows_bucket{le="+Inf"}') == server.figure("batch_rows_count")
  assert (server.figure("tasks"), server.figure("ready")) == (2, 1)
  kinds = re.findall(r"^# TYPE (\S+) (counter|gauge|histogram)$", text, re.MULTILINE)
  assert len(kinds) == len(re.findall("^# HELP", text, re.MULTILINE)) > 10


def test_the_page_answers_shows_its_blocks_and_asks_nobody_else(server, expected):
  with browser() as page:
    page.size(1200, 900)
    page.open(server.url)
    page.until("document.getElementById('task').options.length > 2")
    assert page.see("document.getElementById('definition').value") == COLOUR
    page.see("document.getElementById('input').focus()")
    page.type(QUESTIONS[0]["input"])
    page.press("Tab", 9)  # to the button, by the keyboard alone
    assert page.see("document.activeElement.id") == "ask"
    page.press("Tab", 9, modifiers=8)
    page.press("Enter", 13, modifiers=2)
    facts = page.until("document.getElementById('facts').textContent")
    text, mixture = expected[0]
    assert page.see("document.getElementById('answer').textContent") == text
    rows = page.see("[...document.querySelectorAll('#blocks li')].map(row => row.textContent)")
    best = max(mixture, key=mixture.get)
    assert (len(rows), rows[0]) == (2, f"{best}{100 * mixture[best]:.1f} %")
    assert "tokens read" in facts
    assert best in page.see("document.getElementById('said').textContent")
    page.see("document.getElementById('definition').focus()")
    page.type(" " + "long " * 200)
    assert page.see("document.getElementById('task').selectedOptions[0].text") == "my own words"
    page.press("Enter", 13, modifiers=2)
    page.until("document.getElementById('answer').className === 'bad'")
    assert "no room" in page.see("document.getElementById('answer').textContent")
    names = [
      node["name"]["value"]
      for node in page.call("Accessibility.getFullAXTree")["nodes"]
      if node.get("role", {}).get("value") in ("textbox", "combobox", "button")
    ]
    assert names == ["Instruction", "Text of the instruction", "Input", "Ask"]
    assert all(url.startswith(server.url) for url in page.asked), page.asked
    assert [line for line in page.complaints if "400" not in line] == []


def assert_ends_well(server, number):
  """A signal ends the server with exit code 0, after it has answered what it has begun to read."""
  body = json.dumps({"prompt": "x"}).encode()
  head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
  with contextlib.ExitStack() as opened:
    begun = [
      opened.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
      for _ in range(8)
    ]
    for connection in begun:  # the server says when it reads the body
      connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
      assert connection.recv(100).startswith(b"HTTP/1.1 100")
    server.process.send_signal(number)
    server.until(lambda: is_refused(server.port))
    for connection in begun:
      connection.sendall(body)
      assert connection.recv(15) == b"HTTP/1.1 200 OK"
  assert server.process.wait(30) == 0
  assert "Traceback" not in server.errors.read_text()


def is_refused(port):
  try:
    socket.create_connection(("127.0.0.1", port)).close()
  except ConnectionRefusedError:
    return True
  return False


def test_a_damaged_snapshot_is_named_and_a_task_is_forgotten_under_load(server, young, tmp_path):
  with loaded(server) as counts:
    harmed = shutil.copytree(snapshots(young)[-1], young / "snapshots" / "02_x.draft")
    (harmed / checkpoint.RECORD).write_text("{}")
    harmed.rename(young / "snapshots" / "02_x")
    server.until(lambda: "02_x" in server.errors.read_text())
    shutil.rmtree(young / "snapshots" / "02_x")
    assert server.tasks() == list(tiny.TASKS)
    forget.main(["--run", str(young), "--task", "task001_colour"])
    server.until(lambda: server.tasks() == ["task002_count"])
    assert_same_answers(server.ask_together(QUESTIONS), predicted(young, tmp_path))
  assert min(counts) > 3


def test_another_run_in_the_same_place_is_not_taken_over(server, young):
  values = json.loads((young / "config.json").read_text())
  values["seed"] += 1
  (young / "config.json").write_text(json.dumps(values))
  os.utime(snapshots(young)[-1] / checkpoint.MANIFEST)
  server.until(lambda: "another run is there now (its seed differ)" in server.errors.read_text())
  assert server.ask(QUESTIONS[0])[0] is not None


def test_ctrl_c_ends_a_server_that_still_compiles(finished):
  other = Server(finished, "--batch-size", "1")
  assert json.loads(other.get("/health")[1])["status"] == "warming up"
  other.process.send_signal(signal.SIGINT)
  assert other.process.wait(30) == 0
  other.process.stdout.close()


def test_sigterm_ends_a_server_after_it_has_answered(server):
  assert_ends_well(server, signal.SIGTERM)


def test_a_port_that_another_program_has_taken_meanwhile_is_named(finished):
  with bound("127.0.0.1", 0) as first:
    port = first.getsockname()[1]
    with bound("127.0.0.1", port) as second:
      first.listen()
      with pytest.raises(InputError, match=f"--port {port}: cannot be listened at"):
        serve(ServeOptions(str(finished), port=port), "", second)


def test_a_server_whose_pool_gets_more_room_copies_no_weights_again(finished):
  old = Ready(Answering(finished, 4, Mesh()))
  larger, built = copy.copy(old.answering), old.answering.built
  capacity, inputs = larger.sizes
  larger.built = put_together(larger.options, built.mesh, built.backbone, 2 * capacity, inputs)
  new = Ready(larger, old)
  assert new.stepwise is not old.stepwise
  assert new.stepwise.params is old.stepwise.params
