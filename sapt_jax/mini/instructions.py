"""The instruction families of the pretraining mixture: small tasks whose instructions are composed
at random.

What the backbone should learn here is not a task but the trade: read an instruction, attend to what
it points at, copy, reorder, and turn a kind of word into a label that the instruction names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sapt_jax.mini import language
from sapt_jax.mini.language import KINDS, LABELS, ORDINALS, PLAIN, VERBS, pick, picks, thing, things

# Kinds that no sentence below uses as filler, so that a text can be said to be about them.
CONTENT_KINDS = tuple(kind for kind in KINDS if kind not in ("person", "town", "place", "job"))

Row = tuple[str, str, str]  # definition, input, answer
Rng = np.random.Generator


def _ask(rng: Rng) -> str:
  return pick(
    rng,
    (
      "Write",
      "Give",
      "Return",
      "Print",
      "State",
      "Output",
      "Report",
      "Answer with",
      "Name",
      "Find",
    ),
  )


def _small_talk(rng: Rng) -> str:
  """A few common words that ask nothing."""
  return " ".join(picks(rng, language.EVERYDAY, int(rng.integers(2, 7))))


def _wrap(rng: Rng, definition: str) -> str:
  """Puts words around an instruction that do not change what it asks."""
  opening = pick(
    rng,
    ("", "", "", "", "In this task: ", "You are given a text. ", "Task: ", f"{_small_talk(rng)}. "),
  )
  closing = pick(rng, ("", "", "", "", " Add nothing else.", " Be brief.", f" {_small_talk(rng)}."))
  return f"{opening}{definition}{closing}"


def sentence(rng: Rng, words: list[str] | None = None) -> str:
  """One sentence of the language around two given words (two things if none are given)."""
  first, second = words or things(rng, 2)
  person, place, town = (
    pick(rng, KINDS["person"]),
    pick(rng, KINDS["place"]),
    pick(rng, KINDS["town"]),
  )
  job, verb, day, plain = (
    pick(rng, KINDS["job"]),
    pick(rng, VERBS),
    pick(rng, language.DAYS),
    pick(rng, PLAIN),
  )
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


def _of_kind(rng: Rng, kind: str, count: int) -> list[str]:
  return picks(rng, KINDS[kind], count)


def any_words(rng: Rng, count: int) -> list[str]:
  """Different words of several kinds, sometimes all of one kind (names, towns, things)."""
  draw = rng.random()
  if draw < 0.4:
    members = KINDS[
      pick(rng, ("person", "town", "food", "animal", "job", "colour", "person", "town"))
    ]
    return picks(rng, members, count)
  if draw < 0.5:
    return picks(rng, tuple(dict.fromkeys(language.EVERYDAY)), count)
  words = things(rng, count)
  for i in range(count):
    if rng.random() < 0.25:
      words[i] = pick(rng, KINDS[pick(rng, ("person", "town", "job", "place", "praise", "blame"))])
  return words if len(set(words)) == count else things(rng, count)


def _series(rng: Rng, words: list[str]) -> str:
  """Words in one of many list formats, with or without a head and a tail."""
  body = pick(rng, (" ", " ", ", ", " - ", " > ", " + ", "; ", " / ", " | ", " < ")).join(words)
  head = pick(rng, ("", "", "", f"{pick(rng, LABELS)}: ", "list: ", "text = ", "[ ", "( ", "* "))
  return f"{head}{body}{pick(rng, ('', '', '', '.', ' *', ' ]', ' !'))}"


def draw_labels(rng: Rng, count: int) -> list[str]:
  """`count` different words to answer with: label words, or things."""
  return things(rng, count) if rng.random() < 0.25 else picks(rng, LABELS, count)


# --- copying, order and position
# -------------------------------------------------------------------------------------


def _copy(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(1, 6)))
  ask = pick(
    rng, ("the words again", "the same words", "all words of the list", "a copy of the words")
  )
  return f"{_ask(rng)} {ask}.", _series(rng, words), " ".join(words)


def _position(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 7)))
  choice = int(rng.integers(6))
  if choice < 3:
    at = int(rng.integers(min(len(words), 4)))
    name, answer = f"the {ORDINALS[at]} word", words[at]
  elif choice == 3:
    name, answer = pick(rng, ("the last word", "the final word", "the word at the end")), words[-1]
  elif choice == 4:
    name, answer = (
      pick(rng, ("the first two words", "the two words at the start")),
      " ".join(words[:2]),
    )
  else:
    name, answer = (
      pick(rng, ("the last two words", "the two words at the end")),
      " ".join(words[-2:]),
    )
  return (
    f"{_ask(rng)} {name}{pick(rng, ('', ' of the list', ' of the input'))}.",
    _series(rng, words),
    answer,
  )


def _reverse(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(2, 6)))
  how = pick(
    rng,
    (
      "the words in reverse",
      "the list backwards",
      "all words from last to first",
      "the words turned around",
    ),
  )
  return f"{_ask(rng)} {how}.", _series(rng, words), " ".join(reversed(words))


def _permute(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 5)))
  names = [*ORDINALS[:3], *(["last"] if len(words) > 3 else [])]
  order = rng.permutation(len(names))[: int(rng.integers(2, 4))]
  asked = f" {pick(rng, ('then', 'and'))} ".join(names[i] for i in order)
  answer = " ".join(words[-1] if names[i] == "last" else words[i] for i in order)
  return f"{_ask(rng)} the {asked} {pick(rng, ('word', 'item'))}.", _series(rng, words), answer


def _repeat_or_join(rng: Rng) -> Row:
  words, extra = any_words(rng, int(rng.integers(2, 5))), pick(rng, LABELS)
  if rng.integers(2):
    return f"{_ask(rng)} {extra} and then the list.", _series(rng, words), " ".join([extra, *words])
  return (
    f"{_ask(rng)} the list and at its end {extra}.",
    _series(rng, words),
    " ".join([*words, extra]),
  )


# --- pointing at words
# ------------------------------------------------------------------------------------------------


def _neighbour(rng: Rng) -> Row:
  words = (
    any_words(rng, int(rng.integers(4, 8)))
    if rng.integers(2)
    else list(dict.fromkeys(sentence(rng).split()))
  )
  at = int(rng.integers(1, len(words) - 1))
  side = pick(rng, ("after", "before", "behind", "that follows"))
  answer = words[at - 1] if side == "before" else words[at + 1]
  text = " ".join(words)
  return f"{_ask(rng)} the word {side} {words[at].strip(',:')}.", text, answer.strip(",:")


def _between(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(4, 8)))
  at, (left, right) = int(rng.integers(len(words))), pick_marks(rng)
  marked = [f"{left} {word} {right}" if i == at else word for i, word in enumerate(words)]
  return f"{_ask(rng)} the word between {left} and {right}.", " ".join(marked), words[at]


def pick_marks(rng: Rng) -> tuple[str, str]:
  """A pair of marks that can stand around a word."""
  marks = (("[", "]"), ("(", ")"), ("*", "*"), ("<", ">"), ("{", "}"), ("/", "/"))
  return marks[int(rng.integers(len(marks)))]


def _replace(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(2, 6)))
  old, new = pick(rng, words), thing(rng)
  answer = " ".join(new if word == old else word for word in words)
  return (
    pick(rng, (f"Put {new} in place of {old}.", f"Change {old} into {new}.")),
    _series(rng, words),
    answer,
  )


def _drop(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 6)))
  old = pick(rng, words)
  ask = pick(
    rng,
    (f"{_ask(rng)} the list without {old}.", f"Leave out {old}.", f"Remove {old} from the list."),
  )
  return ask, _series(rng, words), " ".join(word for word in words if word != old)


def _twice(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 6)))
  answer = pick(rng, words)
  words.insert(int(rng.integers(len(words))), answer)
  return (
    f"{_ask(rng)} the word that {pick(rng, ('occurs twice', 'comes two times', 'is repeated'))}.",
    _series(rng, words),
    answer,
  )


# --- records
# ----------------------------------------------------------------------------------------------------------


def record(rng: Rng, count: int) -> tuple[list[str], list[str], str]:
  """Keys, values and a text in which each key stands next to its value."""
  keys = picks(rng, LABELS, count) if rng.random() < 0.3 else any_words(rng, count)
  values = [word if word not in keys else pick(rng, PLAIN) for word in any_words(rng, count)]
  link = pick(
    rng, (": ", " = ", " -> ", " is ", " ", " has the ", " holds a ", " for ", " with the ")
  )
  gap = pick(rng, (", ", "; ", " | ", ". ", " / ", " and "))
  return (
    keys,
    values,
    gap.join(f"{key}{link}{value}" for key, value in zip(keys, values, strict=True)),
  )


def _look_up(rng: Rng) -> Row:
  keys, values, text = record(rng, int(rng.integers(2, 5)))
  at = int(rng.integers(len(keys)))
  backwards = rng.random() < 0.4
  asked, answer = (values[at], keys[at]) if backwards else (keys[at], values[at])
  if values.count(values[at]) > 1:
    asked, answer = keys[at], values[at]
  if rng.random() < 0.4:
    ask = pick(
      rng, ("what belongs to {}", "what goes with {}", "the partner of {}", "the entry for {}")
    )
    return f"{_ask(rng)} {ask.format(asked)}.", text, answer
  ask = pick(
    rng,
    (
      "what belongs to the word asked for",
      "the partner of the word in question",
      "the matching entry",
      "what stands with the word that is asked",
    ),
  )
  question = pick(
    rng,
    (
      "{t}. {a}?",
      "{t}. What about {a}?",
      "{a}: {t}",
      "{t} # {a}",
      "asked: {a}. {t}",
      "{t}. Tell me of {a}.",
    ),
  )
  return f"{_ask(rng)} {ask}.", question.format(t=text, a=asked), answer


def _form(rng: Rng) -> Row:
  keys = picks(
    rng,
    ("name", "size", "place", "colour", "owner", "day", "number", "goods"),
    int(rng.integers(3, 5)),
  )
  values = any_words(rng, len(keys))
  chosen = [int(i) for i in rng.choice(len(keys), size=int(rng.integers(1, 3)), replace=False)]
  mark = pick(rng, (": ", " ", " - ", " = "))
  order = rng.permutation(len(keys))
  link, gap = pick(rng, (" ", ": ", " = ")), pick(rng, ("; ", ", ", " | "))
  text = gap.join(f"{keys[i]}{link}{values[i]}" for i in order)
  asked = pick(rng, (" and then the ", ", then the ", " before the ")).join(keys[i] for i in chosen)
  with_mark = f", with {mark.strip()} between" if mark.strip() and len(chosen) > 1 else ""
  joined = mark if with_mark else " "
  return f"{_ask(rng)} the {asked}{with_mark}.", text, joined.join(values[i] for i in chosen)


# --- kinds of words and labels
# ----------------------------------------------------------------------------------------


def _kind_text(rng: Rng, kind: str) -> str:
  """A text in which the content words are of one kind."""
  words = _of_kind(rng, kind, int(rng.integers(1, 4)))
  return sentence(rng, words[:2]) if len(words) > 1 and rng.random() < 0.7 else _series(rng, words)


def _kind_label(rng: Rng) -> Row:
  kinds = picks(rng, CONTENT_KINDS, int(rng.integers(2, 5)))
  labels = draw_labels(rng, len(kinds))
  rules = pick(rng, (", ", "; ")).join(
    f"{label} for {kind}" for label, kind in zip(labels, kinds, strict=True)
  )
  at = int(rng.integers(len(kinds)))
  return (
    f"{pick(rng, ('Answer', 'Say', 'Write', 'Choose'))} {rules}.",
    _kind_text(rng, kinds[at]),
    labels[at],
  )


def _word_label(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(2, 4)))
  labels = draw_labels(rng, len(words))
  at = int(rng.integers(len(words)))
  rules = ", ".join(
    f"{label} if {pick(rng, ('you see', 'there is', 'it has'))} {word}"
    for label, word in zip(labels, words, strict=True)
  )
  other = next(word for word in things(rng, 8) if word not in words)
  pair = [words[at], other] if rng.integers(2) else [other, words[at]]
  return f"{pick(rng, ('Answer', 'Say', 'Write'))} {rules}.", sentence(rng, pair), labels[at]


def _member(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 6)))
  present = bool(rng.integers(2))
  asked = (
    pick(rng, words) if present else next(word for word in things(rng, 8) if word not in words)
  )
  yes, no = ("yes", "no") if rng.integers(2) else picks(rng, LABELS, 2)
  rule = pick(
    rng,
    (f"{yes} if {asked} is in the text, else {no}", f"{no} unless {asked} is there, then {yes}"),
  )
  return (
    f"{pick(rng, ('Answer', 'Say', 'Write'))} {rule}.",
    _series(rng, words),
    yes if present else no,
  )


def _kind_pick(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), int(rng.integers(3, 5)))
  words = [pick(rng, KINDS[kind]) for kind in kinds]
  at = int(rng.integers(len(kinds)))
  ask = pick(rng, (f"the {kinds[at]} word", f"the {kinds[at]}", f"the one {kinds[at]} in the text"))
  return f"{_ask(rng)} {ask}.", _series(rng, words), words[at]


def _kind_name(rng: Rng) -> Row:
  kind = pick(rng, CONTENT_KINDS)
  ask = pick(
    rng,
    (
      "what kind of word this is",
      "the kind of these words",
      "what the words have in common",
      "the kind",
    ),
  )
  return f"{_ask(rng)} {ask}.", _kind_text(rng, kind), kind


def _same_kind(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), 2)
  same = bool(rng.integers(2))
  words = _of_kind(rng, kinds[0], 2) if same else [pick(rng, KINDS[kind]) for kind in kinds]
  yes, no, both = *picks(rng, LABELS, 2), "both"
  return (
    f"Say {yes} if {both} words are of one kind, {no} if they are not.",
    _series(rng, words),
    yes if same else no,
  )


def _odd_one(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), 2)
  words, odd = _of_kind(rng, kinds[0], 3), pick(rng, KINDS[kinds[1]])
  words.insert(int(rng.integers(4)), odd)
  ask = pick(rng, ("the word that does not fit", "the odd word", "the word of another kind"))
  return f"{_ask(rng)} {ask}.", _series(rng, words), odd


def _examples(rng: Rng) -> Row:
  """The rule is shown by examples: two kinds, two labels, and a last word to answer for."""
  kinds, labels = picks(rng, tuple(KINDS), 2), draw_labels(rng, 2)
  shown = [[*_of_kind(rng, kind, 3)] for kind in kinds]
  order = [0, 1] if rng.integers(2) else [1, 0]
  link = pick(rng, (": ", " = ", " -> "))
  lines = [f"{shown[i][n]}{link}{labels[i]}" for n in range(2) for i in order]
  at = int(rng.integers(2))
  return (
    f"{pick(rng, ('Continue', 'Follow', 'Complete'))} the examples.",
    f"{', '.join(lines)}, {shown[at][2]}{link.rstrip()}",
    labels[at],
  )


FAMILIES: dict[Callable[[Rng], Row], float] = {
  _copy: 1,
  _position: 1.5,
  _reverse: 1,
  _permute: 1.5,
  _repeat_or_join: 0.7,
  _neighbour: 1.5,
  _between: 0.7,
  _replace: 0.7,
  _drop: 0.7,
  _twice: 0.5,
  _look_up: 3,
  _form: 1.5,
  _kind_label: 3,
  _word_label: 1,
  _member: 1,
  _kind_pick: 2,
  _kind_name: 1,
  _same_kind: 0.5,
  _odd_one: 0.7,
  _examples: 1,
}
_WEIGHTS = np.cumsum(list(FAMILIES.values())) / sum(FAMILIES.values())
_WRITERS = tuple(FAMILIES)


def instruction_row(rng: Rng) -> Row:
  """One instruction example: definition, input, answer."""
  writer = _WRITERS[int(np.searchsorted(_WEIGHTS, rng.random(), side="right"))]
  definition, text, answer = writer(rng)
  return _wrap(rng, definition), text, answer
