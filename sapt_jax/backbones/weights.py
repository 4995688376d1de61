"""Where Hugging Face keeps each of a model's weights."""

from __future__ import annotations

from typing import NamedTuple


class Weight(NamedTuple):
  """One of our parameters and where Hugging Face keeps it.

  Attributes:
    path: our parameter, e.g. "encoder/attention/q/kernel".
    name: theirs; "{}" stands for the layer, whose parameters we stack on a leading axis.
    transpose: theirs is (D_out, D_in), as torch's linear layers keep it; ours (D_in, D_out).
    layers: how many layers are stacked; None where there is no layer axis.
    rows: where ours are in theirs along D_out, if theirs holds several of ours: start, how many,
      how many in all. None: theirs is ours.
  """

  path: str
  name: str
  transpose: bool
  layers: int | None
  rows: tuple[int, int, int] | None = None

  def names(self) -> list[str]:
    """Their name, or that of every layer."""
    if self.layers is None:
      return [self.name]
    return [self.name.format(layer) for layer in range(self.layers)]
