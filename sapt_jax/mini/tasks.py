"""The stream of the `mini` benchmark: ten small text-to-text tasks, written from a seed.

Five families come in related pairs, one skill in two dresses, so that transfer between tasks can be
seen:

| pair | tasks | what differs |
|---|---|---|
| sentiment | film_mood, meal_verdict | domain, format, labels (2 and 3) |
| topic | headline_section, letter_desk | format, labels of the same four topics |
| extraction | parcel_town, diary_guest | a marked field of a record, a role in a story |
| reading | chest_content, owner_list | value asked by its key, key asked by its value |
| rewriting | queue_ends, order_slip | reorder a list, fill a form |

Members of a pair conflict on purpose: alike inputs, other answers. No definition states its labels
or its answer's format, so both have to be learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from sapt_jax.data.tasks import Example, Task
from sapt_jax.mini import language
from sapt_jax.mini.language import KINDS, pick, picks, thing, things

TRAIN, DEV, TEST = 400, 40, 60
PAIRS: dict[str, tuple[str, str]] = {
  "sentiment": ("film_mood", "meal_verdict"),
  "topic": ("headline_section", "letter_desk"),
  "extraction": ("parcel_town", "diary_guest"),
  "reading": ("chest_content", "owner_list"),
  "rewriting": ("queue_ends", "order_slip"),
}
FILM_LABELS = {"praise": "thrilled", "blame": "bored"}
MEAL_LABELS = {"praise": "again", "mixed": "maybe", "blame": "never"}
SECTION_LABELS = {"sport": "pitch", "money": "counter", "health": "bedside", "music": "podium"}
DESK_LABELS = {"sport": "north", "money": "east", "health": "south", "music": "west"}
TOPICS = tuple(SECTION_LABELS)

Row = tuple[str, str]  # input, answer


def _film_mood(rng: np.random.Generator) -> Row:
  mood = pick(rng, ("praise", "blame"))
  first, second = picks(rng, KINDS[mood], 2)
  day = pick(rng, language.DAYS)
  part, other = picks(rng, ("plot", "acting", "ending", "sound", "hero", "villain"), 2)
  went = f"Last {day} we went to the cinema."
  opening = pick(rng, (f"I saw the film on {day}.", went, f"Film night, {day}."))
  body = pick(
    rng,
    (
      f"The {part} was {first} and the {other} {second}.",
      f"What a {first} {part}, and the {other} felt {second}.",
      f"With its {first} {part} and {second} {other} it was over too soon.",
    ),
  )
  return f"{opening} {body}", FILM_LABELS[mood]


def _meal_verdict(rng: np.random.Generator) -> Row:
  verdict = pick(rng, ("praise", "mixed", "blame"))
  moods = ("praise", "blame") if verdict == "mixed" else (verdict, verdict)
  words = [pick(rng, KINDS[moods[i]]) for i in rng.permutation(2)]
  dish, side = picks(rng, KINDS["food"], 2)
  notes = f"table {int(rng.integers(2, 40))} / {dish}: {words[0]} / {side}: {words[1]}"
  return notes, MEAL_LABELS[verdict]


def _headline_section(rng: np.random.Generator) -> Row:
  topic = pick(rng, TOPICS)
  first, second = picks(rng, KINDS[topic], 2)
  town, place = pick(rng, KINDS["town"]), pick(rng, KINDS["place"])
  line = pick(
    rng,
    (
      f"{first} and {second} divide {town}",
      f"{town} waits for {first} after {second} row",
      f"{first} near {town} {place} recalls {second}",
      f"no {first} without {second}, {town} told",
    ),
  )
  return f"HEADLINE >> {line}", SECTION_LABELS[topic]


def _letter_desk(rng: np.random.Generator) -> Row:
  topic = pick(rng, TOPICS)
  first, second = picks(rng, KINDS[topic], 2)
  name, day = pick(rng, KINDS["person"]), pick(rng, language.DAYS)
  line = pick(
    rng,
    (
      f"since {day} I have had trouble with the {first}, and now also the {second}.",
      f"could someone explain the {first} and the {second} to me?",
      f"on {day} I asked about a {first} but was told of a {second}.",
    ),
  )
  return f"Dear office, {line} Yours, {name}", DESK_LABELS[topic]


def _parcel_town(rng: np.random.Generator) -> Row:
  origin, target = picks(rng, KINDS["town"], 2)
  fields = [
    f"sender {pick(rng, KINDS['person'])}",
    f"from {origin}",
    f"to {target}",
    f"holds {thing(rng)}",
    f"weight {int(rng.integers(2, 60))}",
  ]
  shuffled = "; ".join(fields[i] for i in rng.permutation(len(fields)))
  return f"parcel [ {shuffled} ]", target


def _diary_guest(rng: np.random.Generator) -> Row:
  friend, guest = picks(rng, KINDS["person"], 2)
  day, place, gift = pick(rng, language.DAYS), pick(rng, KINDS["place"]), thing(rng)
  work = pick(
    rng,
    (
      f"I cleaned the {place} with {friend}",
      f"{friend} and I were at the {place}",
      f"I wrote to {friend} about the {place}",
    ),
  )
  visit = pick(
    rng,
    (
      f"{guest} came by with a {gift}",
      f"{guest} knocked and showed me a {gift}",
      f"in came {guest} carrying a {gift}",
    ),
  )
  parts = (work, visit) if rng.integers(2) else (visit, work)
  return f"Diary, {day}: {parts[0]}; later {parts[1]}.", guest


def _chest_content(rng: np.random.Generator) -> Row:
  colours, contents = picks(rng, KINDS["colour"], 3), things(rng, 3)
  asked = int(rng.integers(3))
  facts = " ".join(
    f"The {colour} chest hides a {word}." for colour, word in zip(colours, contents, strict=True)
  )
  return f"{facts} Open the {colours[asked]} one!", contents[asked]


def _owner_list(rng: np.random.Generator) -> Row:
  owners, goods = picks(rng, KINDS["person"], 3), things(rng, 3)
  asked = int(rng.integers(3))
  rows = " | ".join(f"{owner} = {word}" for owner, word in zip(owners, goods, strict=True))
  return f"{goods[asked]}? | {rows}", owners[asked]


def _queue_ends(rng: np.random.Generator) -> Row:
  queue = picks(rng, KINDS["person"], int(rng.integers(3, 6)))
  return f"door < {' < '.join(queue)} < street", f"{queue[-1]} {queue[0]}"


def _order_slip(rng: np.random.Generator) -> Row:
  number, unit, word = pick(rng, language.NUMBERS), pick(rng, language.UNITS), thing(rng)
  name, day = pick(rng, KINDS["person"]), pick(rng, language.DAYS)
  line = pick(
    rng,
    (
      f"please send {number} {unit} of {word} to {name} by {day}",
      f"{name} wants {number} {unit} of {word} on {day}",
      f"by {day} we need {number} {unit} of {word}, says {name}",
    ),
  )
  return f"* {line} *", f"{name}: {word} {number}"


@dataclasses.dataclass(frozen=True)
class Writer:
  """A task: its instruction, and what draws a row of it."""

  definition: str
  row: Callable[[np.random.Generator], Row]


WRITERS: dict[str, Writer] = {
  "film_mood": Writer("Tell how the viewer felt after this evening at the cinema.", _film_mood),
  "parcel_town": Writer("Find where the postman has to deliver this parcel.", _parcel_town),
  "headline_section": Writer(
    "Choose the page of the newspaper on which this headline belongs.", _headline_section
  ),
  "chest_content": Writer("Say what one discovers when opening that chest.", _chest_content),
  "queue_ends": Writer("From this queue, name who stands at its two ends.", _queue_ends),
  "meal_verdict": Writer(
    "Judge from these notes if the guest will dine here another time.", _meal_verdict
  ),
  "diary_guest": Writer("Read the diary and tell who visited its author.", _diary_guest),
  "letter_desk": Writer("Decide which desk of our office should answer this letter.", _letter_desk),
  "owner_list": Writer(
    "Look through the register to learn whose property is asked about.", _owner_list
  ),
  "order_slip": Writer(
    "Turn the customer's wish into a short slip for the store room.", _order_slip
  ),
}


def _task(name: str, writer: Writer, seed: np.random.SeedSequence) -> Task:
  """Draws rows until there are enough different inputs, then cuts them into the three splits."""
  rng = np.random.default_rng(seed)
  rows: dict[str, str] = {}
  while len(rows) < TRAIN + DEV + TEST:
    text, answer = writer.row(rng)
    rows.setdefault(text, answer)
  examples = tuple(Example(text, (answer,)) for text, answer in rows.items())
  train, rest = examples[:TRAIN], examples[TRAIN:]
  return Task(name, writer.definition, train, rest[:DEV], rest[DEV:])


def mini_stream(seed: int) -> list[Task]:
  """The ten tasks in stream order, each with 400 training, 40 dev and 60 test rows.

  Equal seeds give equal tasks on every machine; the seed changes the rows, never the definitions.
  The inputs of a task are all different, so its splits are disjoint. Raises ValueError for a
  negative seed.
  """
  return stream_of(WRITERS, seed)


def stream_of(writers: dict[str, Writer], seed: int) -> list[Task]:
  """The tasks of these writers, in their order; see mini_stream."""
  if seed < 0:
    raise ValueError(f"seed must not be negative, got {seed}")
  seeds = np.random.SeedSequence(seed).spawn(len(writers))
  return [
    _task(name, writer, child) for (name, writer), child in zip(writers.items(), seeds, strict=True)
  ]
