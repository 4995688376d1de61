r"""How much of what a backbone computes in training is padding,
and how many shapes it is compiled for.

    python benchmarks/padding.py --data.benchmark superni --data.root CL_BENCHMARK_FOLDER \
      --backbone.path MODEL_FOLDER --fit.batch-size 8

Takes a run's options, reads its tasks with its tokenizer and makes the batches of three passes over
each; nothing is computed on them. Prints a row for each way of holding an example: `joined`, source
and answer in one row, as a decoder-only backbone is trained, and `apart`, as an encoder-decoder has
them.
    real     share of places that hold a token of a source or an answer
    shapes   of batches, over all tasks; each is a program to compile
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sapt_jax import cli, learner, run_options
from sapt_jax.data.batches import Batcher, Row
from sapt_jax.data.prepared import PreparedTask
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


def main(arguments: Sequence[str]) -> None:
  """Reads, batches, prints."""
  config = run_options.config_of(options(arguments))
  tasks = load_stream(config.data, config.stream, config.seed)
  codec = learner.make_codec(config, learner.backbone_folder(config))
  rows = [PreparedTask(number, task, codec).train.rows for number, task in enumerate(tasks)]
  size, window = config.fit.batch_size, config.fit.length_window
  apart = Batcher(left=False, pad_id=0, size=size, seed=config.seed, window=window)
  for name, batcher in (("joined", dataclasses.replace(apart, left=True)), ("apart", apart)):
    found = [padding(batcher, task_rows, PASSES) for task_rows in rows]
    real, places, shapes = zip(*found, strict=True)
    print(f"{name:<8} real {sum(real) / sum(places):.3f}   shapes {len(set().union(*shapes))}")


if __name__ == "__main__":
  cli.run(main)
