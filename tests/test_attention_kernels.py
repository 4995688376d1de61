"""Every implementation of attention against plain XLA: forward and gradients, under all that the
models ask for. Kernels run here in an interpreter, or in a form for CPUs.
"""

import dataclasses
import importlib.util
import logging
import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sapt_jax import sharding
from sapt_jax.backbones import attention
from sapt_jax.backbones.attention import splash, tokamax
from sapt_jax.backbones.layers import REMAT_POLICIES
from sapt_jax.errors import InputError
from sapt_jax.pet.adapters import Adapters
from tests.kernels_here import library_stand_in, put_here

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
  "tiles of two sizes": ("left", True, None, 128, None),
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
  else:  # a prompt of which two places are not there, then a source that is padded on the left
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
  """Queries, keys, values and a position bias, of numbers that bfloat16 has."""
  _, _, _, queries, keys = FORMS[form]
  keys = keys or queries
  shapes = (B, H, queries, width), (B, groups, keys, width), (B, groups, keys, width)
  drawn = jax.random.split(jax.random.key(0), 4)
  shapes += ((1, H, queries, keys),)
  arrays = map(jax.random.normal, drawn, shapes)
  return [x.astype(jnp.bfloat16).astype(dtype) for x in arrays]


def answers(by, form, groups, biased, width=K, dtype=jnp.float32):
  """What real queries are answered, and the gradients of q, k and v."""
  q, k, v, bias = inputs(form, groups, width, dtype)
  tokens, seen = seen_of(form, by)
  real = tokens if FORMS[form][1] else jnp.ones((B, q.shape[2]), bool)
  scale = width**-0.5
  weights = jnp.cos(jnp.arange(B * q.shape[2] * H * width)).reshape(B, q.shape[2], -1)

  def total(q, k, v):
    if by == "xla":
      y = attention.attend(q, k, v, *([bias] if biased else []), seen=seen, scale=scale)
    else:  # itself, as `attend` would take plain XLA where it refuses
      call = attention.Call(q, k, v, bias if biased else None, seen, scale, 0.0, 0.0)
      attention.KERNELS[by].check(call.asked)
      y = attention.KERNELS[by].attend(call).swapaxes(1, 2).reshape(weights.shape)
    y = jnp.where(real[:, :, None], y, 0)
    return jnp.sum(weights * y), y

  return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)


@pytest.fixture
def as_here(monkeypatch):
  put_here(monkeypatch)


# What each refuses of FORMS, and a word of the reason.
REFUSED = {
  ("splash", "window, holes"): "counts places",
  ("splash", "window of some"): "same in all layers",
}


# Each form with all heads or with fewer key heads, in turn.
@pytest.mark.parametrize(("form", "groups"), list(zip(FORMS, [H, 2] * len(FORMS), strict=False)))
@pytest.mark.parametrize("by", attention.KERNELS)
def test_a_kernel_gives_what_plain_xla_does(by, form, groups, as_here):
  same(by, form, groups, biased=False)


@pytest.mark.parametrize("form", [form for form in FORMS if "window" not in form])
def test_so_it_does_with_a_position_bias(form, as_here):
  same("tokamax", form, H, biased=True)


def same(by, form, groups, biased):
  width = splash.LANES if by == "splash" else K
  if (by, form) in REFUSED:
    with pytest.raises(NotImplementedError, match=REFUSED[by, form]):
      answers(by, form, groups, biased, width)
    return
  (_, found), gradients = answers(by, form, groups, biased, width)
  (_, expected), others = answers("xla", form, groups, biased, width)
  np.testing.assert_allclose(found, expected, atol=3e-6)
  for ours, theirs in zip(gradients, others, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_halves_lose_no_more_than_in_plain_xla(as_here):
  exact = answers("xla", "left", H, True)

  def error(by):
    found = answers(by, "left", H, True, dtype=jnp.bfloat16)
    of_each = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), found[1], exact[1])
    return np.array(of_each)

  assert (error("xla") > 1e-3).all()
  assert (error("tokamax") < 1.5 * error("xla")).all()


@pytest.mark.parametrize(("remat", "kept"), [("none", True), ("dots", True), ("full", False)])
@pytest.mark.parametrize("by", ["tokamax", "splash"])
def test_what_its_backward_pass_reads_is_kept_where_products_are(by, remat, kept, as_here):
  width = splash.LANES if by == "splash" else K
  q, k, v, _ = inputs("causal", H, width)
  seen = seen_of("causal", by)[1]

  def form(q, k, v):
    return attention.KERNELS[by].attend(attention.Call(q, k, v, None, seen, 1.0, 0.0, 0.0))

  form = form if remat == "none" else jax.checkpoint(form, policy=REMAT_POLICIES[remat])
  _, back = jax.vjp(form, q, k, v)
  length = splash.LANES if by == "splash" else q.shape[2]  # to which splash fills rows up
  statistics = (B, H, length)
  assert (statistics in [x.shape for x in jax.tree.leaves(back)]) == kept


def test_of_the_librarys_warnings_those_that_nobody_can_act_on_are_not_shown(monkeypatch, caplog):
  def kernel(q, *arrays, **options):
    logging.getLogger("absl").warning("Autotuning cache miss for %s with key %s", "op", "shapes")
    logging.getLogger("absl").warning("this card is too hot")
    return q, (q, q)

  library = types.ModuleType("attention")
  library.api = types.SimpleNamespace(IMPLEMENTATIONS={tokamax.KERNEL: kernel})
  library.base = types.SimpleNamespace(Mask=lambda *ranges, **options: None)
  monkeypatch.setitem(sys.modules, "tokamax._src.ops.attention", library)
  for name in ("tokamax", "tokamax._src", "tokamax._src.ops"):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  tokamax._library(tokamax.Form(1.0, False), *[None] * 7)
  assert caplog.messages == ["this card is too hot"]


@pytest.mark.parametrize("form", FORMS)
def test_the_library_gives_what_its_stand_in_does(form, monkeypatch):
  if importlib.util.find_spec("tokamax") is None:
    pytest.skip("tokamax is not installed: pip install 'sapt-jax[gpu]', on Python 3.12 or newer")
  monkeypatch.setattr(tokamax, "KERNEL", "xla")
  q, k, v, bias = inputs(form, 2, K)
  seen = seen_of(form, "tokamax")[1]
  end = None if seen.causal else seen.end
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  arrays = (tokamax.Form(0.3, seen.causal), q, k, v, bias, seen.start, end, seen.keys)
  for found, expected in zip(tokamax._library(*arrays), library_stand_in(*arrays), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("form", FORMS)
def test_ranges_are_the_mask_at_tokens_and_show_a_key_to_every_query(form):
  _, causal, _, queries, keys = FORMS[form]
  tokens, ranges = seen_of(form, "tokamax")
  mask = np.asarray(ranges.mask(B, queries, keys or queries))
  assert mask.any(axis=-1).all()
  dense = np.asarray(seen_of(form, "xla")[1].bias == 0)
  real = np.asarray(tokens)[:, None, :, None] if causal else True
  assert np.array_equal(mask & real, np.broadcast_to(dense, mask.shape) & real)


def results_of(jaxpr):
  """Shapes of all that is computed, in whatever is called too."""
  for equation in jaxpr.eqns:
    yield from (tuple(variable.aval.shape) for variable in equation.outvars)
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
      if is_jaxpr(value):
        yield from results_of(getattr(value, "jaxpr", value))


def is_jaxpr(value):
  return hasattr(getattr(value, "jaxpr", value), "eqns")


def test_a_frozen_bias_has_no_gradient_and_nothing_is_as_large_as_the_scores(as_here):
  queries = 128  # more than a block, so that no part of the scores has their size
  drawn = jax.random.split(jax.random.key(0), 4)
  q, k, v = (jax.random.normal(key, (B, H, queries, K)) for key in drawn[:3])
  bias = jax.random.normal(drawn[3], (1, H, queries, queries))

  def total(by, q, k, v, bias):
    seen = attention.all_tokens(jnp.ones((B, queries), bool), "right", by)
    return jnp.sum(attention.attend(q, k, v, bias, seen=seen, by=by))

  def backward_pass(by):
    _, pull = jax.vjp(partial(total, by, bias=bias), q, k, v)
    return [shape[-2:] for shape in results_of(jax.make_jaxpr(pull)(1.0).jaxpr)]

  assert (queries, queries) in backward_pass("xla")
  assert (queries, queries) not in backward_pass("tokamax")
  for form in (partial(total, "tokamax"), jax.jit(jax.checkpoint(partial(total, "tokamax")))):
    with pytest.raises(
      InputError, match=r"backbone\.attention tokamax: takes a position bias as f"
    ):
      jax.grad(form, argnums=3)(q, k, v, bias)


def test_each_device_of_a_mesh_computes_its_own_rows_and_heads(as_here):
  mesh = sharding.make_mesh(data=2, tensor=2)
  q, k, v, bias = inputs("all", H, K)
  tokens = tokens_of("right", k.shape[2])

  def total(q, k, v, bias, tokens):
    seen = attention.all_tokens(tokens, "right", "tokamax")
    y = attention.attend(q, k, v, bias, seen=seen, by="tokamax", scale=K**-0.5)
    return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y)

  form = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  alone = form(q, k, v, bias, tokens)
  heads, rows = (sharding.spec(*axes) for axes in (("batch", "heads"), ("batch",)))
  with jax.set_mesh(mesh):
    spread = [jax.device_put(x, jax.NamedSharding(mesh, heads)) for x in (q, k, v)]
    bias = jax.device_put(bias, jax.NamedSharding(mesh, sharding.spec(None, "heads")))
    tokens = jax.device_put(tokens, jax.NamedSharding(mesh, rows))
    compiled = form.lower(*spread, bias, tokens).compile()
    assert "all-gather" not in compiled.as_text()
    for found, expected in zip(compiled(*spread, bias, tokens), alone, strict=True):
      np.testing.assert_allclose(found, expected, atol=1e-6)
    three = [x[:, :3] for x in (q, k, v)]
    seen = attention.all_tokens(tokens_of("right", k.shape[2]), "right", "tokamax")
    with pytest.raises(NotImplementedError, match="3 rows or heads do not spread evenly over 2"):
      tokamax.attend(attention.Call(*three, None, seen, 1.0, 0.0, 0.0))


LLAMA = tiny.LLAMA | {"head_dim": 16}
T5 = tiny.T5 | {"d_kv": 16}
MODELS = {
  "t5": (T5, "tokamax"),
  "llama": (LLAMA, "tokamax"),
  "llama by cudnn": (LLAMA, "cudnn"),
  "llama by splash": (LLAMA | {"head_dim": 128, "num_attention_heads": 2}, "splash"),
  "windows by tokamax": (LLAMA | {"model_type": "mistral", "sliding_window": 6}, "tokamax"),
  "gemma by tokamax": (
    LLAMA
    | {
      "model_type": "gemma3_text",
      "sliding_window": 6,
      "layer_types": ["sliding_attention", "full_attention"],
    },
    "tokamax",
  ),
}


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_hand_over_what_kernels_can_use(name, prompt, as_here, monkeypatch):
  raw, by = MODELS[name]
  model, params = tiny.random_model(raw)
  fast = type(model)(dataclasses.replace(model.config, attention=by))
  left, rows = model.config.is_decoder_only, 2
  sources = tokens_of("left" if left else "right", 12)
  answers = tokens_of("right", 5)
  tokens = jax.random.randint(jax.random.key(1), (rows, 17), 2, 200)
  adapters = None
  if prompt:
    prompts = jax.random.normal(jax.random.key(2), (rows, 4, model.config.width))
    there = jnp.asarray([[True] * 4, [False, True, False, True]])
    adapters = Adapters(prompts=prompts, prompts_mask=there)
  batch = (tokens[:, :12], sources, tokens[:, 12:], answers)
  if left:  # rows have room for both
    wide = jnp.pad(tokens[:, :12], ((0, 0), (4, 0))), jnp.pad(sources, ((0, 0), (4, 0)))
  used = []
  kernel = attention.KERNELS[by].attend

  def seen_to_be_used(call):
    y = kernel(call)
    used.append(call.q.shape)
    return y

  monkeypatch.setattr(attention.KERNELS[by], "attend", seen_to_be_used)

  def loss(model, params, method, batch):
    hidden = model.apply({"params": params}, *batch, adapters, method=method)
    weights = jnp.cos(jnp.arange(hidden.size)).reshape(hidden.shape)
    return jnp.sum(jnp.where(batch[3][..., None], weights * hidden, 0))

  def compare(form):
    for found, expected in zip(*(jax.tree.leaves(form(one)) for one in (fast, model)), strict=True):
      error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
      assert error < 2e-5
    assert used
    used.clear()

  weight = {"embedding": params["embedding"]}

  def gradient_of(method, batch, model):
    return jax.grad(lambda w: loss(model, params | w, method, batch))(weight)

  compare(partial(gradient_of, "hidden", batch))
  if left:
    compare(partial(gradient_of, "hidden_joined", (*wide, *batch[2:])))

  def start(model):
    variables = {"params": params}
    logits, cache = model.apply(variables, *batch[:2], 4, adapters, method="start")
    more, _ = model.apply(variables, jnp.argmax(logits, -1), cache, adapters, method="extend")
    return logits, more

  compare(start)
