"""Plans for hardware that is not here: what is counted in a compiled program, and that the program
is the run's.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
import tiny

from sapt_jax import config, remat, sharding
from sapt_jax.errors import InputError
from sapt_jax.methods.lfpt5.method import WRITTEN, Lfpt5Options
from sapt_jax.methods.sequential import SequentialOptions
from sapt_jax.plan import __main__ as program
from sapt_jax.plan import figures, hardware
from sapt_jax.plan.hlo import Module
from sapt_jax.plan.programs import Programs
from sapt_jax.plan.sizes import SIZES

# Wide enough that the products of a hand formula are nearly all there is.
SMALL = tiny.LLAMA | {
  "hidden_size": 64,
  "intermediate_size": 128,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "vocab_size": 128,
}
ROWS, SOURCE, TARGET = 4, 49, 16  # joined in rows of 64


def small_config(**changes):
  return config.Config(
    method=SequentialOptions(),
    pet=config.Pet(rank=2),
    fit=config.Fit(batch_size=ROWS),
    data=config.Data(max_source_length=SOURCE, max_target_length=TARGET),
    evaluation=config.Evaluation(batch_size=ROWS),
    **changes,
  )


def small_step(unroll=1, remat="full"):
  backbone = config.Backbone(remat=remat, unroll=unroll)
  return Programs(
    small_config(backbone=backbone), sharding.make_mesh(), SMALL, blocks=1, examples=100
  )


def hand_flops(kernels=False):
  """Products of one step on SMALL: forward, the layers' states again, and gradients of states and
  LoRA factors but of no weight. Kernels of attention compute scores and their gradient once for dq
  and once for dk and dv: 7 products for 4.
  """
  d, f, key, layers, vocab = 64, 128, 32, 2, 128
  length = SOURCE + TARGET - 1
  tokens = ROWS * length
  weights = 2 * tokens * (2 * d * d + 2 * d * key + 3 * d * f)
  attention = 2 * 2 * ROWS * length * length * d
  lora = 2 * tokens * 2 * ((d + d) + (d + key))
  forward = weights + attention + lora
  again = (
    forward - 2 * tokens * d * f
  )  # what leaves the last product of a layer is not needed again
  backward = weights + (3.5 if kernels else 2) * attention + 2 * lora
  return layers * (forward + again + backward) + 2 * 2 * ROWS * TARGET * d * vocab


def test_flops_of_a_step_are_those_of_a_hand_formula_scanned_and_unrolled():
  def work_of(*options):
    return Module(small_step(*options).step().compile().as_text(), devices=1).work()

  assert work_of(1).flops == pytest.approx(hand_flops(), rel=0.03)
  assert work_of(1).collectives == {}
  # In straight code XLA also drops what no loop can: the gradient of the first layer's input. A
  # loop counted once would be half.
  scanned, unrolled = (work_of(unroll, "none").flops for unroll in (1, 2))
  assert 0.9 * scanned < unrolled <= scanned


def test_a_method_that_writes_examples_is_planned_with_them():
  options = small_config()
  options = dataclasses.replace(options, method=Lfpt5Options(), pet=config.Pet(kind="prompt"))
  companions = (
    Programs(options, sharding.make_mesh(), SMALL, blocks=2, examples=100)
    .batch(ROWS, learning=True)
    .companions
  )
  assert companions[WRITTEN].target.shape == (ROWS, options.generator.max_length)


@pytest.mark.parametrize(
  "text", ["h200:8", "h100", "h100:0", "h100:12", "h100:2x4", "v5e:8", "v5e:", "cpu:x", ""]
)
def test_a_wrong_target_is_told(text):
  with pytest.raises(InputError, match="--target"):
    hardware.parse_target(text)


def test_targets_and_meshes_are_read():
  counts = {
    text: hardware.parse_target(text).count
    for text in ("h100:8", "h100:16", "rtx4090:1", "v5e:2x4", "v5p:2x2x2", "cpu:4")
  }
  assert list(counts.values()) == [8, 16, 1, 8, 8, 4]
  chosen = program.options(
    ["--target", "cpu:4", "--mesh", "data=2,tensor=2", "--fit.batch-size", "8"]
  )
  assert (chosen.mesh, chosen.fit.batch_size) == (config.Mesh(data=2, tensor=2), 8)
  for wrong in ("data=2,width=2", "data", "fsdp=0", ""):
    with pytest.raises(InputError, match="--mesh"):
      program.spread_mesh(["--mesh", wrong])
  four, other = (
    config.Config(SequentialOptions()),
    config.Config(SequentialOptions(), mesh=config.Mesh(data=2)),
  )
  assert program.placed_on(four, hardware.parse_target("cpu:4")).mesh == config.Mesh(fsdp=4)
  with pytest.raises(InputError, match="give as many"):
    program.placed_on(other, hardware.parse_target("cpu:4"))


@pytest.mark.parametrize("target", [name for name in hardware.DEVICES if name != "v5p"])
def test_a_missing_compiler_is_told_with_the_extra_that_brings_it(target, monkeypatch):
  monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(os, "environ", dict(os.environ))
  found = hardware.parse_target(f"{target}:{1 if hardware.DEVICES[target].gpu else '2x2'}")
  with pytest.raises(InputError, match=r"pip install 'sapt-jax\[plan-(gpu|tpu)\]'"):
    hardware.prepare(found)


def test_advice_names_what_helps():
  target = hardware.parse_target("h100:8")
  chosen = config.Config(
    SequentialOptions(), backbone=config.Backbone(dtype="bfloat16"), mesh=config.Mesh(fsdp=8)
  )

  def given(arguments, temporaries):
    return {
      "fits": False,
      "arguments": int(arguments * target.usable),
      "temporaries": int(temporaries * target.usable),
    }

  full = config.Config(
    SequentialOptions(),
    backbone=config.Backbone(dtype="bfloat16", remat="full"),
    mesh=config.Mesh(fsdp=8),
  )
  sixteen = config.Evaluation(batch_size=16)
  assert figures.advice(given(0.5, 0.4) | {"fits": True}, chosen, target, "step") == ""
  assert "--mesh.fsdp 32" in figures.advice(given(2.5, 0.1), chosen, target, "step")
  assert "--backbone.dtype bfloat16" in figures.advice(
    given(2.5, 0.1), config.Config(SequentialOptions()), target, "step"
  )
  assert figures.advice(given(0.5, 0.9), chosen, target, "step") == "--backbone.remat full"
  assert figures.advice(given(0.5, 1.9), full, target, "step") == "--fit.accumulation 4"
  assert figures.advice(given(0.5, 0.9), full, target, "decode") == "--evaluation.batch-size 16"
  assert "fsdp" in figures.advice(
    given(0.5, 9.0),
    config.Config(SequentialOptions(), mesh=config.Mesh(fsdp=16), evaluation=sixteen),
    target,
    "decode",
  )


def test_built_in_sizes_have_as_many_parameters_as_their_names_say():
  billions = {
    "t5-large": 0.783,
    "t5-xl": 2.85,
    "t5-xxl": 11.1,
    "llama2-7b": 6.74,
    "llama2-13b": 13.0,
    "llama2-70b": 69.0,
    "xuanyuan-70b": 69.1,
    "llama3-8b": 8.03,
    "qwen3-8b": 8.19,
    "gemma2-9b": 9.24,
  }
  mesh = sharding.make_mesh()
  counted = {}
  for name, raw in SIZES.items():
    model = program.backbone_sizes(config.Config(SequentialOptions()), name)
    assert model is raw
    shapes = jax.tree.leaves(
      Programs(config.Config(SequentialOptions()), mesh, raw, 1, 100).built.backbone.params
    )
    counted[name] = sum(x.size for x in shapes) / 1e9
  assert counted == pytest.approx(billions, rel=0.01)


def test_what_fits_the_device_is_not_recomputed(tmp_path, monkeypatch, capsys):
  """A CPU does not tell its memory: here it has as much as it takes to tell the forms apart."""
  (tmp_path / "config.json").write_text(json.dumps(SMALL | {"num_hidden_layers": 6}))
  asked = small_config(backbone=config.Backbone(path=str(tmp_path), remat="auto"))

  def chosen(memory):
    monkeypatch.setattr(sharding, "device_memory", lambda: memory)
    return remat.resolved(asked, tmp_path, 2, 8).backbone.remat

  assert chosen(None) == chosen(2**40) == "dots"
  assert chosen(1) == "full"
  peaks = {}
  for name in ("none", "dots", "full"):
    form = dataclasses.replace(asked, backbone=dataclasses.replace(asked.backbone, remat=name))
    raw = json.loads((tmp_path / "config.json").read_text())
    step = Programs(form, sharding.make_mesh(), raw, 2, 8).step().compile()
    peaks[name] = figures.memory_of(step)["peak"]
  assert peaks["full"] < peaks["dots"] < peaks["none"]
  assert chosen(1.01 * peaks["dots"] / remat.SHARE) == "dots"
  assert chosen(0.99 * peaks["dots"] / remat.SHARE) == "full"
  assert "remat: dots" in capsys.readouterr().out


def test_a_plan_on_simulated_devices_needs_no_weights(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(os, "environ", dict(os.environ))
  (tmp_path / "config.json").write_text(json.dumps(tiny.T5))
  program.main(
    [
      "--target",
      "cpu:4",
      "--backbone.path",
      str(tmp_path),
      "--fit.batch-size",
      "8",
      "--evaluation.batch-size",
      "8",
      "--blocks",
      "3",
      "--data.max-source-length",
      "16",
      "--data.max-target-length",
      "6",
      "--json",
    ]
  )
  report = json.loads(capsys.readouterr().out)
  assert (report["target"], report["mesh"], report["capacity"]) == (
    "cpu:4",
    {"data": 1, "fsdp": 4, "tensor": 1},
    4,
  )
  assert report["lengths"] == {"source": 16, "target": 8, "new": 6}
  for name in ("step", "decode"):
    found = report[name]
    assert (
      found["peak"]
      == found["arguments"] + found["temporaries"] + found["outputs"] - found["donated"]
    )
    assert found["fits"] is True
    assert found["flops"] > 0
    assert found["collectives"]["all-gather"]["bytes"] > 0
  assert report["step"]["donated"] > 0  # the state is updated in place
  assert figures.table(report).count("yes") == 2


def test_wrong_input_is_one_line_before_any_compiling(tmp_path):
  with pytest.raises(InputError, match="no such folder"):
    program.main(["--target", "cpu:4", "--backbone.path", str(tmp_path / "none")])
  with pytest.raises(InputError, match="--model"):
    program.main(["--target", "cpu:4", "--model", "t6"])
  with pytest.raises(InputError, match="must be a multiple of mesh"):
    program.main(["--target", "cpu:4", "--fit.batch-size", "6"])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("target", "attention", "packages"),
  [
    ("h100:2", "xla", ["jax_cuda13_plugin"]),
    ("h100:2", "tokamax", ["jax_cuda13_plugin", "tokamax"]),
    ("v5e:2x2", "xla", ["libtpu"]),
  ],
)
def test_a_plan_for_absent_hardware(target, attention, packages, tmp_path):
  for package in packages:
    extras = ".[plan-gpu,plan-tpu,gpu]"
    if importlib.util.find_spec(package) is None:  # not imported, as tokamax would start JAX
      pytest.skip(f"compiles with {package}, not installed here: pip install -e '{extras}'")
  (tmp_path / "config.json").write_text(json.dumps(SMALL))
  command = [
    sys.executable,
    "-m",
    "sapt_jax.plan",
    "--target",
    target,
    "--backbone.attention",
    attention,
    "--backbone.dtype",
    "float32" if attention == "xla" else "bfloat16",
    "--backbone.path",
    str(tmp_path),
    "--backbone.remat",
    "full",
    "--method.name",
    "sequential",
    "--pet.rank",
    "2",
    "--blocks",
    "1",
    "--fit.batch-size",
    str(ROWS),
    "--evaluation.batch-size",
    str(ROWS),
    "--data.max-source-length",
    str(SOURCE),
    "--data.max-target-length",
    str(TARGET),
    "--json",
  ]
  environment = {
    name: value
    for name, value in os.environ.items()
    if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
  }
  done = subprocess.run(
    command, capture_output=True, text=True, check=True, env=environment, timeout=600
  )
  report = json.loads(done.stdout.splitlines()[-1])
  assert report["attention"] == attention
  devices = hardware.parse_target(target).count
  assert devices * report["step"]["flops"] == pytest.approx(
    hand_flops(attention != "xla"), rel=0.05
  )
  for name in ("step", "decode"):
    assert report[name]["fits"] is True
    assert report[name]["collectives"]
    assert 0 < max(report[name]["floor_s"].values()) < 1e-3
