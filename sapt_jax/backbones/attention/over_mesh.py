"""A kernel on a mesh: each device computes its rows and heads. The compiler cannot split a kernel;
it would gather its operands on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sapt_jax.backbones.attention.asked import refuse
from sapt_jax.sharding import spec

Axes = tuple[str | None, ...]


def over_mesh(
  function: Callable[..., tuple[jax.Array, ...]],
  arrays: Sequence[Any],
  axes: Sequence[Axes],
  out_axes: Sequence[Axes],
) -> tuple[jax.Array, ...]:
  """function(*arrays), on each device with its part of the arrays.

  Args:
    arrays: None among them stays None.
    axes: the logical axes ("batch", "heads", None) of each array's dimensions. A dimension of size
      1 is the same for all and is not split.
    out_axes: those of each array that the function returns.

  Raises:
    NotImplementedError: the mesh does not split a dimension evenly.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function(*arrays)

  def placed(array: Any, names: Axes) -> PartitionSpec | None:
    if array is None:
      return None
    parts = spec(
      *(name if size > 1 else None for name, size in zip(names, array.shape, strict=True))
    )
    for size, part in zip(array.shape, parts, strict=True):
      over = (part,) if isinstance(part, str) else part or ()
      devices = math.prod(mesh.shape[axis] for axis in over)
      refuse(
        size % devices > 0, f"{size} rows or heads do not spread evenly over {devices} devices"
      )
    return parts

  in_specs = tuple(placed(array, names) for array, names in zip(arrays, axes, strict=True))
  out_specs = tuple(spec(*names) for names in out_axes)
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)
