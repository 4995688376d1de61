"""What methods were published for: each shows its effect on two small tasks beside what its paper
compares it with.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from sapt_jax import config
from sapt_jax.data.batches import Batcher
from sapt_jax.data.prepared import PreparedTask
from sapt_jax.data.prompts import Codec
from sapt_jax.data.tasks import Example, Task
from sapt_jax.losses import token_losses
from sapt_jax.pet import blocks
from sapt_jax.training.state import make_optimizer
from tests import tiny
from tests.classroom import Study, backbone, build, factors_of, state_of, stepper

# Two kinds of input, each with words and an answer of its own.
WORDS = ("red green blue pink grey", "one two three four five")
ANSWERS = ("colour", "number")


@pytest.fixture(scope="module")
def codec():
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tiny.byte_tokenizer(True), pad_token="<pad>", eos_token="</s>"
  )
  return Codec(tokenizer, ("", "\nOutput: "), max_source=96, max_target=16, eos_id=1)


def tasks_of(codec, answers=ANSWERS):
  """Eight inputs of three words each per task, all with their task's answer."""
  rng, tasks = np.random.default_rng(0), []
  for index, (words, answer) in enumerate(zip(WORDS, answers, strict=True)):
    texts = [" ".join(rng.choice(words.split(), 3)) for _ in range(8)]
    examples = tuple(Example(f"{text} {number}", (answer,)) for number, text in enumerate(texts))
    tasks.append(PreparedTask(index, Task(f"task{index}", "Say.", examples, (), ()), codec))
  return tasks


def loss_of(method, learned, task):
  """Mean cross-entropy of a task's answers."""
  model, params = backbone()
  batch = Batcher(False, 0, len(task.train.rows)).collate(task.train.rows)
  logits, _ = method.answer_logits(model, params, learned, batch)
  losses = token_losses(logits, batch.target, batch.target_mask)
  return float(jnp.sum(losses) / batch.target_mask.sum())


def learn(method, tasks, steps=30, rate=1e-2, sampling=None, write=None):
  """What is learned after each task, as the loop does it; before its first step, and after its
  last."""
  model, params = backbone()
  optimizer = make_optimizer(method, config.Fit(learning_rate=rate))
  step, batcher = stepper(model, method, optimizer), Batcher(False, 0, 8)
  learned, seen = method.start(jax.random.key(0)), []
  for task in tasks:
    features = method.features(model, params, batcher.collate(task.train.rows))
    study = Study(features, index=task.index, stream=tasks, codec=task.train.codec, write=write)
    study.sampling = sampling or study.sampling
    begun = method.begin(learned, jax.random.key(task.index), study)
    state = state_of(method, begun, optimizer, steps)
    for batch in batcher.training(method.lesson(begun, study).rows, 0, steps):
      state, _ = step(state, params, begun, batch)
    learned = method.settle(begun, state.trainable, state.running)
    learned = method.remember(learned, study)
    seen.append((begun, learned))
  return seen


def forgotten(method, tasks, **how):
  """How much the loss on the first task grows while the second is learned, the loss on the second
  at the end, and what is learned then.
  """
  (_, first), (_, last) = learn(method, tasks, **how)
  grown = loss_of(method, last, tasks[0]) - loss_of(method, first, tasks[0])
  return grown, loss_of(method, last, tasks[1]), last


def collisions(learned):
  """Share of the entries of the updates at all sites that both blocks change by more than a tenth
  of the greatest change.
  """
  first, second = (
    [np.abs(a @ b) for a, b in factors_of(blocks.read(learned.blocks, slot))] for slot in range(2)
  )
  least = [0.1 * max(one.max(), two.max()) for one, two in zip(first, second, strict=True)]
  both = [
    np.mean((one > limit) & (two > limit))
    for one, two, limit in zip(first, second, least, strict=True)
  ]
  return np.mean(both)


def test_replay_of_a_quarter_of_the_rows_forgets_less_than_half_of_what_one_block_forgets(codec):
  tasks = tasks_of(codec)
  alone, *_ = forgotten(build("sequential"), tasks)
  kept, second, _ = forgotten(build("replay", replay_share=0.25), tasks)
  assert kept < 0.5 * alone
  assert second < 2.5  # and the new task is learned


def test_lfpt5_needs_no_real_row_for_it_when_its_block_recalls_the_task(codec):
  """Its samples are as the block would write them had it learned to: what the paper's prompts of
  300 tokens on T5-large do, and a tiny random model cannot.
  """
  tasks = tasks_of(codec)

  def write(learned, rows):
    written = [f"{one.input}\nOutput: {one.references[0]}" for one in tasks[0].train.examples]
    return [*written, *["nothing"] * (len(rows) - len(written))]

  sampling = config.Generator(max_length=48)
  alone, *_ = forgotten(build("sequential"), tasks)
  method = build("lfpt5", pseudo_examples=4)
  kept, second, _ = forgotten(method, tasks, write=write, sampling=sampling)
  assert kept < 0.5 * alone
  assert second < 2.5


def test_n_lora_makes_updates_collide_less_and_forgets_less_than_the_same_blocks_without_it(codec):
  tasks = tasks_of(codec)
  with_it, without = (
    forgotten(build("n_lora", sparsity_weight=weight), tasks) for weight in (1.8, 0.0)
  )
  assert collisions(with_it[2]) < 0.2 * collisions(without[2])
  assert with_it[0] < 0.8 * without[0]


def test_l2p_forgets_less_than_half_of_what_one_prompt_forgets(codec):
  tasks = tasks_of(codec)
  alone, *_ = forgotten(build("sequential", kind="prompt"), tasks, rate=0.3)
  method = build("l2p", kind="prompt", pool_prompts=6, chosen_prompts=1, key_learning_rate=1e-2)
  kept, *_ = forgotten(method, tasks, rate=0.3)
  assert kept < 0.5 * alone


def test_prog_prompt_starts_a_related_task_ahead_of_a_prompt_of_its_own_and_ends_there(codec):
  tasks, at = tasks_of(codec, ("colour", "colour")), {}
  for name, options in (("prog_prompt", {"task_known": True}), ("per_task", {})):
    method = build(name, kind="prompt", **options)
    (_, first), second = learn(method, tasks, rate=0.3)
    at[name] = [loss_of(method, learned, tasks[1]) for learned in second]
    kept = [loss_of(method, learned, tasks[0]) for learned in (first, second[1])]
    assert kept[0] == pytest.approx(kept[1], abs=1e-5)
  for ours, alone in zip(at["prog_prompt"], at["per_task"], strict=True):
    assert ours < alone - 0.2
