"""LFPT5: that its loss is the formula's, that every example is also learned by heart, and that what
it recalls is its own.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sapt_jax import config, sharding
from sapt_jax.data.batches import Batcher, Row
from sapt_jax.data.benchmarks import BENCHMARKS
from sapt_jax.data.labels import closed_answers, flat
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec, load_tokenizer
from sapt_jax.data.tasks import Example, Task
from sapt_jax.errors import InputError
from sapt_jax.losses import distillation_loss
from sapt_jax.methods.lfpt5 import method as lfpt5
from sapt_jax.methods.lfpt5.method import WRITTEN, Lfpt5Options
from sapt_jax.methods.lfpt5.pseudo_examples import (
  PseudoExamples,
  example_row,
  sort_out,
)
from sapt_jax.mini import T5_MINI
from sapt_jax.mini.tasks import mini_stream
from sapt_jax.pet.adapters import Adapters
from sapt_jax.training.step import batch_gradient
from tests.classroom import (
  NOWHERE,
  WIDTH,
  Study,
  at_start,
  backbone,
  build,
  clusters,
  some_batch,
  through,
)
from tests.runs import Loop, assert_same_run, killed_after_each_save, rows_of

LAM, KD = 0.3, 0.6


def paired_batch(tasks=(0, 1, 0, 1)):
  """Rows of these tasks with answers of different lengths, and other rows as their companions."""
  batch = some_batch()
  there = np.arange(4) < np.array([4, 2, 3, 1])[:, None]
  written = batch.replace(
    source=jnp.flip(batch.source, 1) % 91 + 2,
    source_mask=batch.source_mask | True,
    target=batch.target % 83 + 2,
  )
  return batch.replace(
    task=jnp.asarray(tasks, jnp.int32),
    target_mask=jnp.asarray(there),
    companions={WRITTEN: written},
  )


def sharp_backbone():
  """The tiny backbone with logits ten times as far apart, so that a prompt makes a difference to
  its answers.
  """
  model, params = backbone()
  return model, params | {"head": jax.tree.map(lambda x: 10 * x, params["head"])}


@pytest.fixture(scope="module")
def second_task():
  """The method while its second task is learned, a prompt far from where it began, and the compiled
  gradient of a batch.
  """
  method = build("lfpt5", kind="prompt", lm_weight=LAM, kd_weight=KD)
  learned = through(method, clusters(2))
  model, params = sharp_backbone()
  gradient_of = jax.jit(partial(batch_gradient, model, method, 1))
  return (
    method,
    learned,
    jax.tree.map(jnp.flip, method.trainable(learned)),
    lambda tree, trainable, batch: gradient_of(params, tree, at_start(trainable), batch),
  )


def log_probabilities(prompt, batch):
  model, params = sharp_backbone()
  prompts = Adapters(prompts=jnp.broadcast_to(prompt, (4, 2, WIDTH)))
  return jax.nn.log_softmax(
    model.apply(
      {"params": params}, batch.source, batch.source_mask, batch.target, batch.target_mask, prompts
    )
  )


@jax.jit
def formula(prompt, before, batch):
  """(1 - kd) (CE + lam CE_LM) + kd KL, KL over the answers of rows of task 0 alone and per row of
  the batch; and the three.
  """

  def mean(part):
    return (
      -jnp.sum(
        jnp.where(
          part.target_mask,
          jnp.take_along_axis(log_probabilities(prompt, part), part.target[:, :, None], 2)[:, :, 0],
          0,
        )
      )
      / part.target_mask.sum()
    )

  old, new = log_probabilities(before, batch), log_probabilities(prompt, batch)
  counted = batch.target_mask & (batch.task == 0)[:, None]
  kl = jnp.sum(jnp.where(counted[:, :, None], jnp.exp(old) * (old - new), 0)) / 4
  terms = mean(batch), mean(batch.companions[WRITTEN]), kl
  return (1 - KD) * (terms[0] + LAM * terms[1]) + KD * terms[2], terms


def test_loss_and_gradient_are_those_of_the_formula(second_task):
  method, learned, moved, gradient_of = second_task
  batch, start = paired_batch(), method.trainable(learned)
  for trainable in (start, moved):
    gradient, figures = gradient_of(learned, trainable, batch)
    (loss, terms), expected = jax.value_and_grad(formula, has_aux=True)(
      trainable["block"]["prompt"], start["block"]["prompt"], batch
    )
    np.testing.assert_allclose(figures["loss"], loss, rtol=1e-5)
    for name, value in zip(
      ("cross_entropy", "lm_cross_entropy", "distillation"), terms, strict=True
    ):
      np.testing.assert_allclose(figures[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
      gradient["block"]["prompt"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
  assert terms[2] > 0.01


def test_only_rows_of_earlier_tasks_are_compared(second_task):
  _, learned, moved, gradient_of = second_task

  def divergence(tree, tasks):
    return float(gradient_of(tree, moved, paired_batch(tasks))[1]["distillation"])

  assert divergence(learned, (1, 1, 1, 1)) == 0
  assert divergence(learned.replace(tasks=learned.tasks - 1), (0, 0, 0, 0)) == 0
  one, other, both = (
    divergence(learned, tasks) for tasks in ((0, 1, 1, 1), (1, 1, 0, 1), (0, 1, 0, 1))
  )
  assert min(one, other) > 0
  np.testing.assert_allclose(both, one + other, rtol=1e-5)


def test_no_divergence_and_no_gradient_from_what_has_not_changed():
  rng = np.random.default_rng(0)
  old, new = (jnp.asarray(3 * rng.normal(size=(2, 3, 50)), jnp.float32) for _ in range(2))
  mask = jnp.array([[True, False, True], [False, True, False]])
  value, gradient = jax.value_and_grad(distillation_loss)(old, old, mask)
  assert value == 0
  np.testing.assert_allclose(gradient, 0, atol=1e-6)
  value, gradient = jax.value_and_grad(distillation_loss)(new, old, mask)
  assert value > 0
  assert np.array_equal(np.any(np.asarray(gradient) != 0, axis=2), mask)


def test_parts_on_two_devices_give_what_the_whole_batch_gives_on_one(second_task):
  method, learned, moved, gradient_of = second_task
  (model, params), batch = sharp_backbone(), paired_batch()
  whole, figures = gradient_of(learned, moved, batch)
  mesh = sharding.make_mesh(data=2)
  with jax.set_mesh(mesh):
    placed = jax.device_put((params, learned, at_start(moved)), sharding.replicated(mesh))
    parts, part_figures = jax.jit(partial(batch_gradient, model, method, 2))(
      *placed, jax.device_put(batch, sharding.batch_sharded(mesh))
    )
  expected = whole["block"]["prompt"]
  np.testing.assert_allclose(
    parts["block"]["prompt"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
  )
  assert figures.keys() == part_figures.keys()
  for name, value in figures.items():
    np.testing.assert_allclose(part_figures[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  ("option", "value"), [("kd_weight", 1.0), ("lm_weight", -0.1), ("pseudo_examples", 0)]
)
def test_weights_that_cannot_be_are_refused(option, value):
  with pytest.raises(InputError, match=rf"method.{option} {value}"):
    Lfpt5Options(**{option: value})


@pytest.fixture(scope="module")
def mini_codec():
  return Codec(
    load_tokenizer(T5_MINI), BENCHMARKS["mini"].frame, max_source=128, max_target=16, eos_id=1
  )


def test_what_is_learned_to_be_written_is_well_formed_for_every_example_of_every_task(mini_codec):
  markers = set()
  for index, task in enumerate(mini_stream(0)):
    examples = task.train[:40]
    pairs = [example_row(mini_codec, index, example, longest=96) for example in examples]
    markers |= {tuple(pair.source) for pair in pairs}
    written = [mini_codec.text(pair.target) for pair in pairs]
    assert sort_out(written, "Output:", closed_answers(task), 40).counts["kept"] == 40
    assert written[0] == f"{flat(examples[0].input)} Output: {flat(examples[0].references[0])}"
  assert len(markers) == 10
  assert len({len(marker) for marker in markers}) <= 2


def test_a_long_example_loses_the_end_of_its_input_and_never_its_answer(mini_codec):
  pair = example_row(mini_codec, 0, Example("the colour of a thing " * 20, ("red",)), longest=20)
  assert len(pair.target) == 20
  assert mini_codec.text(pair.target).endswith("Output: red")


def test_companions_stand_beside_their_rows_in_a_batch():
  rows = [Row([5] * n, [6, 1], 2, {"more": Row([7], [8] * (n + 1), 2)}) for n in (3, 1, 2)]
  batcher = Batcher(left=True, pad_id=0, size=3)
  [batch] = batcher.training(rows, 0, 1)
  assert np.array_equal(batch.companions["more"].target_mask.sum(1), batch.source_mask.sum(1) + 1)
  assert batcher.collate([dataclasses.replace(row, companions={}) for row in rows]).companions == {}


def test_samples_are_sorted_out_and_bounded_and_answers_take_turns():
  good = [
    f"thing {i} is{' ' * (i % 2 + 1)}here\nOutput: {'blue' if i == 7 else 'red'}" for i in range(8)
  ]
  bad = ["no separator red", "\nOutput: red", "thing Output:", "a Output: red Output: red"]
  found = sort_out(
    [*good, *bad, "pink Output: pink", "thing 1 is here Output: blue"],
    "Output:",
    frozenset({"red", "blue"}),
    3,
  )
  assert found.counts == {"drawn": 14, "malformed": 4, "no_label": 1, "repeated": 1, "kept": 3}
  assert [example.references[0] for example in found.examples] == ["red", "blue", "red"]
  assert found.examples[0] == Example("thing 0 is here", ("red",))
  assert sort_out(["pink Output: pink"], "Output:", None, 3).counts["kept"] == 1


def test_few_answers_that_come_back_are_a_closed_set():
  def task(answers):
    return Task(
      "t",
      "d",
      tuple(Example(str(i), (answer, "another")) for i, answer in enumerate(answers)),
      (),
      (),
    )

  assert closed_answers(task(["yes", "no ", "no"] * 4)) == {"yes", "no"}
  assert closed_answers(task(["yes", "no", "maybe", "never"] * 3)) is None
  assert closed_answers(task([str(i % 21) for i in range(210)])) is None


def test_a_task_is_learned_from_its_examples_and_what_the_learned_prompt_recalls(mini_codec):
  """Of ten samples of the first task, one is malformed and one has no label."""
  labels = ("red", "green")
  examples = tuple(Example(f"thing {i} is here", (labels[i % 2],)) for i in range(12))
  tasks = [
    PreparedTask(index, Task(name, definition, examples, (), ()), mini_codec)
    for index, (name, definition) in enumerate([("colour", "Name the colour."), ("other", "Say.")])
  ]
  samples = ["nothing", "x Output: pink"]
  samples += [f"thought {i}\nOutput: {labels[i % 2]}" for i in range(8)]
  asked = []

  def write(learned, rows):
    asked.append((learned, rows))
    return samples

  method = build("lfpt5", kind="prompt", pseudo_examples=5)
  sampling = config.Generator(oversample=2.0, max_length=32)
  first, second = (
    Study(NOWHERE, index=i, stream=tasks, codec=mini_codec, sampling=sampling, write=write)
    for i in range(2)
  )
  learned = method.start(jax.random.key(0))
  own = method.lesson(method.begin(learned, None, first), first).rows
  assert (asked, first.left) == ([], {})
  learned = method.begin(learned, None, second)
  rows = method.lesson(learned, second).rows
  [(writer, questions)] = asked
  assert writer is learned
  assert {mini_codec.text(row.source) for row in questions} == {"Task 1:"}
  assert len(questions) == 10  # 5 wanted, twice as many drawn
  assert [row.task for row in own] == [0] * 12
  assert [row.task for row in rows] == [0] * 5 + [1] * 12

  said = mini_codec.text(rows[0].source)
  assert said.startswith("Definition: Name the colour.")
  assert "thought 0" in said
  assert [mini_codec.text(row.target) for row in rows[:5]] == ["red", "green"] * 2 + ["red"]
  for row in [*own, *rows]:
    written = row.companions[WRITTEN]
    assert mini_codec.text(written.source) == f"Task {row.task + 1}:"
    text, answer = mini_codec.text(written.target).split(" Output: ")
    assert text in mini_codec.text(row.source)
    assert answer == mini_codec.text(row.target)
  lines, counts = second.left["pseudo_examples"]
  assert lines[0] == {
    "task": "colour",
    "definition": "Name the colour.",
    "input": "thought 0",
    "output": "red",
  }
  assert counts == [{"drawn": 10, "malformed": 1, "no_label": 1, "repeated": 0, "kept": 5}]


@pytest.mark.slow
def test_a_run_learns_recalls_and_goes_on_after_a_stop_bit_for_bit(tmp_path, monkeypatch):
  # A random model writes nothing well-formed: any sample will do as an example here, so that other
  # samples would be another run.
  lengths = []

  def example(sample):
    lengths.append(len(sample))
    return Example(f"again and again {sample[:6]}", (f"{sample[6:9]}.",))

  def take(samples, separator, labels, keep):
    return PseudoExamples([*map(example, samples[:keep])], {})

  monkeypatch.setattr(lfpt5, "sort_out", take)
  options = (
    "--method.name lfpt5 --method.pseudo-examples 5 --fit.steps 4 --fit.learning-rate 0.1 "
    "--data.max-target-length 12 --generator.max-length 32 --generator.top-k 64"
  )
  model = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  loop = Loop([*tiny.world(tmp_path), "--backbone.path", str(model), *options.split()])
  whole = tmp_path / "whole"
  with killed_after_each_save(whole, tmp_path / "killed"):
    loop.run(whole)
  assert 12 < max(lengths) <= 32  # generator.max_length bounds samples, not the answers' length
  log = rows_of(whole / "metrics.jsonl")
  divergence = {
    (row["index"], row["step"]): row["distillation"] for row in log if "distillation" in row
  }
  assert [divergence[0, step] for step in range(1, 5)] == [0] * 4
  assert divergence[1, 1] < 1e-5
  assert max(divergence[1, step] for step in (2, 3, 4)) > 1e-3  # so the teacher has not moved along

  [killed, *_] = sorted(tmp_path.glob("killed/*/progress/01"))
  loop.run(killed.parent.parent)
  assert_same_run(killed.parent.parent, whole)
  texts = [
    (folder / "pseudo_examples/01_task002_count.jsonl").read_text()
    for folder in (whole, killed.parent.parent)
  ]
  assert texts[0] == texts[1] != ""
