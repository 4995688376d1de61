"""ProgPrompt: a prompt per task before those of all earlier ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax.evaluation.decode import generate
from sapt_jax.pet.adapters import Adapters
from tests.classroom import (
  FIRST,
  NOWHERE,
  WIDTH,
  backbone,
  build,
  clusters,
  logits,
  same,
  some_batch,
  teach,
  through,
)


@pytest.mark.parametrize("on", ["t5", "llama"])
def test_prog_prompt_reads_the_newest_prompt_first_and_no_empty_slot(on):
  method = build("prog_prompt", on=on, kind="prompt")
  learned = through(method, clusters(2))
  adapters = method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
  first, second = (
    jnp.broadcast_to(learned.blocks["prompt"][slot], (4, 2, WIDTH)) for slot in range(2)
  )
  alone = Adapters(prompts=jnp.concatenate([second, first], axis=1))
  assert adapters.prompts.shape[1] == 8
  np.testing.assert_allclose(logits(adapters, on), logits(alone, on), atol=2e-5)
  swapped = Adapters(prompts=jnp.concatenate([first, second], axis=1))
  assert not np.allclose(logits(swapped, on), logits(alone, on), atol=1e-3)
  model, params = backbone(on)
  write = jax.jit(partial(generate, model, max_new=4))
  batch = some_batch(on)
  assert same(
    *(write(params, batch.source, batch.source_mask, given) for given in (adapters, alone))
  )


def test_prog_prompt_forgets_nothing_when_it_knows_the_task_and_trains_one_prompt():
  tasks = clusters(2)
  for known in (True, False):
    method = build("prog_prompt", kind="prompt", task_known=known)
    before, after = through(method, tasks[:1]), through(method, tasks)
    given = [
      method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
      for learned in (before, after)
    ]
    assert np.allclose(*map(logits, given), atol=1e-5) == known
  taught, _, _ = teach(method, after, steps=1)
  moved = np.any(
    np.asarray(taught.blocks["prompt"]) != np.asarray(after.blocks["prompt"]), axis=(1, 2)
  )
  assert moved.tolist() == [False, True, False, False]
