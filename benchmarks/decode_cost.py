"""What greedy decoding with a whole pool costs.

    python benchmarks/decode_cost.py --tasks 1,15 --json
    python benchmarks/decode_cost.py --tasks 1,15 --llama     a LLaMA with --layers layers of the
                                                              same sizes
    python benchmarks/decode_cost.py --tasks 1,15 --stacked   layers stay slices of stacked arrays

One batch is answered by a compiled program of the answerer's own (Answerer.answer_batch in
sapt_jax/evaluation/evaluate.py: pooled embeddings, mixture, encoder, cached decoder) on a random T5
in float32. No token ends an answer, so every row writes all --new tokens, and none could take its
place. --tgt has no meaning here.

One row per pool size:
    tasks         filled blocks
    s             median seconds to answer the batch; all_s: of every timed call
    tokens_per_s  batch * new / s
    peak_rss_mb   most memory that the process held, compiling included, in MiB
    compile_s     tracing, lowering and compiling the program
    gemm_gflops   rate of a float32 product of matrices, in the same process, in GFLOP/s
    read_gbytes   rate at which a product with a vector reads its matrix, in GB/s
    floor_s       seconds that the work and the bytes take at these rates (Sizes.answer_floor_s)
    share         floor_s / s
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial

import jax
import sizes
from step_cost import prepare

from sapt_jax import cli
from sapt_jax.evaluation.evaluate import Answerer


def measure(
  s: sizes.Sizes, new: int, llama: bool, stacked: bool, warmup: int, repeat: int, tasks: int
) -> sizes.Row:
  """The row of one pool size."""
  jax.config.update("jax_enable_compilation_cache", False)
  p = prepare(s, tasks, memory=1, llama=llama)
  answerer = Answerer(p.backbone, p.method, p.batcher, p.mesh, apart=False if stacked else None)
  given = {"params": p.backbone.params, "learned": p.learned, "batch": p.batch}
  given["rng"] = jax.random.key(0)
  began = time.perf_counter()
  answer = answerer.answer_batch.lower(max_new=new, choose=answerer.choose, **given).compile()
  compile_s = time.perf_counter() - began
  seconds = sizes.timed(lambda: jax.block_until_ready(answer(**given)), warmup, repeat)
  median, peak = statistics.median(seconds), sizes.peak_rss_mb()
  one, other, large, vector = (
    jax.numpy.ones(shape)
    for shape in (2 * (sizes.GEMM,), 2 * (sizes.GEMM,), 2 * (sizes.READ,), (sizes.READ,))
  )
  product = jax.jit(jax.numpy.matmul)
  rate = sizes.gemm_gflops(lambda: jax.block_until_ready(product(one, other)))
  read = sizes.read_gbytes(lambda: jax.block_until_ready(product(large, vector)))
  floor = s.answer_floor_s(new, rate, read, llama)
  return {
    "tasks": tasks,
    "s": median,
    "tokens_per_s": s.batch * new / median,
    "all_s": seconds,
    "peak_rss_mb": peak,
    "compile_s": compile_s,
    "gemm_gflops": rate,
    "read_gbytes": read,
    "floor_s": floor,
    "share": floor / median,
  }


def main(arguments: Sequence[str]) -> None:
  """Parses, measures, prints."""
  parser = sizes.parser(__doc__ or "", batch=32)
  sizes.add_number(parser, "--new", 50, "tokens that each row writes (default 50)")
  parser.add_argument(
    "--llama", action="store_true", help="a LLaMA of these sizes in place of the T5"
  )
  parser.add_argument(
    "--stacked",
    action="store_true",
    help="do not copy the weights of each layer to their own place",
  )
  options = parser.parse_args(arguments)
  s = sizes.sizes_of(options)
  one = partial(
    measure, s, options.new, options.llama, options.stacked, options.warmup, options.repeat
  )
  sizes.report(__file__, arguments, options, one)


if __name__ == "__main__":
  cli.run(main)
