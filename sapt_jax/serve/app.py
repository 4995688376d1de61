"""The HTTP side: routes, limits, and the way from a request to jobs and back."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sapt_jax.errors import InputError
from sapt_jax.serve.openai import Asked, RefusedError, Reply, read_request
from sapt_jax.serve.options import Limits
from sapt_jax.serve.queue import FullError
from sapt_jax.serve.serving import Serving
from sapt_jax.serve.telling import Telling, jobs_of
from sapt_jax.text_files import parse_json

LEFT = 499  # what is counted for a client that has left; nobody reads it
# Times the limit that is read of a body that is too large, and thrown away: a client that is still
# sending when the connection ends does not see why.
DRAINED = 16
OPEN = ("/", "/health")  # paths that ask for no key
# The page is one file that asks this server and no other.
PAGE_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
  "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def make_app(serving: Serving, limits: Limits, name: str, key: str) -> Starlette:
  """The application.

  Args:
    name: the model's.
    key: what clients must send; empty: nothing.
  """
  routes = Routes(serving, limits, name, key)
  app = Starlette(
    routes=[
      Route("/", routes.page),
      Route("/health", routes.health),
      Route("/metrics", routes.metrics),
      Route("/v1/models", routes.models),
      Route("/v1/models/{name:path}", routes.model),
      Route("/v1/completions", routes.completions, methods=["POST"]),
      Route("/v1/chat/completions", routes.chat, methods=["POST"]),
    ],
    exception_handlers={HTTPException: refused_by_route, RefusedError: refused, 500: failed},
  )
  app.router.redirect_slashes = False  # by http, and to where the client says that it is
  known = {route.path for route in app.routes if isinstance(route, Route)}
  app.add_middleware(Gate, serving=serving, key=key, known=known)
  return app


def make_server(app: Starlette, limits: Limits) -> uvicorn.Server:
  """What speaks HTTP. A SIGTERM or SIGINT ends it, after all that it has taken is answered."""
  return uvicorn.Server(
    uvicorn.Config(
      app,
      http="h11",
      ws="none",
      loop="asyncio",
      lifespan="off",
      log_level="warning",
      access_log=False,
      server_header=False,
      proxy_headers=False,
      timeout_keep_alive=75,
      timeout_graceful_shutdown=math.ceil(limits.seconds + limits.upload),
    )
  )


class Gate:
  """What every request passes: the key is checked on its way in, the figures are taken on its way
  out.
  """

  def __init__(self, app: Any, serving: Serving, key: str, known: set[str]):
    self.app, self.metrics, self.key, self.known = app, serving.metrics, key, known

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """One request."""
    if scope["type"] != "http":
      await self.app(scope, receive, send)
      return
    start, status = time.monotonic(), LEFT

    async def note(message: MutableMapping[str, Any]) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    try:
      if self.may_pass(scope):
        await self.app(scope, receive, note)
      else:
        given = b"authorization" in dict(scope["headers"])
        words = "is not this server's key" if given else "a key is needed"
        error = RefusedError(f"{words} (Authorization: Bearer KEY)", status=401)
        error.code = "invalid_api_key"
        await refusal(error)(scope, receive, note)
    finally:
      path = scope["path"] if scope["path"] in self.known else "other"
      self.metrics.count("requests_total", path=path, status=str(status))
      if path.endswith("completions"):
        self.metrics.observe("request_seconds", time.monotonic() - start)

  def may_pass(self, scope: Scope) -> bool:
    """Whether the path is open, or the request has the key."""
    if not self.key or scope["path"] in OPEN:
      return True
    scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key.encode())


def refusal(error: RefusedError) -> Response:
  """The response that an error is."""
  headers = {"Retry-After": str(error.retry)} if error.retry else {}
  if error.status == 401:
    headers["WWW-Authenticate"] = "Bearer"
  if error.status in (408, 413):
    headers["Connection"] = "close"  # the rest of the request is not read
  return JSONResponse(error.body(), error.status, headers)


async def refused(_: Request, error: Exception) -> Response:
  """An error of ours."""
  assert isinstance(error, RefusedError)
  return refusal(error)


async def refused_by_route(request: Request, error: Exception) -> Response:
  """No such path, or another method."""
  assert isinstance(error, HTTPException)
  ways = {404: "no such path", 405: f"{request.method} is not served here"}
  said = f"{request.url.path[:200]}: {ways.get(error.status_code, error.detail)}"
  response = refusal(RefusedError(said, status=error.status_code))
  response.headers.update(error.headers or {})
  return response


async def failed(_: Request, error: Exception) -> Response:
  """A fault of the server's."""
  del error  # uvicorn logs it
  return refusal(RefusedError("the server has met a fault; its log has more", status=500))


async def read_body(request: Request, limits: Limits) -> str:
  """A request's body as text.

  Raises:
    RefusedError: it is too large, too slow, or not UTF-8; or the client has left.
  """
  too_large = RefusedError(f"a request of more than {limits.body} bytes", status=413)
  announced = request.headers.get("content-length", "0")
  if announced.isdecimal() and int(announced) > DRAINED * limits.body:
    raise too_large
  parts, size = [], 0
  try:
    async with asyncio.timeout(limits.upload):
      async for part in request.stream():
        size += len(part)
        if size <= limits.body:
          parts.append(part)
        elif size > DRAINED * limits.body:
          break
  except TimeoutError:
    if size <= limits.body:
      message = f"the request has not come in whole within {limits.upload:g} s"
      raise RefusedError(message, status=408) from None
  except ClientDisconnect:
    raise RefusedError("the client has left", status=LEFT) from None
  if size > limits.body:
    raise too_large
  try:
    return b"".join(parts).decode()
  except UnicodeDecodeError as error:
    raise RefusedError(f"the request is not UTF-8 (byte {error.start})") from None


class Routes:
  """What is served at each path; see make_app for the arguments."""

  def __init__(self, serving: Serving, limits: Limits, name: str, key: str):
    self.serving, self.limits, self.name, self.locked = serving, limits, name, bool(key)
    self.created = int(time.time())
    self.html = resources.files("sapt_jax.serve").joinpath("page.html").read_text("utf-8")

  async def page(self, _: Request) -> Response:
    """The page to try it."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(self.html, headers=headers, media_type="text/html")

  async def health(self, _: Request) -> Response:
    """200 once all shapes are compiled and as long as batches are answered; else 503."""
    state = self.serving.state()
    ready = self.serving.ready
    body = {"status": state, "tasks": len(ready.tasks), "snapshot": ready.snapshot}
    body |= {"key": self.locked, "compiled": self.serving.worker.compiled, "shapes": ready.shapes}
    return JSONResponse(
      body, 200 if state == "ready" else 503, {} if state == "ready" else {"Retry-After": "2"}
    )

  async def metrics(self, _: Request) -> Response:
    """Figures for Prometheus."""
    return PlainTextResponse(
      self.serving.figures(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )

  def about(self) -> dict[str, Any]:
    """The model in OpenAI's form, and its tasks with their instructions as far as the run has
    them.
    """
    ready = self.serving.ready
    tasks = [{"name": task, "instruction": ready.instructions.get(task)} for task in ready.tasks]
    return {
      "id": self.name,
      "object": "model",
      "created": self.created,
      "owned_by": "sapt_jax",
      "tasks": tasks,
    }

  async def models(self, _: Request) -> Response:
    """The one model."""
    return JSONResponse({"object": "list", "data": [self.about()]})

  async def model(self, request: Request) -> Response:
    """The model by its name."""
    if (name := request.path_params["name"]) != self.name:
      message = f"model {name[:80]!r}: not here; this server has {self.name!r}"
      raise RefusedError(message, "model", 404, "model_not_found")
    return JSONResponse(self.about())

  async def completions(self, request: Request) -> Response:
    """POST /v1/completions."""
    return await self.ask(request, chat=False)

  async def chat(self, request: Request) -> Response:
    """POST /v1/chat/completions."""
    return await self.ask(request, chat=True)

  async def ask(self, request: Request, chat: bool) -> Response:
    """Reads, queues, answers."""
    start = asyncio.get_running_loop().time()
    text = await read_body(request, self.limits)
    try:
      values = parse_json(text, "the request")
    except InputError as error:
      raise RefusedError(str(error)) from None
    asked, worker = read_request(values, chat, self.limits), self.serving.worker
    if (state := self.serving.state()) not in ("ready", "failing"):
      there = f" ({worker.compiled} of {worker.ready.shapes} shapes are compiled)"
      more = there if state == "warming up" else ""
      raise RefusedError(f"the server is {state}{more}; try again", status=503, retry=2)
    ready = self.serving.ready
    jobs = await run_in_threadpool(jobs_of, asked, ready, asyncio.get_running_loop())
    try:
      self.serving.waiting.put(jobs)
    except FullError as error:
      raise RefusedError(f"{error}; try again", status=429, retry=1) from None
    return await self.answered(request, asked, Telling(ready, jobs), start + self.limits.seconds)

  async def answered(
    self, request: Request, asked: Asked, telling: Telling, until: float
  ) -> Response:
    """The response, when all answers are written, or a stream of them when the first news are
    there.
    """
    kind = "chatcmpl" if asked.chat else "cmpl"
    wanted = telling.first() if asked.stream else telling.rest()
    await self.unless_gone(request, telling, wanted, until)
    name, now = f"{kind}-{uuid.uuid4().hex}", int(time.time())
    reply = Reply(asked, name, now, self.name, telling.snapshot)
    if asked.stream:
      return StreamingResponse(
        self.stream(reply, telling, until),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
      )
    self.count(telling)
    return JSONResponse(reply.whole(telling.answers(), telling.usage()))

  async def unless_gone(
    self, request: Request, telling: Telling, wanted: Awaitable[None], until: float
  ) -> None:
    """Waits for news, as long as there are client and time.

    Raises:
      RefusedError: there are not; the jobs are left then. Or a batch has failed.
    """

    async def gone() -> None:
      while (await request.receive())["type"] != "http.disconnect":
        pass

    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(gone())]
    try:
      left = max(until - asyncio.get_running_loop().time(), 0)
      done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
      if tasks[0] in done:
        tasks[0].result()
      elif done:
        raise RefusedError("the client has left", status=LEFT)
      else:
        raise self.late()
    except BaseException:
      telling.leave()
      raise
    finally:
      for task in tasks:
        task.cancel()

  def late(self) -> RefusedError:
    """The time is over."""
    message = f"no answer within {self.limits.seconds:g} s; try again"
    return RefusedError(message, status=504, retry=1)

  async def stream(self, reply: Reply, telling: Telling, until: float) -> AsyncIterator[str]:
    """Server-sent events: parts of the answers as they are written, then [DONE]; an error ends it
    without that.
    """
    try:
      async with asyncio.timeout_at(until):
        async for number, part in telling.parts():
          yield event(reply.part(number, part))
      if reply.asked.usage:
        yield event(reply.counts(telling.usage()))
      yield "data: [DONE]\n\n"
    except TimeoutError:
      yield event(self.late().body())
    except RefusedError as error:
      yield event(error.body())
    finally:
      telling.leave()
      self.count(telling)

  def count(self, telling: Telling) -> None:
    """Adds to the figures what was read and written."""
    usage = telling.usage()
    self.serving.metrics.count("prompt_tokens_total", usage["prompt_tokens"])
    self.serving.metrics.count("answer_tokens_total", usage["completion_tokens"])


def event(value: dict[str, Any]) -> str:
  """One server-sent event."""
  return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
