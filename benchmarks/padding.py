r"""How much of what a backbone computes is padding, and how many shapes it is compiled for.

    python benchmarks/padding.py --data.benchmark superni --data.root CL_BENCHMARK_FOLDER \
      --backbone.path MODEL_FOLDER --fit.batch-size 8

Takes a run's options, reads its tasks with its tokenizer and makes the batches of three passes over
each; nothing is computed on them. Prints a row for each way of holding an example: `joined`, source
and answer in one row, as a decoder-only backbone is trained, and `apart`, as an encoder-decoder has
them; with the shapes that the options ask for (`--fit.shapes`), and with fixed ones.
    real     share of places that hold a token of a source or an answer
    shapes   of batches, over all tasks; each is a program to compile
    alone    the share if each row were padded alone, to as many shapes chosen for rows: batches of
             rows with unlike lengths cannot do better
Then what the batches that answer the test rows (`--evaluation.batch-size`) write, if answers are as
long as the references, all tasks together and each by itself:
    written  mean tokens of an answer, its end among them
    waited   mean tokens of the longest answer of its batch, for which all rows of it wait
    passes   of a batch through the decoder, behind those that read the sources
    refilled passes if a row took the place of one that has ended at once
    guessed  passes if each also checked four tokens that stood behind the last few once before
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Sequence

import numpy as np

from sapt_jax import cli, learner, run_options
from sapt_jax.data.batches import Batcher, Row
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.shapes import choose_shapes
from sapt_jax.data.sources import load_stream
from sapt_jax.train import options

PASSES = 3


def padding(
  batcher: Batcher, rows: Sequence[Row], passes: int = 1
) -> tuple[int, int, set[tuple[int, ...]]]:
  """Real tokens, places and shapes of the batches of so many passes over the rows."""
  real, places, shapes = 0, 0, set()
  for batch in batcher.training(rows, 0, passes * batcher.steps_per_epoch(len(rows))):
    # A joined row has no place for its answer's last token, which is not read.
    unread = len(batch.task) if batch.joined else 0
    real += int(batch.source_mask.sum() + batch.target_mask.sum()) - unread
    places += batch.source.size + (0 if batch.joined else batch.target.size)
    shapes.add((*batch.source.shape, *batch.target.shape))
  return real, places, shapes


def alone(batcher: Batcher, rows: Sequence[Row], count: int) -> float:
  """The share of real tokens if each row were padded alone, to at most so many shapes."""
  needs = [batcher.need([row], batcher.left) for row in rows]
  fitted = dataclasses.replace(batcher, shapes=choose_shapes(needs, count, batcher.left))
  used = 1 if batcher.left else 2  # a joined row's answer has no places of its own
  places = sum(sum(fitted.padded(*need, batcher.left)[:used]) for need in needs)
  return sum(sum(need[:used]) for need in needs) / places


def looked_up(row: Row, guesses: int = 4, longest: int = 3) -> int:
  """Passes that write a row's answer behind its first token, if each also checks so many guesses:
  what stood behind the last `longest` tokens, or fewer, where they stood before (prompt lookup
  decoding, Saxena, 2023).
  """
  there, count = [*row.source, row.target[0]], 0
  while left := row.target[len(there) - len(row.source) :]:
    places = (
      place
      for width in range(longest, 0, -1)
      for place in range(len(there) - 1, width - 1, -1)
      if there[place - width : place] == there[-width:]
    )
    place = next(places, len(there))
    pairs = zip(there[place : place + guesses], left, strict=False)
    right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    there += left[: right + 1]
    count += 1
  return count


def passes(batcher: Batcher, rows: Sequence[Row]) -> np.ndarray:
  """(3,): `passes`, `refilled` and `guessed` of these rows."""
  batches = [numbers.tolist() for numbers, _ in batcher.answering(rows)]
  places = [0] * min(batcher.size, len(rows))  # when each has written its rows: a heap
  for number in itertools.chain(*batches):
    heapq.heapreplace(places, places[0] + len(rows[number].target) - 1)
  longest = sum(max(len(rows[number].target) - 1 for number in batch) for batch in batches)
  guessed = sum(max(looked_up(rows[number]) for number in batch) for batch in batches)
  return np.array([longest, max(places), guessed])


def answered(batcher: Batcher, rows: Sequence[Row]) -> np.ndarray:
  """Of each row (n, 2): the tokens of its answer, and of the longest one in its batch."""
  lengths = np.array([len(row.target) for row in rows])
  found = np.stack([lengths, lengths], axis=1)
  for numbers, _ in batcher.answering(rows):
    found[numbers, 1] = lengths[numbers].max()
  return found


def main(arguments: Sequence[str]) -> None:
  """Reads, batches, prints."""
  config = run_options.config_of(options(arguments))
  tasks = load_stream(config.data, config.stream, config.seed)
  codec = learner.make_codec(config, learner.backbone_folder(config))
  prepared = [PreparedTask(number, task, codec) for number, task in enumerate(tasks)]
  fits = [config.fit] * len(tasks)
  for left in (True, False):
    chosen = learner.shapes_of(config, prepared, fits, left)
    every_row = [row for task in prepared for row in task.train.rows]
    for shapes in (chosen, ()) if chosen else ((),):
      plain = Batcher(left, 0, config.fit.batch_size, config.seed, shapes=shapes)
      batcher = learner.batcher_for(config.fit, plain)
      found = [padding(batcher, task.train.rows, PASSES) for task in prepared]
      real, places, used = zip(*found, strict=True)
      name = f"{'joined' if left else 'apart'}, {'chosen' if shapes else 'fixed'}"
      bound = f"   alone {alone(plain, every_row, len(shapes)):.3f}" if shapes else ""
      share = f"{sum(real) / sum(places):.3f}"
      print(f"{name:<15} real {share}   shapes {len(set().union(*used))}{bound}")
  asking = Batcher(True, 0, config.evaluation.batch_size)
  waits = {task.name: answered(asking, task.test.rows) for task in prepared}
  counts = {task.name: passes(asking, task.test.rows) for task in prepared}
  waits["answers"] = np.concatenate([*waits.values()])
  counts["answers"] = np.sum([*counts.values()], axis=0)
  for name, lengths in waits.items():
    (written, waited), (plain, refilled, guessed) = lengths.mean(axis=0), counts[name]
    print(
      f"{name:<15} written {written:.1f}   waited {waited:.1f}   "
      f"passes {plain}   refilled {refilled}   guessed {guessed}"
    )


if __name__ == "__main__":
  cli.run(main)
