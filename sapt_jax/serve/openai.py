"""Requests and answers in the form of OpenAI's API: what is served of it, what is refused, and the
mixture, which it does not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sapt_jax.serve.options import Limits
from sapt_jax.text_files import is_number

Pair = tuple[str | None, str]  # (definition, input), as predict reads them


class RefusedError(Exception):
  """A request that is not answered.

  Attributes:
    status: the HTTP status.
    field: what of the request is wrong; None: none of its fields.
    code: OpenAI's word for it, if it has one.
    retry: seconds after which it may be tried again; 0: never, as it is.
  """

  def __init__(
    self,
    message: str,
    field: str | None = None,
    status: int = 400,
    code: str | None = None,
    retry: int = 0,
  ):
    super().__init__(message)
    self.status, self.field, self.code, self.retry = status, field, code, retry

  def body(self) -> dict[str, Any]:
    """OpenAI's form of an error."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = "server_error" if self.status >= 500 else "invalid_request_error"
    error = {"message": str(self), "type": kinds.get(self.status, kind)}
    return {"error": error | {"param": self.field, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request for answers.

  Attributes:
    most: tokens of an answer at most; None: as many as the run writes.
    stream, usage: whether the answers are streamed, and the counts of tokens behind them.
  """

  chat: bool
  pairs: list[Pair]
  most: int | None
  stream: bool
  usage: bool


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer, or a part of one.

  Attributes:
    text: what is new.
    finish: "stop", "length" or None: it goes on.
    mixture: {task: weight}; None: it was told with an earlier part.
  """

  text: str
  finish: str | None
  mixture: dict[str, float] | None


def is_count(value: Any) -> bool:
  """Whether this is a whole number from 1 on."""
  return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def nothing(value: Any) -> bool:
  """Whether this says that something is not wanted."""
  return value in (False, "", [], {}) or (is_number(value) and value == 0)


def anything(value: Any) -> bool:
  """Fields that change no answer."""
  del value
  return True


def text(value: Any) -> bool:
  """Whether this is a text."""
  return isinstance(value, str)


Rule = tuple[Callable[[Any], bool], str]
ONLY_WITHOUT = "must be left out: it is not served"
# Every field that may stand in a request: what its value must be, and the words for that. A field
# that is null is as good as left out.
BOTH: dict[str, Rule] = {
  "model": (text, "must be text"),
  "definition": (text, "must be text"),
  "stream": (lambda value: isinstance(value, bool), "must be true or false"),
  "stream_options": (
    lambda value: (
      isinstance(value, dict)
      and value.keys() <= {"include_usage", "include_obfuscation"}
      and all(isinstance(one, bool) for one in value.values())
    ),
    "must be an object of include_usage and include_obfuscation, true or false",
  ),
  "max_tokens": (is_count, "must be a whole number from 1 on"),
  "temperature": (
    lambda value: is_number(value) and value == 0,
    "must be 0: the most likely answer is the only one served",
  ),
  "top_p": (lambda value: is_number(value) and 0 < value <= 1, "must be above 0 and at most 1"),
  "n": (lambda value: is_count(value) and value == 1, "must be 1: an input has one answer"),
  "frequency_penalty": (nothing, "must be 0"),
  "presence_penalty": (nothing, "must be 0"),
  "logit_bias": (nothing, ONLY_WITHOUT),
  "stop": (nothing, ONLY_WITHOUT),
  "seed": (anything, ""),
  "user": (anything, ""),
  "metadata": (anything, ""),
  "store": (anything, ""),
  "service_tier": (anything, ""),
}
COMPLETION: dict[str, Rule] = BOTH | {
  "prompt": (lambda value: isinstance(value, str | list), "must be a text or a list of texts"),
  "best_of": BOTH["n"],
  "echo": (nothing, ONLY_WITHOUT),
  "suffix": (nothing, ONLY_WITHOUT),
  "logprobs": (lambda value: value is False, ONLY_WITHOUT),
}
CHAT: dict[str, Rule] = BOTH | {
  "messages": (lambda value: isinstance(value, list), "must be a list of messages"),
  "max_completion_tokens": BOTH["max_tokens"],
  "logprobs": (nothing, ONLY_WITHOUT),
  "top_logprobs": (nothing, ONLY_WITHOUT),
  "tools": (nothing, ONLY_WITHOUT),
  "tool_choice": (lambda value: value in ("none", "auto"), ONLY_WITHOUT),
  "parallel_tool_calls": (anything, ""),
  "response_format": (lambda value: value == {"type": "text"}, 'must be {"type": "text"}'),
}


def read_request(values: Any, chat: bool, limits: Limits) -> Asked:
  """A request's JSON value as what it asks for.

  Raises:
    RefusedError: a field is missing, unknown, or not as the tables above have it; too much is
      asked.
  """
  if not isinstance(values, dict):
    raise RefusedError(f"the request must be a JSON object, not {type(values).__name__}")
  fields = CHAT if chat else COMPLETION
  for name, value in values.items():
    if name not in fields:
      raise RefusedError(
        f"{name[:80]}: not a field of this request; known are {', '.join(fields)}", name[:80]
      )
    fits, words = fields[name]
    if value is not None and not fits(value):
      raise RefusedError(f"{name} {shown(value)}: {words}", name)
  given = {name: value for name, value in values.items() if value is not None}
  pairs = chat_pair(given) if chat else completion_pairs(given, limits)
  for definition, prompt in pairs:
    if (size := len(prompt) + len(definition or "")) > limits.prompt:
      raise RefusedError(
        f"a prompt of {size} characters: at most {limits.prompt} are served",
        "messages" if chat else "prompt",
        code="context_length_exceeded",
      )
  return Asked(
    chat,
    pairs,
    given.get("max_completion_tokens", given.get("max_tokens")),
    given.get("stream", False),
    given.get("stream_options", {}).get("include_usage", False),
  )


def shown(value: Any) -> str:
  """A value as an error shows it."""
  whole = repr(value)
  return whole if len(whole) <= 60 else f"{whole[:57]}..."


def completion_pairs(given: dict[str, Any], limits: Limits) -> list[Pair]:
  """The prompts; with a definition they are put into the run's frame, without one each is all that
  the model reads.
  """
  if "prompt" not in given:
    raise RefusedError('prompt: missing; give {"prompt": TEXT}', "prompt")
  prompt = given["prompt"]
  prompts = [prompt] if isinstance(prompt, str) else prompt
  if not prompts:
    raise RefusedError("prompt []: must hold a text", "prompt")
  if len(prompts) > limits.prompts:
    raise RefusedError(f"{len(prompts)} prompts: at most {limits.prompts} are served", "prompt")
  for number, one in enumerate(prompts):
    if not isinstance(one, str):
      raise RefusedError(
        f"prompt[{number}] {shown(one)}: must be text; lists of tokens are not served", "prompt"
      )
  return [(given.get("definition"), one) for one in prompts]


def chat_pair(given: dict[str, Any]) -> list[Pair]:
  """The one input of a chat: its user message, with the system message as its definition."""
  if not given.get("messages"):
    raise RefusedError("messages: missing; give one user message", "messages")
  texts: dict[str, list[str]] = {"definition": [], "input": []}
  for number, message in enumerate(given["messages"]):
    called = f"messages[{number}]"
    if not isinstance(message, dict):
      raise RefusedError(f"{called} {shown(message)}: must be an object", "messages")
    role = message.get("role")
    parts = {"system": "definition", "developer": "definition", "user": "input"}
    if not isinstance(role, str) or role not in parts:
      raise RefusedError(
        f"{called}.role {shown(role)}: must be user, or system for the instruction; earlier "
        "answers are not read",
        "messages",
      )
    texts[parts[role]].append(content_of(message, called))
  if "definition" in given:
    texts["definition"].append(given["definition"])
  if len(texts["input"]) != 1 or len(texts["definition"]) > 1:
    raise RefusedError(
      "messages: must hold one user message and at most one instruction, as a system message or "
      f"as definition; here are {len(texts['input'])} and {len(texts['definition'])}",
      "messages",
    )
  # A definition puts the input into the run's frame, also an empty one: as predict does it.
  return [("".join(texts["definition"]), texts["input"][0])]


def content_of(message: dict[str, Any], called: str) -> str:
  """A message's text, which may come in parts."""
  content = message.get("content")
  if isinstance(content, str):
    return content
  if isinstance(content, list) and content:
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(content):
      return "".join(texts)
  raise RefusedError(f"{called}.content {shown(content)}: must be text", "messages")


@dataclasses.dataclass(frozen=True)
class Reply:
  """The form of the answers to one request.

  Attributes:
    name: of the request, unlike all others.
    created: seconds since 1970.
    snapshot: the newest task's, of the pool that answers.
  """

  asked: Asked
  name: str
  created: int
  model: str
  snapshot: str

  def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
      "id": self.name,
      "object": kind,
      "created": self.created,
      "model": self.model,
      "system_fingerprint": self.snapshot,
      "choices": choices,
    }

  def whole(self, answers: list[Answer], usage: dict[str, int]) -> dict[str, Any]:
    """All answers at once. Where there is but one, its mixture stands at the top too."""
    choices = []
    for number, answer in enumerate(answers):
      said: dict[str, Any] = {"text": answer.text}
      if self.asked.chat:
        said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
      rest = {"logprobs": None, "finish_reason": answer.finish, "mixture": answer.mixture}
      choices.append({"index": number} | said | rest)
    whole = self._frame("chat.completion" if self.asked.chat else "text_completion", choices)
    if len(answers) == 1:
      whole["mixture"] = answers[0].mixture
    return whole | {"usage": usage}

  def part(self, number: int, answer: Answer) -> dict[str, Any]:
    """What is new of the number-th answer; its first part tells the mixture."""
    said: dict[str, Any] = {"text": answer.text}
    if self.asked.chat:
      delta: dict[str, Any] = {"role": "assistant"} if answer.mixture is not None else {}
      said = {"delta": delta | {"content": answer.text}}
    choice = {"index": number} | said | {"logprobs": None, "finish_reason": answer.finish}
    if answer.mixture is not None:
      choice["mixture"] = answer.mixture
    return self._frame("chat.completion.chunk" if self.asked.chat else "text_completion", [choice])

  def counts(self, usage: dict[str, int]) -> dict[str, Any]:
    """The last part of a stream whose request asks for the counts."""
    return self._frame("chat.completion.chunk" if self.asked.chat else "text_completion", []) | {
      "usage": usage
    }


def usage_of(read: int, written: int) -> dict[str, int]:
  """Counts of tokens."""
  return {
    "prompt_tokens": read,
    "completion_tokens": written,
    "total_tokens": read + written,
  }
