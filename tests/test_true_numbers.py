"""Numbers that must be right on every device and for every method: precision, streams, scores."""

import dataclasses
import re
import sys
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import config, learner, methods, run_options, sals, streams, train
from sapt_jax.data.tasks import Example, Task
from sapt_jax.evaluation.text_metrics import score
from sapt_jax.generator import clean, split_sample
from sapt_jax.methods import epi, gainlora, inflora
from sapt_jax.methods.lesson import Setting
from sapt_jax.pet import lora
from sapt_jax.pet.site_inputs import at_inputs
from sapt_jax.training.state import make_optimizer
from sapt_jax.training.step import train_step
from tests import classroom


def lowered_products(text):
  """The float32 products of a lowered program that do not ask for the highest precision."""
  lines = [line for line in text.splitlines() if "dot_general" in line]
  assert lines, "no product in the program"
  plain = []
  for line in lines:
    operands = re.search(r": \(tensor<(?:[\dx?]*x)?(\w+)>, tensor<(?:[\dx?]*x)?(\w+)>\)", line)
    if operands.groups() == ("f32", "f32") and "HIGHEST" not in line:
      plain.append(line.strip())
  return plain


@pytest.fixture
def default_precision():
  """As on a device whose float32 products are not float32 by themselves."""
  with jax.default_matmul_precision("default"):
    yield


@pytest.mark.parametrize("name", methods.METHODS)
def test_all_small_products_of_a_step_ask_for_true_float32(name, default_precision):
  kind = methods.METHODS[name].kinds[0]
  model, params = classroom.random_model_in("bfloat16")
  pet = config.Pet(kind=kind, rank=2, prompt_length=2)
  setting = Setting(pet, model.config.lora_sites(), params["embedding"]["table"], 4, 3)
  method = methods.build(methods.METHODS[name].Options(), setting)
  learned = method.start(jax.random.key(0))
  optimizer = make_optimizer(method, config.Fit())
  batch = classroom.some_batch()
  if name == "lfpt5":
    batch = dataclasses.replace(batch, companions={"written": batch})
  step = jax.jit(train_step, static_argnums=(0, 1, 2, 3))
  state = classroom.state_of(method, learned, optimizer)
  text = step.lower(model, method, optimizer, 1, state, params, learned, batch).as_text()
  assert lowered_products(text) == []


def small_products():
  x, square = jnp.ones((4, 8)), jnp.ones((1, 8, 8))
  pool = {"a": jnp.ones((1, 8, 2, 2)), "b": jnp.ones((1, 2, 2, 8))}
  query = sals.QueryProjection(jnp.ones((8, 100)), jnp.ones((100, 8)), jnp.ones(8), jnp.zeros(8))
  means, present = jnp.ones((4, 20, 8)), jnp.ones((4, 20), bool)
  known = epi.EpiLearned({}, jnp.asarray(2), means, present, square[0], square[0], jnp.asarray(2))
  return {
    "sals": lambda: sals.log_mixture(query, x, jnp.asarray(2), x, sals.no_centre(8)),
    "epi look-up": lambda: epi.distances(known, x),
    "epi classes": lambda: epi.class_moments(x, jnp.zeros(4, jnp.int32)),
    "inflora design": lambda: inflora.main_directions(square, square, 2),
    "inflora space": lambda: inflora.widened_space(square, square, 0.9, 1),
    "gainlora gates": lambda: gainlora.gate_states(jnp.ones((8, 100)), jnp.ones((100, 8)), x),
    "mixture as one block": lambda: lora.best_of_rank(pool, jnp.ones(2), 2),
  }


@pytest.fixture
def usual_precision():
  """What a run sets for its process is as it was when the test ends."""
  before = jax.config.jax_default_matmul_precision
  yield
  jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize("asked", ["highest", "default"])
def test_the_backbones_products_are_as_precise_as_its_option_says(asked, world, usual_precision):
  options = run_options.config_of(train.options([*world, "--backbone.precision", asked]))
  built = learner.build(options, learner.backbone_folder(options), 2, 2)
  ids = jnp.ones((1, 4), jnp.int32)
  text = jax.jit(built.backbone.model.apply).lower(
    {"params": built.backbone.params}, ids, ids > 0, ids, ids > 0
  )
  assert (lowered_products(text.as_text()) == []) == (asked == "highest")


@pytest.mark.parametrize("name", small_products())
def test_what_is_computed_between_tasks_asks_for_true_float32(name, default_precision):
  assert lowered_products(jax.jit(small_products()[name]).lower().as_text()) == []


@pytest.mark.parametrize("name", methods.METHODS)
def test_what_methods_do_before_and_after_a_task_asks_for_true_float32(name, default_precision):
  method = classroom.build(name, kind=methods.METHODS[name].kinds[0], new_block="directions")
  moments = at_inputs(method.setting.sites, lambda site: jnp.ones((site[0], site[1], site[1])))
  studies = [
    classroom.studied(features, measure=lambda _: moments, index=index)
    for index, features in enumerate(classroom.clusters(2))
  ]
  first, second = (jax.random.key(0), jax.random.key(1))
  begun = method.begin(method.start(first), first, studies[0])
  known = method.remember(method.merge(begun, method.trainable(begun)), studies[0])
  begun = method.begin(known, second, studies[1])
  learned = method.merge(begun, method.trainable(begun))
  programs = [
    lambda: method.begin(known, second, studies[1]),
    lambda: method.merge(begun, method.trainable(begun)),
    lambda: method.remember(learned, studies[1]),
  ]
  texts = [jax.jit(program).lower().as_text() for program in programs]
  assert [x for text in texts if "dot_general" in text for x in lowered_products(text)] == []


def test_the_check_sees_a_product_that_is_lowered_without_it(default_precision):
  plain = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).as_text()
  assert len(lowered_products(plain)) == 1


# Streams of random numbers.


def test_no_two_places_of_a_run_draw_from_one_stream(loop, tmp_path, monkeypatch):
  """Each key that a run makes is made in one place of the code."""
  places = defaultdict(set)

  def fold_in(key, data, original=jax.random.fold_in):
    made, frame = original(key, data), sys._getframe(1)
    while frame.f_code.co_filename == streams.__file__:
      frame = frame.f_back
    if not isinstance(made, jax.core.Tracer):
      places[jax.random.key_data(made).tobytes()].add((frame.f_code.co_filename, frame.f_lineno))
    return made

  monkeypatch.setattr(jax.random, "fold_in", fold_in)
  loop.run(tmp_path / "run")
  assert [found for found in places.values() if len(found) > 1] == []
  assert len(set.union(*places.values())) > 6
  assert not np.array_equal(
    streams.host(0, "a").permutation(50), streams.host(0, "b").permutation(50)
  )


# InfLoRA's energy.


def test_the_kept_space_holds_its_share_of_the_squared_singular_values():
  """By hand: C = diag(10, 3, 1, 0.1) has squares 100, 9, 1, 0.01; 0.9 of 110.01 needs the first
  alone, 0.95 two, 0.995 three. Shares of the trace would need two, three and three.
  """
  moment = jnp.diag(jnp.array([10.0, 3.0, 1.0, 0.1]))[None]
  empty = jnp.zeros((1, 4, 4))
  for share, directions in ((0.9, 1), (0.95, 2), (0.995, 3)):
    space = inflora.widened_space(moment, empty, share, 1)
    np.testing.assert_allclose(space[0], np.diag(np.arange(4) < directions), atol=1e-5)


def test_what_earlier_spaces_hold_counts_for_the_next_task():
  """The second task's C has half of its energy in the space already."""
  first = jnp.diag(jnp.array([1.0, 0.0, 0.0, 0.0]))[None]
  moment = jnp.diag(jnp.array([2.0, 2.0, 0.5, 0.0]))[None]  # squares 4, 4, 0.25
  kept = inflora.widened_space(moment, first, 0.45, 1)
  np.testing.assert_allclose(kept, first, atol=1e-6)
  wider = inflora.widened_space(moment, first, 0.9, 1)
  np.testing.assert_allclose(wider[0], np.diag([1.0, 1.0, 0.0, 0.0]), atol=1e-5)


def test_the_space_of_correlated_inputs_is_that_of_numpys_decomposition():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(30, 6)) * np.array([5, 3, 2, 1, 0.5, 0.1])
  c = x.T @ x
  left, values, _ = np.linalg.svd(c)
  share = np.cumsum(values**2) / np.sum(values**2)
  needed = int(np.argmax(share >= 0.97)) + 1
  space = np.asarray(
    inflora.widened_space(jnp.asarray(c[None], jnp.float32), jnp.zeros((1, 6, 6)), 0.97, 1)
  )[0]
  np.testing.assert_allclose(space, left[:, :needed] @ left[:, :needed].T, atol=1e-4)


# Pseudo inputs.

FEW_SHOT = "Classify. Example: Input: good film Output: yes. Now do it."


def test_a_sample_is_cut_behind_the_instruction_also_where_that_holds_the_separator():
  assert split_sample(f"{FEW_SHOT}\nInput: a red kite", FEW_SHOT) == (FEW_SHOT, "a red kite")
  flat = " ".join(f"{FEW_SHOT}\nInput: Input: twice".split())
  assert split_sample(flat, FEW_SHOT) == (FEW_SHOT, "Input: twice")
  other = "Classify it. Input: one Input: two"
  assert split_sample(other, FEW_SHOT) == ("Classify it. Input: one", "two")
  assert split_sample("Input: alone", "") == ("", "alone")
  assert split_sample("no separator", FEW_SHOT) is None
  assert split_sample(f"{FEW_SHOT} Input:", FEW_SHOT) is None


def test_copies_are_found_behind_an_instruction_that_holds_the_separator():
  task = Task("t", FEW_SHOT, (Example("the blue bird sings at night", ("yes",)),), (), ())
  samples = [
    f"{FEW_SHOT}\nInput: the blue bird sings at night",
    f"{FEW_SHOT}\nInput: a new one here today",
  ]
  kept = clean(samples, task, 5, 0.8)
  assert kept.figures["verbatim"] == 1
  assert kept.pairs == [(FEW_SHOT, "a new one here today")]


def test_copies_are_found_though_the_tokenizer_loses_letters():
  def spelled(text):
    return text.replace("é", "")

  definition = "Répondre: tone? Input: Review."
  task = Task("t", definition, (Example("the café on the hill was good", ("yes",)),), (), ())
  sample = spelled(f"{definition}\nInput: the café on the hill was good")
  assert clean([sample], task, 5, 0.8, spelled=spelled).figures["verbatim"] == 1


def test_the_overlap_is_the_largest_share_of_runs_in_one_training_input():
  rng = np.random.default_rng(0)
  words = np.array("a b c d e f".split())
  rows = [" ".join(rng.choice(words, 12)) for _ in range(40)]
  task = Task("t", "Say.", tuple(Example(row, ("x",)) for row in rows), (), ())

  def runs(text):
    split = text.split()
    return [tuple(split[i : i + 4]) for i in range(len(split) - 3)]

  samples = [" ".join(rng.choice(words, 9)) for _ in range(60)]
  known = set(rows)
  for limit in (0.2, 0.5):
    expected = [
      text
      for text in dict.fromkeys(samples)
      if text not in known
      and max(sum(run in set(runs(row)) for run in runs(text)) for row in rows) / 6 <= limit
    ]
    kept = clean([f"Say.\nInput: {text}" for text in samples], task, 99, limit)
    assert [text for _, text in kept.pairs] == expected


# Scores.


@pytest.mark.parametrize(
  ("prediction", "reference", "expected"),
  [
    ("", "-", 0),
    ("-", "-", 100),
    ("...", "-", 0),
    (" - ", "-", 100),
    ("", "yes", 0),
    ("Yes.", "yes", 100),
    ("", "", 100),
  ],
)
def test_an_empty_answer_matches_no_reference_that_says_something(prediction, reference, expected):
  assert score("exact_match", prediction, [reference]) == expected
