"""Devices that a plan can be made for, and how to have a compiler take them as present. Importing
this does not start JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from typing import Any, Literal

from sapt_jax.errors import InputError

GIB = 2**30

# Share of a device's nominal memory that a run can count on; the rest goes to the driver, its
# libraries and fragmentation. On GPUs JAX takes 0.75 unless XLA_PYTHON_CLIENT_MEM_FRACTION says
# otherwise.
USABLE = 0.92


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What XLA's compiler wants to know of a GPU; figures of CUDA's device properties."""

  capability: tuple[int, int]
  cores: int
  lanes: int
  clock_ghz: float
  threads_per_core: int
  shared_per_block: int
  shared_per_core: int
  l2: int

  def target_config(self, device: Device) -> str:
    """XLA's GpuTargetConfigProto, as text."""
    return f"""
      gpu_device_info {{
        cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
        core_count: {self.cores}  fpus_per_core: {self.lanes}  clock_rate_ghz: {self.clock_ghz}
        threads_per_block_limit: 1024  threads_per_warp: 32
        threads_per_core_limit: {self.threads_per_core}
        shared_memory_per_block: 49152  shared_memory_per_block_optin: {self.shared_per_block}
        shared_memory_per_core: {self.shared_per_core}
        registers_per_core_limit: 65536  registers_per_block_limit: 65536
        block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
        memory_bandwidth: {device.bandwidth:.0f}  l2_cache_size: {self.l2}
        device_memory_size: {device.memory}
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }}
      device_description_str: "{device.name}"
    """


@dataclasses.dataclass(frozen=True)
class Device:
  """One kind of device; peak figures as its maker publishes them.

  Attributes:
    memory: bytes, nominal.
    bfloat16, float32: products per second at most, in flops, dense. float32 is what JAX computes
      float32 products with by default: TF32 on GPUs, one pass in bfloat16 on TPUs.
    bandwidth: of its memory, bytes per second.
    links: to its neighbours, bytes per second that it can send, all links together.
    gpu: None for a TPU.
    host: devices of one machine.
  """

  name: str
  memory: int
  bfloat16: float
  float32: float
  bandwidth: float
  links: float
  gpu: Gpu | None = None
  host: int = 8


_AMPERE = Gpu((8, 0), 108, 64, 1.41, 2048, 166912, 167936, 40 * 2**20)
_HOPPER = Gpu((9, 0), 132, 128, 1.98, 2048, 232448, 233472, 50 * 2**20)
_ADA = Gpu((8, 9), 128, 128, 2.52, 1536, 101376, 102400, 72 * 2**20)

# NVIDIA: the data sheets of A100 (40 and 80 GB SXM) and H100 SXM, dense figures; RTX 4090: Ada
# architecture whitepaper, appendix A. NVLink is sold as the sum of both directions, so half of it
# is what a device sends; the RTX 4090 has PCIe 4.0 x16. TPU: cloud.google.com/tpu/docs, "System
# architecture", one page per version; interconnect bandwidth per chip (v5e 1,600 Gbps, v4 2,400,
# v6e 3,584, v5p 4,800).
DEVICES: dict[str, Device] = {
  "a100-40": Device("NVIDIA A100-SXM4-40GB", 40 * GIB, 312e12, 156e12, 1.555e12, 300e9, _AMPERE),
  "a100-80": Device("NVIDIA A100-SXM4-80GB", 80 * GIB, 312e12, 156e12, 2.039e12, 300e9, _AMPERE),
  "h100": Device("NVIDIA H100 80GB HBM3", 80 * GIB, 989e12, 494e12, 3.35e12, 450e9, _HOPPER),
  "rtx4090": Device("NVIDIA GeForce RTX 4090", 24 * GIB, 165e12, 82.6e12, 1.008e12, 32e9, _ADA),
  "v4": Device("TPU v4", 32 * GIB, 275e12, 275e12, 1.2e12, 300e9),
  "v5e": Device("TPU v5e", 16 * GIB, 197e12, 197e12, 0.81e12, 200e9),
  "v5p": Device("TPU v5p", 95 * GIB, 459e12, 459e12, 2.765e12, 600e9),
  "v6e": Device("TPU v6e", 32 * GIB, 918e12, 918e12, 1.64e12, 448e9),
}


@dataclasses.dataclass(frozen=True)
class Target:
  """So many devices of one kind.

  Attributes:
    text: as it was given, h100:8 or v5e:2x4.
    kind: a name in DEVICES, or cpu.
    count: devices.
  """

  text: str
  kind: str
  count: int

  @property
  def platform(self) -> Literal["cpu", "cuda", "tpu"]:
    return "cpu" if self.kind == "cpu" else "cuda" if DEVICES[self.kind].gpu else "tpu"

  @property
  def device(self) -> Device | None:
    """None for the CPU, which has no figures to hold a program against."""
    return DEVICES.get(self.kind)

  @property
  def usable(self) -> int:
    """Bytes that a program may take on a device; simulated devices share this machine's memory."""
    if self.device is None:
      return int(USABLE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.count)
    return int(USABLE * self.device.memory)


def parse_target(text: str) -> Target:
  """`h100:8`, `cpu:4`: a number of devices; `v5e:2x4`: the shape of a TPU slice in chips.

  Raises:
    InputError: no such device, or no such number or shape.
  """
  kind, _, size = text.partition(":")
  if kind != "cpu" and kind not in DEVICES:
    known = [f"{name}:{'N' if device.gpu else 'SHAPE'}" for name, device in DEVICES.items()]
    raise InputError(f"--target {text}: no device {kind!r}; give one of {' '.join(known)} cpu:N")
  target = Target(text, kind, 0)
  form, wanted = r"[1-9]\d*", f"give the number of devices, as in {kind}:8"
  if target.platform == "tpu":
    form = r"[1-9]\d*x[1-9]\d*(x[1-9]\d*)?"
    wanted = f"give the slice's shape in chips, as in {kind}:2x4 or v5p:2x2x1"
  if not re.fullmatch(form, size):
    raise InputError(f"--target {text}: {wanted}")
  count = math.prod(int(part) for part in size.split("x"))
  if target.platform == "cuda" and count > (host := DEVICES[kind].host) and count % host:
    raise InputError(
      f"--target {text}: machines have {host} of them, so give up to {host} or a multiple of it"
    )
  return dataclasses.replace(target, count=count)


# A TPU is not to be looked for on this machine; its logs would go to a folder in /tmp; and as none
# is touched, others may use or plan for one at the same time, which libtpu's lock file forbids
# otherwise.
TPU_DEFAULTS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare(target: Target) -> None:
  """Sets the environment that JAX must start in; to be called before it looks for devices.

  Raises:
    InputError: the compiler for the target is not installed.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if target.platform == "cpu" and "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={target.count}"
  elif target.platform == "cuda":
    need("jax_cuda13_plugin", "jax_cuda12_plugin", target=target, extra="plan-gpu")
    # A device's libraries are not needed, whichever of them are here.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    # There is no device to try kernels on, and Triton's products are chosen by trying.
    untried = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{flags} {untried}"
    tools = importlib.util.find_spec("nvidia")  # ptxas of a wheel, for machines without CUDA
    places = (tools.submodule_search_locations if tools else None) or ()
    found = [str(path) for place in places for path in pathlib.Path(place).glob("*/bin")]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *found])
  elif target.platform == "tpu":
    place = need("libtpu", target=target, extra="plan-tpu")
    for name, value in TPU_DEFAULTS.items():
      os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_LIBRARY_PATH", str(place / "libtpu.so"))


def need(*packages: str, target: Target, extra: str) -> pathlib.Path:
  """Folder of the first of these packages that is installed.

  Raises:
    InputError: none is.
  """
  for package in packages:
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin:
      return pathlib.Path(spec.origin).parent
  raise InputError(
    f"--target {target.text}: its compiler is not installed; pip install 'sapt-jax[{extra}]'"
  )


def as_present(target: Target) -> contextlib.AbstractContextManager[None]:
  """Within it, kernels are traced as if the target were here."""
  if target.platform != "cuda" or importlib.util.find_spec("tokamax") is None:
    return contextlib.nullcontext()
  from tokamax import config

  return config.cross_compile(True)


def devices(target: Target) -> list[Any]:
  """The target's devices, as JAX's compilers take them; starts JAX.

  Raises:
    InputError: the compiler knows no such slice, or JAX has started with fewer simulated devices.
  """
  import jax
  from jax.experimental import topologies

  jax.config.update("jax_platforms", "cpu")  # the only device that is touched
  here = jax.devices("cpu")  # also makes JAX know its plugins
  if target.platform == "cpu":
    if len(here) < target.count:
      raise InputError(
        f"--target {target.text}: JAX has started with {len(here)} simulated devices; see XLA_FLAGS"
      )
    return here[: target.count]
  try:
    if target.platform == "tpu":
      return topologies.get_topology_desc(platform="tpu", topology_name=target.text).devices
    device = target.device
    assert device is not None
    assert device.gpu is not None
    hosts = max(1, target.count // device.host)
    return topologies.get_topology_desc(
      platform="cuda",
      topology=f"1x{hosts}x{target.count // hosts}",
      target_config=device.gpu.target_config(device),
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f"--target {target.text}: the compiler says: {str(error).splitlines()[0]}"
    ) from None
