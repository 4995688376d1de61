"""The lines of an HLO text: instructions, and the arrays in their types."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cached_property

BYTES = {
  **dict.fromkeys(("s4", "u4"), 0.5),
  **dict.fromkeys(("pred", "s8", "u8"), 1),
  **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
  **dict.fromkeys(("s32", "u32", "f32"), 4),
  **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
  "c128": 16,
}

# Instructions that start nothing on the device: they name values, or steer what does.
NO_KERNEL = frozenset(
  "parameter constant tuple get-tuple-element bitcast after-all opt-barrier while call conditional "
  "partition-id replica-id async-update".split()
)


def array_shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """(dtype, dimensions) of each array in a type:
  "(f32[2,3]{1,0}, s32[])" -> [("f32", (2, 3)), ("s32", ())].
  """
  found = re.findall(r"\b([a-z]+[0-9]*\w*)\[([0-9,]*)\]", text)
  return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in found]


def array_bytes(text: str) -> float:
  """Bytes of all arrays in a type; a float8 of any kind is one."""
  return sum(BYTES.get(dtype, 1) * math.prod(dims) for dtype, dims in array_shapes(text))


def closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if depth == 0:
      return place
  return len(text)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO: name = type opcode(operands), attributes."""

  name: str
  type: str
  opcode: str
  inside: str
  attributes: str
  root: bool

  @cached_property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.\-]+)", self.inside)

  @property
  def dims(self) -> tuple[int, ...]:
    """Of the (first) array."""
    return array_shapes(self.type)[0][1]

  @property
  def starts_kernel(self) -> bool:
    """Not what names values or steers, what waits for what was started,
    or a TPU's sum of two counters.
    """
    if self.opcode in NO_KERNEL or self.opcode.endswith("-done"):
      return False
    return self.opcode == "fusion" or bool(self.dims)

  def called(self, attribute: str) -> list[str]:
    """Computations that an attribute names: body=%a, or branch_computations={%a, %b}."""
    match = re.search(rf"\b{attribute}=(?:%([\w.\-]+)|{{([^}}]*)}})", self.attributes)
    if match is None:
      return []
    return [match[1]] if match[1] else re.findall(r"%([\w.\-]+)", match[2])


def parse_instruction(line: str) -> Instruction | None:
  """An instruction, or None where a line holds none."""
  match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if match is None:
    return None
  start = match.end()
  stop = closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
  opcode = re.match(r"\s*([\w\-]+)\(", line[stop:])
  if opcode is None:
    return None
  first = stop + opcode.end() - 1
  last = closing(line, first)
  return Instruction(
    name=match[2],
    type=line[start:stop],
    opcode=opcode[1],
    inside=line[first + 1 : last],
    attributes=line[last + 1 :],
    root=match[1] is not None,
  )
