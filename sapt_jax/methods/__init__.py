"""Continual-learning methods, by the name that --method.name takes."""

from __future__ import annotations

from sapt_jax import config
from sapt_jax.errors import InputError
from sapt_jax.methods.base import Method, Setting
from sapt_jax.methods.epi import Epi
from sapt_jax.methods.gainlora import GainLora
from sapt_jax.methods.inflora import InfLora
from sapt_jax.methods.l2p import L2p
from sapt_jax.methods.lfpt5 import Lfpt5
from sapt_jax.methods.multi_task import MultiTask
from sapt_jax.methods.n_lora import NLora
from sapt_jax.methods.o_lora import OLora
from sapt_jax.methods.per_task import PerTask
from sapt_jax.methods.prog_prompt import ProgPrompt
from sapt_jax.methods.replay import Replay
from sapt_jax.methods.sapt import Sapt
from sapt_jax.methods.sequential import Sequential

METHODS: dict[str, type[Method]] = {
  "sapt": Sapt,
  "sequential": Sequential,
  "per_task": PerTask,
  "multi_task": MultiTask,
  "replay": Replay,
  "o_lora": OLora,
  "n_lora": NLora,
  "l2p": L2p,
  "lfpt5": Lfpt5,
  "prog_prompt": ProgPrompt,
  "epi": Epi,
  "inflora": InfLora,
  "gainlora": GainLora,
}


def check(options: config.Method, pet: config.Pet) -> None:
  """Whether the method that the options name can use such blocks.

  Raises:
    InputError: it cannot.
  """
  method = METHODS[options.name]
  if pet.kind not in method.kinds:
    raise InputError(
      f"method.name {options.name}: cannot use pet.kind {pet.kind}; give --pet.kind {' or '.join(method.kinds)}"
    )
  if pet.top_k and (pet.kind != "lora" or not method.selects or options.uniform != "never"):
    raise InputError(
      f"pet.top_k {pet.top_k}: chooses LoRA blocks by their weights; method.name {options.name} with pet.kind {pet.kind} "
      "and these options has no unequal ones; give --pet.top-k 0"
    )
  if pet.top_k and options.name == "sapt" and options.attention == "published":
    raise InputError(
      f"pet.top_k {pet.top_k}: a new key of the published attention is random, so that a new block might never be chosen, "
      "and never learned; give --method.attention routed, or --pet.top-k 0"
    )


def build(options: config.Method, setting: Setting) -> Method:
  """The method that the options name.

  Raises:
    InputError: see check.
  """
  check(options, setting.pet)
  return METHODS[options.name](options, setting)
