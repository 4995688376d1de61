"""SAPT-LoRA written plainly on Hugging Face's torch T5, as the public PyTorch code computes it, to
be measured beside sapt_jax.

    python benchmarks/torch_peer.py --tasks 1,2,4,8,15 --json       rows as of step_cost.py
    python benchmarks/torch_peer.py --decode --tasks 1,15 --json    rows as of decode_cost.py (its
                                                                    batch is 32 too)
    python benchmarks/torch_peer.py --tasks 1,15 --device cuda --dtype bfloat16 --attention sdpa \
      --compile                                                     in the forms of a GPU

What the public code (circle-hit/SAPT) does, and so does this: at every q and v projection each
block's full-width output is computed, those of earlier blocks without gradient, all are stacked and
then summed by the mixture; reflection embeds and pools a batch of pseudo inputs of every earlier
task anew at every step, with a backward pass each; AdamW trains the newest block, its key and the
query projection. Everything else is the library's: the loss, the key-value cache, the attention
kernel that it chooses, and one thread per core. It computes what sapt_jax computes with
method.reference_quirks (a test holds the two together), less the gradient that sapt_jax sends
through earlier blocks by default. compile_s is 0: what --compile takes falls to --warmup. With
--dtype bfloat16 the frozen weights are, what is learned is float32, and autocast chooses for each
product. On a GPU peak_rss_mb is the most memory that PyTorch held there. Needs PyTorch: pip install
-e '.[torch]'.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import sizes

from sapt_jax import cli

if TYPE_CHECKING:
  import torch

ALPHA = 32  # LoRA's scale is alpha / rank
BOTTLENECK = 100  # width between the two matrices of the query projection
REFLECTION_WEIGHT = 0.5


class Peer:
  """A frozen random T5 with a pool of `tasks` random blocks, the last of which is learned.

  Attributes:
    model: Hugging Face's module; its q and v projections have the pool's sum added by a hook.
    factors: name of each such projection -> A (rank, D_in) and B (D_out, rank) of every block,
      oldest first.
    keys: (D,) of every task, oldest first.
    project: e -> q, up to the LayerNorm.
    pseudo, targets: of each earlier task, token ids (B, L) and the mean mixture (tasks,) that it is
      held to.
  """

  def __init__(
    self,
    s: sizes.Sizes,
    tasks: int,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "eager",
  ):
    import torch
    import transformers

    torch.manual_seed(seed)
    # Its generate() knows no end token outside the vocabulary; min_new_tokens holds this one back.
    given: dict[str, Any] = s.t5() | {"dropout_rate": 0.0, "attn_implementation": attention}
    config = transformers.T5Config(**given)
    with torch.device(device):
      self.model: Any = transformers.T5ForConditionalGeneration(config)
    head = torch.randn(s.vocab, s.d_model) / math.sqrt(s.d_model)
    self.model.lm_head.weight = torch.nn.Parameter(head)  # transformers 5 ties it
    self.model.requires_grad_(False)
    torch.nn.Module.to(self.model, device, getattr(torch, dtype))
    self.sizes, self.scaling, self.device = s, ALPHA / s.rank, device
    self.mixed = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    self.factors: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for name, module in self.model.named_modules():
      if name.rsplit(".", 1)[-1] in ("q", "v"):
        d_in, d_out = module.in_features, module.out_features
        a = self._learned([torch.randn(s.rank, d_in) / math.sqrt(d_in) for _ in range(tasks)])
        b = self._learned([0.02 * torch.randn(d_out, s.rank) for _ in range(tasks)])
        self.factors[name] = a, b
        module.register_forward_hook(partial(self._add_blocks, a, b))
    self.keys = self._learned([torch.rand(s.d_model) * 2 - 1 for _ in range(tasks)])
    self.project = torch.nn.Sequential(
      torch.nn.Linear(s.d_model, BOTTLENECK, bias=False),
      torch.nn.Linear(BOTTLENECK, s.d_model, bias=False),
      torch.nn.SiLU(),
      torch.nn.LayerNorm(s.d_model),
    ).to(device)
    self.source, self.target, *self.pseudo = (
      torch.randint(2, s.vocab, (s.batch, length)).to(device)
      for length in (s.src, s.tgt, *[s.src] * (tasks - 1))
    )
    mixtures = [torch.softmax(torch.randn(count), dim=0) for count in range(1, tasks)]
    padded = [torch.nn.functional.pad(x, (0, tasks - len(x))) for x in mixtures]
    self.targets = [x.to(device) for x in padded]
    self.mixed_by = torch.zeros(s.batch, tasks, device=device)
    newest = [factors[-1] for site in self.factors.values() for factors in site]
    trained = [self.keys[-1], *self.project.parameters(), *newest]
    self.optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.0)

  def _learned(self, stack: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors on the device; the last of them is trained."""
    stack = [x.to(self.device) for x in stack]
    stack[-1].requires_grad_()
    return stack

  def _add_blocks(
    self, a: list[torch.Tensor], b: list[torch.Tensor], _: Any, inputs: Any, out: torch.Tensor
  ) -> torch.Tensor:
    """A projection's output (B, L, D_out) with the blocks' weighted sum; builds the
    (B, T, L, D_out) tensor of the public code.
    """
    import torch

    x = inputs[0]
    with torch.no_grad():
      pairs = zip(a[:-1], b[:-1], strict=True)
      earlier = [(x @ a_i.T) @ b_i.T * self.scaling for a_i, b_i in pairs]
    blocks = torch.stack([*earlier, (x @ a[-1].T) @ b[-1].T * self.scaling], dim=1)
    return out + torch.matmul(self.mixed_by[:, None], blocks.flatten(2)).view_as(out)

  def scores(self, tokens: torch.Tensor) -> torch.Tensor:
    """(B, L) token ids -> (B, T), what the mixture is the softmax of."""
    import torch

    pooled = self.model.shared(tokens).max(dim=1).values
    return self.project(pooled) @ torch.stack(self.keys).T / math.sqrt(self.sizes.d_model)

  def cross_entropy(self) -> torch.Tensor:
    """Mean over the batch's answer tokens, in nats."""
    import torch

    self.mixed_by = torch.softmax(self.scores(self.source), dim=1)
    mask = torch.ones_like(self.source)
    return self.model(input_ids=self.source, attention_mask=mask, labels=self.target).loss

  def divergence(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean KL of one earlier task's pseudo inputs."""
    import torch

    scores = torch.log_softmax(self.scores(tokens), dim=1)
    return torch.nn.functional.kl_div(scores, target.expand_as(scores), reduction="batchmean")

  def backward(self) -> tuple[float, float]:
    """Adds all gradients up; returns the cross-entropy and the sum of the divergences."""
    loss, reflection = self.cross_entropy(), 0.0
    loss.backward()
    for tokens, target in zip(self.pseudo, self.targets, strict=True):
      divergence = self.divergence(tokens, target)
      (REFLECTION_WEIGHT * divergence).backward()
      reflection += divergence.item()
    return loss.item(), reflection

  def step(self) -> None:
    """One update."""
    self.optimizer.zero_grad()
    with self.mixed:
      self.backward()
    self.optimizer.step()
    self.wait()

  def wait(self) -> None:
    """Until the device has done what it was told."""
    import torch

    if self.device == "cuda":
      torch.cuda.synchronize()

  def answer(self, new: int) -> torch.Tensor:
    """Greedy answers (B, new) to the batch; every row writes all of them."""
    import torch

    with torch.inference_mode(), self.mixed:
      self.mixed_by = torch.softmax(self.scores(self.source), dim=1)
      ids = self.model.generate(
        input_ids=self.source,
        attention_mask=torch.ones_like(self.source),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
      )
    self.wait()
    return ids[:, 1:]  # without the start token


def measure(options: Any, tasks: int) -> sizes.Row:
  """The row of one pool size."""
  import torch

  tells_own = hasattr(os, "sched_getaffinity")
  torch.set_num_threads(len(os.sched_getaffinity(0)) if tells_own else os.cpu_count() or 1)
  s, device = sizes.sizes_of(options), options.device
  peer = Peer(s, tasks, 0, device, options.dtype, options.attention)
  if options.compile:
    peer.model = torch.compile(peer.model)
  if options.no_reflection:
    peer.pseudo, peer.targets = [], []
  call = partial(peer.answer, options.new) if options.decode else peer.step
  seconds = sizes.timed(call, options.warmup, options.repeat)
  median, memory = statistics.median(seconds), sizes.peak_rss_mb()
  if device == "cuda":
    memory = torch.cuda.max_memory_allocated() / 2**20
  if options.decode:
    return {
      "tasks": tasks,
      "s": median,
      "tokens_per_s": s.batch * options.new / median,
      "all_s": seconds,
      "peak_rss_mb": memory,
      "compile_s": 0.0,
    }
  kind: Any = {"device": device, "dtype": getattr(torch, options.dtype)}
  left, right = (torch.randn(sizes.GEMM, sizes.GEMM, **kind) for _ in range(2))

  def product() -> None:
    torch.matmul(left, right)
    peer.wait()

  return {
    "tasks": tasks,
    "s_per_step": median,
    "all_s": seconds,
    "peak_rss_mb": memory,
    "compile_s": 0.0,
    "gemm_gflops": sizes.gemm_gflops(product),
    "model_gflops": s.step_gflops(),
  }


def main(arguments: Sequence[str]) -> None:
  """Parses, measures, prints."""
  decode = "--decode" in arguments
  parser = sizes.parser(__doc__ or "", batch=32 if decode else 8)
  parser.add_argument(
    "--decode", action="store_true", help="greedy decoding in place of a training step"
  )
  new = "with --decode: tokens that each row writes (default 50)"
  sizes.add_number(parser, "--new", 50, new)
  parser.add_argument("--no-reflection", action="store_true", help="leave ARM out of the step")
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
  parser.add_argument("--compile", action="store_true", help="torch.compile of the model")
  options = parser.parse_args(arguments)
  sizes.report(__file__, arguments, options, partial(measure, options))


if __name__ == "__main__":
  cli.run(main)
