"""What a compiled program does on each device, read from its HLO text: products, kernels, bytes
sent to others, loops multiplied out.

XLA's own cost analysis counts the body of a loop once, so that a model whose layers are scanned
looks as if it had one layer of each kind. Here every loop counts as often as it runs: as XLA says
(known_trip_count), or else as its condition `i < constant` says; a loop that says neither stops
when the data says so, as the decoder's does, and the caller gives its longest run.

Counted are matrix products alone, in each compiler's spelling: `dot` (CPU), cuBLAS calls (NVIDIA
GPUs) and `convolution` (TPU, and there only the terms that are not padding or holes). Products that
a compiler turns into sums of elementwise products are not seen; they are small.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from functools import cached_property

import numpy as np

BYTES = {
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "f32": 4,
  "s32": 4,
  "u32": 4,
  "f64": 8,
  "s64": 8,
  "u64": 8,
  "c64": 8,
  "c128": 16,
}

# Bytes that a device sends in a ring of G devices, per byte of its operand.
SENT = {
  "all-gather": lambda g: g - 1,
  "reduce-scatter": lambda g: (g - 1) / g,
  "all-reduce": lambda g: 2 * (g - 1) / g,
  "all-to-all": lambda g: (g - 1) / g,
  "ragged-all-to-all": lambda g: (g - 1) / g,
  "collective-permute": lambda g: 1,
  "collective-broadcast": lambda g: 1,
}

# Instructions that start nothing on the device: they name values, or steer what does.
NO_KERNEL = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "call",
  "conditional",
  "after-all",
  "opt-barrier",
  "partition-id",
  "replica-id",
  "async-update",
}


def array_shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """(dtype, dimensions) of each array in a type: "(f32[2,3]{1,0}, s32[])" -> [("f32", (2, 3)),
  ("s32", ())].
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
    """Not what names values or steers, what waits for what was started, or a TPU's sum of two
    counters.
    """
    return (
      self.opcode not in NO_KERNEL
      and not self.opcode.endswith("-done")
      and (self.opcode == "fusion" or bool(self.dims))
    )

  def called(self, attribute: str) -> list[str]:
    """Computations that an attribute names: body=%a, or branch_computations={%a, %b}."""
    match = re.search(rf"\b{attribute}=(?:%([\w.\-]+)|{{([^}}]*)}})", self.attributes)
    return [] if match is None else [match[1]] if match[1] else re.findall(r"%([\w.\-]+)", match[2])


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
    match[2],
    line[start:stop],
    opcode[1],
    line[first + 1 : last],
    line[last + 1 :],
    match[1] is not None,
  )


@dataclasses.dataclass
class Work:
  """What is done on one device.

  Attributes:
    flops: of products, two for a multiplication and an addition.
    kernels: started, a fusion or a library's call being one.
    traffic: bytes of the products' operands and results.
    collectives: kind -> {"count": how many are run, "bytes": what this device sends in them, in a
      ring}.
  """

  flops: float = 0.0
  kernels: float = 0.0
  traffic: float = 0.0
  collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

  def add(self, other: Work, times: float = 1) -> None:
    self.flops += times * other.flops
    self.kernels += times * other.kernels
    self.traffic += times * other.traffic
    for kind, figures in other.collectives.items():
      self.send(kind, times * figures["count"], times * figures["bytes"])

  def send(self, kind: str, count: float, sent: float) -> None:
    mine = self.collectives.setdefault(kind, {"count": 0, "bytes": 0})
    mine["count"] += count
    mine["bytes"] += sent


class Module:
  """A compiled module's text, taken apart.

  Args:
    longest: times that a loop runs whose end depends on data.
    devices: how many take part.
  """

  def __init__(self, text: str, devices: int, longest: int = 1):
    self.devices, self.longest = devices, longest
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry, self.done = "", dict[str, Work]()
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
      if header:
        current = self.computations[header[2]] = {}
        self.entry = header[2] if header[1] else self.entry
      elif instruction := parse_instruction(line):
        current[instruction.name] = instruction

  def work(self) -> Work:
    """Of the whole program."""
    return self.work_of(self.entry)

  def work_of(self, name: str) -> Work:
    """Of one run of a computation, with all that it calls."""
    if name not in self.done:
      work, seen = Work(), set[str]()
      for where, instruction in self.fused(name):
        self.count(work, where, instruction, seen)
      work.kernels += sum(
        instruction.starts_kernel for instruction in self.computations[name].values()
      )
      self.done[name] = work
    return self.done[name]

  def loops(self) -> list[dict[str, int]]:
    """Of every loop: how often it runs (trips), and the kernels of one run, those of loops inside
    it included.
    """
    return [
      {
        "trips": self.trips(where, instruction),
        "kernels": int(self.work_of(instruction.called("body")[0]).kernels),
      }
      for where, computation in self.computations.items()
      for instruction in computation.values()
      if instruction.opcode == "while"
    ]

  def fused(self, name: str) -> Iterator[tuple[str, Instruction]]:
    """(computation, instruction) for a computation and the fusions in it."""
    for instruction in self.computations[name].values():
      yield name, instruction
      if instruction.opcode in ("fusion", "async-start"):
        for inner in instruction.called("calls"):
          yield from self.fused(inner)

  def count(self, work: Work, where: str, instruction: Instruction, seen: set[str]) -> None:
    """Adds what one instruction does; `seen` are channels of collectives that were counted, as a
    TPU writes one in several fusions.
    """
    opcode, kind = instruction.opcode, instruction.opcode.removesuffix("-start")
    if opcode == "while":
      work.add(self.work_of(instruction.called("body")[0]), self.trips(where, instruction))
    elif opcode == "call":
      work.add(self.work_of(instruction.called("to_apply")[0]))
    elif opcode == "conditional":
      branches = [
        name
        for key in ("branch_computations", "true_computation", "false_computation")
        for name in instruction.called(key)
      ]
      work.add(max((self.work_of(name) for name in branches), key=lambda branch: branch.flops))
    elif kind in SENT:
      channel = re.search(r"channel_id=(\d+)", instruction.attributes)
      if channel is None or channel[1] not in seen:
        size = sum(array_bytes(self.type_of(where, name)) for name in instruction.operands)
        work.send(kind, 1, size * SENT[kind](self.group_size(instruction)))
      seen |= {channel[1]} if channel else set()
    elif flops := self.flops(where, instruction):
      work.flops += flops
      types = [
        array for operand in instruction.operands[:2] for array in [self.type_of(where, operand)]
      ]
      work.traffic += sum(map(array_bytes, types)) + array_bytes(self.result_type(instruction))

  def type_of(self, where: str, operand: str) -> str:
    return self.computations[where][operand].type

  @staticmethod
  def result_type(instruction: Instruction) -> str:
    """A product's result, without the workspace that cuBLAS is given."""
    return (
      instruction.type
      if instruction.opcode != "custom-call"
      else re.split(r"\bs8\[", instruction.type)[0]
    )

  def flops(self, where: str, instruction: Instruction) -> float:
    """Of a product; 0 for what is none."""
    if instruction.opcode == "dot":
      contracted = re.search(r"lhs_contracting_dims={([0-9,]*)}", instruction.attributes)
      places = contracted[1].split(",") if contracted else []
    elif instruction.opcode == "custom-call" and "gemm_backend_config" in instruction.attributes:
      numbers = re.search(r'"dot_dimension_numbers":({.*?})', instruction.attributes)
      places = json.loads(numbers[1])["lhs_contracting_dimensions"] if numbers else []
    elif instruction.opcode == "convolution":
      return self.convolution_flops(where, instruction)
    else:
      return 0.0
    left = array_shapes(self.type_of(where, instruction.operands[0]))[0][1]
    return (
      2.0 * math.prod(instruction.dims) * math.prod(left[int(place)] for place in places if place)
    )

  def convolution_flops(self, where: str, instruction: Instruction) -> float:
    """2 * batch * features out * features in * pairs of an output and a kernel place that meet a
    real entry.

    A TPU writes batched products as convolutions whose window walks over holes; those pairs cost
    nothing and are left out.
    """
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert match is not None
    left, right = (
      array_shapes(self.type_of(where, name))[0][1] for name in instruction.operands[:2]
    )
    sizes = [
      dict(zip(labels, dims, strict=True))
      for labels, dims in zip(match.groups(), (left, right, instruction.dims), strict=True)
    ]
    window = dict(
      part.split("=")
      for part in re.findall(
        r"(\w+=[\dx_\-]+)",
        (re.search(r"window={([^}]*)}", instruction.attributes) or [""])[0].removeprefix("window="),
      )
    )
    pairs = 1
    for place, axis in enumerate(sorted(label for label in sizes[2] if label.isdigit())):

      def option(name, default, place=place):
        return window[name].split("x")[place] if name in window else default

      pairs *= real_pairs(
        sizes[0][axis],
        sizes[1][axis],
        sizes[2][axis],
        int(option("stride", 1)),
        int(str(option("pad", "0_0")).split("_")[0]),
        int(option("lhs_dilate", 1)),
        int(option("rhs_dilate", 1)),
      )
    return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * pairs

  def trips(self, where: str, loop: Instruction) -> int:
    """How often a while loop runs."""
    known = re.search(r'"known_trip_count":{"n":"(\d+)"}', loop.attributes)
    if known:
      return int(known[1])
    condition = self.computations[loop.called("condition")[0]]
    root = next(instruction for instruction in condition.values() if instruction.root)
    if root.opcode != "compare" or "direction=LT" not in root.attributes:
      return self.longest
    counter, bound = (condition[name] for name in root.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    if bound.opcode != "constant" or counter.opcode != "get-tuple-element" or index is None:
      return self.longest
    first = self.constant(where, self.computations[where][loop.operands[0]], int(index[1]))
    return -(-(int(bound.inside) - first) // self.stride(loop.called("body")[0], int(index[1])))

  def stride(self, body: str, index: int) -> int:
    """What a loop's counter grows by: 2 where a TPU's compiler has unrolled an exchange of weights
    that goes on beside the products.
    """
    instructions = self.computations[body]
    root = next(instruction for instruction in instructions.values() if instruction.root)
    value = instructions.get(root.operands[index]) if root.opcode == "tuple" else None
    while value is not None and value.opcode in ("copy", "bitcast") and value.operands:
      value = instructions.get(value.operands[0])
    if value is None or value.opcode != "add":
      return 1
    added = [
      instructions[name].inside
      for name in value.operands
      if name in instructions and instructions[name].opcode == "constant"
    ]
    return int(added[0]) if len(added) == 1 and added[0].isdigit() and int(added[0]) > 0 else 1

  def constant(self, where: str, start: Instruction, index: int) -> int:
    """What a loop's counter starts from; 0 where that is not written out."""
    value = self.computations[where][start.operands[index]] if start.opcode == "tuple" else start
    while value.opcode in ("copy", "bitcast") and value.operands:
      value = self.computations[where][value.operands[0]]
    return (
      int(value.inside) if value.opcode == "constant" and value.inside.lstrip("-").isdigit() else 0
    )

  def group_size(self, instruction: Instruction) -> int:
    """Devices that exchange data in one group of a collective, in any of the ways HLO writes
    groups.
    """
    attributes = instruction.attributes
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] {([^}]*)}", attributes):
      sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
      axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
      return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if rows := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
      return int(rows[1])
    listed = re.search(r"replica_groups={{([0-9,]+)}", attributes)
    return len(listed[1].split(",")) if listed else self.devices


def real_pairs(
  size: int, kernel: int, out: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
  """(output place, kernel place) pairs along one axis that meet an entry of the input, neither
  padding nor a hole between entries.
  """
  places = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * kernel_dilation - pad
  return int(np.sum((places >= 0) & (places % dilation == 0) & (places // dilation < size)))
