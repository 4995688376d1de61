"""The program that measures an accelerator, as far as a CPU can rehearse it."""

import argparse
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import accelerator
import accelerator_parts
import jax
import pytest
from accelerator_parts import TINY, Figures
from accelerator_profile import add_kernels_of

from sapt_jax.errors import InputError
from sapt_jax.mini import T5_MINI


def rows(folder):
  return {(row["part"], row["figure"]): row["value"] for row in Figures(folder, "").rows()}


def test_each_part_is_a_process_whose_figures_and_failure_are_lines(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(accelerator.PHASES, "truth", {"goldens": 75})
  monkeypatch.setitem(accelerator.PHASES, "mini", {"mini": 0.0})
  goldens = tmp_path / "goldens"
  goldens.mkdir()
  (goldens / "broken.npz").write_bytes(b"no golden")
  given = ["--output", str(tmp_path), "--phases", "facts,truth,mini", "--goldens", str(goldens)]
  accelerator.main(given)
  found = rows(tmp_path)
  assert found["facts", "device"] == jax.devices()[0].device_kind
  assert found["facts", "product"] > 0
  assert f"jax {jax.__version__}" in found["facts", "versions"]
  assert "exit code 2" in found["goldens", "failed"]
  assert "broken.npz" in found["goldens", "failed"]
  assert found["mini", "failed"] == "no time left"
  table = capsys.readouterr().out.splitlines()
  assert f"| mini | failed | {found['mini', 'failed']} |" in table


PARENT = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
pathlib.Path({there!r}).write_text(str(child.pid))
child.wait()
"""

MEASURING = """
import accelerator
accelerator.__file__ = {script!r}
accelerator.main(["--output", {output!r}, "--phases", "mini"])
"""


@pytest.fixture
def parent(tmp_path):
  """A script in the place of a part, and the file where it writes its child's process number."""
  script, there = tmp_path / "part.py", tmp_path / "child"
  script.write_text(PARENT.format(there=str(there)))
  return script, there


def waited(done):
  """Whether something is so within some seconds."""
  for _ in range(200):
    if done():
      return True
    time.sleep(0.1)
  return False


def gone(process):
  """Whether a process has ended; its entry stays until the first process collects it."""
  state = Path(f"/proc/{process}/stat")
  return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_part_that_takes_too_long_ends_with_all_that_it_has_started(parent, monkeypatch):
  script, there = parent
  monkeypatch.setattr(accelerator, "__file__", str(script))
  options = argparse.Namespace(output=script.parent, goldens=None, tiny=True)
  assert accelerator.started("mini", options, 5.0) == "not done in 5 s"
  assert waited(lambda: gone(there.read_text()))


def test_a_part_ends_with_the_program_that_was_told_to_end(parent):
  script, there = parent
  program = MEASURING.format(script=str(script), output=str(script.parent / "out"))
  whole = {"PYTHONPATH": os.pathsep.join(sys.path)}
  with subprocess.Popen([sys.executable, "-c", program], env=os.environ | whole) as measuring:
    assert waited(lambda: there.exists() and there.read_text())
    measuring.terminate()
    assert measuring.wait(20) == 128 + signal.SIGTERM
  assert waited(lambda: gone(there.read_text()))


def on_gpu(folder, *arguments, **environment):
  """Exit code and stderr of launch/superni_on_gpu.sh, started in a folder."""
  command = ["bash", str(Path(__file__).parents[1] / "launch/superni_on_gpu.sh"), *arguments]
  done = subprocess.run(
    command,
    cwd=folder,
    env=os.environ | environment,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (["model", "data", "out"], "usage: launch/superni_on_gpu.sh MODEL_FOLDER"),
    (["model", "data", "out", "10m"], "SECONDS 10m: must be a whole number from 31"),
    (["model", "data", "out", "60"], "model: has no config.json"),
    ([str(T5_MINI), "data", "out", "60"], "data: has no folder SuperNI"),
  ],
)
def test_the_script_of_a_gpu_refuses_what_cannot_be(arguments, line, tmp_path):
  code, said = on_gpu(tmp_path, *arguments)
  assert (code, line in said, said.count("\n")) == (2, True, 1)
  assert list(tmp_path.iterdir()) == []


def test_the_script_of_a_gpu_fails_if_a_run_has_failed_and_ends_where_one_is_refused(tmp_path):
  (tmp_path / "SuperNI/task1").mkdir(parents=True)
  run = [tmp_path, str(T5_MINI), ".", "out", "120"]
  choice = {"PYTHON": "false", "METHODS": "sapt epi", "SEEDS": "0"}
  code, said = on_gpu(*run, **choice)
  assert (code, said.count("failed: ")) == (1, 2)
  choice |= {"PYTHON": sys.executable}
  code, said = on_gpu(*run, **choice)
  assert (code, said.count("refused: sapt, seed 0: error: "), said.count("\n")) == (2, 1, 1)
  for wrong in ({"SEEDS": " "}, {"AT_ONCE": str(2**64)}, {"AT_ONCE": "0"}):
    code, said = on_gpu(*run, **choice | wrong)
    assert (code, said.count("\n")) == (2, 1)
    assert next(iter(wrong)) in said


def test_what_is_asked_for_wrongly_is_named(tmp_path):
  for more, message in (
    (["--phases", "facts,stepz"], "no phase 'stepz'"),
    (["--goldens", str(tmp_path)], "holds no"),
    (["--limit", "0"], "at least 1"),
    (["--part", "goldens", "--goldens", str(tmp_path)], "holds no"),
    (["--output", "/proc/x"], "--output /proc/x: no folder can be made there"),
  ):
    with pytest.raises(InputError, match=message):
      accelerator.main(["--output", str(tmp_path), *more])
  (tmp_path / "results.jsonl").write_text('{"part": "facts", "fig')
  with pytest.raises(InputError, match=r"results\.jsonl:1"):
    accelerator.main(["--output", str(tmp_path)])


@pytest.mark.parametrize("part", ["attention", "tiles", "llama 15", "answers t5-large"])
def test_a_part_measures_what_it_says(part, tmp_path, monkeypatch):
  monkeypatch.setattr(accelerator_parts, "NEW", 4)
  figures = Figures(tmp_path, "facts")
  figures.add("product", 2.0)
  figures.add("copy", 0.5)
  accelerator_parts.PARTS[part](Figures(tmp_path, part, tiny=True), None)
  found = {figure: value for (of, figure), value in rows(tmp_path).items() if of == part}
  numbers = [value for value in found.values() if not isinstance(value, str)]
  assert all(map(math.isfinite, numbers))
  if part == "attention":
    assert all(found[f"{form}, xla: off"] < 0.02 for form in ("T5-Large", "LLaMA, left"))
    assert "NVIDIA" in found["LLaMA, cudnn: refused"]
  elif part == "tiles":
    assert "interpret" in found["LLaMA, dq, (128, 32, 4, 3): refused"]
  elif part == "llama 15":
    assert found["share"] == pytest.approx(found["model"] / 2)
    assert found["model"] == pytest.approx(TINY.llama_step_gflops() / found["step"])
  else:
    assert min(found["tokens"], found["first token"]) > 0
    # A decoder of two layers with a head, in two bytes a number; keys and values of 34 places.
    width, inner, mlp = TINY.d_model, TINY.heads * TINY.d_kv, TINY.d_ff
    weights = 2 * (8 * width * inner + 3 * width * mlp + 3 * width) + width + width * TINY.vocab
    cache = 2 * TINY.batch * 34 * TINY.layers * inner
    assert found["floor of a token"] == pytest.approx(1e-9 * 2 * (weights + cache) / 0.5, rel=0.05)


def test_kernels_are_those_of_the_device(tmp_path, monkeypatch):
  """A profile of a CPU has no device: this one is made up."""

  class Trace:
    def __init__(self, folder, create_perfetto_trace):
      assert create_perfetto_trace
      events = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        *({"ph": "X", "name": name, "pid": 1, "dur": 3000} for name in ("gemm_1", "gemm_1", "exp")),
        {"ph": "X", "name": "host", "pid": 2, "dur": 999},
      ]
      with gzip.open(f"{folder}/perfetto_trace.json.gz", "wt") as out:
        json.dump({"traceEvents": events}, out)

    def __enter__(self):
      pass

    def __exit__(self, *_):
      pass

  monkeypatch.setattr(jax.profiler, "trace", Trace)
  calls = []
  add_kernels_of(Figures(tmp_path, "llama 15"), lambda: calls.append(1), 2)
  assert len(calls) == 2
  found = {figure: value for (_, figure), value in rows(tmp_path).items()}
  assert (found["kernels"], found["all kernels"]) == (1.5, pytest.approx(4.5))  # of a call
  assert found["kernels: products"] == found["kernel gemm_1"] == pytest.approx(2 / 3)
  assert found["kernels: fused loops, sums and others"] == pytest.approx(1 / 3)
  kept = json.loads((tmp_path / "llama_15.kernels.json").read_text())
  assert [(row["name"], row["number"]) for row in kept] == [("gemm_1", 1.0), ("exp", 0.5)]
