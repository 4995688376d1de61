"""LoRA at any map of a layer: the same as adding its product to the map's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sapt_jax import config, learner, sharding
from sapt_jax.backbones import hf
from sapt_jax.config.learning import TARGETS
from sapt_jax.data.batches import Batcher, Row
from sapt_jax.errors import InputError
from sapt_jax.evaluation.decode import generate
from sapt_jax.methods.lesson import Setting
from sapt_jax.methods.per_task import PerTask, PerTaskOptions
from sapt_jax.pet import blocks
from sapt_jax.training.site_moments import SiteMoments

RELU = tiny.T5 | {"feed_forward_proj": "relu"}
MODELS = {"t5": tiny.T5, "t5 relu": RELU, "llama": tiny.LLAMA}
PET = config.Pet(rank=2, alpha=4.0, scale="sqrt_rank", targets=TARGETS)


def kernels(raw):
  """The kernel of each site: nested names of the site -> path of the parameter."""
  if raw["model_type"] == "llama":
    return {("mlp" if x in ("gate", "up", "down") else "self", x): ("layers", x) for x in TARGETS}
  attention = [("encoder", "self"), ("decoder", "self"), ("decoder", "cross")]
  paths = {(*at, x): (at[0], f"{at[1]}_attention", x) for at in attention for x in "qkvo"}
  maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
  maps = {"up": "wi_0", "down": "wo"} if raw is RELU else maps
  return paths | {
    (stack, "mlp", x): (stack, "feed_forward", name)
    for stack in ("encoder", "decoder")
    for x, name in maps.items()
  }


def at(tree, path):
  for name in path:
    tree = tree[name]
  return tree


def inputs():
  rng = np.random.default_rng(0)
  source, target = (rng.integers(2, 200, (3, n)).astype(np.int32) for n in (7, 4))
  return source, np.ones(source.shape, bool), target, np.ones(target.shape, bool)


@pytest.mark.parametrize("name", MODELS)
def test_a_block_at_every_map_is_the_model_with_other_weights(name):
  raw = MODELS[name]
  model, params = tiny.random_model(raw)
  targets = [x for x in TARGETS if name != "t5 relu" or x != "gate"]
  sites = model.config.lora_sites(targets)
  block = blocks.init_block(jax.random.key(0), PET, sites, params["embedding"]["table"])
  leaves, structure = jax.tree.flatten(block)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  block = jax.tree.unflatten(structure, drawn)
  merged = jax.tree.map(jnp.asarray, params)
  places = kernels(raw)
  assert len(places) == len(leaves) / 2
  for site, path in places.items():
    factors, parent = at(block["lora"], site), at(merged, path)
    parent["kernel"] = parent["kernel"] + 4.0 / 2**0.5 * factors["a"] @ factors["b"]
  adapters = blocks.mixed(blocks.stack(block), jnp.ones((3, 1)), PET)
  forward = jax.jit(model.apply)
  found = forward({"params": params}, *inputs(), adapters)
  np.testing.assert_allclose(found, forward({"params": merged}, *inputs()), atol=2e-5)
  source, mask = inputs()[:2]
  answers = [
    generate(model, given, source, mask, using, 6, apart=True)
    for given, using in ((params, adapters), (merged, None))
  ]
  np.testing.assert_array_equal(*map(np.asarray, answers))


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_moments_are_of_what_each_map_reads(name):
  model, params = tiny.random_model(MODELS[name])
  mesh = sharding.make_mesh()
  c = model.config
  setting = Setting(PET, c.lora_sites(TARGETS), params["embedding"]["table"], 1, 1)
  method = PerTask(PerTaskOptions(), setting)
  backbone = hf.Backbone(model, params, None, MODELS[name])
  batcher = Batcher(c.is_decoder_only, c.pad_id, 4)
  rows = [Row(list(range(2, 8)), list(range(9, 12)), 0)] * 3
  learned = method.start(jax.random.key(0))
  moments = SiteMoments(backbone, method, batcher, mesh)(learned, rows)
  flat = {tuple(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(moments)}
  both = {"states", "computed"}
  if name == "llama":
    assert set(flat) == {(part, x) for part in ("self", "mlp") for x in both}
  else:
    cross = {("decoder", "cross", x) for x in both | {"encoded"}}
    parts = [("encoder", "self"), ("encoder", "mlp"), ("decoder", "self"), ("decoder", "mlp")]
    assert set(flat) == cross | {(*part, x) for part in parts for x in both}
  for path, moment in flat.items():
    assert moment.shape[0] == 2
    widths = {"states": c.width, "encoded": c.width, "computed": c.heads * c.head_width}
    wide = c.mlp_width if path[-2:] == ("mlp", "computed") else widths[path[-1]]
    assert moment.shape[1:] == (wide, wide)
    np.testing.assert_allclose(moment, moment.swapaxes(1, 2), rtol=1e-5, atol=1e-6)
    if path[-1] == "states":  # normed, with weights of 1: each token's squares add up to the width
      tokens = {"encoder": 6, "decoder": 3}.get(path[0], 6 + 3)
      np.testing.assert_allclose(np.trace(moment, axis1=1, axis2=2), 3 * tokens * wide, rtol=4e-3)


def test_a_map_that_the_backbone_lacks_is_named():
  model, _ = tiny.random_model(RELU)
  with pytest.raises(InputError, match=r"pet\.targets gate: the backbone has no such map"):
    learner.sites_of(PET, model.config)
  with pytest.raises(InputError, match=r"pet\.targets q q: name at least one place, each once"):
    config.Pet(targets=("q", "q"))
