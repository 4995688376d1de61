"""The small language of the `mini` benchmark:
words by kind, and the few helpers that draw from them.

Both the stream (`tasks.py`) and the pretraining mixture (`pretraining.py`) speak it. They share
words, never instructions or inputs: the backbone knows what a word is, and a task is what it still
has to learn. All draws go through one `numpy.random.Generator`, so equal seeds give equal text on
every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


# Kinds of things. The name of a kind is itself a word of the language.
KINDS: dict[str, tuple[str, ...]] = {
  "animal": _words("""
    goat hen horse cow dog cat fox bear wolf deer duck goose mouse rat crow owl sheep pig hare seal
  """),
  "food": _words("""
    bread rice soup cheese butter honey plum pear apple bean corn cake egg fish ham jam milk onion
    pie stew
  """),
  "tool": _words("""
    hammer saw nail rope shovel axe drill rake ladder needle spade chisel wrench bucket broom knife
    pump hook
  """),
  "garment": _words("""
    coat hat scarf boot glove shirt sock belt cloak dress apron vest shoe skirt cap robe shawl
    sandal
  """),
  "furniture": _words("""
    table chair lamp bed shelf clock mirror rug sofa stool drawer curtain pillow stove basin candle
    vase
  """),
  "vehicle": _words("""
    cart wagon boat train tram truck bicycle sledge ferry canoe raft plane bus barge tractor van
  """),
  "weather": _words("""
    rain snow wind storm fog frost hail thunder cloud sunshine mist breeze flood drought ice heat
  """),
  "plant": _words("""
    oak pine rose tulip fern moss ivy daisy willow birch lily thistle clover reed maple cedar
  """),
  "material": _words("""
    gold silver iron copper tin wood glass stone clay wool silk paper leather brick steel wax
  """),
  "colour": _words("red blue green yellow black white brown pink grey purple orange violet"),
  "music": _words("""
    drum flute harp violin trumpet piano song choir singer band organ bell fiddle tune opera chorus
  """),
  "sport": _words("""
    ball team goal race coach player match kick runner medal referee league stadium trophy wrestler
    swimmer
  """),
  "money": _words("""
    bank coin price loan tax market trade wage debt profit rent fund invoice budget banker merchant
  """),
  "health": _words("""
    doctor nurse fever cough bandage medicine clinic wound pill surgeon patient ward tonic illness
    cure rash
  """),
  "praise": _words("""
    lovely superb charming delightful splendid brilliant pleasant tasty generous cheerful wonderful
    elegant gentle clever graceful perfect warm excellent
  """),
  "blame": _words("""
    dull weak awful boring dreadful stale clumsy rude bitter messy horrible ugly noisy greasy gloomy
    rotten tedious nasty
  """),
  "job": _words("""
    baker farmer miller tailor smith teacher sailor painter clerk guard cook driver weaver hunter
    judge potter
  """),
  "person": _words("""
    Ada Tom Mara Bo Lena Igor Nora Hugo Vera Otto Ruth Emil Clara Felix Greta Oskar Hanna Karl Ida
    Paul Rosa Jonas Mina Viktor
  """),
  "town": _words("""
    Norwick Elmford Dunmere Ashby Halden Corby Stokely Brookham Larne Wexton Penrose Tilbury Farley
    Oakham Redhill Selby Marlow Kendal Brampton Ludlow
  """),
  "place": _words("""
    barn cellar garden kitchen attic harbour bridge tower mill forest river school church square
    field hill
  """),
}

# Kinds whose words stand for things that one can own, list, send or find.
THINGS = ("animal", "food", "tool", "garment", "furniture", "vehicle", "plant", "material", "music")
PLAIN = _words("""
  old new small large round flat heavy light tall narrow long short thick thin plain broken
""")
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
NUMBERS = _words("one two three four five six seven eight nine ten eleven twelve")
ORDINALS = _words("first second third fourth fifth sixth")
UNITS = _words("sacks boxes jars crates bags barrels trays bundles")
VERBS = _words("""
  sees finds likes takes wants brings keeps sells buys hides draws cleans moves drops lifts paints
""")
# Common words that no task turns on: headers, small talk, the words that instructions are made of.
EVERYDAY = _words("""
  Dear Yours Diary HEADLINE Letter Note Memo Parcel Menu Report Notice Last What Open Tell Choose
  Decide Judge Look From Turn Say Find Read The the and but with without about after before while
  since because until near under over again later soon now then there here this that these those
  which who whose what where when how why if is are was were be been has have had will can could
  should would must may might do does did not nor only also too very more most some any each every
  both all none other another same different one's my our your his her its their me us you him them
  I we he she it they at in on of to for by from into through between along across around behind
  beyond film cinema viewer evening plot acting ending sound hero villain scene actor screen ticket
  parcel postman sender weight holds address street door house office desk letter answer question
  page newspaper reader writer story chest key lid hides treasure opening discovers queue ends
  stands row line middle guest dine notes kitchen's plate waiter cup meal visit visited visits
  author diary came knocked carrying showed cleaned wrote yesterday today tomorrow morning night
  week year time help explain asked told trouble heard felt went saw watched waited needs property
  register owner belongs learn customer wish slip short long store room shop please says order list
  word words text name names number numbers person people thing things place places town towns kind
  kinds input output first last next whole part half side top bottom inside outside deliver delivers
  send sends give gives take make makes put puts show shows keep leave leaves hold carry bring ask
  asks tell tells know knows think thinks seem divide waits told recalls a need With Film someone
  headline customer s
""")
# Words that answer: the stream's labels are among many others, so none is new to the backbone.
LABELS = _words("""
  yes no true false good bad left right up down alpha beta gamma delta thrilled bored amused annoyed
  accept reject again never maybe always pass fail keep return north south east west pitch counter
  bedside podium open closed high low hot cold early late near far in out on off safe risky calm
  angry happy sad fast slow full empty strong soft start stop buy sell hold wait send stay go come
  public private major minor rare common known unknown
""")


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
  """One of `options`, uniformly."""
  return options[int(rng.integers(len(options)))]


def picks(rng: np.random.Generator, options: Sequence[str], count: int) -> list[str]:
  """`count` different options in random order; raises ValueError if there are fewer."""
  return [options[int(i)] for i in rng.choice(len(options), size=count, replace=False)]


def thing(rng: np.random.Generator) -> str:
  """A word for a thing, of any kind in `THINGS`."""
  return pick(rng, KINDS[pick(rng, THINGS)])


def things(rng: np.random.Generator, count: int) -> list[str]:
  """`count` different words for things, each of a kind drawn anew."""
  drawn: list[str] = []
  while len(drawn) < count:
    word = thing(rng)
    if word not in drawn:
      drawn.append(word)
  return drawn


def lexicon() -> tuple[str, ...]:
  """Every word of the language once, in a fixed order."""
  words = [word for members in KINDS.values() for word in members]
  words += [*KINDS, *PLAIN, *DAYS, *NUMBERS, *ORDINALS, *UNITS, *VERBS, *EVERYDAY, *LABELS]
  return tuple(dict.fromkeys(words))
