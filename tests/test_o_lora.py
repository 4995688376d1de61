"""O-LoRA: blocks that are added up, each kept orthogonal to the earlier ones."""

import jax
import jax.numpy as jnp
import numpy as np

from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from tests.classroom import (
  FIRST,
  NOWHERE,
  build,
  clusters,
  factors_of,
  logits,
  same,
  teach,
  through,
)


def test_added_blocks_are_one_block_of_their_joint_rank():
  method = build("o_lora")
  learned = through(method, clusters(2))
  pair = [blocks.read(learned.blocks, slot) for slot in range(2)]

  def axis(path):
    return {"a": 2, "b": 1}[path[-1].key]

  joint = jax.tree_util.tree_map_with_path(
    lambda path, *both: jnp.concatenate(both, axis(path)), *pair
  )
  gates = jnp.full((4, 1), method.setting.pet.alpha / 2)
  added = logits(method.adapters(learned, method.mixture(learned, NOWHERE, FIRST)))
  np.testing.assert_allclose(
    added, logits(Adapters(lora=blocks.stack(joint)["lora"], gates=gates)), atol=1e-4
  )
  assert not np.allclose(
    added, logits(Adapters(lora=blocks.stack(pair[1])["lora"], gates=gates)), atol=1e-2
  )


def test_o_lora_keeps_the_new_block_orthogonal_to_the_earlier_ones():
  learned = through(build("o_lora"), clusters(3))
  earlier, other, new = (factors_of(blocks.read(learned.blocks, slot)) for slot in range(3))
  expected = sum(
    np.abs(np.concatenate([e, o], axis=1).T @ n).sum()
    for (e, _), (o, _), (n, _) in zip(earlier, other, new, strict=True)
  )
  taught, first, last = teach(build("o_lora", orthogonality_weight=0.5), learned)
  np.testing.assert_allclose(first["overlap"], expected, rtol=1e-5)
  np.testing.assert_allclose(first["loss"], first["cross_entropy"] + 0.5 * expected, rtol=1e-5)
  assert last["overlap"] < 0.7 * first["overlap"]
  assert [
    same(blocks.read(learned.blocks, slot), blocks.read(taught.blocks, slot)) for slot in range(4)
  ] == [True, True, False, True]
