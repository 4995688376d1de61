"""What is counted: compiled programs, phases, the work of a step; and the speed benchmarks, which
must do the same work to be compared.
"""

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import arm, config, sharding
from sapt_jax.backbones import hf
from sapt_jax.cost import Cost
from sapt_jax.data.batches import Batch, Batcher, Row
from sapt_jax.interop import public
from sapt_jax.methods.lesson import Setting
from sapt_jax.methods.sapt import Sapt, SaptOptions
from sapt_jax.training.fit import Plan, Trainer
from tests import classroom

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def small():
  """Sizes with heads * d_kv != d_model, as T5-3B and 11B have them."""
  import sizes

  return sizes.Sizes(
    batch=3, src=12, tgt=5, d_model=32, d_ff=48, d_kv=12, layers=2, heads=4, vocab=96, rank=2
  )


def test_each_new_program_is_counted_once_and_only_while_the_count_is_entered():
  program = jax.jit(lambda x: jnp.sin(x) + 1)
  with Cost() as cost:
    for length in (3, 3, 4):
      program(np.ones(length, np.float32))
    figures = cost.take()
    again = cost.take()
    assert [again[name] for name in ("compilations", "from_cache", "compile_s")] == [0, 0, 0.0]
  program(np.ones(5, np.float32))
  assert figures["compilations"] + figures["from_cache"] == 2
  assert figures["compile_s"] > 0
  assert cost.take()["compilations"] == 0


def test_a_program_read_from_the_persistent_cache_is_not_counted_as_compiled():
  if not jax.config.jax_compilation_cache_dir:
    pytest.skip("no persistent cache here")
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  with Cost() as cost:
    for _ in range(2):
      cost.take()
      jax.jit(lambda x: jnp.cos(x) * 3 + 1)(np.ones(3, np.float32))
    figures = cost.take()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
  assert (figures["compilations"], figures["from_cache"]) == (0, 1)


def test_seconds_go_to_the_phase_that_is_on_and_those_of_compiling_to_none():
  with Cost() as cost:
    cost.phase("first")
    time.sleep(0.02)
    cost.phase("second")
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 5.0)
    cost.phase("first")
    time.sleep(0.02)
    figures = cost.take()
  assert figures["first_s"] >= 0.04
  assert figures["second_s"] < 0
  assert (figures["compilations"], figures["compile_s"]) == (1, 5.0)


def test_what_a_task_cost_in_earlier_starts_counts_and_the_time_between_them_does_not():
  compiling = "/jax/core/compile/backend_compile_duration"
  with Cost() as cost:
    cost.task({})
    jax.monitoring.record_event_duration_secs(compiling, 5.0)
    cost.phase("learn")
    time.sleep(0.02)
    first = cost.so_far()
  time.sleep(0.5)
  with Cost() as cost:
    cost.task(first)
    cost.phase("learn")
    time.sleep(0.02)
    jax.monitoring.record_event_duration_secs(compiling, 2.0)
    second = cost.so_far()
    taken = cost.take()
    cost.task({})
    assert cost.so_far()["wall_s"] < 0.02
  assert (second["compilations"], second["compile_s"]) == (2, 7.0)
  assert second["learn_s"] - first["learn_s"] == pytest.approx(0.02 - 2.0, abs=0.1)
  assert 0.04 <= second["wall_s"] < 0.4
  assert "wall_s" not in taken


def test_later_tasks_of_the_same_shapes_compile_nothing():
  method, mesh, counted = classroom.build("sapt"), sharding.make_mesh(), []
  backbone = hf.Backbone(*classroom.backbone(), Path(), {})
  trainer = Trainer(backbone, method, config.Fit(batch_size=4), Batcher(False, 0, 4), mesh)
  # As learner.Learner.start does.
  learned = jax.device_put(method.start(jax.random.key(0)), sharding.replicated(mesh))
  with Cost() as cost:
    for task, pooled in enumerate(classroom.clusters(3)):
      study = classroom.Study(pooled, pseudo=pooled[:3])
      rows = [Row([2 + i, 3, 4 + task], [5, 6 + i], task) for i in range(8)]
      learned = method.begin(learned, jax.random.key(task), study)
      cost.take()
      learned = trainer.fit(learned, rows, Plan("task", 2, None, lambda _: None))
      counted.append(cost.take())
      learned = method.remember(learned, study)
  programs = [figures["compilations"] + figures["from_cache"] for figures in counted]
  assert programs[0] > 0
  assert programs[1:] == [0, 0]


def dot_flops(jaxpr):
  """Operations of all matrix products of a program, those in a loop as often as it runs."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      contracted = equation.params["dimension_numbers"][0][0]
      length = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
      total += 2 * equation.outvars[0].aval.size * length
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    inner = jax.extend.core.jaxprs_in_params(equation.params)
    total += times * sum(map(dot_flops, inner))
  return total


def test_the_formula_counts_the_products_of_the_real_step():
  import step_cost

  s = dataclasses.replace(small(), src=64, d_model=64, rank=1)
  # What is recomputed is no work of the step.
  p = step_cost.prepare(s, tasks=1, memory=1, remat="none")
  trainer = Trainer(p.backbone, p.method, config.Fit(batch_size=s.batch), p.batcher, p.mesh)
  state = trainer.start(p.learned, 1)
  program = jax.make_jaxpr(trainer.step)(state, p.backbone.params, p.learned, p.batch)
  counted = 1e-9 * dot_flops(program.jaxpr)
  # LoRA of rank 1 and the query projection are the rest.
  assert s.step_gflops() < counted < 1.05 * s.step_gflops()


@pytest.fixture
def peer(torch):
  """Three tasks on torch, with the library's SAPT on the same weights."""
  import torch_peer

  return torch_peer.Peer(small(), 3)


def as_ours(peer, folder):
  """The peer's model, pool, reflection memory and batch as the library has them,
  with the public code's gradient.
  """

  def arrays(x):
    return x.detach().numpy()

  peer.model.save_pretrained(folder)
  backbone = hf.load_backbone(str(folder))
  s, table = peer.sizes, backbone.params["embedding"]["table"]
  setting = Setting(config.Pet(rank=s.rank), backbone.config.lora_sites(), table, 4, s.batch)
  method = Sapt(SaptOptions(reference_quirks=True), setting)

  def block(task):
    factors = {}
    for site, (a, b) in peer.factors.items():
      name = f"{site[:-1]}lora_{site[-1]}"
      factors |= {f"{name}.lora_A": arrays(a[task]), f"{name}.lora_B": arrays(b[task])}
    return public.block_from(factors, backbone.config)

  pool = [block(task) for task in range(3)]
  query = public.query_from({name: arrays(x) for name, x in peer.project.state_dict().items()})
  learned = public.make_learned(method, pool, np.stack([arrays(key) for key in peer.keys]), query)
  memory = learned.memory
  for task, (tokens, target) in enumerate(zip(peer.pseudo, peer.targets, strict=True)):
    pooled = table[arrays(tokens)].max(axis=1)
    memory = arm.remember(memory, task, pooled, jnp.pad(jnp.asarray(arrays(target)), (0, 1)))
  source, target = (jnp.asarray(arrays(x), jnp.int32) for x in (peer.source, peer.target))
  there = jnp.ones_like(source, bool), jnp.ones_like(target, bool)
  batch = Batch(source, there[0], target, there[1], jnp.zeros(len(source), jnp.int32))
  return backbone, method, learned.replace(memory=memory), batch


def test_the_torch_peer_does_the_same_work(peer, tmp_path):
  import torch

  with torch.no_grad():
    peer.model.lm_head.weight[1] = 0.0  # its end token is held back, so ours must not win either
  backbone, method, learned, batch = as_ours(peer, tmp_path)
  fit, batcher, mesh = config.Fit(batch_size=3), Batcher(False, 0, 3), sharding.make_mesh()
  trainer = Trainer(backbone, method, fit, batcher, mesh)
  state = trainer.start(learned, 1)
  answers = peer.answer(6).numpy()
  _, metrics = trainer.step(state, backbone.params, learned, batch)
  loss, reflection = peer.backward()
  assert metrics["cross_entropy"] == pytest.approx(loss, rel=1e-5)
  assert metrics["reflection"] == pytest.approx(reflection, rel=1e-4)
  trained = [x for group in peer.optimizer.param_groups for x in group["params"]]
  norm = math.sqrt(sum(float(x.grad.square().sum()) for x in trained))
  assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
  assert answers.shape == (3, 6)


# Parameters that a token of an answer does not read, or that are too small to count.
UNREAD = ["embedding", "encoder", "bias", "norm", "cross_attention']['k", "cross_attention']['v"]


@pytest.mark.parametrize("llama", [False, True])
def test_the_floor_of_an_answer_counts_what_is_there(llama):
  from step_cost import prepare

  s, new = small(), 4
  params = jax.tree_util.tree_leaves_with_path(prepare(s, 1, memory=1, llama=llama).backbone.params)
  read = [
    (jax.tree_util.keystr(path), x)
    for path, x in params
    if x.ndim > 1 and not any(word in jax.tree_util.keystr(path) for word in UNREAD)
  ]
  assert len(read) == (8 if llama else 10)
  weights = sum(x.size for _, x in read)
  cache = s.layers * 2 * s.heads * s.d_kv * s.batch * (s.src + new / 2)
  # Where products cost nothing, what is left is the reading of weights and cache.
  bytes_read = 1e9 * s.answer_floor_s(new, math.inf, 1.0, llama)
  assert bytes_read == pytest.approx((new - llama) * 4 * (weights + cache))
  # Where reading costs nothing, the products with weights are left, and those with the sources.
  work = s.answer_floor_s(new, 1.0, math.inf, llama) - s.answer_floor_s(1, 1.0, math.inf, llama)
  assert work == pytest.approx(2e-9 * (new - 1) * s.batch * weights)


@pytest.mark.parametrize("program", ["step_cost", "decode_cost", "torch_peer"])
def test_wrong_options_are_one_line(program):
  command = [sys.executable, BENCHMARKS / f"{program}.py", "--tasks", "1,x"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert "--tasks" in done.stderr


def test_step_and_decoder_rows_have_what_is_promised(capsys):
  import decode_cost
  import step_cost

  options = (
    "--tasks 3 --json --batch 2 --src 8 --tgt 4 --d-model 16 --d-ff 16 --d-kv 4 --layers 1 "
    "--heads 2 --vocab 64 --repeat 3"
  ).split()
  step_cost.main([*options, "--pairs"])
  decode_cost.main([*options, "--new", "5"])
  step, decode = map(json.loads, capsys.readouterr().out.splitlines())
  assert step.keys() == set(
    "tasks s_per_step all_s peak_rss_mb compile_s gemm_gflops model_gflops reflection_ratio".split()
  )
  assert {"tasks", "s", "tokens_per_s", "peak_rss_mb"} <= decode.keys()
  assert decode["share"] == pytest.approx(decode["floor_s"] / decode["s"])
  assert (step["tasks"], len(step["all_s"])) == (3, 3)
  assert decode["tokens_per_s"] == pytest.approx(10 / decode["s"])
