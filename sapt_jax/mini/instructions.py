"""The instruction families of the pretraining mixture:
small tasks whose instructions are composed at random.

What the backbone should learn here is not a task but the trade: read an instruction, attend to what
it points at, copy, reorder, and turn a kind of word into a label that the instruction names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sapt_jax.mini.language import KINDS, LABELS, ORDINALS, pick, picks, thing, things
from sapt_jax.mini.texts import (
  Rng,
  Row,
  any_words,
  ask,
  draw_labels,
  marks,
  of_kind,
  record,
  sentence,
  series,
  small_talk,
  text_of_kind,
)

# Kinds that no sentence uses as filler, so that a text can be said to be about them.
CONTENT_KINDS = tuple(kind for kind in KINDS if kind not in ("person", "town", "place", "job"))


def _wrap(rng: Rng, definition: str) -> str:
  """Puts words around an instruction that do not change what it asks."""
  talk = f"{small_talk(rng)}. "
  opening = pick(rng, ("", "", "", "", "In this task: ", "You are given a text. ", "Task: ", talk))
  closing = pick(rng, ("", "", "", "", " Add nothing else.", " Be brief.", f" {small_talk(rng)}."))
  return f"{opening}{definition}{closing}"


# Copying, order and position.


def _copy(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(1, 6)))
  asked = "the words again|the same words|all words of the list|a copy of the words"
  what = pick(rng, asked.split("|"))
  return f"{ask(rng)} {what}.", series(rng, words), " ".join(words)


def _position(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 7)))
  choice = int(rng.integers(6))
  if choice < 3:
    at = int(rng.integers(min(len(words), 4)))
    name, answer = f"the {ORDINALS[at]} word", words[at]
  elif choice == 3:
    name, answer = pick(rng, ("the last word", "the final word", "the word at the end")), words[-1]
  elif choice == 4:
    name = pick(rng, ("the first two words", "the two words at the start"))
    answer = " ".join(words[:2])
  else:
    name = pick(rng, ("the last two words", "the two words at the end"))
    answer = " ".join(words[-2:])
  definition = f"{ask(rng)} {name}{pick(rng, ('', ' of the list', ' of the input'))}."
  return definition, series(rng, words), answer


def _reverse(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(2, 6)))
  asked = "the words in reverse|the list backwards|all words from last to first"
  how = pick(rng, (*asked.split("|"), "the words turned around"))
  return f"{ask(rng)} {how}.", series(rng, words), " ".join(reversed(words))


def _permute(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 5)))
  names = [*ORDINALS[:3], *(["last"] if len(words) > 3 else [])]
  order = rng.permutation(len(names))[: int(rng.integers(2, 4))]
  asked = f" {pick(rng, ('then', 'and'))} ".join(names[i] for i in order)
  answer = " ".join(words[-1] if names[i] == "last" else words[i] for i in order)
  return f"{ask(rng)} the {asked} {pick(rng, ('word', 'item'))}.", series(rng, words), answer


def _repeat_or_join(rng: Rng) -> Row:
  words, extra = any_words(rng, int(rng.integers(2, 5))), pick(rng, LABELS)
  if rng.integers(2):
    definition, answer = f"{ask(rng)} {extra} and then the list.", [extra, *words]
  else:
    definition, answer = f"{ask(rng)} the list and at its end {extra}.", [*words, extra]
  return definition, series(rng, words), " ".join(answer)


# Pointing at words.


def _neighbour(rng: Rng) -> Row:
  if rng.integers(2):
    words = any_words(rng, int(rng.integers(4, 8)))
  else:
    words = list(dict.fromkeys(sentence(rng).split()))
  at = int(rng.integers(1, len(words) - 1))
  side = pick(rng, ("after", "before", "behind", "that follows"))
  answer = words[at - 1] if side == "before" else words[at + 1]
  text = " ".join(words)
  return f"{ask(rng)} the word {side} {words[at].strip(',:')}.", text, answer.strip(",:")


def _between(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(4, 8)))
  at, (left, right) = int(rng.integers(len(words))), marks(rng)
  marked = [f"{left} {word} {right}" if i == at else word for i, word in enumerate(words)]
  return f"{ask(rng)} the word between {left} and {right}.", " ".join(marked), words[at]


def _replace(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(2, 6)))
  old, new = pick(rng, words), thing(rng)
  answer = " ".join(new if word == old else word for word in words)
  definition = pick(rng, (f"Put {new} in place of {old}.", f"Change {old} into {new}."))
  return definition, series(rng, words), answer


def _drop(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 6)))
  old = pick(rng, words)
  without = f"{ask(rng)} the list without {old}."
  definition = pick(rng, (without, f"Leave out {old}.", f"Remove {old} from the list."))
  return definition, series(rng, words), " ".join(word for word in words if word != old)


def _twice(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 6)))
  answer = pick(rng, words)
  words.insert(int(rng.integers(len(words))), answer)
  verb = ask(rng)
  mark = pick(rng, ("occurs twice", "comes two times", "is repeated"))
  return f"{verb} the word that {mark}.", series(rng, words), answer


# Records.


def _look_up(rng: Rng) -> Row:
  keys, values, text = record(rng, int(rng.integers(2, 5)))
  at = int(rng.integers(len(keys)))
  backwards = rng.random() < 0.4
  asked, answer = (values[at], keys[at]) if backwards else (keys[at], values[at])
  if values.count(values[at]) > 1:
    asked, answer = keys[at], values[at]
  if rng.random() < 0.4:
    named = "what belongs to {}|what goes with {}|the partner of {}|the entry for {}"
    what = pick(rng, named.split("|"))
    return f"{ask(rng)} {what.format(asked)}.", text, answer
  unnamed = (
    "what belongs to the word asked for",
    "the partner of the word in question",
    "the matching entry",
    "what stands with the word that is asked",
  )
  questions = (
    "{t}. {a}?|{t}. What about {a}?|{a}: {t}|{t} # {a}|asked: {a}. {t}|{t}. Tell me of {a}."
  )
  what, question = pick(rng, unnamed), pick(rng, questions.split("|"))
  return f"{ask(rng)} {what}.", question.format(t=text, a=asked), answer


def _form(rng: Rng) -> Row:
  fields = "name size place colour owner day number goods".split()
  keys = picks(rng, fields, int(rng.integers(3, 5)))
  values = any_words(rng, len(keys))
  chosen = [int(i) for i in rng.choice(len(keys), size=int(rng.integers(1, 3)), replace=False)]
  mark = pick(rng, (": ", " ", " - ", " = "))
  order = rng.permutation(len(keys))
  link, gap = pick(rng, (" ", ": ", " = ")), pick(rng, ("; ", ", ", " | "))
  text = gap.join(f"{keys[i]}{link}{values[i]}" for i in order)
  asked = pick(rng, (" and then the ", ", then the ", " before the ")).join(keys[i] for i in chosen)
  with_mark = f", with {mark.strip()} between" if mark.strip() and len(chosen) > 1 else ""
  joined = mark if with_mark else " "
  return f"{ask(rng)} the {asked}{with_mark}.", text, joined.join(values[i] for i in chosen)


# Kinds of words and labels.


def _kind_label(rng: Rng) -> Row:
  kinds = picks(rng, CONTENT_KINDS, int(rng.integers(2, 5)))
  labels = draw_labels(rng, len(kinds))
  cases = [f"{label} for {kind}" for label, kind in zip(labels, kinds, strict=True)]
  rules = pick(rng, (", ", "; ")).join(cases)
  at = int(rng.integers(len(kinds)))
  definition = f"{pick(rng, ('Answer', 'Say', 'Write', 'Choose'))} {rules}."
  return definition, text_of_kind(rng, kinds[at]), labels[at]


def _word_label(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(2, 4)))
  labels = draw_labels(rng, len(words))
  at = int(rng.integers(len(words)))
  seen = ("you see", "there is", "it has")
  cases = zip(labels, words, strict=True)
  rules = ", ".join(f"{label} if {pick(rng, seen)} {word}" for label, word in cases)
  other = next(word for word in things(rng, 8) if word not in words)
  pair = [words[at], other] if rng.integers(2) else [other, words[at]]
  return f"{pick(rng, ('Answer', 'Say', 'Write'))} {rules}.", sentence(rng, pair), labels[at]


def _member(rng: Rng) -> Row:
  words = any_words(rng, int(rng.integers(3, 6)))
  present = bool(rng.integers(2))
  if present:
    asked = pick(rng, words)
  else:
    asked = next(word for word in things(rng, 8) if word not in words)
  yes, no = ("yes", "no") if rng.integers(2) else picks(rng, LABELS, 2)
  there = f"{yes} if {asked} is in the text, else {no}"
  rule = pick(rng, (there, f"{no} unless {asked} is there, then {yes}"))
  definition = f"{pick(rng, ('Answer', 'Say', 'Write'))} {rule}."
  return definition, series(rng, words), yes if present else no


def _kind_pick(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), int(rng.integers(3, 5)))
  words = [pick(rng, KINDS[kind]) for kind in kinds]
  at = int(rng.integers(len(kinds)))
  kind = kinds[at]
  what = pick(rng, (f"the {kind} word", f"the {kind}", f"the one {kind} in the text"))
  return f"{ask(rng)} {what}.", series(rng, words), words[at]


def _kind_name(rng: Rng) -> Row:
  kind = pick(rng, CONTENT_KINDS)
  asked = "what kind of word this is|the kind of these words|what the words have in common|the kind"
  what = pick(rng, asked.split("|"))
  return f"{ask(rng)} {what}.", text_of_kind(rng, kind), kind


def _same_kind(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), 2)
  same = bool(rng.integers(2))
  words = of_kind(rng, kinds[0], 2) if same else [pick(rng, KINDS[kind]) for kind in kinds]
  yes, no = picks(rng, LABELS, 2)
  definition = f"Say {yes} if both words are of one kind, {no} if they are not."
  return definition, series(rng, words), yes if same else no


def _odd_one(rng: Rng) -> Row:
  kinds = picks(rng, tuple(KINDS), 2)
  words, odd = of_kind(rng, kinds[0], 3), pick(rng, KINDS[kinds[1]])
  words.insert(int(rng.integers(4)), odd)
  what = pick(rng, ("the word that does not fit", "the odd word", "the word of another kind"))
  return f"{ask(rng)} {what}.", series(rng, words), odd


def _examples(rng: Rng) -> Row:
  """The rule is shown by examples: two kinds, two labels, and a last word to answer for."""
  kinds, labels = picks(rng, tuple(KINDS), 2), draw_labels(rng, 2)
  shown = [of_kind(rng, kind, 3) for kind in kinds]
  order = [0, 1] if rng.integers(2) else [1, 0]
  link = pick(rng, (": ", " = ", " -> "))
  lines = [f"{shown[i][n]}{link}{labels[i]}" for n in range(2) for i in order]
  at = int(rng.integers(2))
  definition = f"{pick(rng, ('Continue', 'Follow', 'Complete'))} the examples."
  return definition, f"{', '.join(lines)}, {shown[at][2]}{link.rstrip()}", labels[at]


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
