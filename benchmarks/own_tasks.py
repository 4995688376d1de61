"""Three tasks as a user might have them, in files of docs/your_own_tasks.md: CSV and TOML.

    python benchmarks/own_tasks.py FOLDER

Messages to a help desk (which of five teams), comments on a hotel (praise, complaint or neutral),
notes about meetings (which day). The texts are put together at random, always the same ones.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from sapt_jax import cli

Row = tuple[str, str]  # text, label

WHO = (
  "We stayed|My wife and I stayed|I stayed|Our family of four stayed|Two colleagues and I stayed"
).split("|")
WHEN = (
  "for three nights in May|over a long weekend|for a conference|during the school holidays|"
  "for one night on the way south|last autumn"
).split("|")
PRAISE = (
  "the bed was the best I have slept in for years|reception found us a cot within minutes|"
  "breakfast was fresh and generous|the room was spotless|the view over the harbour was lovely|"
  "the staff remembered our names|it was wonderfully quiet at night|the shower was hot and strong"
).split("|")
COMPLAINT = (
  "the carpet smelled of damp|the heating rattled until four in the morning|"
  "we waited forty minutes to check in|the breakfast eggs were cold and rubbery|"
  "there was hair in the shower drain|the wifi dropped every few minutes|"
  "someone charged us twice for parking|the window would not close"
).split("|")
NEUTRAL = (
  "the hotel is ten minutes from the station|there are two lifts and a small gym|"
  "check-in opens at three|parking is behind the building|breakfast is served until ten|"
  "the room had a desk and a kettle|rooms face either the street or the yard"
).split("|")
ENDS = {
  "praise": "We will certainly come back.|Worth every penny.|Warmly recommended!|A real treat.",
  "complaint": (
    "Never again.|We asked for a refund.|I would look elsewhere.|A disappointing stay."
  ),
  "neutral": (
    "That is about all there is to say.|Nothing remarkable either way.|It did what it should.|"
    "An ordinary hotel."
  ),
}
TEAMS = {
  "printing": (
    "the printer on the second floor jams on every double-sided page|"
    "my poster came out with green stripes|I cannot find the colour printer in the list|"
    "the tray says empty although I filled it|scanning to e-mail sends blank pages"
  ),
  "accounts": (
    "my password expired while I was abroad|the login page says my account is locked|"
    "a new student needs access to the shared drive|"
    "please remove a former employee from our group|"
    "I no longer get the code for two-step sign-in"
  ),
  "network": (
    "the wireless in the seminar room drops during calls|the VPN connects but no page loads|"
    "the wall socket in office 214 seems dead|downloads crawl at a few kilobytes per second|"
    "our lab instruments lost their addresses after the move"
  ),
  "software": (
    "the statistics package asks for a new licence|"
    "the editor crashes whenever I open a large file|"
    "could you install the latest version of the reference manager|"
    "the update hangs at ninety percent|the plugin no longer shows up after the upgrade"
  ),
  "hardware": (
    "my laptop fan is roaring and the case is hot|two keys on the keyboard stick|"
    "the external monitor stays black|the battery lasts twenty minutes|"
    "I dropped my docking station and a port is bent"
  ),
}
HELLO = "Hello,|Dear support,|Hi team,|Good morning,|Hi,|".split("|")
SINCE = "since Monday|since this morning|since the weekend|for about a week|again today|".split("|")
TAIL = (
  "Could somebody have a look?|It is rather urgent because of a deadline.|Thanks in advance!|"
  "I have already restarted twice.|There is no hurry.|Please call me on extension 4471.|"
).split("|")
DAYS = "Monday Tuesday Wednesday Thursday Friday".split()
EVENTS = (
  "project meeting|budget review|reading group|lab safety tour|journal club|thesis committee|"
  "team lunch"
).split("|")
NOTES = (
  "The {e} moves from {a} to {b} because {p} is travelling.|"
  "As {p} cannot make it on {a}, we hold the {e} on {b}.|"
  "Please note that the {e} is now on {b}, not on {a}.|"
  "The {e} was planned for {a}; {p} asked for {b}, so {b} it is.|"
  "{p} will chair the {e} on {b}; the {a} slot is cancelled."
).split("|")
PEOPLE = "Ana Bernd Chidi Dolores Emil Farah Greta".split()
MORE = (
  "Room 12 is booked.|Bring your notes.|Coffee will be served.|We start at nine.|"
  "Remote participation is possible.|"
).split("|")


def sentence(text: str) -> str:
  """With a large first letter."""
  return text[0].upper() + text[1:]


def comment(draw: random.Random) -> Row:
  """A comment on a hotel."""
  label = draw.choice(["praise", "complaint", "neutral"])
  pool = {"praise": PRAISE, "complaint": COMPLAINT, "neutral": NEUTRAL}[label]
  one, two = draw.sample(pool, 2)
  # Drawn for every label, so that each takes as many numbers.
  beside = draw.choice([NEUTRAL, PRAISE])
  others = beside if label == "complaint" else NEUTRAL
  parts = [f"{draw.choice(WHO)} {draw.choice(WHEN)}."]
  said = [f"{sentence(one)} and {two}." if draw.random() < 0.6 else f"{sentence(one)}."]
  if draw.random() < 0.5:
    other = draw.choice(others)
    if other not in (one, two):
      said.insert(draw.randrange(2), f"{sentence(other)}.")
  parts += said
  if draw.random() < 0.6:
    parts.append(draw.choice(ENDS[label].split("|")))
  return " ".join(parts), label


def message(draw: random.Random) -> Row:
  """A message to a help desk."""
  team = draw.choice(list(TEAMS))
  trouble, since = draw.choice(TEAMS[team].split("|")), draw.choice(SINCE)
  said = sentence(trouble) + (f", {since}" if since else "") + "."
  return " ".join(part for part in (draw.choice(HELLO), said, draw.choice(TAIL)) if part), team


def meeting(draw: random.Random) -> Row:
  """A note about a meeting, and the day on which it is."""
  before, day = draw.sample(DAYS, 2)
  note = draw.choice(NOTES).format(e=draw.choice(EVENTS), a=before, b=day, p=draw.choice(PEOPLE))
  return f"{note} {draw.choice(MORE)}".strip(), day


TASKS: dict[str, tuple[Callable[[random.Random], Row], int, str]] = {
  "hotel_comments": (
    comment,
    420,
    "Say whether this hotel comment is praise, a complaint or neutral.",
  ),
  "helpdesk_topic": (message, 460, "Say which team should answer this message."),
  "meeting_day": (meeting, 440, "On which day does the event take place?"),
}


def main(arguments: Sequence[str]) -> None:
  """Writes the files."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  folder = parser.parse_args(arguments).folder
  folder.mkdir(parents=True, exist_ok=True)
  draw = random.Random(20240611)
  for name, (write, count, instruction) in TASKS.items():
    rows: dict[str, str] = {}
    while len(rows) < count:
      text, label = write(draw)
      rows.setdefault(text, label)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
      csv.writer(file).writerows([("text", "label"), *rows.items()])
    said = {"instruction": instruction, "input": "text", "output": "label"}
    lines = "".join(f'{key} = "{value}"\n' for key, value in said.items())
    (folder / f"{name}.toml").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
  cli.run(main)
