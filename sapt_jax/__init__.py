"""SAPT in JAX: parameter-efficient continual learning of language models.

    import sapt_jax
    result = sapt_jax.learn(config, "runs/mine")
    pool = sapt_jax.load("runs/mine")
    pool.answer(["The parcel came two weeks late."])

See sapt_jax/api.py. Importing this package imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sapt_jax.api import Answer, Pool, learn, load

__version__ = "0.1.0"
__all__ = ["Answer", "Pool", "__version__", "learn", "load"]


def __dir__() -> list[str]:
  return __all__


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module 'sapt_jax' has no attribute {name!r}")
  from sapt_jax import api

  return getattr(api, name)
