"""What the speed benchmarks share: sizes of a random T5, its work by formula, a process per pool
size, timing, printing. Imports no JAX.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sapt_jax.errors import InputError

# A step allocates and frees hundreds of MB; in small pages, the kernel's handing them out anew each
# time costs a sixth of it. A C library other than glibc takes no notice.
TUNED = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Rows and columns of the float32 product whose rate is the yardstick: enough for the full rate.
GEMM = 2048
READ = 1 << 13  # side of the matrix that is read for the rate of memory: 256 MiB
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """One random T5 (v1.1: gated gelu, a head of its own; as many decoder as encoder layers),
  its batch and its pool.
  """

  batch: int = 8  # rows
  src: int = 256  # tokens of each source; none is padding
  tgt: int = 32  # tokens of each answer
  d_model: int = 512  # model width
  d_ff: int = 1024  # mlp width
  d_kv: int = 64  # width of a head
  layers: int = 6  # of the encoder, and as many of the decoder
  heads: int = 8  # of every attention
  vocab: int = 32128  # vocabulary
  rank: int = 4  # of a LoRA block

  def t5(self) -> dict[str, Any]:
    """config.json of this model."""
    return {
      "model_type": "t5",
      "vocab_size": self.vocab,
      "d_model": self.d_model,
      "d_kv": self.d_kv,
      "d_ff": self.d_ff,
      "num_layers": self.layers,
      "num_decoder_layers": self.layers,
      "num_heads": self.heads,
      "feed_forward_proj": "gated-gelu",
      "tie_word_embeddings": False,
      "pad_token_id": 0,
      "eos_token_id": 1,
      "decoder_start_token_id": 0,
    }

  def llama(self) -> dict[str, Any]:
    """config.json of a LLaMA with as many layers as this T5's decoder, and a key head for every
    head.
    """
    return {
      "model_type": "llama",
      "vocab_size": self.vocab,
      "hidden_size": self.d_model,
      "head_dim": self.d_kv,
      "intermediate_size": self.d_ff,
      "num_hidden_layers": self.layers,
      "num_attention_heads": self.heads,
      "num_key_value_heads": self.heads,
      "tie_word_embeddings": False,
      "pad_token_id": 0,
      "eos_token_id": 1,
    }

  def step_gflops(self) -> float:
    """Work of one training step of the backbone alone,
    in GFLOP (10^9 operations, a multiply-add is two).

    Counted: products with frozen weights, forward and the gradient of their input, but not of the
    weights; both products of every attention core, forward and both their gradients, the causal
    half that is masked included; vocabulary logits. Not counted: the pool (LoRA products, mixture,
    reflection), which is the overhead that is to be seen in the time; norms, softmax, activations,
    the loss. The lowest layers' gradients of q, k and v by their input lead to frozen embeddings
    only; they are counted (1.6 % at the defaults).
    """
    inner, source, target = self.heads * self.d_kv, self.batch * self.src, self.batch * self.tgt
    projection, mlp = self.d_model * inner, 3 * self.d_model * self.d_ff  # multiply-adds of a token
    encoder = source * (4 * projection + mlp)
    # Self q k v o, cross q o; cross k v of every source token.
    decoder = target * (6 * projection + mlp) + source * 2 * projection
    cores = 2 * inner * self.batch * (self.src**2 + self.tgt**2 + self.tgt * self.src)
    frozen = self.layers * (encoder + decoder) + target * self.d_model * self.vocab
    return 2e-9 * (2 * frozen + 3 * self.layers * cores)

  def llama_step_gflops(self) -> float:
    """The same of a LLaMA, whose rows hold source and answer together."""
    inner, length = self.heads * self.d_kv, self.src + self.tgt
    layer = 4 * self.d_model * inner + 3 * self.d_model * self.d_ff
    head = self.tgt * self.d_model * self.vocab
    cores = 2 * inner * self.batch * length**2
    frozen = self.batch * (self.layers * length * layer + head)
    return 2e-9 * (2 * frozen + 3 * self.layers * cores)

  def answer_floor_s(self, new: int, gflops: float, gbytes: float, llama: bool) -> float:
    """Least seconds to answer a batch with `new` tokens a row in float32, where products reach so
    many GFLOP/s and so many GB/s are read: the sources at the rate of products; of each token the
    cache at the rate of reading, and the weights at that or at the rate of products, whichever
    takes longer. Attention is counted as in step_gflops; not counted: the pool, norms, softmax,
    activations, and the logits of a LLaMA's first token.
    """
    inner, source = self.heads * self.d_kv, self.batch * self.src
    projection, mlp = self.d_model * inner, 3 * self.d_model * self.d_ff
    crossed = 0 if llama else 2 * projection  # cross k v of every source token; cross q o below
    cores = 2 * inner * self.batch * self.src**2
    sources = self.layers * (source * (4 * projection + mlp + crossed) + cores)
    weights = self.layers * (4 * projection + crossed + mlp) + self.d_model * self.vocab
    cache = self.layers * 2 * inner * self.batch * (self.src + new / 2)
    token = max(2e-9 * self.batch * weights / gflops, 4e-9 * weights / gbytes)
    token += 4e-9 * cache / gbytes
    return 2e-9 * sources / gflops + (new - llama) * token


class Parser(argparse.ArgumentParser):
  """Wrong options are an InputError."""

  def error(self, message: str) -> NoReturn:
    raise InputError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
  """An option's value that must be at least 1."""
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
  return int(text)


def add_number(made: argparse.ArgumentParser, name: str, default: int, help: str) -> None:
  """An option whose value is a number of at least 1."""
  made.add_argument(name, type=positive, default=default, metavar="N", help=help)


def pool_sizes(text: str) -> list[int]:
  """1,2,4 -> [1, 2, 4]."""
  return [positive(part) for part in text.split(",")]


def parser(description: str, **defaults: int) -> Parser:
  """The options that all of these programs have; `defaults` replaces some of Sizes'."""
  made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  made.add_argument(
    "--tasks",
    type=pool_sizes,
    default=[1, 2, 4, 8, 15],
    metavar="N,N,...",
    help="pool sizes: filled blocks, the newest of which is learned (default 1,2,4,8,15); "
    "each is measured in a process of its own",
  )
  for field in dataclasses.fields(Sizes):
    default = defaults.get(field.name, getattr(Sizes, field.name))
    add_number(made, f"--{field.name.replace('_', '-')}", default, f"default {default}")
  calls = "timed calls (default 10), after --warmup; the median counts"
  add_number(made, "--repeat", 10, calls)
  add_number(made, "--warmup", 2, "calls before that (default 2)")
  made.add_argument(
    "--json", action="store_true", help="a JSON line for each pool size in place of a table"
  )
  return made


def sizes_of(options: argparse.Namespace) -> Sizes:
  """The sizes among a program's options."""
  return Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})


def report(
  program: str, arguments: Sequence[str], options: argparse.Namespace, measure: Callable[[int], Row]
) -> None:
  """Prints a row for each pool size, each measured by this program started anew for it,
  in the environment TUNED.

  So no peak of memory, and nothing compiled or cached, is another's.
  """
  here = len(options.tasks) == 1 and TUNED.items() <= os.environ.items()
  for number, tasks in enumerate(options.tasks):
    row = measure(tasks) if here else measured_apart(program, arguments, tasks)
    if options.json:
      print(json.dumps(row), flush=True)
      continue
    shown = {name: value for name, value in row.items() if not isinstance(value, list)}
    if number == 0:
      print("  ".join(f"{name:>12}" for name in shown))
    print("  ".join(f"{value:>12.5g}" for value in shown.values()), flush=True)


def measured_apart(program: str, arguments: Sequence[str], tasks: int) -> Row:
  """The row that the same program prints for one pool size alone; its failure is this program's."""
  command = [sys.executable, program, *arguments, "--tasks", str(tasks), "--json"]
  tuned = os.environ | TUNED
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=tuned)
  if done.returncode:
    sys.exit(done.returncode)
  return json.loads(done.stdout.splitlines()[-1])


def timed(call: Callable[[], object], warmup: int, repeat: int) -> list[float]:
  """Seconds of each of `repeat` calls; a call must not return before its work is done."""
  return timed_in_turn([call], warmup, repeat)[0]


def timed_in_turn(
  calls: Sequence[Callable[[], object]], warmup: int, repeat: int
) -> list[list[float]]:
  """As timed, for several calls that take turns, so that a machine whose rate wanders is the same
  to all; one list of seconds for each.
  """
  seconds: list[list[float]] = [[] for _ in calls]
  for number in range(warmup + repeat):
    for call, taken in zip(calls, seconds, strict=True):
      began = time.perf_counter()
      call()
      if number >= warmup:
        taken.append(time.perf_counter() - began)
  return seconds


def gemm_gflops(product: Callable[[], object]) -> float:
  """The rate in GFLOP/s of a call that multiplies two GEMM x GEMM matrices: the median of ten."""
  return 2e-9 * GEMM**3 / statistics.median(timed(product, 2, 10))


def read_gbytes(product: Callable[[], object]) -> float:
  """The rate in GB/s of a call that multiplies a READ x READ matrix by a vector, and so reads each
  of its numbers once: the median of ten.
  """
  return 4e-9 * READ**2 / statistics.median(timed(product, 2, 10))


def peak_rss_mb() -> float:
  """The most memory that this process has held, in MiB.

  From the kernel's high-water mark of this program's memory where it is told: ru_maxrss starts at
  that of the parent process.
  """
  status = Path("/proc/self/status")
  if status.exists():
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (1024**2 if sys.platform == "darwin" else 1024)
