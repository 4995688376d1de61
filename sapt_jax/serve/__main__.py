"""Answers over HTTP with all that a run has learned; no task is given.

    python -m sapt_jax.serve --run runs/mini --port 8000

POST /v1/completions and /v1/chat/completions are in OpenAI's form, with the `mixture` of blocks
beside each answer; / is a page to try it, /health and /metrics are for machines. docs/serving.md
has the rest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sapt_jax import cli
from sapt_jax.errors import FailedError, InputError
from sapt_jax.remote import is_remote, readable
from sapt_jax.serve.options import ServeOptions
from sapt_jax.text_files import read_text

WAITING = 1024  # connections that may wait to be taken


def main(arguments: Sequence[str]) -> None:
  """Parses, restores, serves until a signal comes."""
  options = cli.parse(ServeOptions, arguments, "sapt_jax.serve", cli.summary(__doc__))
  for package in ("starlette", "uvicorn"):
    if importlib.util.find_spec(package) is None:
      raise InputError(f"{package} is not installed; pip install 'sapt-jax[serve]'")
  key = key_of(options)
  with ended_by_signals(), bound(options.host, options.port) as place:
    if not key and options.host not in ("127.0.0.1", "::1", "localhost"):
      open_to_all = f"--host {options.host} without --key: whoever reaches the port can ask"
      print(f"warning: {open_to_all}", file=sys.stderr)
    serve(options, key, place)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
  """SIGTERM and SIGINT (Ctrl-C) end the program with exit code 0: a server has nothing to save."""

  def end(number: int, frame: Any) -> None:
    del number, frame
    sys.exit(0)

  before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def serve(options: ServeOptions, key: str, place: socket.socket) -> None:
  """Restores the run and serves it.

  Raises:
    InputError: the run cannot answer, or another program has come to listen there.
    FailedError: its programs do not compile here.
  """
  cli.keep_compiled_programs()
  # Here, so that --help and wrong options answer at once.
  from sapt_jax.answering import Answering
  from sapt_jax.serve.app import make_app, make_server
  from sapt_jax.serve.ready import Ready
  from sapt_jax.serve.serving import Serving
  from sapt_jax.serve.watch import sight_of

  run = readable(options.run)
  seen = () if is_remote(options.run) else sight_of(run)
  answering = Answering(run, options.batch_size, options.mesh, options.backbone.path)
  answering.check([])

  def stop() -> None:
    server.should_exit = True

  serving = Serving(Ready(answering), seen, options, stop)
  name = options.name or pathlib.Path(options.run.rstrip("/")).resolve().name
  if re.search("[\ud800-\udfff]", name):
    raise InputError(f"--name {name!r}: is not UTF-8, as answers have to be; give another")
  app = make_app(serving, options.limits, name, key)
  server = make_server(app, options.limits)
  try:
    place.listen(WAITING)
  except OSError as error:  # another program was faster
    raise not_there(options.host, options.port, error) from None
  host, port = place.getsockname()[:2]
  shown = f"[{host}]" if ":" in host else host
  print(f"{name}: {len(answering.tasks)} tasks at http://{shown}:{port}/", flush=True)
  print(
    f"compiling {serving.ready.shapes} shapes of batches, which takes seconds to minutes the first "
    "time; a smaller --batch-size needs fewer",
    flush=True,
  )
  serving.start()
  try:
    server.run(sockets=[place])  # until a signal, which it hands on when all is answered
  finally:
    serving.stop()
  if serving.failure is not None:
    raise FailedError(f"{options.run}: {cli.reason_of(serving.failure)}") from serving.failure


def key_of(options: ServeOptions) -> str:
  """The key that clients must send; empty: none.

  Raises:
    InputError: it is to be read from a file that has none, or no client could send it.
  """
  source = "--key" if options.key else "SAPT_JAX_KEY"
  given = options.key or os.environ.get("SAPT_JAX_KEY", "")
  key = given.strip()
  if key.startswith("@"):
    key = read_text(pathlib.Path(key[1:]), f"{source} {key}", pipe=True).partition("\n")[0].strip()
  if given and not key:
    raise InputError(
      f"{source} {given!r}: the key is empty; write one, in a file as its first line"
    )
  if not (key.isascii() and key.isprintable()):
    raise InputError(f"{source}: must be of printable ASCII letters, which a header can hold")
  return key


def bound(host: str, port: int) -> socket.socket:
  """A socket at this address; nobody can connect before it listens.

  Raises:
    InputError: the address is not this machine's, or is taken.
  """
  place = None
  try:
    *kind, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # With its protocol, as asyncio has only sockets that are known to be TCP send without delay.
    place = socket.socket(*kind)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(address)
    return place
  except (OSError, UnicodeError) as error:
    if place is not None:
      place.close()
    raise not_there(host, port, error) from None


def not_there(host: str, port: int, error: OSError | UnicodeError) -> InputError:
  """That nothing can be served at this address."""
  reason = getattr(error, "strerror", None) or error
  return InputError(
    f"--host {host} --port {port}: cannot be listened at ({reason}); choose another"
  )


if __name__ == "__main__":
  cli.run(main)
