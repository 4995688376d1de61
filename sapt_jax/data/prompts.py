"""Text <-> tokens, and cutting that leaves the prompt's frame whole."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from sapt_jax.errors import InputError


def load_tokenizer(folder: pathlib.Path) -> Any:
  """The folder's own tokenizer.

  Raises:
    InputError: the folder has none that transformers can read.
  """
  # That PyTorch is not there is as it should be.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  try:  # transformers takes seconds to import, its AutoTokenizer the most
    if (folder / "tokenizer.json").is_file():
      from transformers import PreTrainedTokenizerFast

      # What the file says, whatever class the settings name: others rebuild it and lose parts.
      return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))
  except Exception as error:  # tokenizers raises no narrower one for files that it cannot read
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f"{folder}: no tokenizer that transformers can read ({reason})") from error


def frame_of_template(template: str) -> tuple[str, str]:
  """A frame from a text with {definition} and {input}; a backslash and an n are a new line too."""
  text = template.replace("\\n", "\n").replace("{definition}", "{d}")
  before, _, after = text.partition("{input}")
  return before, after


# Chat templates that show the day's date get that of Llama 3's own templates, so that a prompt is
# the same on every day.
NO_CLOCK = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"


def chat_frame(folder: pathlib.Path) -> tuple[str, str]:
  """The frame that a model's chat template makes of one message of the user's, definition and
  input, up to where the answer begins. Its special tokens stand in it as text.

  Raises:
    InputError: the folder has no template, or one that does not show the message.
  """
  from transformers import AutoTokenizer

  definition, text = "1029384756", "6574839201"  # that no template says itself, in any case
  try:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rendered = tokenizer.apply_chat_template(
      [{"role": "user", "content": f"{definition}\n\n{text}"}],
      chat_template=NO_CLOCK + tokenizer.get_chat_template(),
      tokenize=False,
      add_generation_prompt=True,
    )
  except Exception as error:  # noqa: BLE001 (templates are programs, which raise what they like)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"data.frame chat: {folder} has no chat template that can be used ({reason}); "
      "give a text with {definition} and {input}"
    ) from None
  shown = str(rendered)
  if (shown.count(definition), shown.count(text), "{d}" in shown) != (1, 1, False):
    raise InputError(
      f"data.frame chat: the chat template of {folder} does not show the message once, as it is; "
      "give a text with {definition} and {input}"
    )
  before, _, after = shown.replace(definition, "{d}").partition(text)
  return before, after


# Files that a tokenizer may be made of, whatever its kind.
TOKENIZER_FILES = ("tokenizer*", "*token*.json", "vocab*", "merges*", "*.model", "*.tiktoken")


def hash_of_tokenizer(folder: pathlib.Path) -> str:
  """SHA-256, in hex digits, of the names and contents of a folder's tokenizer files."""
  digest = hashlib.sha256()
  files = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}
  for file in sorted(files):
    digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Codec:
  """Turns prompts and answers into token ids and answers back into text.

  Attributes:
    tokenizer: a fast Hugging Face tokenizer.
    frame: text before and after the input; {d} in it is the definition.
    max_source: most tokens of a prompt.
    max_target: most tokens of an answer, the end token included.
    eos_id: the token that ends an answer.
    vocabulary: rows of the backbone's embedding, which every token must be; None: any number.
    open_ended: the backbone goes on from the prompt (decoder-only), so nothing may stand behind it.
    special_tokens: whether the tokenizer puts its own around a prompt; a chat template has them in
      its text.
  """

  tokenizer: Any
  frame: tuple[str, str]
  max_source: int
  max_target: int
  eos_id: int
  vocabulary: int | None = None
  open_ended: bool = False
  special_tokens: bool = True

  @cached_property
  def ending(self) -> list[int]:
    """What the tokenizer puts behind a prompt by itself; T5's end token, as a rule."""
    plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = self.tokenizer("a", add_special_tokens=self.special_tokens)["input_ids"]
    last = len(whole) - len(plain)
    start = next((i for i in range(last + 1) if whole[i : i + len(plain)] == plain), last)
    return whole[start + len(plain) :]

  def encode(self, text: str) -> list[int]:
    """Token ids of what the backbone reads, with the tokens that belong at its beginning and, but
    for a decoder-only backbone, at its end.

    Raises:
      InputError: a token has no row in the backbone's embedding.
    """
    ids = self.tokenizer(text, add_special_tokens=self.special_tokens)["input_ids"]
    if self.open_ended and self.ending and ids[-len(self.ending) :] == self.ending:
      ids = ids[: -len(self.ending)]
    return self.known(ids)

  def known(self, ids: list[int]) -> list[int]:
    """The ids, each a row of the backbone's embedding.

    Raises:
      InputError: one is not.
    """
    unknown = max(ids, default=0)
    if self.vocabulary is not None and unknown >= self.vocabulary:
      raise InputError(
        f"token {self.tokenizer.convert_ids_to_tokens(unknown)!r} has the id {unknown}, but the "
        f"backbone has {self.vocabulary} tokens: the tokenizer belongs to another model, or the "
        "token was added without a row for it; take it out of the text or the tokenizer"
      )
    return ids

  @property
  def may_not_fit(self) -> bool:
    """Whether the tokenizer has tokens without a row in the backbone's embedding."""
    most = max(self.tokenizer.get_vocab().values(), default=0)
    return self.vocabulary is not None and most >= self.vocabulary

  def prompt(self, definition: str, text: str) -> str:
    """The whole prompt as text; without a definition its line is left out."""
    place = r"\{d\}"
    if not definition:  # a chat template has its own marks in the same line
      place = rf"[^\n]*{place}[^\n]*\n*" if self.special_tokens else rf"{place}\n*"
    before, after = (re.sub(place, lambda _: definition, part) for part in self.frame)
    return before + text + after

  def source(self, definition: str, text: str) -> list[int]:
    """Token ids of the prompt, at most max_source;
    where it is longer, the end of the input is cut and the frame stays.

    Raises:
      InputError: the frame alone is longer than max_source.
    """
    return self.cut_to_fit(text, lambda part: self.prompt(definition, part))

  def has_room(self, definition: str) -> bool:
    """Whether the frame with this definition leaves room for an input."""
    return len(self.encode(self.prompt(definition, ""))) <= self.max_source

  def target(self, answer: str) -> list[int]:
    """Token ids of an answer, ended by the end token, at most max_target."""
    ids = self.known(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
    return [*ids[: self.max_target - 1], self.eos_id]

  def spelled(self, text: str) -> str:
    """A text as it comes back from the tokenizer, which may not know all of its letters."""
    return self.text(self.tokenizer(text, add_special_tokens=False)["input_ids"])

  def text(self, ids: list[int]) -> str:
    """The answer that ids spell, up to the end token."""
    ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
    # Cleaning up would write "don't" for the answer "do n't".
    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return self.tokenizer.decode(ids, **settings).strip()

  def cut_to_fit(self, text: str, frame: Callable[[str], str]) -> list[int]:
    """Token ids of frame(text), with as much of text's beginning as keeps them within max_source.

    Raises:
      InputError: the frame alone is longer.
    """
    ids, limit = self.encode(frame(text)), self.max_source
    while len(ids) > limit:
      ends = token_ends(self.tokenizer, text)
      kept = len(ends) - (len(ids) - limit)
      if not text or kept < 0:
        raise InputError(
          f"data.max_source_length {limit}: the frame alone takes {len(ids) - len(ends)} tokens; "
          "raise it"
        )
      # Cutting can merge tokens differently at the seam, so that one more round is needed; dropping
      # at least one character ends the loop.
      text = text[: min(ends[kept - 1] if kept else 0, len(text) - 1)]
      ids = self.encode(frame(text))
    return ids


def token_ends(tokenizer: Any, text: str) -> list[int]:
  """Where in the text each of its tokens ends; of a tokenizer that does not tell, by the bytes that
  its characters take (ByT5 has a token for each byte).
  """
  if tokenizer.is_fast:
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [end for _, end in told["offset_mapping"]]
  count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
  bytes_before = np.cumsum([len(character.encode()) for character in text])
  ends: Any = bytes_before[-1:] * (np.arange(count) + 1) / max(count, 1)
  return [int(np.searchsorted(bytes_before, end)) + 1 for end in ends]
