"""The parts of accelerator.py: what each of them measures."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sizes
from accelerator_attention import add_kernels, add_tiles
from accelerator_profile import add_kernels_of

from sapt_jax.text_files import object_lines

if TYPE_CHECKING:
  from step_cost import Prepared

NAMED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "torch", "tokamax")
IN_A_ROW = 20
TINY = sizes.Sizes(2, 32, 16, 64, 128, 16, 2, 4, 512)
# Rows, lengths and shapes, as published: T5 v1.1 and LLaMA-2.
MODELS = {
  "t5-large": sizes.Sizes(32, 512, 64, 1024, 2816, 64, 24, 16),
  "t5-xxl": sizes.Sizes(32, 512, 64, 4096, 10240, 64, 24, 64),
  "llama": sizes.Sizes(8, 960, 64, 4096, 11008, 128, 32, 32, 32000),
}
ACCUMULATION = {"t5-xxl 15": 2, "t5-xxl 15 none": 4}
FORMS = ("none", "full", "unrolled")  # of the step, besides the usual one
TOP_K = 16  # blocks that an input uses of a pool of hundreds
NEW = 50  # tokens of an answer
ANSWERED = {"t5-large": 128, "llama": 32}  # rows


@dataclasses.dataclass(frozen=True)
class Figures:
  """The figures of one part, in the file that all parts add to."""

  folder: Path
  part: str
  tiny: bool = False  # the rehearsal on a CPU

  @property
  def file(self) -> Path:
    return self.folder / "results.jsonl"

  def add(self, figure: str, value: Any, unit: str = "") -> None:
    """Adds a line."""
    row = {"part": self.part, "figure": figure, "value": value} | ({"unit": unit} if unit else {})
    print(json.dumps(row), flush=True)
    with self.file.open("a", encoding="utf-8") as out:
      out.write(json.dumps(row) + "\n")

  def rows(self) -> list[dict[str, Any]]:
    """All lines so far.

    Raises:
      InputError: one of them is no figure.
    """
    if not self.file.is_file():
      return []
    return [row for _, row in object_lines(self.file, "part", "figure", "value")]

  def rate(self, figure: str) -> float:
    """A figure of the facts; NaN: it is not known."""
    known = [
      row["value"] for row in self.rows() if (row["part"], row["figure"]) == ("facts", figure)
    ]
    return known[-1] if known else math.nan


def find_platform() -> str:
  """JAX's name of it: cpu, gpu or tpu. Another process looks: this one leaves the device alone."""
  program = "import jax; print(jax.default_backend())"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  return done.stdout.split()[-1]


def waited(f: Callable[..., Any], *given: Any, **named: Any) -> Any:
  """What a function of arrays gives, when it is there."""
  import jax

  return jax.block_until_ready(f(*given, **named))


def median_s(call: Callable[[], object], warmup: int = 3, repeat: int = 8) -> float:
  """Seconds of a call that waits for its work."""
  return statistics.median(sizes.timed(call, warmup, repeat))


def facts(figures: Figures, _: Path | None) -> None:
  """What this is, and how fast."""
  import jax
  import jax.numpy as jnp

  figures.add("device", jax.devices()[0].device_kind)
  versions = {}
  for name in NAMED:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  figures.add("versions", " ".join(f"{name} {version}" for name, version in versions.items()))
  size, length = (256, 2**18) if figures.tiny else (8192, 2**30)
  a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
  product = jax.jit(jnp.matmul)
  seconds = median_s(lambda: in_a_row(lambda: product(a, b))) / IN_A_ROW
  figures.add("product", 2e-12 * size**3 / seconds, "TFLOP/s")
  x = jnp.zeros(length, jnp.bfloat16)
  copy = jax.jit(lambda x: x + 1)
  seconds = median_s(lambda: in_a_row(lambda: copy(x))) / IN_A_ROW
  figures.add("copy", 2e-12 * x.nbytes / seconds, "TB/s read and written")


def tiles(figures: Figures, _: Path | None) -> None:
  """The backward kernels of attention in several tiles."""
  add_tiles(figures.add, figures.tiny, lambda call: median_s(lambda: in_a_row(call)) / IN_A_ROW)


def in_a_row(call: Callable[[], Any]) -> None:
  """IN_A_ROW calls without a wait between them, so that the device never waits for the host; a
  card that rests is also slow at first.
  """
  import jax

  for _ in range(IN_A_ROW - 1):
    call()
  jax.block_until_ready(call())  # a device runs them in order


def goldens(figures: Figures, folder: Path | None) -> None:
  """Every array of the public code's goldens."""
  # No kernel is tried against others: the programs are many, small and run once.
  untried = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {untried}"
  import jax
  from parity import compare_all, load_golden

  jax.config.update("jax_default_matmul_precision", "highest")
  if folder is None:
    figures.add("skipped", "no --goldens")
    return
  for file in sorted(folder.glob("*.npz")):
    rows = list(compare_all(load_golden(file)))
    figures.add(f"{file.stem}: off", sum(not row.ok for row in rows), f"of {len(rows)} arrays")
    figures.add(f"{file.stem}: worst", max(row.max_rel for row in rows), "of the largest entry")


def attention(figures: Figures, _: Path | None) -> None:
  """Each kernel against plain XLA."""
  add_kernels(figures.add, figures.tiny, median_s)


def prepared(
  name: str, tasks: int, tiny: bool, memory: int = 20, form: str = "", **changed: int
) -> tuple[sizes.Sizes, Prepared]:
  """A random bfloat16 backbone of these sizes, made on the device, and a pool of so many blocks.

  Args:
    form: of FORMS; none of them: layers in a loop, their products kept.
    changed: sizes other than the published ones.
  """
  from step_cost import prepare

  s = dataclasses.replace(TINY if tiny else MODELS[name], **changed)
  top_k = TOP_K if tasks > TOP_K else 0
  remat = form if form in ("none", "full") else "dots"
  unroll = s.layers if form == "unrolled" else 1
  llama, dtype = name == "llama", "bfloat16"
  return s, prepare(
    s, tasks, memory, top_k=top_k, remat=remat, llama=llama, dtype=dtype, unroll=unroll
  )


def add_peak(figures: Figures) -> None:
  """The most of its memory that the device has had in use, if it tells."""
  import jax

  stats = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    figures.add("peak", stats["peak_bytes_in_use"] / 2**30, "GiB, making the weights included")


def steps(figures: Figures, _: Path | None) -> None:
  """One training step."""
  import step_cost

  from sapt_jax import config
  from sapt_jax.data.batches import Row
  from sapt_jax.plan.figures import memory_of
  from sapt_jax.plan.hlo import Module

  name, tasks, *forms = figures.part.split()
  s, p = prepared(name, int(tasks), figures.tiny, form="".join(forms))
  if name == "llama":  # it learns from rows that hold source and answer together
    import numpy as np

    pairs = zip(np.asarray(p.batch.source), np.asarray(p.batch.target), strict=True)
    rows = [Row(source.tolist(), target.tolist(), int(tasks) - 1) for source, target in pairs]
    p = dataclasses.replace(p, batch=p.batcher.collate(rows, joined=True))
  figures.add("attention", p.backbone.config.attention)
  parts = 1 if figures.tiny else ACCUMULATION.get(figures.part, 1)
  fit = config.Fit(batch_size=s.batch, accumulation=parts)
  call, compile_s, program = step_cost.step_of(p, fit)
  figures.add("compiled in", compile_s, "s")
  figures.add("planned", memory_of(program)["peak"] / 2**30, "GiB")
  seconds = median_s(call)
  figures.add("step", 1e3 * seconds, "ms")
  model = 1e-3 * (s.llama_step_gflops() if name == "llama" else s.step_gflops()) / seconds
  figures.add("model", model, "TFLOP/s")
  figures.add("share", model / figures.rate("product"), "of the product rate")
  add_peak(figures)
  add_kernels_of(figures, call, 3)
  rate = 1e-12 * Module(program.as_text() or "", 1, 1).work().flops / seconds
  figures.add("products", rate, "TFLOP/s, recomputed ones too")


def peer(figures: Figures, folder: Path | None) -> None:
  """torch_peer.py in one of its forms."""
  del folder
  form, *compiled = figures.part.split()[1:]
  tiny = figures.tiny
  s = TINY if tiny else MODELS["t5-large"]
  arguments = [f"--{field.name.replace('_', '-')}={value}" for field, value in fields_of(s)]
  arguments += ["--dtype", "bfloat16", "--attention", form, "--json"]
  arguments += ["--device", "cpu" if tiny else "cuda", *(["--compile"] if compiled else [])]
  program = str(Path(__file__).with_name("torch_peer.py"))
  calls = {"tasks 1": ["--tasks", "1"], "tasks 15": ["--tasks", "15"]}
  if not compiled:
    rows = TINY.batch if tiny else ANSWERED["t5-large"]
    calls["answers, tasks 15"] = ["--tasks", "15", "--decode", f"--batch={rows}", f"--new={NEW}"]
  for name, more in calls.items():
    command = [sys.executable, program, *arguments, *more, "--repeat", "4", "--warmup", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      figures.add(f"{name}: failed", " ".join(done.stderr.split())[-200:])
      continue
    row = json.loads(done.stdout.splitlines()[-1])
    if "s" in row:
      figures.add(name, row["tokens_per_s"], "tokens/s")
    else:
      figures.add(f"{name}: step", 1e3 * row["s_per_step"], "ms")
      figures.add(f"{name}: peak", row["peak_rss_mb"] / 1024, "GiB")


def fields_of(s: sizes.Sizes) -> list[tuple[Any, int]]:
  """The fields of sizes and their values."""
  return [(field, getattr(s, field.name)) for field in dataclasses.fields(s)]


def answers(figures: Figures, _: Path | None) -> None:
  """Greedy answers of a pool of 15 blocks."""
  import jax

  from sapt_jax.evaluation.evaluate import Answerer

  name = figures.part.split()[1]
  rows, length = (TINY.batch, TINY.src) if figures.tiny else (ANSWERED[name], 512)
  s, p = prepared(name, 15, figures.tiny, memory=1, batch=rows, src=length)
  make = partial(Answerer, p.backbone, p.method, p.batcher, p.mesh)
  answerer = make()
  given = {"params": p.backbone.params, "learned": p.learned, "batch": p.batch}
  given["rng"] = jax.random.key(0)
  took = {}
  for new in (1, NEW):
    answer = answerer.answer_batch.lower(max_new=new, choose=answerer.choose, **given).compile()
    took[new] = median_s(partial(waited, answer, **given), 1, 4)
  figures.add("first token", 1e3 * took[1], "ms")
  token = (took[NEW] - took[1]) / (NEW - 1)
  figures.add("token", 1e3 * token, "ms")
  figures.add("tokens", s.batch * NEW / took[NEW], "tokens/s")
  read = read_of_a_token(p.backbone.params, s, name == "llama")
  # A copy reads one half of what it moves and writes the other.
  floor = 1e-9 * read / figures.rate("copy")
  figures.add("floor of a token", floor, "ms, to read weights and cache")
  add_peak(figures)
  add_kernels_of(figures, partial(waited, answer, **given), 1)
  stacked = make(apart=False)
  answer = stacked.answer_batch.lower(max_new=NEW, choose=stacked.choose, **given).compile()
  seconds = median_s(partial(waited, answer, **given), 1, 4)
  figures.add("layers stacked: tokens", s.batch * NEW / seconds, "tokens/s")


def read_of_a_token(params: Any, s: sizes.Sizes, llama: bool) -> float:
  """Bytes of weights and of the cache that the token in the middle of an answer reads."""
  import jax

  def read(path: Any) -> bool:
    name = jax.tree_util.keystr(path)
    return "embedding" not in name and (llama or "encoder" not in name)

  leaves = jax.tree_util.tree_leaves_with_path(params)
  weights = sum(x.nbytes for path, x in leaves if read(path))
  places = s.batch * (s.src + NEW // 2)
  return weights + 2 * 2 * s.layers * s.heads * s.d_kv * places


def mini(figures: Figures, _: Path | None) -> None:
  """The stream that comes with the library."""
  run = figures.folder / "mini"
  command = [sys.executable, "-m", "sapt_jax.train", "--output", str(run)]
  if figures.tiny:
    command += "--fit.steps 4 --generator.steps 4 --stream.tasks film_mood parcel_town".split()
    command += "--data.max-train 32 --data.max-test 8".split()
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(done.stderr[-300:])
  scores = json.loads((run / "scores.json").read_text())
  for name, value in scores["metrics"].items():
    figures.add(name, value)
  figures.add("wall", scores["wall_s"], "s")
  log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  costs = [row for row in log if "compile_s" in row]
  figures.add("compiling", sum(row["compile_s"] for row in costs), "s")
  figures.add("programs", sum(row["compilations"] + row["from_cache"] for row in costs))


PARTS: dict[str, Callable[[Figures, Path | None], None]] = {
  "facts": facts,
  "goldens": goldens,
  "attention": attention,
  "tiles": tiles,
  **dict.fromkeys(("t5-large 1", "t5-large 15", "t5-large 256", "t5-xxl 15", "llama 15"), steps),
  **dict.fromkeys((f"t5-large {blocks} {form}" for blocks in (1, 15) for form in FORMS), steps),
  "t5-xxl 15 none": steps,
  **dict.fromkeys(("peer eager", "peer sdpa", "peer sdpa compiled"), peer),
  **dict.fromkeys(("answers t5-large", "answers llama"), answers),
  "mini": mini,
}
