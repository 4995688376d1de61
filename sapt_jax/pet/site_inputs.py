"""What the sites of LoRA read. Sites of one part of a layer read the same states, so what is known
of those, such as their moments, is kept once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import traverse_util

from sapt_jax.pet.lora import Sites


def input_of(site: tuple[str, ...]) -> tuple[str, ...]:
  """What a site reads: the states that enter its part of the layer; for keys and values of
  cross-attention, the encoder's; for the part's last map, what the part has computed.
  """
  *part, name = site
  if name in ("o", "down"):
    return (*part, "computed")
  return (*part, "encoded" if part[-1] == "cross" and name != "q" else "states")


def first_readers(sites: Sites) -> dict[tuple[str, ...], tuple[str, ...]]:
  """Every input of the sites, and the first site that reads it."""
  first: dict[tuple[str, ...], tuple[str, ...]] = {}
  for site in traverse_util.flatten_dict(sites):
    first.setdefault(input_of(site), site)
  return first


def at_inputs(sites: Sites, make: Callable[[tuple[int, ...]], Any]) -> Any:
  """What `make` gives for (layers, D_in, D_out) of a site that reads it, for every input; nested as
  moments are.
  """
  shapes = traverse_util.flatten_dict(sites)
  return traverse_util.unflatten_dict(
    {read: make(shapes[site]) for read, site in first_readers(sites).items()}
  )


def at_sites(of_inputs: Any, sites: Sites) -> Any:
  """What belongs to each input, at every site that reads it; nested like the sites."""
  flat = traverse_util.flatten_dict(of_inputs)
  return traverse_util.unflatten_dict(
    {site: flat[input_of(site)] for site in traverse_util.flatten_dict(sites)}
  )
