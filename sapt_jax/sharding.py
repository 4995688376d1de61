"""One mesh `data x fsdp x tensor`, and one table that says where each logical axis lives on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sapt_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. The batch is spread over data and fsdp; weights over fsdp (model width)
# and tensor (heads, mlp, vocabulary). Kernels that lead back to the model width are spread over
# both by their first axis, "inner": a gather along the last axis of stacked weights has XLA lay out
# all layers anew.
RULES: tuple[tuple[str, Any], ...] = (
  ("batch", ("data", "fsdp")),
  ("rows", "data"),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("inner", ("tensor", "fsdp")),
  ("vocab", "tensor"),
  ("layers", None),
  ("norm", None),
  ("buckets", None),
  ("any", PartitionSpec.UNCONSTRAINED),  # as the compiler likes
)


def device_memory() -> int | None:
  """Bytes that JAX may take of a device; None: the device does not tell, as a CPU."""
  return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def make_mesh(
  data: int = 1, fsdp: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None
) -> Mesh:
  """A mesh of data*fsdp*tensor devices; the first ones of `devices` (default: all of jax.devices())
  are used.

  Raises:
    InputError: fewer devices than data*fsdp*tensor, or a process without a device of the mesh.
  """
  here = devices is None
  devices = jax.devices() if devices is None else devices
  wanted = data * fsdp * tensor
  if wanted > len(devices):
    raise InputError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor} needs {wanted} devices, {len(devices)} are "
      "here: lower --mesh.*"
    )
  idle = {device.process_index for device in devices[wanted:]} - {
    device.process_index for device in devices[:wanted]
  }
  if here and idle:
    raise InputError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor} takes {wanted} of {len(devices)} devices and "
      f"leaves {len(idle)} processes without any: raise --mesh.* or start fewer processes"
    )
  return jax.make_mesh(
    (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:wanted]
  )


def spec(*logical_axes: str | None) -> PartitionSpec:
  """The mesh placement of an array whose dimensions carry these logical axes."""
  rules = dict(RULES)
  return PartitionSpec(*(rules[axis] if axis else None for axis in logical_axes))


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Asks the compiler to place an activation so; without a mesh (jax.set_mesh) it is left alone."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*logical_axes))


def abstract_params(init: Callable[[], Any], mesh: Mesh) -> Any:
  """The tree that `init()` would give, as ShapeDtypeStructs that carry the shardings its logical
  axes ask for.

  Raises:
    InputError: the mesh cannot split a parameter evenly.
  """
  boxed = jax.eval_shape(init)
  shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, list(RULES))

  def place(path: tuple, x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    try:
      sharding.shard_shape(x.shape)
    except ValueError:
      sizes = " ".join(f"--mesh.{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
      raise InputError(
        f"{sizes}: does not split {'/'.join(key.key for key in path)} {x.shape} evenly; give "
        "other sizes"
      ) from None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map_with_path(place, nn.meta.unbox(boxed), shardings)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
  """The first dimension spread over the data and fsdp axes."""
  return NamedSharding(mesh, spec("batch"))


def to_devices(tree: Any, placement: NamedSharding) -> Any:
  """Arrays on the mesh; where several processes share it, each hands its own devices their part,
  and all must have the same values.
  """
  if placement.is_fully_addressable:
    return jax.device_put(tree, placement)

  def put(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, placement)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, placement, lambda part: whole[part])

  return jax.tree.map(put, tree)
