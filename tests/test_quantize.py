"""Weights in 8 and 4 bits: what rounding may cost, what they take, and that such a backbone trains,
answers and is split like another.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from sapt_jax import sharding
from sapt_jax.backbones import hf, quantize
from sapt_jax.errors import InputError
from sapt_jax.evaluation.decode import generate
from sapt_jax.losses import token_losses
from sapt_jax.pet import lora
from sapt_jax.pet.adapters import Adapters

# Wide enough for several groups of 32 that four devices can share.
RAW = {
  "t5": tiny.T5 | {"d_model": 128, "d_kv": 32, "d_ff": 256},
  "llama": tiny.LLAMA | {"hidden_size": 128, "intermediate_size": 256},
}
BITS = (8, 4)


@pytest.fixture(scope="module", params=list(RAW))
def folder(request, tmp_path_factory):
  return tiny.model_folder(tmp_path_factory.mktemp(request.param), RAW[request.param])


def inputs():
  tokens = jax.random.randint(jax.random.key(0), (4, 12), 2, 270)
  return tokens, tokens > 0, tokens[:, :6], tokens[:, :6] > 0


def loss(backbone, adapters=None):
  _, _, target, mask = arrays = inputs()
  logits = jax.jit(backbone.model.apply)({"params": backbone.params}, *arrays, adapters)
  return jnp.mean(token_losses(logits, target, mask))


def codes_of(backbone):
  flat = traverse_util.flatten_dict(backbone.params)
  return [x for path, x in flat.items() if path[-1] == "codes"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_weight_is_further_off_than_the_levels_allow(bits, dtype):
  kernel = np.random.default_rng(0).standard_t(4, (512, 24)).astype(np.float32)
  kernel[64:128] = 0.0
  kernel[128, 0] = -9.0 * np.abs(kernel[128:192, 0]).max()
  codes, scales = quantize.quantize(kernel, bits, dtype)
  assert (codes.dtype, codes.shape) == (quantize.CODES[bits], (512, 24))
  assert (scales.dtype, scales.shape) == (dtype, (8, 24))
  again = np.asarray(quantize.dequantize(jnp.asarray(codes), jnp.asarray(scales)), np.float32)
  groups, errors = kernel.reshape(8, 64, 24), np.abs(again - kernel).reshape(8, 64, 24)
  largest = np.abs(groups).max(axis=1, keepdims=True)
  # The widest step is that between the two lowest codes.
  step = {8: 1 / 128, 4: 1 - 7 * (128 + 49) / 1536}[bits]
  rounding = float(jnp.finfo(dtype).eps) * largest
  assert np.all(errors <= step * largest + rounding)
  places = np.abs(groups).argmax(axis=1)[:, None]
  near = np.sign(groups) * np.sign(np.take_along_axis(groups, places, axis=1)) >= 0
  assert np.all(errors[near] <= (step / 2 * largest + rounding + 0 * groups)[near])
  assert np.all(again[64:128] == 0)


def test_a_part_of_a_kernel_is_quantised_as_the_whole_is():
  # Its quarters alone would have smaller groups.
  kernel = np.random.default_rng(0).normal(size=(1024, 4)).astype(np.float32)
  group = quantize.group_of(1024)
  parts = [quantize.quantize(part, 4, np.float32, group) for part in np.split(kernel, 4)]
  codes, scales = map(np.concatenate, zip(*parts, strict=True))
  whole_codes, whole_scales = quantize.quantize(kernel, 4, np.float32)
  assert np.array_equal(whole_codes, codes)
  assert np.array_equal(whole_scales, scales)


def test_errors_on_normal_weights_are_those_of_the_docstring():
  kernel = np.random.default_rng(1).normal(size=(512, 512)).astype(np.float32)

  def error(bits):
    found = map(jnp.asarray, quantize.quantize(kernel, bits, np.float32))
    return np.std(np.asarray(quantize.dequantize(*found)) - kernel)

  assert error(4) == pytest.approx(0.087, rel=0.02)
  assert error(8) < 0.007


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_are_levels_stay_as_they_are(bits):
  levels = quantize.level(np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.float32), bits)
  groups = np.pad(np.resize(levels, (8, 63)), ((0, 0), (1, 0)), constant_values=-1)
  kernel = groups.astype(np.float32).reshape(-1, 1)
  found = quantize.quantize(kernel, bits, np.float32)
  np.testing.assert_allclose(quantize.dequantize(*map(jnp.asarray, found)), kernel, atol=1e-6)
  assert np.unique(found[0].astype(np.int8)).size == 2**bits


def test_groups_can_be_shared_by_eight_devices_wherever_the_width_allows():
  groups = {4096: 64, 5120: 64, 13824: 64, 11008: 32, 48: 16, 6: 2}
  assert {width: quantize.group_of(width) for width in groups} == groups
  assert 11008 // 32 % 8 == 0


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_model_computes_nearly_the_same_in_its_share_of_the_memory(folder, bits):
  plain, small = hf.load_backbone(str(folder)), hf.load_backbone(str(folder), bits=bits)
  assert float(loss(small)) == pytest.approx(float(loss(plain)), rel={8: 0.005, 4: 0.1}[bits])
  flat = [traverse_util.flatten_dict(x.params, sep="/") for x in (plain, small)]
  for name, kernel in flat[0].items():
    if not name.endswith("kernel") or name.startswith("head"):
      np.testing.assert_array_equal(flat[1][name], kernel, err_msg=name)
      continue
    codes, scales = (flat[1][name.removesuffix("kernel") + part] for part in ("codes", "scales"))
    assert (codes.shape, codes.dtype) == (kernel.shape, quantize.CODES[bits])
    assert scales.size == kernel.size / 32
    own = jax.vmap(quantize.dequantize)(codes, scales)
    assert float(jnp.std(own - kernel) / jnp.std(kernel)) < {8: 0.01, 4: 0.09}[bits]
  answers = generate(small.model, small.params, *inputs()[:2], None, max_new=4)
  assert answers.shape == (4, 4)


def test_gradients_reach_lora_and_no_kernel_is_kept_for_them(folder):
  plain, small = (hf.load_backbone(str(folder), bits=bits) for bits in (0, 8))
  factors = lora.init_block(jax.random.key(1), small.config.lora_sites(), 2)
  factors = jax.tree.map(lambda x: jnp.expand_dims(x + 0.01, 2 if x.shape[-1] == 2 else 1), factors)

  def own(backbone):
    return lambda factors: loss(backbone, Adapters(lora=factors, gates=jnp.ones((4, 1))))

  ours, theirs = (jax.grad(own(backbone))(factors) for backbone in (small, plain))
  for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert float(jnp.linalg.norm(found)) > 0
    assert float(jnp.linalg.norm(found - expected)) < 0.1 * float(jnp.linalg.norm(expected))
  kept = jax.tree.leaves(jax.vjp(own(small), factors)[1])
  kernels = {codes.shape for codes in codes_of(small)}
  assert not [x.shape for x in kept if x.shape in kernels and jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("shape", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_devices_hold_their_shares_and_compute_what_one_computes(folder, shape):
  alone, mesh = hf.load_backbone(str(folder), bits=4), sharding.make_mesh(**shape)
  spread = hf.load_backbone(str(folder), mesh=mesh, bits=4)
  jax.tree.map(np.testing.assert_array_equal, alone.params, spread.params)
  shares = mesh.shape["fsdp"] * mesh.shape["tensor"]
  assert all(x.addressable_shards[0].data.size * shares == x.size for x in codes_of(spread))
  with jax.set_mesh(mesh):
    together = float(loss(spread))
  assert together == pytest.approx(float(loss(alone)), rel=1e-5)


def test_what_cannot_be_done_is_refused(folder, tmp_path):
  small = hf.load_backbone(str(folder), bits=4)
  with pytest.raises(InputError, match=r"4 bits is not written; .*backbone.bits 0"):
    hf.save_backbone(tmp_path, small.model, small.raw_config, small.params)
  with pytest.raises(InputError, match=r"--mesh.fsdp 3: does not split .* evenly"):
    hf.load_backbone(str(folder), mesh=sharding.make_mesh(fsdp=3), bits=4)


PEAK = """
import resource, sys, jax
from sapt_jax.backbones import hf
def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
hf.load_backbone(sys.argv[1], "bfloat16")
before = peak()
backbone = hf.load_backbone(sys.argv[2], "bfloat16")
print(peak() - before, sum(x.nbytes for x in jax.tree.leaves(backbone.params)))
"""


def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
  import load_cost

  folders = [tmp_path / name for name in ("small", "large")]
  for folder, layers in zip(folders, (1, 24), strict=True):
    folder.mkdir()
    load_cost.write_folder(folder, load_cost.config_of(layers, 512), 20_000_000)
  command = [sys.executable, "-c", PEAK, *map(str, folders)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  grown, loaded = map(int, done.stdout.split())
  assert loaded > 140e6
  assert grown < 1.2 * loaded
  index = json.loads((folders[1] / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == loaded
