"""Text <-> tokens, and cutting that leaves the prompt's frame whole."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from sapt_jax.errors import InputError


def load_tokenizer(folder: pathlib.Path) -> Any:
  """The folder's own tokenizer.

  Raises:
    InputError: the folder has none that transformers can read.
  """
  # That PyTorch is not there is as it should be.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import AutoTokenizer  # here: it takes seconds to import

  try:
    return AutoTokenizer.from_pretrained(str(folder))
  except Exception as error:  # tokenizers raises no narrower one for files that it cannot read
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f"{folder}: no tokenizer that transformers can read ({reason})") from error


@dataclasses.dataclass(frozen=True)
class Codec:
  """Turns prompts and answers into token ids and answers back into text.

  Attributes:
    tokenizer: a fast Hugging Face tokenizer.
    frame: text before and after the input (benchmarks.Benchmark).
    max_source: most tokens of a prompt.
    max_target: most tokens of an answer, the end token included.
    eos_id: the token that ends an answer.
  """

  tokenizer: Any
  frame: tuple[str, str]
  max_source: int
  max_target: int
  eos_id: int

  def prompt(self, definition: str, text: str) -> str:
    """The whole prompt as text; without a definition its line is left out."""
    before, after = self.frame
    if not definition:
      before = re.sub(r"[^\n]*\{d\}[^\n]*\n*", "", before)
    return before.replace("{d}", definition) + text + after

  def source(self, definition: str, text: str) -> list[int]:
    """Token ids of the prompt, at most max_source;
    where it is longer, the end of the input is cut and the frame stays.

    Raises:
      InputError: the frame alone is longer than max_source.
    """
    frame = partial(self.prompt, definition)
    return cut_to_fit(self.tokenizer, text, frame, self.max_source)

  def has_room(self, definition: str) -> bool:
    """Whether the frame with this definition leaves room for an input."""
    return len(self.tokenizer(self.prompt(definition, ""))["input_ids"]) <= self.max_source

  def target(self, answer: str) -> list[int]:
    """Token ids of an answer, ended by the end token, at most max_target."""
    ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids[: self.max_target - 1], self.eos_id]

  def text(self, ids: list[int]) -> str:
    """The answer that ids spell, up to the end token."""
    ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
    return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def cut_to_fit(tokenizer: Any, text: str, frame: Callable[[str], str], limit: int) -> list[int]:
  """Token ids of frame(text), with as much of text's beginning as keeps them within limit."""
  ids = tokenizer(frame(text))["input_ids"]
  while len(ids) > limit:
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = plain["offset_mapping"]
    kept = len(offsets) - (len(ids) - limit)
    if not text or kept < 0:
      raise InputError(
        f"data.max_source_length {limit}: the frame alone takes {len(ids) - len(offsets)} tokens; "
        "raise it"
      )
    # Cutting can merge tokens differently at the seam, so that one more round is needed; dropping
    # at least one character ends the loop.
    text = text[: min(offsets[kept - 1][1] if kept else 0, len(text) - 1)]
    ids = tokenizer(frame(text))["input_ids"]
  return ids
