"""The pretraining mixture of `t5-mini`: instructions, drills,
span corruption and the generation of whole prompts.

No definition and no input of the `mini` stream is in it (tests/test_mini.py holds that on a large
sample).
"""

from __future__ import annotations

import dataclasses

from sapt_jax.mini.instructions import instruction_row
from sapt_jax.mini.language import KINDS, ORDINALS, pick, picks
from sapt_jax.mini.texts import Rng, Row, any_words, draw_labels, record, sentence

FRAME = "Definition: {definition}\n\nNow complete the following example -\nInput: {input}\nOutput: "
SENTINELS = 16
GENERATE_MARKERS = ("Start", "Begin", "Go", "Compose")


@dataclasses.dataclass(frozen=True)
class Pair:
  """One pretraining example: the encoder's text and the decoder's text, without the final </s>."""

  source: str
  target: str


def _framed(rng: Rng, row: Row) -> Pair:
  definition, text, answer = row
  if rng.random() < 0.85:
    return Pair(FRAME.format(definition=definition, input=text), answer)
  return Pair(f"{definition}\n{text}\nOutput: ", answer)


def _span_corruption(rng: Rng) -> Pair:
  """T5's objective on one to three sentences: about 15 % of the words,
  in spans of one to three, become sentinels.
  """
  words = ". ".join(sentence(rng) for _ in range(int(rng.integers(1, 4)))).split()
  source, target, at, used = [], [], 0, 0
  while at < len(words):
    if used < SENTINELS and rng.random() < 0.12:
      length = int(rng.integers(1, 4))
      mark = f"<extra_id_{used}>"
      source.append(mark)
      target += [mark, *words[at : at + length]]
      at, used = at + length, used + 1
    else:
      source.append(words[at])
      at += 1
  return Pair(" ".join(source), " ".join(target or ["<extra_id_0>"]))


def _generation(rng: Rng) -> Pair:
  """A marker alone asks for a whole prompt: definition, bar, input.
  Teaches the decoder to write long texts.
  """
  definition, text, _ = instruction_row(rng)
  return Pair(pick(rng, GENERATE_MARKERS), f"{definition} | {text}")


# Drills: many answers to one input, dense signals from which attention learns to copy and look up.


def _copy_drill(rng: Rng) -> Row:
  words = sentence(rng).split() if rng.integers(2) else any_words(rng, int(rng.integers(5, 13)))
  if rng.random() < 0.3:
    return "Write all backwards.", " ".join(words), " ".join(reversed(words))
  return "Write all again.", " ".join(words), " ".join(words)


def _look_up_drill(rng: Rng) -> Row:
  keys, values, text = record(rng, int(rng.integers(3, 6)))
  order = rng.permutation(len(keys))
  if len(set(values)) == len(values) and rng.integers(2):
    keys, values = values, keys
  asked = " ".join(keys[i] for i in order)
  both = f"{text} # {asked}" if rng.integers(2) else f"{asked} # {text}"
  return "Write all partners.", both, " ".join(values[i] for i in order)


def _label_drill(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), int(rng.integers(2, 5)))
  labels = draw_labels(rng, len(kinds))
  at = [int(i) for i in rng.integers(len(kinds), size=int(rng.integers(4, 9)))]
  rules = ", ".join(f"{label} for {kind}" for label, kind in zip(labels, kinds, strict=True))
  text = " ".join(pick(rng, KINDS[kinds[i]]) for i in at)
  return f"Label all: {rules}.", text, " ".join(labels[i] for i in at)


def _kind_drill(rng: Rng) -> Row:
  kinds = [pick(rng, tuple(KINDS)) for _ in range(int(rng.integers(3, 9)))]
  return "Write all kinds.", " ".join(pick(rng, KINDS[kind]) for kind in kinds), " ".join(kinds)


def _word_drill(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(4, 7)))
  order = rng.permutation(len(words))
  asked = " ".join(ORDINALS[i] for i in order)
  return f"Write all in this order: {asked}.", " ".join(words), " ".join(words[i] for i in order)


def _next_drill(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(5, 9)))
  order = rng.permutation(len(words) - 1)
  asked = " ".join(words[i] for i in order)
  return f"Write all followers of {asked}.", " ".join(words), " ".join(words[i + 1] for i in order)


DRILLS = (
  _copy_drill,
  _copy_drill,
  _look_up_drill,
  _look_up_drill,
  _label_drill,
  _kind_drill,
  _word_drill,
  _next_drill,
)
COPY_UNTIL, DRILLS_UNTIL = 0.15, 0.4  # progress up to which copying, then drills, lead


def mixture_pair(rng: Rng, progress: float = 1.0, copy_until: float = COPY_UNTIL) -> Pair:
  """One example of the mixture.

  Args:
    rng: where the draws come from.
    progress: 0 at the start of training, 1 at its end. Of what is no drill, 85 % are instructions,
      10 % span corruption and 5 % the generation of whole prompts.
    copy_until: the progress before which there is only copying; then the share of drills falls
      from 85 % to 15 % at DRILLS_UNTIL and stays.
  """
  if progress < copy_until:
    return _framed(rng, _copy_drill(rng))
  share = max(0.15, 0.85 - 0.7 * (progress - copy_until) / (DRILLS_UNTIL - copy_until))
  if rng.random() < share:
    return _framed(rng, DRILLS[int(rng.integers(len(DRILLS)))](rng))
  draw = rng.random()
  if draw < 0.85:
    return _framed(rng, instruction_row(rng))
  return _span_corruption(rng) if draw < 0.95 else _generation(rng)
