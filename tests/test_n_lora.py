"""N-LoRA: the update of a new block is kept sparse."""

import numpy as np

from sapt_jax.pet import blocks
from tests.classroom import (
  NOWHERE,
  WIDTH,
  build,
  clusters,
  factors_of,
  same,
  teach,
  through,
  view_of,
)


def test_n_lora_keeps_the_new_update_sparse():
  learned = through(build("n_lora"), clusters(2))

  def norm(tree):
    return sum(np.abs(a @ b).sum() / WIDTH for a, b in factors_of(blocks.read(tree.blocks, 1)))

  taught, first, _ = teach(build("n_lora", sparsity_weight=4.0), learned)
  np.testing.assert_allclose(first["update_norm"], norm(learned), rtol=1e-5)
  np.testing.assert_allclose(first["loss"], first["cross_entropy"] + 4.0 * norm(learned), rtol=1e-5)
  assert norm(taught) < 0.8 * norm(learned)
  assert [
    same(blocks.read(learned.blocks, slot), blocks.read(taught.blocks, slot)) for slot in range(4)
  ] == [True, False, True, True]


def test_the_penalties_exist_where_a_projection_is_not_square():
  learned = through(build("n_lora", on="llama"), clusters(2))
  for name in ("n_lora", "o_lora"):
    loss, _ = build(name, on="llama").penalty(learned, view_of(NOWHERE))
    assert np.isfinite(loss)
    assert loss > 0
