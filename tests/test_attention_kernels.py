"""Every implementation of attention against plain XLA: forward and gradients, under all that the
models ask for. Kernels run here in an interpreter or in a form for CPUs.
"""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax.backbones import attention
from sapt_jax.backbones.attention import backward, cudnn, splash, tokamax

B, H, K = 2, 4, 16

# name -> (padding, causal, window, queries, keys); keys None: as many as queries.
FORMS = {
  "all": ("right", False, None, 24, 40),
  "left": ("left", False, None, 24, 40),
  "holes": ("any", False, None, 24, 40),
  "odd lengths": ("right", False, None, 21, 37),
  "causal": ("right", True, None, 40, None),
  "causal, left": ("left", True, None, 40, None),
  "causal, holes": ("any", True, None, 40, None),
  "long": ("left", True, None, 200, None),
  "window": ("right", True, 5, 40, None),
  "window, left": ("left", True, 5, 40, None),
  "window, holes": ("any", True, 5, 40, None),
  "window of some": ("left", True, 5, 40, None),
}


def tokens_of(padding, length):
  """(B, length) bool: a full row, and one with places left."""
  place, third = np.arange(length), length // 3
  if padding == "right":
    second = place < length - third
  elif padding == "left":
    second = place >= third
  else:  # a prompt with a hole before it, then a source that is padded on the left
    second = ((place >= 2) & (place < 5)) | (place >= third)
  return jnp.asarray(np.stack([np.ones(length, bool), second]))


def seen_of(form, by):
  padding, causal, window, queries, keys = FORMS[form]
  tokens = tokens_of(padding, keys or queries)
  if causal:
    some = form.endswith("some")
    return tokens, attention.earlier_tokens(tokens, padding, by, window, some)
  return tokens, attention.all_tokens(tokens, padding, by)


def inputs(form, groups, width, dtype=jnp.float32):
  _, _, _, queries, keys = FORMS[form]
  keys = keys or queries
  shapes = (B, H, queries, width), (B, groups, keys, width), (B, groups, keys, width)
  drawn = jax.random.split(jax.random.key(0), 4)
  q, k, v = (
    jax.random.normal(key, shape, dtype) for key, shape in zip(drawn, shapes, strict=False)
  )
  return q, k, v, jax.random.normal(drawn[3], (1, H, queries, keys))


def answers(by, form, groups, biased, width=K, cap=0.0, dtype=jnp.float32):
  """What real queries are answered, and the gradients of q, k and v when they are asked."""
  q, k, v, bias = inputs(form, groups, width, dtype)
  tokens, seen = seen_of(form, by)
  causal, queries = FORMS[form][1], q.shape[2]
  real = tokens if causal else jnp.ones((B, queries), bool)
  biases = (bias,) if biased else ()
  scale = width**-0.5
  weights = jnp.cos(jnp.arange(B * queries * H * width)).reshape(B, queries, -1)

  def total(q, k, v):
    if by == "xla":
      y = attention.attend(q, k, v, *biases, seen=seen, scale=scale, cap=cap)
    else:
      call = attention.Call(q, k, v, biases[0] if biases else None, seen, scale, cap, 0.0)
      attention.KERNELS[by].check(call.asked._replace(dtype=jnp.bfloat16))
      y = attention.KERNELS[by].attend(call)
      y = y.swapaxes(1, 2).reshape(B, queries, -1)
    y = jnp.where(real[:, :, None], y.astype(jnp.float32), 0)
    return jnp.sum(weights * y), y

  return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)


@pytest.fixture
def as_here(monkeypatch):
  """Kernels as a CPU can run them."""
  monkeypatch.setattr(backward, "INTERPRET", True)
  monkeypatch.setattr(splash, "INTERPRET", True)
  monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
  monkeypatch.setattr(tokamax, "KERNEL", "xla")


CASES = [
  (by, form, groups, biased)
  for by in attention.KERNELS
  for form in FORMS
  for groups in (H, 2, 1)
  for biased in ((False, True) if by == "tokamax" else (False,))
  if groups == H or not biased
]


@pytest.mark.parametrize(("by", "form", "groups", "biased"), CASES)
def test_a_kernel_gives_what_plain_xla_does(by, form, groups, biased, as_here):
  if by == "tokamax" and importlib.util.find_spec("tokamax") is None:
    pytest.skip("tokamax is not installed: pip install 'sapt-jax[gpu]', on Python 3.12 or newer")
  width = 128 if by == "splash" else K
  try:
    (_, found), gradients = answers(by, form, groups, biased, width)
  except NotImplementedError as reason:
    pytest.skip(f"{by} refuses: {reason}")
  (_, expected), others = answers("xla", form, groups, biased, width)
  np.testing.assert_allclose(found, expected, atol=3e-6)
  for ours, theirs in zip(gradients, others, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
