"""The backward pass of attention with a frozen bias, in two Pallas kernels for GPUs: no gradient of
the bias, and no array with an axis of queries and one of keys.

After Dao, "FlashAttention-2" (2023), algorithm 2: with scores s and, from the forward pass, the
logarithm n of each query's sum of exponentials, p = exp(s - n), and
  dv = p^T dy    ds = p * (dy v^T - dy . y)    dq = scale ds k    dk = ds^T (scale q)
One kernel goes over the keys for a block of queries and gives dq; the other goes over the queries,
and the heads that share a key head, for a block of keys and gives dk and dv.

Letters: B batch, H query heads, G key heads, L queries, S keys, K head width, M queries and N keys
of a block.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

INTERPRET = False  # tests run the kernels without a GPU


class Given(NamedTuple):
  """What the backward pass reads.

  Attributes:
    q, dy: (B, L, H, K), the queries and the gradient of what they were answered.
    k, v: (B, S, G, K).
    bias: (1, H, L, S), added to the scores; None: there is none.
    norm: (B, H, L) float32, the logarithm of the sum of the scores' exponentials.
    delta: (B, H, L) float32, dy . y.
    start, end: (B, L) int32; a query sees keys start to end - 1.
    keys: (B, S) bool, which of these it sees; None: all.
  """

  q: Any
  k: Any
  v: Any
  dy: Any
  bias: Any
  norm: Any
  delta: Any
  start: Any
  end: Any
  keys: Any


class Tile(NamedTuple):
  """The part of the scores that a program computes at a time, and how.

  Attributes:
    queries, keys: M and N.
    warps: of 32 threads each, that share the work.
    stages: loads under way at a time.
  """

  queries: int
  keys: int
  warps: int = 4
  stages: int = 2


def tiles_of(queries: int, keys: int, width: int) -> tuple[Tile, Tile]:
  """Of the kernel that gives dq, and of the one that gives dk and dv: the fastest of those tried
  for T5-Large and LLaMA-2-7B on an H100 (docs/accelerators.md).
  """
  of_queries = Tile(_rows_of(queries, 128), _rows_of(keys, 32), stages=3)
  of_keys = Tile(_rows_of(queries, 64), _rows_of(keys, 64), stages=3 if width <= 64 else 2)
  return of_queries, of_keys


def _rows_of(length: int, most: int) -> int:
  """As many as wanted, or fewer where they divide the length better. A GPU multiplies matrices of
  16 rows or more.
  """
  fitting = (rows for rows in (128, 64, 32) if rows <= most and length % rows == 0)
  return next(fitting, 16 if length <= 16 else 32)


def gradients(given: Given, scale: float, causal: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
  """dq (B, L, H, K), dk and dv (B, S, G, K), in the types of q, k and v.

  Args:
    scale: of q k^T.
    causal: a query sees no key behind its own place, which start and end say too.
  """
  queries, keys = given.q.shape[1], given.k.shape[1]
  of_queries, of_keys = tiles_of(queries, keys, given.q.shape[-1])
  if given.keys is not None:
    given = given._replace(keys=given.keys.astype(jnp.int32))
  full = padded(
    given,
    -queries % math.lcm(of_queries.queries, of_keys.queries),
    -keys % math.lcm(of_queries.keys, of_keys.keys),
  )
  dq = for_queries(full, scale, of_queries)
  dk, dv = for_keys(full, scale, of_keys, causal)
  return dq[:, :queries], dk[:, :keys], dv[:, :keys]


def padded(given: Given, queries: int, keys: int) -> Given:
  """With so many more queries, which see nothing, and keys, which nobody sees."""
  if not (queries or keys):
    return given

  def more(x: Any, **axes: int) -> Any:
    if x is None:
      return None
    by_axis = {int(name[1:]): size for name, size in axes.items()}
    return jnp.pad(x, [(0, by_axis.get(axis, 0)) for axis in range(x.ndim)])

  return Given(
    q=more(given.q, _1=queries),
    k=more(given.k, _1=keys),
    v=more(given.v, _1=keys),
    dy=more(given.dy, _1=queries),
    bias=more(given.bias, _2=queries, _3=keys),
    norm=more(given.norm, _2=queries),
    delta=more(given.delta, _2=queries),
    start=more(given.start, _1=queries),
    end=more(given.end, _1=queries),
    keys=more(given.keys, _1=keys),
  )


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.dot(x, y, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def _weights(q: Any, k: Any, bias: Any, norm: Any, seen: Any) -> jax.Array:
  """(M, N) float32: what each query of a block gives to each key of a block."""
  scores = _product(q, k.T)
  if bias is not None:
    scores += bias.astype(jnp.float32)
  return jnp.where(seen, jnp.exp(scores - norm[:, None]), 0.0)


def _seen(start: Any, end: Any, first: Any, count: int, keys: Any) -> jax.Array:
  """(M, N) bool, for keys from the first on."""
  place = first + jnp.arange(count)
  seen = (start[:, None] <= place[None]) & (place[None] < end[:, None])
  return seen if keys is None else seen & (keys[None] > 0)


def _refs(given: Given, refs: tuple) -> tuple[Given, tuple]:
  """The inputs by their names, and the outputs behind them."""
  names = [name for name, x in zip(Given._fields, given, strict=True) if x is not None]
  there = dict(zip(names, refs, strict=False))
  return Given(**{name: there.get(name) for name in Given._fields}), refs[len(names) :]


def _block(ref: Any, *places: Any) -> Any:
  from jax.experimental.pallas import triton

  return None if ref is None else triton.load(ref.at[places])


def _queries_kernel(given: Given, scale: float, tile: Tile, *refs: Any) -> None:
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  of, [dq_ref] = _refs(given, refs)
  rows, every = pl.ds(pl.program_id(2) * tile.queries, tile.queries), slice(None)
  q, dy = _block(of.q, rows, every), _block(of.dy, rows, every)
  q = (q * scale).astype(q.dtype)  # rounded as in the forward pass
  norm, delta = _block(of.norm, rows), _block(of.delta, rows)
  start, end = _block(of.start, rows), _block(of.end, rows)

  def body(block: Any, dq: Any) -> Any:
    columns = pl.ds(block * tile.keys, tile.keys)
    k, v = _block(of.k, columns, every), _block(of.v, columns, every)
    seen = _seen(start, end, block * tile.keys, tile.keys, _block(of.keys, columns))
    p = _weights(q, k, _block(of.bias, rows, columns), norm, seen)
    ds = p * (_product(dy, v.T) - delta[:, None])
    return dq + _product(ds.astype(k.dtype), k)

  first, last = jnp.min(start) // tile.keys, pl.cdiv(jnp.max(end), tile.keys)
  dq = jax.lax.fori_loop(first, last, body, jnp.zeros(q.shape, jnp.float32))
  triton.store(dq_ref, (dq * scale).astype(dq_ref.dtype))


def _keys_kernel(given: Given, scale: float, tile: Tile, causal: bool, *refs: Any) -> None:
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  of, [dk_ref, dv_ref] = _refs(given, refs)
  place = pl.program_id(2) * tile.keys
  columns, every = pl.ds(place, tile.keys), slice(None)
  k, v, keys = _block(of.k, columns, every), _block(of.v, columns, every), _block(of.keys, columns)
  heads, blocks = given.q.shape[2] // given.k.shape[2], given.q.shape[1] // tile.queries
  # The first queries that may see these keys.
  first = place // tile.queries if causal else 0

  def body(head: Any, block: Any, sums: Any) -> Any:
    dk, dv = sums
    rows = pl.ds(block * tile.queries, tile.queries)
    q, dy = _block(of.q, rows, head, every), _block(of.dy, rows, head, every)
    q = (q * scale).astype(q.dtype)
    start, end = _block(of.start, rows), _block(of.end, rows)
    seen = _seen(start, end, place, tile.keys, keys)
    bias = _block(of.bias, head, rows, columns)
    p = _weights(q, k, bias, _block(of.norm, head, rows), seen)
    dv += _product(p.astype(dy.dtype).T, dy)
    ds = p * (_product(dy, v.T) - _block(of.delta, head, rows)[:, None])
    return dk + _product(ds.astype(q.dtype).T, q), dv

  def of_head(head: Any, sums: Any) -> Any:
    return jax.lax.fori_loop(first, blocks, partial(body, head), sums)

  zero = jnp.zeros(k.shape, jnp.float32)
  dk, dv = jax.lax.fori_loop(0, heads, of_head, (zero, zero))
  triton.store(dk_ref, dk.astype(dk_ref.dtype))
  triton.store(dv_ref, dv.astype(dv_ref.dtype))


def for_queries(given: Given, scale: float, tile: Tile) -> jax.Array:
  """dq (B, L, H, K): one program for each row, head and block of queries."""
  rows, queries, heads, width = given.q.shape
  kernel = partial(_queries_kernel, given, scale, tile)
  grid = (rows, heads, queries // tile.queries)
  written = _spec((None, tile.queries, None, width), lambda b, h, i: (b, i, h, 0))
  specs = _specs(given, None, heads // given.k.shape[2])
  [dq] = _call(kernel, "attention_dq", tile, given, specs, grid, [written], [given.q])
  return dq


def for_keys(given: Given, scale: float, tile: Tile, causal: bool) -> tuple[jax.Array, jax.Array]:
  """dk and dv (B, S, G, K): one program for each row, key head and block of keys."""
  rows, keys, groups, width = given.k.shape
  kernel = partial(_keys_kernel, given, scale, tile, causal)
  grid, outputs = (rows, groups, keys // tile.keys), [given.k, given.v]
  written = _spec((None, tile.keys, None, width), lambda b, g, j: (b, j, g, 0))
  specs = _specs(given, given.q.shape[2] // groups, 1)
  dk, dv = _call(kernel, "attention_dkv", tile, given, specs, grid, [written] * 2, outputs)
  return dk, dv


def _specs(given: Given, together: int | None, sharing: int) -> Given:
  """What of the inputs a program (row, head, block) reads.

  Args:
    together: query heads that it reads, as many as share a key head; None: one.
    sharing: programs that read the same key head.
  """
  (_, queries, _, width), keys = given.q.shape, given.k.shape[1]
  of_queries = _spec((None, queries, together, width), lambda b, h, _: (b, 0, h, 0))
  of_keys = _spec((None, keys, None, width), lambda b, h, _: (b, 0, h // sharing, 0))
  statistic = _spec((None, together, queries), lambda b, h, _: (b, h, 0))
  of_query, of_key = (_spec((None, size), lambda b, h, _: (b, 0)) for size in (queries, keys))
  return Given(
    q=of_queries,
    k=of_keys,
    v=of_keys,
    dy=of_queries,
    bias=_spec((None, together, queries, keys), lambda b, h, _: (0, h, 0, 0)),
    norm=statistic,
    delta=statistic,
    start=of_query,
    end=of_query,
    keys=of_key,
  )


def _spec(shape: tuple[int | None, ...], index: Any) -> Any:
  from jax.experimental import pallas as pl

  return pl.BlockSpec(shape, index)


def _call(
  kernel: Any,
  name: str,
  tile: Tile,
  given: Given,
  specs: Given,
  grid: tuple[int, ...],
  out_specs: list[Any],
  outputs: list[jax.Array],
) -> list[jax.Array]:
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  there = [(x, spec) for x, spec in zip(given, specs, strict=True) if x is not None]
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[spec for _, spec in there],
    out_specs=out_specs,
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
    compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
    interpret=INTERPRET,
    name=name,
  )(*(x for x, _ in there))
