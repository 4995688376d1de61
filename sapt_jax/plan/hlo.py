"""What a compiled program does on each device, read from its HLO text: products, kernels, bytes
sent to others, loops multiplied out.

XLA's own cost analysis counts the body of a loop once, so that a model whose layers are scanned
looks as if it had one layer of each kind. Here every loop counts as often as it runs: as XLA says
(known_trip_count), or else as its condition `i < constant` says; a loop that says neither stops
when the data says so, as the decoder's does, and the caller gives its longest run.

Counted are matrix products alone, in each compiler's spelling: `dot` (CPU), cuBLAS calls (NVIDIA
GPUs) and `convolution` (TPU, and there only the terms that are not padding or holes); and those
inside attention's own kernels on NVIDIA GPUs. Products that a compiler turns into sums of
elementwise products are not seen; they are small.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator

import numpy as np

from sapt_jax.plan.instructions import Instruction, array_bytes, array_shapes, parse_instruction

COLLECTIVES = frozenset(
  "all-gather reduce-scatter all-reduce all-to-all ragged-all-to-all collective-permute "
  "collective-broadcast".split()
)

# Kernels of attention (backbones/attention): the products of queries by keys in each.
ATTENTION = {"pallas_flash_attention_fwd": 2, "attention_dq": 3, "attention_dkv": 4}


def sent_share(kind: str, devices: int) -> float:
  """Bytes that a device sends in a ring of so many, per byte of its operand."""
  if kind == "all-gather":
    return devices - 1
  if kind in ("collective-permute", "collective-broadcast"):
    return 1
  share = (devices - 1) / devices
  return 2 * share if kind == "all-reduce" else share


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
      here = self.computations[name].values()
      work.kernels += sum(instruction.starts_kernel for instruction in here)
      self.done[name] = work
    return self.done[name]

  def loops(self) -> list[dict[str, int]]:
    """Of every loop: how often it runs (trips), and the kernels of one run,
    those of loops inside it included.
    """
    found = []
    for where, computation in self.computations.items():
      for loop in computation.values():
        if loop.opcode == "while":
          kernels = int(self.work_of(loop.called("body")[0]).kernels)
          found.append({"trips": self.trips(where, loop), "kernels": kernels})
    return found

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
      keys = ("branch_computations", "true_computation", "false_computation")
      branches = [self.work_of(name) for key in keys for name in instruction.called(key)]
      work.add(max(branches, key=lambda branch: branch.flops))
    elif kind in COLLECTIVES:
      channel = re.search(r"channel_id=(\d+)", instruction.attributes)
      if channel is None or channel[1] not in seen:
        size = sum(array_bytes(self.type_of(where, name)) for name in instruction.operands)
        work.send(kind, 1, size * sent_share(kind, self.group_size(instruction)))
      seen |= {channel[1]} if channel else set()
    elif flops := self.flops(where, instruction):
      work.flops += flops
      types = [self.type_of(where, operand) for operand in instruction.operands[:2]]
      work.traffic += sum(map(array_bytes, types)) + array_bytes(self.result_type(instruction))

  def type_of(self, where: str, operand: str) -> str:
    return self.computations[where][operand].type

  @staticmethod
  def result_type(instruction: Instruction) -> str:
    """A product's result, without the workspace that cuBLAS is given."""
    if instruction.opcode != "custom-call":
      return instruction.type
    return re.split(r"\bs8\[", instruction.type)[0]

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
    elif instruction.opcode == "custom-call" and "gpu.triton" in instruction.attributes:
      return self.kernel_flops(where, instruction)
    else:
      return 0.0
    left = array_shapes(self.type_of(where, instruction.operands[0]))[0][1]
    length = math.prod(left[int(place)] for place in places if place)
    return 2.0 * math.prod(instruction.dims) * length

  def kernel_flops(self, where: str, instruction: Instruction) -> float:
    """Of one of attention's kernels, whose first operands are queries (B, L, H, K) and keys
    (B, S, G, K), over all places: it leaves out some of those that are hidden. 0 for another.
    """
    named = re.search(r'op_name="([^"]*)"', instruction.attributes)
    path = named[1] if named else ""
    products = next((count for name, count in ATTENTION.items() if name in path), 0)
    if not products:
      return 0.0
    queries, keys = (
      array_shapes(self.type_of(where, name))[0][1] for name in instruction.operands[:2]
    )
    return 2.0 * products * math.prod(queries) * keys[1]

  def convolution_flops(self, where: str, instruction: Instruction) -> float:
    """2 * batch * features out * features in * pairs of an output and a kernel place
    that meet a real entry.

    A TPU writes batched products as convolutions whose window walks over holes; those pairs cost
    nothing and are left out.
    """
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert match is not None
    operands = (array_shapes(self.type_of(where, name)) for name in instruction.operands[:2])
    left, right = (arrays[0][1] for arrays in operands)
    size, kernel, out = (
      dict(zip(labels, dims, strict=True))
      for labels, dims in zip(match.groups(), (left, right, instruction.dims), strict=True)
    )
    window = re.search(r"window={([^}]*)}", instruction.attributes)
    options = dict(re.findall(r"(\w+)=([\dx_\-]+)", window[1] if window else ""))
    pairs = 1
    for place, axis in enumerate(sorted(label for label in out if label.isdigit())):
      stride, pad, dilation, kernel_dilation = (
        int(options[name].split("x")[place].split("_")[0]) if name in options else default
        for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
      )
      sizes = size[axis], kernel[axis], out[axis]
      pairs *= real_pairs(*sizes, stride, pad, dilation, kernel_dilation)
    return 2.0 * out["b"] * out["f"] * kernel["i"] * pairs

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
    operands = [instructions[name] for name in value.operands if name in instructions]
    added = [operand.inside for operand in operands if operand.opcode == "constant"]
    return int(added[0]) if len(added) == 1 and added[0].isdigit() and int(added[0]) > 0 else 1

  def constant(self, where: str, start: Instruction, index: int) -> int:
    """What a loop's counter starts from; 0 where that is not written out."""
    value = self.computations[where][start.operands[index]] if start.opcode == "tuple" else start
    while value.opcode in ("copy", "bitcast") and value.operands:
      value = self.computations[where][value.operands[0]]
    written = value.opcode == "constant" and value.inside.lstrip("-").isdigit()
    return int(value.inside) if written else 0

  def group_size(self, instruction: Instruction) -> int:
    """Devices that exchange data in one group of a collective,
    in any of the ways HLO writes groups.
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
