"""The stream of the `mini_related` benchmark: nine small tasks that have something to give each
other, written from a seed.

| family | tasks | what they share |
|---|---|---|
| stay | stay_guest, stay_mood, stay_card | inputs; only the instruction tells them apart |
| memo | memo_mood, memo_sender, memo_card | inputs; skills and labels with `stay`, not words |
| stall | stall_goods, stall_trader, stall_card | inputs |

Each card asks for what the two others of its family ask for, both at once: a composition of two
earlier tasks. A relative comes before each task but the first three, and a task of another family
stands between them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sapt_jax.data.tasks import Task
from sapt_jax.mini import language
from sapt_jax.mini.language import KINDS, pick, picks, things
from sapt_jax.mini.tasks import Row, Writer, stream_of

LABELS = {"praise": "accept", "blame": "reject"}
# The words that tell a mood: one half for each family.
WORDS = {
  family: {mood: KINDS[mood][start::2] for mood in LABELS}
  for start, family in enumerate(("stay", "memo"))
}


def _mood(rng: np.random.Generator, family: str) -> tuple[list[str], list[str], str]:
  """Two people, two words of the family that tell a mood, and its label."""
  mood, people = pick(rng, tuple(LABELS)), picks(rng, KINDS["person"], 2)
  return people, picks(rng, WORDS[family][mood], 2), LABELS[mood]


def _stay(rng: np.random.Generator) -> tuple[str, str, str]:
  """A note about a night at an inn, who stayed, and the label of the mood."""
  (guest, host), (first, second), label = _mood(rng, "stay")
  town, day = pick(rng, KINDS["town"]), pick(rng, language.DAYS)
  item, meal = pick(rng, KINDS["furniture"]), pick(rng, KINDS["food"])
  text = pick(
    rng,
    (
      f"{guest} slept in {town} with {host} as host, {day}: {first} {item}, {second} {meal}",
      f"{day}, inn of {host}, {town}: {guest} had a {first} {item} and {second} {meal}",
      f"{second} {meal} and a {first} {item}, so {guest} told {host} in {town}",
    ),
  )
  return text, guest, label


def _memo(rng: np.random.Generator) -> tuple[str, str, str]:
  """A memo about work that was done, who wrote it, and the label of the mood."""
  (sender, reader), (first, second), label = _mood(rng, "memo")
  job, tool, place = pick(rng, KINDS["job"]), pick(rng, KINDS["tool"]), pick(rng, KINDS["place"])
  text = pick(
    rng,
    (
      f"Memo > {reader} < {sender} | {job} at the {place}: {first}, {tool}: {second}",
      f"Memo by {sender} | the {tool} is {first} and the {job} {second} | read by {reader}",
      f"Memo | {reader} asked, {sender} tells: {second} {job}, {first} {tool}, {place}",
    ),
  )
  return text, sender, label


def _stall(rng: np.random.Generator) -> tuple[str, str, str]:
  """The stalls of a market, the first one's trader, and what lies on the last one."""
  traders, goods = picks(rng, KINDS["job"], 3), things(rng, 3)
  town, day = pick(rng, KINDS["town"]), pick(rng, language.DAYS)
  listed = " , ".join(map("{} + {}".format, traders, goods))
  text = pick(
    rng, (f"market: {listed}", f"{town} market ( {listed} )", f"{day} # {listed} # {town}")
  )
  return text, traders[0], goods[-1]


def _asked(
  about: Callable[[np.random.Generator], tuple[str, str, str]], answer: str
) -> Callable[[np.random.Generator], Row]:
  """Rows about a text: `answer` has {name} and {label} where the two things go that are to be found
  in it.
  """

  def row(rng: np.random.Generator) -> Row:
    text, name, label = about(rng)
    return text, answer.format(name=name, label=label)

  return row


WRITERS: dict[str, Writer] = {
  "stay_guest": Writer("Find the traveller whom this inn has lodged.", _asked(_stay, "{name}")),
  "memo_mood": Writer("Is the work of this memo well done?", _asked(_memo, "{label}")),
  "stall_goods": Writer("What lies at the far gate?", _asked(_stall, "{label}")),
  "stay_mood": Writer("Would one choose that bed another night?", _asked(_stay, "{label}")),
  "memo_sender": Writer("Who has put these remarks on paper?", _asked(_memo, "{name}")),
  "stall_trader": Writer("Whom does one meet on entering?", _asked(_stall, "{name}")),
  "stay_card": Writer("Fill the card of the inn for its book.", _asked(_stay, "{name} {label}")),
  "stall_card": Writer("Fill the slip of this fair.", _asked(_stall, "{name} {label}")),
  "memo_card": Writer("Fill the file of the office from this.", _asked(_memo, "{name} {label}")),
}


def related_stream(seed: int) -> list[Task]:
  """The nine tasks in stream order; sizes, seeds and errors as in tasks.mini_stream."""
  return stream_of(WRITERS, seed)
