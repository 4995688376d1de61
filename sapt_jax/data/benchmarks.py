"""What is particular to each benchmark: its folder, its prompt, its score."""

from __future__ import annotations

from typing import NamedTuple


class Benchmark(NamedTuple):
  """folder: its name below data.root; frame: the prompt before and after the input, {d} is the
  definition; metric: its usual score.
  """

  folder: str
  frame: tuple[str, str]
  metric: str


SUPERNI_FRAME = ("Definition: {d}\n\nNow complete the following example -\nInput: ", "\nOutput: ")

BENCHMARKS = {
  "mini": Benchmark("", SUPERNI_FRAME, "exact_match"),
  "mini_related": Benchmark("", SUPERNI_FRAME, "exact_match"),
  "superni": Benchmark("SuperNI", SUPERNI_FRAME, "rouge_l"),
  "tasks": Benchmark("", SUPERNI_FRAME, "exact_match"),
  "natural_instructions": Benchmark("", SUPERNI_FRAME, "rouge_l"),
  "trace": Benchmark("", ("{d}\n", ""), "exact_match"),
  "long_sequence": Benchmark("Long_Sequence", ("{d}\n", "\nOutput: "), "exact_match"),
}
