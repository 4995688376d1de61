"""The tasks of Long Sequence, order 1, from their own places on the Hugging Face hub: 1000 rows of
each to learn from, 500 to test with. Prompts and rows are not those of the published benchmark.

    python -m sapt_jax.train --config configs/hubs/long_sequence.py --output runs/hub

TensorFlow Datasets has eleven of them; name these behind `--data.root configs/hubs/tfds
--stream.tasks`. Names on hubs change; those here were not tried against the hubs themselves.
"""

import dataclasses
import pathlib

from sapt_jax.config import Data
from sapt_jax.paper import paper

published = paper("long_sequence", 1, "t5_large")
config = dataclasses.replace(
  published,
  data=Data(
    benchmark="tasks",
    root=str(pathlib.Path(__file__).parent / "datasets"),
    max_source_length=published.data.max_source_length,
  ),
  generator=dataclasses.replace(published.generator, folder=""),
)
