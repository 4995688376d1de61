"""Random streams with names: each purpose draws from its own, no two draw the same numbers."""

from __future__ import annotations

import zlib

import jax
import numpy as np


def stream(key: jax.Array, name: str, number: int | jax.Array = 0) -> jax.Array:
  """The key of one purpose, and of one of its many uses where they have numbers."""
  return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), number)


def of_seed(seed: int, name: str, number: int | jax.Array = 0) -> jax.Array:
  """The key of one purpose of a run with this seed."""
  return stream(jax.random.key(seed), name, number)


def host(seed: int, name: str, *numbers: int) -> np.random.Generator:
  """The same on the host, for draws of rows."""
  return np.random.default_rng((seed, zlib.crc32(name.encode()), *numbers))
