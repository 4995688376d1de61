"""What instructions and drills are about: sentences, lists and records drawn in the little
language, and words to ask with and to answer with.
"""

from __future__ import annotations

import numpy as np

from sapt_jax.mini import language
from sapt_jax.mini.language import KINDS, LABELS, PLAIN, VERBS, pick, picks, things

Row = tuple[str, str, str]  # definition, input, answer
Rng = np.random.Generator


def ask(rng: Rng) -> str:
  """The verb of an instruction."""
  verbs = "Write|Give|Return|Print|State|Output|Report|Answer with|Name|Find"
  return pick(rng, verbs.split("|"))


def small_talk(rng: Rng) -> str:
  """A few common words that ask nothing."""
  return " ".join(picks(rng, language.EVERYDAY, int(rng.integers(2, 7))))


def sentence(rng: Rng, words: list[str] | None = None) -> str:
  """One sentence of the language around two given words (two things if none are given)."""
  first, second = words or things(rng, 2)
  person, place, town, job = (pick(rng, KINDS[kind]) for kind in ("person", "place", "town", "job"))
  verb, day, plain = pick(rng, VERBS), pick(rng, language.DAYS), pick(rng, PLAIN)
  return pick(
    rng,
    (
      f"the {job} {verb} the {plain} {first} and a {second} in {town}",
      f"{person} {verb} a {first} near the {place}, not the {second}",
      f"on {day} a {first} was with the {second} at the {place}",
      f"every {job} of {town} {verb} one {first} or {second}",
      f"{first} and {plain} {second} for the {job} on {day}",
      f"{person} has heard of {first} but not of {second}",
      f"{person} had a {first} and {person} is {second}",
      f"under the {place} of {town}: {first}, {second}",
    ),
  )


def of_kind(rng: Rng, kind: str, count: int) -> list[str]:
  """Different words of one kind."""
  return picks(rng, KINDS[kind], count)


def any_words(rng: Rng, count: int) -> list[str]:
  """Different words of several kinds, sometimes all of one kind (names, towns, things)."""
  draw = rng.random()
  if draw < 0.4:
    kinds = ("person", "town", "food", "animal", "job", "colour", "person", "town")
    return of_kind(rng, pick(rng, kinds), count)
  if draw < 0.5:
    return picks(rng, tuple(dict.fromkeys(language.EVERYDAY)), count)
  words = things(rng, count)
  for i in range(count):
    if rng.random() < 0.25:
      words[i] = pick(rng, KINDS[pick(rng, ("person", "town", "job", "place", "praise", "blame"))])
  return words if len(set(words)) == count else things(rng, count)


def series(rng: Rng, words: list[str]) -> str:
  """Words in one of many list formats, with or without a head and a tail."""
  body = pick(rng, (" ", " ", ", ", " - ", " > ", " + ", "; ", " / ", " | ", " < ")).join(words)
  head = pick(rng, ("", "", "", f"{pick(rng, LABELS)}: ", "list: ", "text = ", "[ ", "( ", "* "))
  tail = pick(rng, ("", "", "", ".", " *", " ]", " !"))
  return f"{head}{body}{tail}"


def text_of_kind(rng: Rng, kind: str) -> str:
  """A text in which the content words are of one kind."""
  words = of_kind(rng, kind, int(rng.integers(1, 4)))
  return sentence(rng, words[:2]) if len(words) > 1 and rng.random() < 0.7 else series(rng, words)


def draw_labels(rng: Rng, count: int) -> list[str]:
  """`count` different words to answer with: label words, or things."""
  return things(rng, count) if rng.random() < 0.25 else picks(rng, LABELS, count)


def marks(rng: Rng) -> tuple[str, str]:
  """A pair of marks that can stand around a word."""
  pairs = (("[", "]"), ("(", ")"), ("*", "*"), ("<", ">"), ("{", "}"), ("/", "/"))
  return pairs[int(rng.integers(len(pairs)))]


def record(rng: Rng, count: int) -> tuple[list[str], list[str], str]:
  """Keys, values and a text in which each key stands next to its value."""
  keys = picks(rng, LABELS, count) if rng.random() < 0.3 else any_words(rng, count)
  values = [word if word not in keys else pick(rng, PLAIN) for word in any_words(rng, count)]
  links = (": ", " = ", " -> ", " is ", " ", " has the ", " holds a ", " for ", " with the ")
  link = pick(rng, links)
  gap = pick(rng, (", ", "; ", " | ", ". ", " / ", " and "))
  text = gap.join(f"{key}{link}{value}" for key, value in zip(keys, values, strict=True))
  return keys, values, text
