"""What is counted in a compiled program: products, loops, what a device sends."""

import jax
import jax.numpy as jnp

from sapt_jax import sharding
from sapt_jax.plan.hlo import Module, real_pairs


def test_loops_inside_loops_count_as_often_as_they_run():
  def inner(x, w):
    return x @ w, None

  def outer(x, weights):
    return jax.lax.scan(inner, x, weights)[0], None

  def until(x, weights):
    def again(c):
      return (jax.lax.scan(outer, c[0], weights)[0], c[1] + 1)

    return jax.lax.while_loop(lambda c: (c[1] < 9) & (c[0][0, 0] < 1), again, (x, 0))[0]

  x, weights = jnp.zeros((8, 16)), jnp.zeros((3, 5, 16, 16))
  one = 2 * 8 * 16 * 16
  scanned = jax.jit(lambda x, weights: jax.lax.scan(outer, x, weights)[0])
  assert Module(scanned.lower(x, weights).compile().as_text(), 1).work().flops == 15 * one
  text = jax.jit(until).lower(x, weights).compile().as_text()
  assert Module(text, 1).work().flops == 15 * one
  assert Module(text, 1, longest=9).work().flops == 9 * 15 * one


def test_what_a_device_sends_is_counted():
  mesh = sharding.make_mesh(fsdp=4)

  def place(*axes):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

  def shape(sharding, *dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)

  rows, weights = shape(place("fsdp"), 64, 8), shape(place("fsdp"), 8, 8)

  def product(x, w):
    return jax.lax.with_sharding_constraint(x @ w, place("fsdp"))

  with jax.set_mesh(mesh):  # whatever mesh another test has left behind
    gathered = (
      Module(jax.jit(product).lower(rows, weights).compile().as_text(), 4).work().collectives
    )
  assert gathered == {
    "all-gather": {"count": 1, "bytes": 3 * 2 * 8 * 4}
  }  # a quarter of the weights, to each of three others

  def total(x):
    return jax.lax.with_sharding_constraint(jnp.sum(x, axis=0), place())

  with jax.set_mesh(mesh):
    reduced = Module(jax.jit(total).lower(rows).compile().as_text(), 4).work().collectives
  assert reduced == {"all-reduce": {"count": 1, "bytes": 2 * 3 / 4 * 8 * 4}}


# As a TPU's compiler writes them: a batched product is a convolution over the batch with holes, a
# loop has no trip count, and a collective stands in several fusions.
TPU_TEXT = """HloModule tpu

%condition (p: (s32[], f32[4,8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  %p = (s32[]{:T(128)}, f32[4,8,16]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%fused.1 (a: f32[2,4]) -> f32[8,4] {
  %a = f32[2,4]{1,0} parameter(0)
  ROOT %gather.1 = f32[8,4]{1,0} all-gather(%a), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%fused.2 (a.2: f32[2,4]) -> f32[8,4] {
  %a.2 = f32[2,4]{1,0} parameter(0)
  ROOT %gather.2 = f32[8,4]{1,0} all-gather(%a.2), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%body (q: (s32[], f32[4,8,16])) -> (s32[], f32[4,8,16]) {
  %q = (s32[]{:T(128)}, f32[4,8,16]{2,1,0}) parameter(0)
  %x = f32[4,8,16]{2,1,0} get-tuple-element(%q), index=1
  %k = f32[4,32,16]{2,1,0} constant({...})
  %scores = f32[4,8,32]{2,1,0:T(8,128)} convolution(%x, %k), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf
  %part = f32[2,4]{1,0} constant({...})
  %begun = f32[8,4]{1,0} fusion(%part), kind=kLoop, calls=%fused.1
  %ended = f32[8,4]{1,0} fusion(%part), kind=kLoop, calls=%fused.2
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %by = s32[]{:T(128)} constant(1)
  %j.next = s32[]{:T(128)} add(%j, %by)
  ROOT %next = (s32[]{:T(128)}, f32[4,8,16]{2,1,0}) tuple(%j.next, %x)
}

ENTRY %main (z: f32[4,8,16]) -> (s32[], f32[4,8,16]) {
  %z = f32[4,8,16]{2,1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, f32[4,8,16]{2,1,0}) tuple(%zero, %z)
  ROOT %loop = (s32[]{:T(128)}, f32[4,8,16]{2,1,0}) while(%first), condition=%condition, body=%body
}
"""  # noqa: E501 (the compiler's own lines)


def test_a_tpus_spelling_is_read():
  module = Module(TPU_TEXT, devices=8)
  work = module.work()
  assert work.flops == 7 * 2 * 4 * 8 * 32 * 16
  assert work.collectives == {"all-gather": {"count": 7, "bytes": 7 * 3 * 2 * 4 * 4}}
  assert module.loops() == [
    {"trips": 7, "kernels": 3}
  ]  # the product and two fusions; names and tuples start nothing
  assert work.kernels == 21


# As JAX's Triton kernels stand in a program for an NVIDIA GPU.
KERNEL_TEXT = """HloModule gpu

ENTRY %main (q: bf16[2,64,4,16], k: bf16[2,32,2,16]) -> bf16[2,64,4,16] {
  %q = bf16[2,64,4,16]{3,2,1,0} parameter(0)
  %k = bf16[2,32,2,16]{3,2,1,0} parameter(1)
  %y = (bf16[2,64,4,16]{3,2,1,0}, f32[2,4,64]{2,1,0}) custom-call(%q, %k, %k), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/vmap(pallas_flash_attention_fwd_res)/pallas_call"}
  %other = bf16[2,64,4,16]{3,2,1,0} custom-call(%q), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/another/pallas_call"}
  %dkv = (bf16[2,32,2,16]{3,2,1,0}, bf16[2,32,2,16]{3,2,1,0}) custom-call(%q, %k, %k, %q), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/attention_dkv/pallas_call"}
  ROOT %dq = bf16[2,64,4,16]{3,2,1,0} custom-call(%q, %k, %k, %q), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/attention_dq/pallas_call"}
}
"""  # noqa: E501 (the compiler's own lines)


def test_products_inside_attentions_kernels_are_counted():
  assert Module(KERNEL_TEXT, devices=1).work().flops == (2 + 3 + 4) * 2 * 2 * 64 * 4 * 16 * 32


def test_a_loop_that_counts_by_two_runs_half_as_often():
  assert Module(
    TPU_TEXT.replace("%by = s32[]{:T(128)} constant(1)", "%by = s32[]{:T(128)} constant(2)"),
    devices=8,
  ).work().flops == (4 * 2 * 4 * 8 * 32 * 16)


def test_only_entries_of_the_input_are_paired_in_a_convolution():
  assert (
    real_pairs(5, 3, 5, stride=1, pad=1, dilation=1, kernel_dilation=1) == 13
  )  # 15 less one at either end
  assert (
    real_pairs(4, 4, 4, stride=3, pad=0, dilation=4, kernel_dilation=1) == 4
  )  # one each: a batch
