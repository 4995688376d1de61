"""LFPT5's pseudo examples: a block that learned to write the examples of its tasks is asked for
some of each.

An example is written as it stands in a prompt: input, what the benchmark puts between input and
answer ("Output:"), answer.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from sapt_jax.data.batches import Row
from sapt_jax.data.labels import flat
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Example


@dataclasses.dataclass(frozen=True)
class PseudoExamples:
  """examples: those of one task that were kept; counts: how many samples were drawn, malformed, of
  no label, repeated, kept.
  """

  examples: list[Example]
  counts: dict[str, int]


def marker(codec: Codec, index: int) -> list[int]:
  """What asks for examples of the index-th task: words that any tokenizer can spell, and short, so
  that batches keep to few shapes.
  """
  return codec.encode(f"Task {index + 1}:")


def example_row(codec: Codec, index: int, example: Example, longest: int) -> Row:
  """marker -> the example, at most `longest` tokens; where it is longer, its input's end is cut."""
  plain = {"add_special_tokens": False}
  between = codec.frame[1]
  room = codec.max_target + len(codec.tokenizer(between, **plain)["input_ids"])
  answer = dataclasses.replace(codec, max_target=room).target(between + example.references[0])
  text = codec.known(codec.tokenizer(example.input, **plain)["input_ids"])
  return Row(marker(codec, index), [*text[: max(0, longest - len(answer))], *answer], index)


def sort_out(
  samples: Sequence[str], separator: str, labels: frozenset[str] | None, keep: int
) -> PseudoExamples:
  """Samples that are an input, one separator and an answer, the answer among the labels where there
  are any, and the input a new one.

  At most `keep` of them, the answers taking turns, so that frequent ones leave room for the others.
  """
  turns: list[tuple[int, Example]] = []
  inputs: set[str] = set()
  answers: collections.Counter[str] = collections.Counter()
  counts = {"drawn": len(samples), "malformed": 0, "no_label": 0, "repeated": 0}
  for sample in samples:
    parts = [part.strip() for part in sample.split(separator)]
    if len(parts) != 2 or not all(parts):
      counts["malformed"] += 1
    elif labels is not None and flat(parts[1]) not in labels:
      counts["no_label"] += 1
    elif flat(parts[0]) in inputs:
      counts["repeated"] += 1
    else:
      turns.append((answers[flat(parts[1])], Example(parts[0], (parts[1],))))
      inputs.add(flat(parts[0]))
      answers[flat(parts[1])] += 1
  chosen = [example for _, example in sorted(turns, key=lambda turn: turn[0])][:keep]
  return PseudoExamples(chosen, counts | {"kept": len(chosen)})
