"""T5's dropout: the places where Hugging Face has it, its gradient, and what it must not touch."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import config
from sapt_jax.backbones import attention, hf
from sapt_jax.errors import InputError
from sapt_jax.training.state import make_optimizer
from sapt_jax.training.step import batch_gradient
from tests import tiny, torch_models
from tests.classroom import backbone, build, sapt, some_batch, state_of, uneven_batch

RATE = 0.4


def kept(shape):
  """Which entries of an array of this shape are kept, by their places alone."""
  return (np.arange(np.prod(shape)) * 7 % 5 >= 2).reshape(shape)


@pytest.mark.parametrize("name", torch_models.T5)
def test_it_stands_where_hugging_face_has_it(name, torch, tmp_path, monkeypatch):
  """Both libraries drop what `kept` says: logits agree only if they drop at the same places."""
  theirs = torch_models.make(name, dropout_rate=RATE)
  ours = hf.load_backbone(torch_models.save(theirs, tmp_path), dropout=RATE)

  def their_dropout(x, p=0.5, training=True, inplace=False):
    del inplace
    return x * torch.from_numpy(kept(tuple(x.shape))) / (1 - p) if training and p else x

  monkeypatch.setattr(torch.nn.functional, "dropout", their_dropout)
  monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.asarray(kept(shape)))
  rng = np.random.default_rng(0)
  source, target = rng.integers(4, 96, (2, 3, 8))
  theirs.set_attn_implementation("eager")  # the fast one drops where nothing can be replaced
  theirs.train()
  with torch.no_grad():
    expected = theirs(input_ids=torch.tensor(source), labels=torch.tensor(target)).logits.numpy()
    plain = theirs.eval()(input_ids=torch.tensor(source), labels=torch.tensor(target)).logits

  ones = np.ones_like(source, bool)
  apply = partial(ours.model.apply, {"params": ours.params}, source, ones, target, ones)
  np.testing.assert_allclose(
    apply(rngs={"dropout": jax.random.key(0)}), expected, atol=1e-4, rtol=0
  )
  np.testing.assert_allclose(apply(), plain.numpy(), atol=1e-4, rtol=0)
  assert np.max(np.abs(expected - plain.numpy())) > 0.1


@pytest.mark.parametrize("groups", [4, 2])
def test_the_gradient_of_attention_is_that_of_the_weights_it_kept(groups):
  keys, key = jax.random.split(jax.random.key(0), 4), jax.random.key(7)
  q, k, v = (jax.random.normal(keys[i], (2, 4 if not i else groups, 5, 8)) for i in range(3))
  bias = jax.random.normal(keys[3], (1, 4, 5, 5))
  keep = jax.random.bernoulli(key, 1 - RATE, (2, 4, 5, 5)) / (1 - RATE)

  def plainly(q, k, v, bias):
    k, v = (jnp.repeat(x, 4 // groups, axis=1) for x in (k, v))
    weights = jax.nn.softmax(0.4 * jnp.einsum("bhlk,bhsk->bhls", q, k) + bias, axis=-1)
    return jnp.einsum("bhls,bhsk->blhk", keep * weights, v).reshape(2, 5, -1)

  def of(form):
    def total(*x):
      return jnp.sum(jnp.cos(jnp.arange(2 * 5 * 32)).reshape(2, 5, 32) * form(*x))

    return jax.value_and_grad(total, argnums=(0, 1, 2, 3))(q, k, v, bias)

  found, expected = of(partial(attention.attend, scale=0.4, dropout=RATE, key=key)), of(plainly)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), found, expected)


def model_with(dropout):
  model, params = backbone()
  return type(model)(dataclasses.replace(model.config, dropout=dropout)), params


@cache
def compiled(dropout, accumulation):
  model, _ = model_with(dropout)
  return jax.jit(partial(batch_gradient, model, sapt()[0], accumulation))


def gradient(dropout, step=0, task=0, seed=0, accumulation=1):
  """SAPT's gradient on one batch, as one array."""
  (method, learned), batch = sapt(), uneven_batch()
  state = state_of(method, learned, make_optimizer(method, config.Fit()))
  state = state.replace(step=jnp.asarray(step, jnp.int32))
  batch = batch.replace(task=jnp.full_like(batch.task, task))
  program = compiled(dropout, accumulation)
  found, _ = program(backbone()[1], learned, state, batch, seed=seed)
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])


def test_each_seed_task_step_and_part_draws_its_own_and_the_same_when_asked_again():
  usual, plain = gradient(RATE), gradient(0.0)
  assert np.array_equal(usual, gradient(RATE))
  assert not np.allclose(usual, plain, rtol=1e-2)
  for other in ({"seed": 1}, {"step": 1}, {"task": 1}, {"accumulation": 2}):
    assert not np.allclose(usual, gradient(RATE, **other), rtol=1e-2)
  for other in ({"step": 1}, {"task": 1}):
    assert np.array_equal(plain, gradient(0.0, **other))


def test_features_and_the_teacher_of_distillation_are_left_alone():
  model, params = model_with(RATE)
  batch = some_batch(task=0).with_dropout(jax.random.key(0))
  plain = batch.replace(dropout=None)
  epi = build("epi", feature="states")
  assert np.array_equal(epi.features(model, params, batch), epi.features(model, params, plain))
  lfpt5 = build("lfpt5")
  learned = lfpt5.start(jax.random.key(0)).replace(tasks=jnp.asarray(2))
  batch = some_batch(task=0).replace(companions={"written": some_batch()})
  distilled = [
    float(lfpt5.loss_sums(model, params, learned, learned, given)[0]["distillation"])
    for given in (batch, batch.with_dropout(jax.random.key(0)))
  ]
  assert distilled[0] == 0
  assert distilled[1] > 1e-3


def test_a_llama_has_none():
  with pytest.raises(InputError, match=r"backbone.dropout 0.1: llama models have none"):
    hf.build_model(tiny.LLAMA, dropout=0.1)
  with pytest.raises(InputError, match=r"backbone.dropout 1.0: must be in \[0, 1\)"):
    config.Backbone(dropout=1.0)
