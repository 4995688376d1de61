"""Rows that are read where others have ended get the answers that they get in a batch of their
own.
"""

import collections
import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from sapt_jax import sharding
from sapt_jax.backbones import hf
from sapt_jax.data.batches import Batcher, Row
from sapt_jax.evaluation import slots
from sapt_jax.evaluation.decode import sampler
from sapt_jax.evaluation.evaluate import Answerer
from sapt_jax.evaluation.kept_answers import KeptAnswers
from tests.classroom import backbone, build, noisy, sapt

N = 12
EACH = pytest.mark.parametrize("on", ["t5", "llama"])


def rows():
  """Sources of 1 to 30 tokens, not in order."""
  rng = np.random.default_rng(0)
  lengths = rng.permutation([*range(1, 20), 24, 24, 30, 30])
  return [Row(rng.integers(2, 60, length).tolist(), [1], 0) for length in lengths]


def answerers(on, apart=True, prompts=False, shapes=()):
  """One that answers in slots and one that answers in batches, and what has been learned; answers
  end early, and at different times.
  """
  model, params = backbone(on)
  if prompts:
    method = build("sequential", on, kind="prompt")
    learned = method.start(jax.random.key(0))
  else:
    method, learned = sapt(on)
  learned = learned.replace(blocks=noisy(learned.blocks, 1))
  batcher = Batcher(left=on == "llama", pad_id=model.config.pad_id, size=4, shapes=shapes)
  mesh = sharding.make_mesh()

  def made(ends, in_slots):
    ending = model.clone(config=dataclasses.replace(model.config, eos_id=ends))
    whole = hf.Backbone(ending, params, pathlib.Path(), {})
    answerer = Answerer(whole, method, batcher, mesh, apart=apart)
    answerer.slots = answerer.slots if in_slots else None
    return answerer

  # The token that ends answers: one that is written at many places of them.
  tokens = made(10_000, False).answer(learned, rows(), N).tokens
  places = {}
  for answer in tokens:
    for token in set(answer):
      places.setdefault(token, set()).add(answer.index(token))
  ends = max(places, key=lambda token: len(places[token]))
  return made(ends, True), made(ends, False), learned


def lengths(answers, pad):
  return [len([token for token in answer if token != pad]) for answer in answers.tokens]


@pytest.mark.parametrize(
  ("on", "form"),
  [
    ("t5", "apart"),
    ("t5", "read by shares"),
    ("llama", "apart"),
    ("llama", "stacked"),
    ("llama", "prompts"),
  ],
)
def test_answers_in_slots_are_those_in_batches(on, form, monkeypatch):
  monkeypatch.setattr(slots, "part_here", lambda mesh: 64 * (form != "read by shares"))
  monkeypatch.setattr(slots, "SHARE", 2)
  one, other, learned = answerers(on, form != "stacked", form == "prompts")
  read = collections.Counter()

  def begin(original=one.slots.read, **given):
    read[given["batch"].source.shape] += 1
    return original(**given)

  one.slots.read = begin
  found, expected = (answerer.answer(learned, rows(), N) for answerer in (one, other))
  assert found.tokens == expected.tokens
  np.testing.assert_allclose(found.mixtures, expected.mixtures, atol=1e-6)
  assert len(set(lengths(found, 0))) > (1 if form == "prompts" else 3)
  assert len(read) > 2  # sources are read in several shapes
  assert {size for size, _ in read} == ({2, 1} if form == "read by shares" else {4, 2, 1})


@EACH
def test_rows_that_are_there_are_not_answered_again_and_change_no_other(on, tmp_path):
  one, _, learned = answerers(on)
  kept = KeptAnswers(tmp_path / "kept.jsonl")
  whole = one.answer(learned, rows(), N, kept=kept)
  lines = (tmp_path / "kept.jsonl").read_text().splitlines(keepends=True)
  assert len(lines) > 3
  for left in (0, 1, len(lines) // 2, len(lines)):
    file = tmp_path / f"{left}.jsonl"
    file.write_text("".join(lines[:left]))
    again = one.answer(learned, rows(), N, kept=KeptAnswers(file))
    assert again.tokens == whole.tokens
    np.testing.assert_array_equal(again.mixtures, whole.mixtures)
    assert len(KeptAnswers(file).rows) == len(rows())


def test_places_are_taken_again_before_all_rows_have_ended(monkeypatch):
  monkeypatch.setattr(slots, "part_here", lambda mesh: 32)
  one, _, learned = answerers("t5")
  done = []

  def write(original=one.slots.write, **given):
    after = original(**given)
    done.append(int(after.writing.done.sum()))
    return after

  one.slots.write = write
  one.answer(learned, rows(), N)
  assert min(done) < 4


def test_how_long_answers_are_meant_to_be_plays_no_part():
  """With its answer no shape would hold the second row, and its source would be padded further than
  the longest one.
  """
  one, other, learned = answerers("t5", shapes=((40, 8), (90, 8)))
  given = [Row([5, 7] * 42, [1], 0), Row([5, 8, 9] * 27, [4] * 12, 0), *rows()]
  assert one.answer(learned, given, N).tokens == other.answer(learned, given, N).tokens
  read = [batch.source.shape[1] for _, batch in one.batcher.answering(given)]
  assert max(read) > 90  # so it would be


def test_samples_and_several_devices_are_answered_in_batches():
  model, params = backbone("t5")
  method, _ = sapt("t5")
  whole, batcher = hf.Backbone(model, params, pathlib.Path(), {}), Batcher(False, 0, 4)
  assert Answerer(whole, method, batcher, sharding.make_mesh()).slots is not None
  assert Answerer(whole, method, batcher, sharding.make_mesh(data=2)).slots is None
  draw = sampler(5, 1.0, 1.0)
  assert Answerer(whole, method, batcher, sharding.make_mesh(), draw).slots is None
