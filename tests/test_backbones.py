"""Backbones against the torch modules of Hugging Face, with random weights:
logits, loss, decoded ids, folders both ways.
"""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import logits
import numpy as np
import pytest
import tiny

from sapt_jax.backbones import hf
from sapt_jax.backbones.architectures import ARCHITECTURES, t5_config
from sapt_jax.backbones.positions import relative_buckets
from sapt_jax.errors import InputError
from sapt_jax.evaluation.beam import beam_search
from sapt_jax.evaluation.decode import Writing, generate, sampler
from sapt_jax.losses import token_losses
from tests import torch_models

MAX_NEW = 10


@dataclasses.dataclass
class Pair:
  """The same model twice, and inputs: lengths 14, 5, 9 and 6, 3, 4,
  padded as each architecture wants it.
  """

  theirs: Any
  ours: hf.Backbone
  source: np.ndarray
  source_mask: np.ndarray
  target: np.ndarray
  target_mask: np.ndarray

  @property
  def only(self):
    return self.ours.config.is_decoder_only

  @property
  def sequences(self):
    return self.source, self.source_mask, self.target, self.target_mask


def padded(rng, lengths, left):
  width = max(lengths)
  ids, mask = rng.integers(4, 96, (len(lengths), width)), np.zeros((len(lengths), width), bool)
  for row, length in enumerate(lengths):
    mask[row, slice(width - length, None) if left else slice(length)] = True
  return np.where(mask, ids, 0).astype(np.int32), mask


@pytest.fixture(scope="module", params=torch_models.NAMES)
def pair(request, torch, tmp_path_factory):
  theirs = torch_models.make(request.param)
  ours = hf.load_backbone(torch_models.save(theirs, tmp_path_factory.mktemp(request.param)))
  rng = np.random.default_rng(0)
  source = padded(rng, (14, 5, 9), ours.config.is_decoder_only)
  return Pair(theirs, ours, *source, *padded(rng, (6, 3, 4), False))


def as_tensor(x):
  import torch

  return torch.from_numpy(np.asarray(x, np.int64))


def torch_logits(pair, model, backward=False):
  """Their logits at our target places, and their loss."""
  import torch

  ids, mask = pair.source, pair.source_mask
  labels = np.where(pair.target_mask, pair.target, -100)
  if pair.only:
    ids = np.concatenate([ids, pair.target], axis=1)
    mask = np.concatenate([mask, pair.target_mask], axis=1)
    labels = np.concatenate([np.full_like(pair.source, -100), labels], axis=1)
  given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
  with torch.set_grad_enabled(backward):
    out = model(**{name: as_tensor(x) for name, x in given.items()})
  if backward:
    out.loss.backward()
  logits, loss = (x.detach().numpy() for x in (out.logits, out.loss))
  return logits[:, pair.source.shape[1] - 1 : -1] if pair.only else logits, loss


def our_logits(pair, model, params):
  return np.asarray(jax.jit(model.apply)({"params": params}, *pair.sequences))


def test_logits_and_loss(pair):
  theirs, their_loss = torch_logits(pair, pair.theirs)
  ours = our_logits(pair, pair.ours.model, pair.ours.params)
  np.testing.assert_allclose(ours[pair.target_mask], theirs[pair.target_mask], atol=1e-4, rtol=0)
  losses = token_losses(jnp.asarray(ours), jnp.asarray(pair.target), jnp.asarray(pair.target_mask))
  np.testing.assert_allclose(jnp.sum(losses) / pair.target_mask.sum(), their_loss, rtol=1e-5)
  assert not np.any(np.asarray(losses)[~pair.target_mask])


def test_gradients_of_every_weight(pair):
  """LoRA's gradients are these, times its factors."""
  import torch

  for parameter in pair.theirs.parameters():
    parameter.requires_grad_()
  with torch.enable_grad():
    torch_logits(pair, pair.theirs, backward=True)
  c = pair.ours.config
  table = ARCHITECTURES[pair.ours.raw_config["model_type"]].weights(c)

  def loss(params):
    logits = pair.ours.model.apply({"params": params}, *pair.sequences)
    losses = token_losses(logits, jnp.asarray(pair.target), jnp.asarray(pair.target_mask))
    return jnp.sum(losses) / pair.target_mask.sum()

  gradients = jax.jit(jax.grad(loss))(pair.ours.params)
  theirs = dict(pair.theirs.named_parameters())
  assert {name for weight in table for name in weight.names()} >= theirs.keys()
  for name, found in hf.torch_tensors(pair.ours.model, pair.ours.raw_config, gradients):
    expected = theirs[name].grad.numpy()
    np.testing.assert_allclose(found, expected, atol=5e-5 * np.max(np.abs(expected)), err_msg=name)
    theirs[name].grad = None


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 256), (64, 128), (12, 20)])
def test_relative_distances_fall_in_torchs_buckets_at_any_precision(
  torch, bidirectional, buckets, max_distance
):
  from transformers.models.t5.modeling_t5 import T5Attention

  distance = np.arange(-600, 601)
  how = bidirectional, buckets, max_distance
  theirs = T5Attention._relative_position_bucket(torch.from_numpy(distance), *how).numpy()
  for doubled in (False, True):
    with jax.enable_x64(doubled):
      np.testing.assert_array_equal(relative_buckets(jnp.asarray(distance), *how), theirs)


def torch_answers(pair, rows=slice(None), **options):
  import torch

  with torch.no_grad():  # their cache cannot hold a decoder that is deeper than its encoder
    out = pair.theirs.generate(
      input_ids=as_tensor(pair.source[rows]),
      attention_mask=as_tensor(pair.source_mask[rows]),
      max_new_tokens=MAX_NEW,
      do_sample=False,
      return_dict_in_generate=True,
      output_scores=True,
      **{"use_cache": False} | options,
    )
  ids = out.sequences.numpy()[:, pair.source.shape[1] if pair.only else 1 :]
  ids = np.pad(ids, ((0, 0), (0, MAX_NEW - ids.shape[1])))
  ends = ids == pair.ours.config.eos_id
  # Their beam search fills up with the end token where the pad id is 0.
  ids[np.cumsum(ends, axis=1) - ends > 0] = pair.ours.config.pad_id
  return ids, None if "num_beams" not in options else out.sequences_scores.numpy()


def test_greedy_ids(pair):
  answer = jax.jit(partial(generate, pair.ours.model, max_new=MAX_NEW, apart=True))
  ours = np.asarray(answer(pair.ours.params, pair.source, pair.source_mask, None))
  np.testing.assert_array_equal(ours, torch_answers(pair)[0])
  assert len({tuple(row) for row in ours.tolist()}) > 1


def test_ids_sampled_with_the_cache_are_those_drawn_from_torchs_logits(pair):
  """Torch reads each row anew for every token; both draw with the same key."""
  config, choose, key = pair.ours.config, sampler(20, 1.3, 1.5), jax.random.key(3)
  answer = jax.jit(partial(generate, pair.ours.model, max_new=MAX_NEW, choose=choose, rng=key))
  ours = np.asarray(answer(pair.ours.params, pair.source, pair.source_mask, None))
  drawn = Writing.empty(len(pair.source), MAX_NEW, config.pad_id, cache=None)
  for count in range(MAX_NEW):
    there = np.broadcast_to(np.arange(MAX_NEW) <= count, drawn.written.shape)
    so_far = dataclasses.replace(pair, target=np.asarray(drawn.written), target_mask=there)
    logits = jnp.asarray(torch_logits(so_far, pair.theirs)[0][:, count])
    drawn = drawn.with_next(logits, choose, key, config.eos_id, config.pad_id)
  np.testing.assert_array_equal(ours, drawn.written)
  assert not np.array_equal(ours, torch_answers(pair)[0])


@pytest.mark.parametrize(
  ("name", "short"),
  [
    ("llama-dynamic", "max_position_embeddings"),
    ("phi3-longrope", "original_max_position_embeddings"),
  ],
)
def test_stretched_positions_look_at_a_rows_own_tokens(name, short, torch, tmp_path):
  """Padding, neighbours and room for an answer change no answer. 16 places are a short text: one
  row stays below them, one is longer, and one becomes so while it is answered; there Hugging
  Face's Phi-3 reads its row anew, so it has no such row.
  """
  theirs = torch_models.make(name, **{short: 16})
  ours = hf.load_backbone(torch_models.save(theirs, tmp_path))
  lengths = (16 - MAX_NEW, 30, 12 if name == "llama-dynamic" else 25)
  source, mask = padded(np.random.default_rng(0), lengths, True)
  together = generate(ours.model, ours.params, source, mask, None, max_new=MAX_NEW)
  for row, length in enumerate(lengths):
    alone = Pair(theirs, ours, source[[row], -length:], mask[[row], -length:], None, None)
    np.testing.assert_array_equal(together[row], torch_answers(alone, use_cache=True)[0][0])


def our_beams(pair, beams, rows=slice(None), **options):
  search = jax.jit(partial(beam_search, pair.ours.model, max_new=MAX_NEW, beams=beams, **options))
  return search(pair.ours.params, pair.source[rows], pair.source_mask[rows], None)


@pytest.mark.parametrize("pair", ["t5-v1.0", "t5-v1.1", "llama-gqa"], indirect=True)
def test_beam_ids_and_scores(pair):
  ids, scores = our_beams(pair, 3)
  their_ids, their_scores = torch_answers(pair, num_beams=3)
  np.testing.assert_array_equal(ids, their_ids)
  np.testing.assert_allclose(scores, their_scores, atol=1e-4)
  assert np.any(np.asarray(ids) != torch_answers(pair)[0])  # else greedy decoding would do


@pytest.mark.parametrize("pair", ["t5-v1.1", "llama-gqa"], indirect=True)
@pytest.mark.parametrize(
  "options", [{"length_penalty": -1.0, "early_stopping": True}, {"length_penalty": 2.0}], ids=str
)
def test_beam_options(pair, options):
  ids, scores = our_beams(pair, 4, **options)
  their_ids, their_scores = torch_answers(pair, num_beams=4, **options)
  np.testing.assert_array_equal(ids, their_ids)
  np.testing.assert_allclose(scores, their_scores, atol=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_beams_that_end_often(torch, tmp_path, early_stopping):
  """An end token that is likely at every step, so that rows have finished answers at all times and
  close at different ones.
  """
  theirs = torch_models.make("llama-gqa")
  head = theirs.lm_head.weight
  with torch.no_grad():
    head[theirs.config.eos_token_id] = 0.4 * head[10:60].sum(dim=0)
  ours, rng = hf.load_backbone(torch_models.save(theirs, tmp_path)), np.random.default_rng(5)
  many = Pair(theirs, ours, *padded(rng, (6,) * 40, True), *padded(rng, (2,) * 40, False))
  ids, scores = our_beams(many, 4, early_stopping=early_stopping)
  their_ids, their_scores = torch_answers(many, num_beams=4, early_stopping=early_stopping)
  np.testing.assert_array_equal(ids, their_ids)
  np.testing.assert_allclose(scores, their_scores, atol=1e-4)
  assert len(set(np.sum(their_ids != ours.config.pad_id, axis=1))) > 3  # answers of many lengths


@pytest.mark.parametrize("pair", ["t5-v1.0", "llama-gqa"], indirect=True)
def test_beam_search_of_one_row_without_padding_gives_what_its_batch_gives(pair):
  batch_ids, batch_scores = our_beams(pair, 3)
  source = pair.source[1][pair.source_mask[1]][None]
  alone = dataclasses.replace(pair, source=source, source_mask=np.ones(source.shape, bool))
  ids, scores = our_beams(alone, 3)
  np.testing.assert_array_equal(ids[0], batch_ids[1])
  np.testing.assert_allclose(scores[0], batch_scores[1], atol=1e-5)


@pytest.mark.parametrize("pair", ["t5-v1.0", "llama-gqa"], indirect=True)
def test_one_beam_is_greedy_decoding(pair):
  np.testing.assert_array_equal(our_beams(pair, 1)[0], torch_answers(pair)[0])


def test_weights_that_we_write_load_in_torch(pair, tmp_path):
  rng = np.random.default_rng(1)

  def changed(x):
    return jnp.asarray(x * rng.uniform(0.5, 1.5, x.shape), x.dtype)

  params = jax.tree.map(changed, pair.ours.params)
  raw = pair.ours.raw_config | {"dtype": "bfloat16"}  # of the folder that it came from
  hf.save_backbone(tmp_path, pair.ours.model, raw, params)
  theirs = type(pair.theirs).from_pretrained(tmp_path).eval()
  difference = torch_logits(pair, theirs)[0] - our_logits(pair, pair.ours.model, params)
  assert np.max(np.abs(difference[pair.target_mask])) < 1e-4


@pytest.mark.parametrize("pair", ["t5-v1.1", "llama-gqa"], indirect=True)
def test_a_folder_in_shards_holds_the_same_weights(pair, tmp_path):
  ours = pair.ours
  hf.save_backbone(tmp_path, ours.model, ours.raw_config, ours.params, max_shard_bytes=20_000)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
  again = hf.load_backbone(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
  assert again.config == ours.config


def test_configs_of_every_age_say_whether_the_head_is_tied_and_scaled():
  sizes = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}

  def of(**keys):
    config = t5_config(sizes | keys)
    return config.tied_head, config.scaled_head

  assert of() == (True, True)  # t5-small ... t5-11b
  assert of(tie_word_embeddings=False) == (False, False)  # t5-v1_1, flan-t5
  assert of(tie_word_embeddings=True, scale_decoder_outputs=False) == (True, False)


@pytest.mark.parametrize("pair", ["t5-v1.1"], indirect=True)
@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"num_layers": 3}, "encoder.block.2.layer.0.SelfAttention.q.weight"),
    ({"num_decoder_layers": 2}, "decoder.block.2."),
    ({"d_ff": 65}, "DenseReluDense.wi_0.weight has shape"),
    ({"model_type": "bert"}, "bert"),
    ({"feed_forward_proj": "relu"}, "wi.weight"),
  ],
  ids=str,
)
def test_weights_that_do_not_fit_their_config_are_refused_by_name(pair, tmp_path, changes, named):
  hf.save_backbone(tmp_path, pair.ours.model, pair.ours.raw_config, pair.ours.params)
  (tmp_path / "config.json").write_text(json.dumps(pair.ours.raw_config | changes))
  with pytest.raises(InputError, match=named):
    hf.load_backbone(str(tmp_path))


def test_the_program_of_logits_gives_those_of_the_library(torch, tmp_path, monkeypatch, capsys):
  folder = torch_models.save(torch_models.make("qwen3"), tmp_path / "model")
  rng = np.random.default_rng(0)
  (source, source_mask), (target, target_mask) = (
    padded(rng, (6, 3), True),
    padded(rng, (2, 4), False),
  )
  given = {
    "source": source,
    "source_mask": source_mask,
    "target": target,
    "target_mask": target_mask,
  }
  np.savez(tmp_path / "in.npz", **given)
  logits.main([folder, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")])
  ours = hf.load_backbone(folder)
  expected = ours.model.apply({"params": ours.params}, *given.values())
  with np.load(tmp_path / "out.npz") as found:
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
  capsys.readouterr()
  np.savez(tmp_path / "in.npz", **(given | {"source": source + 96}))
  arguments = [folder, tmp_path / "in.npz", tmp_path / "out.npz"]
  code, line = tiny.run_program(logits, arguments, monkeypatch, capsys)
  assert (code, "source holds an id beyond the 96 tokens" in line) == (2, True)
