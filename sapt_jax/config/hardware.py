"""Options of what it is learned on: the backbone, the devices, the processes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sapt_jax.checks import at_least, require

Remat = Literal["none", "full", "dots", "auto"]


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The frozen language model."""

  path: str = "t5-mini"
  """A Hugging Face model folder or hub id; t5-mini: the model that comes with the library."""
  dtype: Literal["float32", "bfloat16"] = "float32"
  """Of the weights and of compute; norms, softmax and loss are float32 always."""
  precision: Literal["default", "high", "highest"] = "highest"
  """Of float32 products: highest is true float32; default is what the device takes for it, TF32 on
  a GPU and one pass of bfloat16 on a TPU, which is faster; high lies between (three passes on a
  TPU). A CPU computes in float32 always, and bfloat16 weights are not concerned.
  """
  bits: Literal[0, 8, 4] = 0
  """Of the weights in the layers: 8 or 4 quantises them while loading, with a scale for every 64
  (embeddings, head and norms stay in dtype); 0: as dtype says."""
  remat: Remat = "dots"
  """What a layer recomputes in its backward pass: nothing, everything, or all but the products with
  its weights; auto: all but the products if that fits the device, else everything.
  """
  unroll: int = 1
  """Layers per iteration of the loop over layers."""
  attention: Literal["auto", "xla", "cudnn", "tokamax", "splash"] = "auto"
  """What computes attention: xla everywhere; without arrays of scores tokamax (NVIDIA, bfloat16;
  pip install 'sapt-jax[gpu]'), cudnn (NVIDIA, bfloat16, no T5), splash (TPU, no T5). auto: the
  first of these that can, else xla (docs/performance.md)."""
  dropout: float = 0.0
  """Of a T5 while it is learned with, where it was pretrained with dropout: the share of entries
  that are zero; 0.1 in the public scripts of the paper."""

  def __post_init__(self) -> None:
    at_least(self, "backbone", 1, "unroll")
    require(0 <= self.dropout < 1, f"backbone.dropout {self.dropout}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class BackbonePlace:
  """Where a finished run's backbone is now."""

  path: str = ""
  """A folder or hub id that holds the weights the run was trained on; empty: where it was then."""


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: data x fsdp x tensor."""

  data: int = 1
  """Copies of the backbone, each with a share of the batch."""
  fsdp: int = 1
  """Devices that share one copy of the backbone by model width, each with a share of the batch."""
  tensor: int = 1
  """Devices that share one copy by heads and mlp width."""

  def __post_init__(self) -> None:
    at_least(self, "mesh", 1, "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Distributed:
  """Processes that share the mesh. All left alone: as SLURM (inside srun), Open MPI or a TPU says,
  else one process (docs/cluster.md).
  """

  address: str = ""
  """HOST:PORT where process 0 is to be found by all; the port is free there. Needs processes and
  process_id.
  """
  processes: int = 0
  """How many there are."""
  process_id: int | None = None
  """Which one this is, from 0."""
  local_devices: int = 0
  """Devices of this process; 0: one under SLURM and Open MPI, else all that it sees. On the CPU:
  simulated ones.
  """
  heartbeat: int = 10
  """Seconds of silence after which a process is given up and the others end; more where machines
  may be paused for a while.
  """

  def __post_init__(self) -> None:
    given = {
      "address": bool(self.address),
      "processes": self.processes != 0,
      "process_id": self.process_id is not None,
    }
    missing = [f"distributed.{name}" for name, there in given.items() if not there]
    require(
      len(missing) in (0, len(given)),
      f"{', '.join(missing)}: not given, but address, processes and process_id go together",
    )
    require(
      not self.address or self.address.rpartition(":")[2].isdigit(),
      f"distributed.address {self.address!r}: must be HOST:PORT",
    )
    require(
      self.process_id is None or 0 <= self.process_id < self.processes,
      f"distributed.process_id {self.process_id}: must be at least 0 and less than "
      f"distributed.processes {self.processes}",
    )
    at_least(self, "distributed", 0, "local_devices")
    at_least(self, "distributed", 1, "heartbeat")
