"""The methods to compare with: that what is peculiar to each is at work."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from orbax.checkpoint import v1 as ocp

from sapt_jax import train
from sapt_jax.data.rehearsal import kept
from sapt_jax.errors import InputError
from sapt_jax.evaluation.decode import generate
from sapt_jax.methods import epi, inflora
from sapt_jax.methods.base import TaskInputs
from sapt_jax.pet import blocks
from sapt_jax.pet.adapters import Adapters
from sapt_jax.training import checkpoint, fit
from sapt_jax.training.site_moments import batch_moments
from tests.classroom import (
  FIRST,
  NOWHERE,
  WIDTH,
  backbone,
  build,
  clusters,
  logits,
  logits_of,
  noisy,
  same,
  some_batch,
  teach,
  through,
)

# --- rehearsal: replay and multi-task
# ------------------------------------------------------------------------------------


def test_kept_rows_are_a_fixed_share_in_their_own_order():
  rows = list(range(150))
  assert kept(rows, 0.02, 1) == kept(rows, 0.02, 1) == sorted(kept(rows, 0.02, 1))
  assert kept(rows, 0.02, 1) != kept(rows, 0.02, 2)
  assert [len(kept(rows[:n], 0.02, 0)) for n in (150, 149, 20)] == [3, 2, 1]
  assert kept(rows, 0, 0) == []
  assert kept(rows, 1.0, 0) == rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world")
  model = tiny.model_folder(root / "t5", tiny.T5)
  tiny.benchmark_folder(root / "data", tiny.TASKS)
  options = (
    "--data.benchmark superni --data.protocol published --data.max-source-length 128 --data.max-target-length 4 --fit.steps 2 "
    "--fit.batch-size 4 --evaluation.batch-size 8 --pet.rank 2 --pet.prompt-length 2 --method.replay-share 0.3"
  )
  return [*options.split(), "--backbone.path", str(model), "--data.root", str(root / "data")]


@pytest.mark.parametrize(
  ("method", "rows", "steps"),
  [
    ("sequential", [{0: 12}, {1: 12}], [2, 2]),
    ("replay", [{0: 12}, {0: 3, 1: 12}], [2, 2]),
    ("multi_task", [{0: 12}, {0: 12, 1: 12}], [0, 4]),
  ],
)
def test_what_the_tasks_are_learned_from(world, tmp_path, monkeypatch, method, rows, steps):
  lessons = []

  def look(_, learned, rows, plan):
    lessons.append((rows, plan.steps))
    return learned

  monkeypatch.setattr(fit.Trainer, "fit", look)
  train.main([*world, "--output", str(tmp_path / "run"), "--method.name", method])

  def count(lesson):
    return {task: [row.task for row in lesson].count(task) for task in {row.task for row in lesson}}

  assert [count(lesson) for lesson, _ in lessons] == rows
  assert [steps for _, steps in lessons] == steps
  result = json.loads((tmp_path / "run" / "scores.json").read_text())
  assert result["metrics"]["AP"] is not None
  assert (result["metrics"]["F.Ra"] is None) == (method == "multi_task")


# --- all blocks added up: O-LoRA and N-LoRA
# ------------------------------------------------------------------------------


def test_added_blocks_are_one_block_of_their_joint_rank():
  method = build("o_lora")
  learned = through(method, clusters(2))
  pair = [blocks.read(learned.blocks, slot) for slot in range(2)]

  def axis(path):
    return {"a": 2, "b": 1}[path[-1].key]

  joint = jax.tree_util.tree_map_with_path(
    lambda path, *both: jnp.concatenate(both, axis(path)), *pair
  )
  gates = jnp.full((4, 1), method.setting.pet.alpha / 2)
  added = logits(method.adapters(learned, method.mixture(learned, NOWHERE, FIRST)))
  np.testing.assert_allclose(
    added, logits(Adapters(lora=blocks.stack(joint)["lora"], gates=gates)), atol=1e-4
  )
  assert not np.allclose(
    added, logits(Adapters(lora=blocks.stack(pair[1])["lora"], gates=gates)), atol=1e-2
  )


def sites(block):
  """Factors of every site and layer, as NumPy arrays (a, b)."""
  pairs = [
    (block["lora"][s][m][p]["a"], block["lora"][s][m][p]["b"])
    for s, m, p in (
      ("encoder", "self", "q"),
      ("encoder", "self", "v"),
      ("decoder", "self", "q"),
      ("decoder", "self", "v"),
      ("decoder", "cross", "q"),
      ("decoder", "cross", "v"),
    )
  ]
  return [
    (np.asarray(a[layer], np.float64), np.asarray(b[layer], np.float64))
    for a, b in pairs
    for layer in range(2)
  ]


def test_o_lora_keeps_the_new_block_orthogonal_to_the_earlier_ones():
  learned = through(build("o_lora"), clusters(3))
  earlier, other, new = (sites(blocks.read(learned.blocks, slot)) for slot in range(3))
  expected = sum(
    np.abs(np.concatenate([e, o], axis=1).T @ n).sum()
    for (e, _), (o, _), (n, _) in zip(earlier, other, new, strict=True)
  )
  taught, first, last = teach(build("o_lora", orthogonality_weight=0.5), learned)
  np.testing.assert_allclose(first["overlap"], expected, rtol=1e-5)
  np.testing.assert_allclose(first["loss"], first["cross_entropy"] + 0.5 * expected, rtol=1e-5)
  assert last["overlap"] < 0.7 * first["overlap"]
  assert [
    same(blocks.read(learned.blocks, slot), blocks.read(taught.blocks, slot)) for slot in range(4)
  ] == [True, True, False, True]


def test_n_lora_keeps_the_new_update_sparse():
  learned = through(build("n_lora"), clusters(2))

  def norm(tree):
    return sum(np.abs(a @ b).sum() / WIDTH for a, b in sites(blocks.read(tree.blocks, 1)))

  taught, first, _ = teach(build("n_lora", sparsity_weight=4.0), learned)
  np.testing.assert_allclose(first["update_norm"], norm(learned), rtol=1e-5)
  np.testing.assert_allclose(first["loss"], first["cross_entropy"] + 4.0 * norm(learned), rtol=1e-5)
  assert norm(taught) < 0.8 * norm(learned)
  assert [
    same(blocks.read(learned.blocks, slot), blocks.read(taught.blocks, slot)) for slot in range(4)
  ] == [True, False, True, True]


def test_the_penalties_exist_where_a_projection_is_not_square():
  learned = through(build("n_lora", on="llama"), clusters(2))
  for name in ("n_lora", "o_lora"):
    loss, _ = build(name, on="llama").penalty(learned, NOWHERE)
    assert np.isfinite(loss)
    assert loss > 0


# --- InfLoRA
# -------------------------------------------------------------------------------------------------------------


def moments_of(method, learned, on="t5", counted=(True,) * 4, batch=None):
  model, params = backbone(on)
  measure = jax.jit(partial(batch_moments, model, method))
  return measure(params, learned, some_batch(on) if batch is None else batch, jnp.asarray(counted))


def squares(x, mask):
  x = np.asarray(x, np.float64)[np.asarray(mask)]
  return x.T @ x


def test_moments_are_those_of_real_tokens_at_each_site():
  method = build("o_lora")
  (model, params), batch = backbone(), some_batch()
  moments = moments_of(method, method.start(jax.random.key(0)), counted=(True, True, True, False))
  mask = np.asarray(batch.source_mask) & np.array([True, True, True, False])[:, None]
  embedded = np.asarray(params["embedding"]["table"])[np.asarray(batch.source)]
  normed = embedded / np.sqrt(
    np.mean(embedded**2, -1, keepdims=True) + 1e-6
  )  # the first layer's norm; fresh scales are 1
  for name in ("q", "v"):
    np.testing.assert_allclose(
      moments["encoder"]["self"][name][0], squares(normed, mask), rtol=1e-4, atol=1e-4
    )
  encoded, _ = model.apply({"params": params}, batch.source, batch.source_mask, method="encode")
  np.testing.assert_allclose(
    moments["decoder"]["cross"]["v"][1], squares(encoded, mask), rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(
    np.trace(moments["decoder"]["cross"]["q"][0]), 12 * WIDTH, rtol=1e-4
  )  # 12 answer tokens, each of rms 1
  on_llama = build("o_lora", on="llama")
  total = np.trace(moments_of(on_llama, on_llama.start(jax.random.key(0)), "llama")["self"]["q"][0])
  np.testing.assert_allclose(total, (23 + 12) * WIDTH, rtol=1e-2)


def test_inflora_adds_nothing_to_what_earlier_tasks_put_in_whatever_is_learned():
  method = build("inflora", kept_energy=1.0)
  batch = some_batch()
  other = batch.replace(source=jnp.flip(batch.source, 0) % 97 + 2)

  def inputs(learned, of):
    return TaskInputs(NOWHERE, NOWHERE, NOWHERE, moments_of(method, learned, batch=of))

  start = method.start(jax.random.key(0))
  first = method.open(start, jax.random.key(1), inputs(start, batch))
  first = method.merge(first, noisy(method.trainable(first), 1))
  closed = method.close(first, inputs(first, batch))
  opened = method.open(closed, jax.random.key(2), inputs(closed, other))
  second = method.merge(opened, noisy(method.trainable(opened), 2))

  def answer(learned, of):
    return logits_of(
      *backbone(), of, method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
    )

  np.testing.assert_allclose(answer(second, batch), answer(first, batch), atol=1e-3)
  assert np.abs(answer(second, other) - answer(first, other)).max() > 0.1
  taught, _, _ = teach(method, second, steps=1)
  for (a, b), (old_a, old_b) in zip(
    sites(blocks.read(taught.blocks, 1)), sites(blocks.read(second.blocks, 1)), strict=True
  ):
    assert np.array_equal(a, old_a)
    assert not np.array_equal(b, old_b)


def test_the_space_of_earlier_inputs_holds_the_energy_asked_for_and_leaves_room():
  rng = np.random.default_rng(0)
  x, y = (
    rng.normal(size=(1, 60, 8)) * np.logspace(0, -2, 8)[order]
    for order in (slice(None), slice(None, None, -1))
  )

  def moment(z):
    return jnp.asarray(np.swapaxes(z, 1, 2) @ z, jnp.float32)

  one = inflora.grown(moment(x), jnp.zeros((1, 8, 8)), 0.9, 2)
  two = inflora.grown(moment(y), one, 0.9, 2)

  def share(space, z):
    return float(np.sum((z[0] @ np.asarray(space[0])) ** 2) / np.sum(z**2))

  def size(space):
    return round(float(jnp.trace(space[0])))

  assert share(one, x) >= 0.9 > share(one, y)
  assert min(share(two, x), share(two, y)) >= 0.9
  assert size(one) == np.argmax(np.cumsum(np.linalg.svd(x[0])[1] ** 2) >= 0.9 * np.sum(x**2)) + 1
  assert size(inflora.grown(moment(x), one, 1.0, 2)) == 6
  new = inflora.directions(moment(y), one, 2)[0]
  np.testing.assert_allclose(new.T @ new, np.eye(2), atol=1e-5)
  np.testing.assert_allclose(one[0] @ new, 0, atol=1e-5)


# --- GainLoRA
# ------------------------------------------------------------------------------------------------------------


def gated(tasks):
  """GainLoRA at the second of two tasks, whose gate has been moved at random; and what it was like
  after the first.
  """
  method = build("gainlora", kept_energy=1.0)
  moments = jax.tree.map(
    lambda site: jnp.broadcast_to(jnp.eye(site[1]), (site[0], site[1], site[1])),
    method.setting.sites,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  inputs = [TaskInputs(pooled, pooled, pooled, moments) for pooled in tasks]

  def moved(learned, seed):
    return method.merge(learned, noisy(method.trainable(learned), seed))

  first = method.close(
    moved(method.open(method.start(jax.random.key(0)), jax.random.key(1), inputs[0]), 1), inputs[0]
  )
  return method, first, moved(method.open(first, jax.random.key(2), inputs[1]), 2)


def test_gainlora_gates_are_shut_on_earlier_inputs_and_open_on_new_ones():
  tasks = [pooled[:12] for pooled in clusters(2)]
  method, first, second = gated(tasks)
  before, after = (
    np.asarray(method.mixture(learned, tasks[0], None)) for learned in (first, second)
  )
  assert np.array_equal(before[:, 0], after[:, 0])
  assert before[:, 0].min() > 0.5
  assert after[:, 1].max() < 1e-3
  assert np.asarray(method.mixture(second, tasks[1], None))[:, 1].min() > 0.1
  assert not np.any(after[:, 2:])


def test_gainlora_gates_are_those_of_the_formula_and_are_trained():
  tasks = [pooled[:12] for pooled in clusters(2)]
  method, _, second = gated(tasks)

  def silu(x):
    return x / (1 + np.exp(-x))

  e = np.asarray(tasks[1], np.float64)
  z = silu(silu(e @ np.asarray(second.down[1])) @ np.asarray(second.up[1]))
  cosine = (
    z @ np.asarray(second.keys[1]) / np.linalg.norm(z, axis=1) / np.linalg.norm(second.keys[1])
  )
  np.testing.assert_allclose(
    method.mixture(second, tasks[1], None)[:, 1],
    np.abs(2 / (1 + np.exp(-4 * cosine)) - 1),
    rtol=1e-3,
  )
  taught, _, _ = teach(method, second, steps=1)
  for name in ("down", "up", "keys"):
    assert np.array_equal(getattr(taught, name)[0], getattr(second, name)[0])
    assert not np.array_equal(getattr(taught, name)[1], getattr(second, name)[1])


# --- soft prompts: L2P and ProgPrompt
# ------------------------------------------------------------------------------------

L2P = {"kind": "prompt", "pool_prompts": 6, "chosen_prompts": 2}


def test_l2p_chooses_the_nearest_keys_for_each_input_by_itself():
  method = build("l2p", **L2P)
  first, second = clusters(2)
  learned = through(method, [first, second])
  feature, keys = np.asarray(second - first.mean(0)), np.asarray(learned.keys)
  cosines = (
    feature @ keys.T / np.linalg.norm(feature, axis=1, keepdims=True) / np.linalg.norm(keys, axis=1)
  )
  chosen = np.sort(np.argsort(-cosines, axis=1)[:, :2], axis=1)
  mixture = np.asarray(method.mixture(learned, second, None))
  assert np.array_equal(np.stack([np.flatnonzero(row) for row in mixture]), chosen)
  assert np.allclose(mixture.sum(1), 1)
  given = method.adapters(learned, jnp.asarray(mixture)).prompts
  for row in range(3):
    np.testing.assert_allclose(
      given[row], np.asarray(learned.blocks["prompt"])[chosen[row]].reshape(4, WIDTH), rtol=1e-6
    )
  _, figures = method.penalty(learned, second)
  np.testing.assert_allclose(
    figures["key_cosine"], np.take_along_axis(cosines, chosen, 1).mean(), rtol=1e-4
  )
  assert figures["prompts_used"] == len(np.unique(chosen))


def test_l2p_draws_the_chosen_keys_to_the_inputs_and_trains_the_chosen_prompts_alone():
  method = build("l2p", **L2P)
  learned = through(method, clusters(1))
  taught, first, _ = teach(method, learned, steps=1)

  def moved(name, tree):
    return np.any(np.asarray(tree(taught)) != np.asarray(tree(learned)), axis=name)

  prompts, keys = (
    moved((1, 2), lambda tree: tree.blocks["prompt"]),
    moved(1, lambda tree: tree.keys),
  )
  assert np.array_equal(prompts, keys)
  assert prompts.sum() == first["prompts_used"] < 6
  _, second, _ = teach(method, taught, steps=1)
  assert second["key_cosine"] > first["key_cosine"]


def test_l2p_gives_different_prompts_to_tasks_that_are_nearly_one_vector():
  method = build("l2p", kind="prompt", pool_prompts=20, chosen_prompts=2)
  tasks = clusters(5)
  learned = through(method, tasks)

  def favourites(tree):
    return {
      frozenset(np.argsort(-np.asarray(method.mixture(tree, pooled, None)).mean(0))[:2])
      for pooled in tasks
    }

  assert len(favourites(learned.replace(centre=jnp.zeros(WIDTH)))) <= 2
  assert len(favourites(learned)) >= 4


@pytest.mark.parametrize("on", ["t5", "llama"])
def test_prog_prompt_reads_the_newest_prompt_first_and_no_empty_slot(on):
  method = build("prog_prompt", on=on, kind="prompt")
  learned = through(method, clusters(2))
  adapters = method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
  first, second = (
    jnp.broadcast_to(learned.blocks["prompt"][slot], (4, 2, WIDTH)) for slot in range(2)
  )
  alone = Adapters(prompts=jnp.concatenate([second, first], axis=1))
  assert adapters.prompts.shape[1] == 8
  np.testing.assert_allclose(logits(adapters, on), logits(alone, on), atol=2e-5)
  swapped = Adapters(prompts=jnp.concatenate([first, second], axis=1))
  assert not np.allclose(logits(swapped, on), logits(alone, on), atol=1e-3)
  model, params = backbone(on)
  write = jax.jit(partial(generate, model, max_new=4))
  batch = some_batch(on)
  assert same(
    *(write(params, batch.source, batch.source_mask, given) for given in (adapters, alone))
  )


def test_prog_prompt_forgets_nothing_when_it_knows_the_task_and_trains_one_prompt():
  tasks = clusters(2)
  for known in (True, False):
    method = build("prog_prompt", kind="prompt", task_known=known)
    before, after = through(method, tasks[:1]), through(method, tasks)
    given = [
      method.adapters(learned, method.mixture(learned, NOWHERE, FIRST))
      for learned in (before, after)
    ]
    assert np.allclose(*map(logits, given), atol=1e-5) == known
  taught, _, _ = teach(method, after, steps=1)
  moved = np.any(
    np.asarray(taught.blocks["prompt"]) != np.asarray(after.blocks["prompt"]), axis=(1, 2)
  )
  assert moved.tolist() == [False, True, False, False]


# --- EPI
# -----------------------------------------------------------------------------------------------------------------


def long_clouds(tasks, rows=200):
  """Inputs that vary a hundred times more along one direction than tasks differ: the nearest mean
  says nothing, a cloud's shape does.
  """
  rng = np.random.default_rng(0)
  direction = rng.normal(size=WIDTH)
  spread = [30 * rng.normal(size=(rows, 1)) * direction for _ in range(tasks)]
  return [
    pooled + jnp.asarray(wide, jnp.float32)
    for pooled, wide in zip(clusters(tasks, rows=rows), spread, strict=True)
  ]


def test_epi_finds_the_task_by_mahalanobis_distance_where_the_nearest_mean_does_not():
  method = build("epi", lookup_shrinkage=1e-6)
  tasks = long_clouds(3)
  learned = through(method, [pooled[:150] for pooled in tasks])
  learned = method.close(learned, TaskInputs(tasks[2][:150], tasks[2], tasks[2]))
  held_out = jnp.concatenate([pooled[150:] for pooled in tasks])

  def right(slots):
    return np.mean(np.asarray(slots) == np.repeat(np.arange(3), 50))

  mixture = method.mixture(learned, held_out, None)
  assert np.array_equal(np.asarray(mixture).max(1), np.ones(150))
  assert right(jnp.argmax(mixture, 1)) > 0.95
  assert right(jnp.argmin(jnp.linalg.norm(held_out[:, None] - learned.means[:3], axis=-1), 1)) < 0.6


def test_epi_measures_distances_as_the_formula_does_and_stands_a_task_of_one_input():
  method = build("epi", lookup_shrinkage=0.1)
  tasks = [*clusters(2), jnp.ones((1, WIDTH))]
  learned = method.close(through(method, tasks), TaskInputs(tasks[2], tasks[2], tasks[2]))
  pooled = clusters(1, seed=5)[0]
  sigma = sum(np.cov(np.asarray(task, np.float64).T, bias=True) for task in tasks[:2]) / 3
  sigma = 0.9 * sigma + 0.1 * np.trace(sigma) / WIDTH * np.eye(WIDTH)
  away = np.asarray(pooled, np.float64)[:, None] - np.stack(
    [np.asarray(task, np.float64).mean(0) for task in tasks]
  )
  expected = np.einsum("btd,de,bte->bt", away, np.linalg.inv(sigma), away)
  distances = np.asarray(epi.distances(learned, pooled))
  np.testing.assert_allclose(distances[:, :3], expected, rtol=5e-3)
  assert np.isinf(distances[:, 3]).all()


def test_epi_learns_a_task_with_its_own_block_whatever_the_look_up_would_say():
  method = build("epi")
  first, second = clusters(2)
  learned = through(method, [first, second])
  assert np.asarray(method.mixture(learned, first, None))[:, 1].all()
  learned = method.close(learned, TaskInputs(second, second, second))
  assert np.asarray(method.mixture(learned, first, None))[:, 0].mean() > 0.95


# --- all of them
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("o_lora", "prompt"),
    ("n_lora", "prompt"),
    ("inflora", "prompt"),
    ("l2p", "lora"),
    ("prog_prompt", "lora"),
  ],
)
def test_a_kind_of_block_that_a_method_cannot_use_is_refused(name, kind):
  with pytest.raises(InputError, match=rf"{name}: cannot use pet.kind {kind}"):
    build(name, kind=kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
  "name",
  ["multi_task", "replay", "o_lora", "n_lora", "inflora", "gainlora", "l2p", "prog_prompt", "epi"],
)
def test_all_that_a_method_has_learned_is_in_its_snapshot(world, tmp_path, name):
  kind = "prompt" if name in ("l2p", "prog_prompt") else "lora"

  def run(folder):
    return train.main([*world, "--output", str(folder), "--method.name", name, "--pet.kind", kind])

  run(tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
  last = max((tmp_path / "stopped" / "snapshots").iterdir())
  shutil.rmtree(last)
  run(tmp_path / "stopped")

  def load(folder):
    return ocp.load(str(folder / "snapshots" / last.name / checkpoint.TREE))

  assert same(load(tmp_path / "whole"), load(tmp_path / "stopped"))
  answers = [
    (tmp_path / folder / "predictions.jsonl").read_text() for folder in ("whole", "stopped")
  ]
  assert answers[0] == answers[1]
