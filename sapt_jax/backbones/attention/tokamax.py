"""Attention by tokamax's Triton kernel: NVIDIA GPUs from Ampere on, T5 and LLaMA alike.

The forward pass is the library's, the backward pass ours (backward.py): the library's would write
the gradient of the position bias, as large as the scores, also where the bias is frozen.

Its masks are no part of what the package shows, so its version is fixed where it is named
(pyproject.toml).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sapt_jax.backbones.attention import asked as asks
from sapt_jax.backbones.attention import backward
from sapt_jax.backbones.attention.asked import Asked, Call, refuse
from sapt_jax.backbones.attention.over_mesh import Axes, over_mesh
from sapt_jax.backbones.layers import KEPT
from sapt_jax.errors import InputError

KERNEL = "triton"  # tests put "xla" here, the same function where there is no GPU

HEADS: Axes = ("batch", None, "heads", None)
STATISTICS: Axes = ("batch", "heads", None)


def check(asked: Asked) -> None:
  """Raises NotImplementedError with the reason why this kernel cannot do what is asked."""
  asks.needs_platform(asked, "gpu", "NVIDIA GPUs")
  asks.needs_library("tokamax", "pip install 'sapt-jax[gpu]', on Python 3.12 or newer")
  asks.needs_halves(asked)
  asks.no_dropout(asked)
  refuse(asked.cap > 0, "its backward pass knows no caps on scores")
  refuse(
    asked.head_width not in (16, 32, 64, 128),  # 256 does not fit the memory that cores share
    f"a head is 16, 32, 64 or 128 wide, not {asked.head_width}",
  )


class Form(NamedTuple):
  """What a kernel is compiled for: the scale of the scores; whether a query sees the keys up to its
  own place at most.
  """

  scale: float
  causal: bool


def attend(call: Call) -> jax.Array:
  """(B, H, L, K), as Call says; differentiable in q, k and v.

  Raises:
    NotImplementedError: a single token with its cache, a bias that is not (1, H, L, S), a mesh that
      does not split heads or rows evenly.
    InputError: a gradient of the bias is asked for.
  """
  asks.reads_ranges(call)
  shape = (1, call.q.shape[1], call.q.shape[2], call.k.shape[2])
  refuse(call.seen.causal and shape[2] != shape[3], "as many queries as keys, where causal")
  bias = call.bias
  if bias is not None:
    refuse(bias.shape != shape, f"a bias {bias.shape} that is not {shape}")
    # Exact: it was read from a table of this type.
    bias = bias.astype(call.q.dtype)
  form = Form(call.scale, call.seen.causal)
  q, k, v = (x.swapaxes(1, 2) for x in (call.q, call.k, call.v))
  return _core(form)(q, k, v, bias, call.seen).swapaxes(1, 2)


def _core(form: Form) -> Callable[..., jax.Array]:
  """The function (q (B, L, H, K), k, v (B, S, G, K), bias, seen) -> (B, L, H, K), with our own
  gradient.
  """
  function = jax.custom_vjp(lambda *arrays: _forward(form, *arrays)[0])

  def saved(*primals: Any) -> tuple[jax.Array, tuple]:
    learned = primals[3]
    if learned is not None and learned.perturbed:
      raise InputError(
        "backbone.attention tokamax: takes a position bias as frozen, and this one is learned; "
        "give xla"
      )
    arrays = jax.tree.map(lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed"))
    y, *statistics = (checkpoint_name(x, KEPT) for x in _forward(form, *arrays))
    return y, (arrays, y, statistics)

  function.defvjp(saved, functools.partial(_backward, form), symbolic_zeros=True)
  return function


def _forward(form: Form, q: Any, k: Any, v: Any, bias: Any, seen: Any) -> tuple[jax.Array, ...]:
  """The attention, and of each query's scores the greatest and the sum of exponentials, (B, H, L)
  float32.
  """
  ranges = seen.start, None if seen.causal else seen.end
  arrays = (q, k, v, bias, *ranges, seen.keys)
  return over_mesh(
    functools.partial(_library, form),
    arrays,
    (HEADS, HEADS, HEADS, (None, "heads", None, None), *(("batch", None),) * 3),
    (HEADS, STATISTICS, STATISTICS),
  )


def _worth_reading(record: logging.LogRecord) -> bool:
  """Whether this is not the library's warning that nobody has tried tiles for a shape: it takes its
  rule then, and writes 700 characters for each shape of each program.
  """
  return not str(record.msg).startswith("Autotuning cache miss")


def _library(
  form: Form, q: Any, k: Any, v: Any, bias: Any, start: Any, end: Any, keys: Any
) -> tuple[jax.Array, ...]:
  from tokamax._src.ops.attention import api, base

  logging.getLogger("absl").addFilter(_worth_reading)

  def to_heads(x: Any) -> Any:
    return None if x is None else x[:, None]

  mask = base.Mask(
    None if keys is None else keys[:, None, None],
    is_causal=form.causal,
    k_start=to_heads(start),
    k_end=to_heads(end),
  )
  kernel: Any = api.IMPLEMENTATIONS[KERNEL]
  y, (greatest, total) = kernel(
    q, k, v, bias=bias, mask=mask, logits_scale=form.scale, return_residuals=True
  )
  return y, greatest, total


def _backward(form: Form, saved: tuple, dy: jax.Array) -> tuple[Any, ...]:
  (q, k, v, bias, seen), y, (greatest, total) = saved
  delta = jnp.einsum("blhk,blhk->bhl", y, dy, preferred_element_type=jnp.float32)
  start, end = seen.ranges(q.shape[0], q.shape[1], k.shape[1])
  given = backward.Given(q, k, v, dy, bias, greatest + jnp.log(total), delta, start, end, seen.keys)
  axes = backward.Given(
    *(HEADS,) * 4, (None, "heads", None, None), STATISTICS, STATISTICS, *(("batch", None),) * 3
  )
  gradients = over_mesh(
    lambda *arrays: backward.gradients(backward.Given(*arrays), form.scale, form.causal),
    given,
    axes,
    (HEADS,) * 3,
  )
  return (*gradients, None, None)
