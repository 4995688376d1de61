"""SAPT on Hugging Face's torch modules, written from its formulas, quirks included: makes goldens
of any shape and pool size.

The arrays and their names are those of the goldens made with the authors' code (docs of
benchmarks/parity.py).
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import torch

SCALING = 32 / 4  # alpha / rank


class Attention(torch.nn.Module):
  """Query projection and keys, newest key first."""

  def __init__(self, width: int, tasks: int):
    super().__init__()
    self.prompt_key = torch.nn.Parameter(torch.rand(1, width) * 2 - 1)
    if tasks > 1:
      earlier = torch.rand(tasks - 1, width) * 2 - 1
      self.previous_prompts_keys = torch.nn.Parameter(earlier, requires_grad=False)
    self.trans_input = torch.nn.Sequential(
      torch.nn.Linear(width, 100, bias=False),
      torch.nn.Linear(100, width, bias=False),
      torch.nn.SiLU(),
      torch.nn.LayerNorm(width),
    )
    torch.nn.init.normal_(self.trans_input[3].weight, mean=1.0, std=0.3)
    torch.nn.init.normal_(self.trans_input[3].bias, std=0.3)

  def forward(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (B, L, D), pads included -> query (B, D), scores (B, T)."""
    query, keys = self.trans_input(embedded.max(dim=1).values), self.prompt_key
    if hasattr(self, "previous_prompts_keys"):
      keys = torch.cat([keys, self.previous_prompts_keys])
    return query, query @ keys.T / math.sqrt(keys.shape[1])


class Mixed(torch.nn.Module):
  """A q or v projection with the mixed product of all blocks, newest first; earlier ones pass no
  gradient to their input.
  """

  def __init__(self, linear: torch.nn.Linear, tasks: int, rank: int, sapt: Sapt):
    super().__init__()
    self.linear, self.sapt = linear, [sapt]  # in a list, so that it is not registered as a part
    d_in, d_out = linear.in_features, linear.out_features
    a = [torch.randn(rank, d_in) / math.sqrt(d_in) for _ in range(tasks)]
    b = [0.05 * torch.randn(d_out, rank) for _ in range(tasks)]
    self.a = torch.nn.ParameterList(map(torch.nn.Parameter, a))
    self.b = torch.nn.ParameterList(map(torch.nn.Parameter, b))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y, mixture = self.linear(x), self.sapt[0].mixture
    for age, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
      with torch.set_grad_enabled(torch.is_grad_enabled() and age == 0):
        added = (x @ a.T) @ b.T * SCALING
      y = y + mixture[:, age, None, None] * added
    return y


class Sapt:
  """A frozen torch model with a pool of `tasks` random blocks."""

  def __init__(self, model: Any, tasks: int, rank: int = 4):
    self.model, self.tasks = model.requires_grad_(False), tasks
    self.only = not model.config.is_encoder_decoder
    self.prefix = "model" if self.only else "encoder"
    self.attention = Attention(model.config.hidden_size, tasks)
    self.mixed: dict[str, Mixed] = {}
    for path, module in list(model.named_modules()):
      if path.rsplit(".", 1)[-1] in (("q_proj", "v_proj") if self.only else ("q", "v")):
        parent, name = path.rsplit(".", 1)
        self.mixed[f"{parent}.{{}}_{name[0]}"] = mixed = Mixed(module, tasks, rank, self)
        setattr(model.get_submodule(parent), name, mixed)

  def parameters(self) -> dict[str, torch.nn.Parameter]:
    """Everything by the name that the authors' code has for it."""
    found = {
      path.replace(".linear.", "."): p
      for path, p in self.model.named_parameters()
      if ".a." not in path and ".b." not in path
    }
    for path, mixed in self.mixed.items():
      for age in range(self.tasks):
        earlier = f"{path.format('previous_lora_weights')}.{age - 1}"
        module = earlier if age else path.format("lora")
        found |= {f"{module}.lora_A": mixed.a[age], f"{module}.lora_B": mixed.b[age]}
    return found | {f"{self.prefix}.{path}": p for path, p in self.attention.named_parameters()}

  def trainable(self) -> dict[str, torch.nn.Parameter]:
    found = {name: p for name, p in self.parameters().items() if p.requires_grad}
    return {name: p for name, p in found.items() if "previous" not in name}

  def logits(self, given: dict[str, torch.Tensor]) -> Any:
    """The model's output on a batch, with the mixture of its prompts."""
    prompts = given["input_ids_wo_label" if self.only else "input_ids"]
    query, scores = self.attention(self.model.get_input_embeddings()(prompts))
    self.mixture = torch.softmax(scores, dim=1)
    self.seen = {"query": query, "key_attention_scores": scores}
    self.seen["key_attention_weights"] = self.mixture
    names = ["input_ids", "attention_mask", *([] if self.only else ["decoder_input_ids"])]
    return self.model(**{name: given[name] for name in names}, output_hidden_states=True)

  def gradient(self, loss: torch.Tensor, part: str) -> dict[str, np.ndarray]:
    trainable = self.trainable()
    values = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    named = zip(trainable, values, strict=True)
    return {f"{part}/grad/{name}": x.numpy() for name, x in named if x is not None}


def outputs(sapt: Sapt, part: str, given: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
  """A golden's arrays of one batch, but for decoding."""
  out = sapt.logits(given)
  logits, labels = out.logits, given["labels"]
  stacks = ["encoder_hidden_states", "decoder_hidden_states"]
  if sapt.only:
    logits, labels, stacks = logits[:, :-1], labels[:, 1:], ["hidden_states"]
  cross_entropy = torch.nn.functional.cross_entropy
  loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
  found = sapt.seen | {"loss": loss, "logits": out.logits}
  for stack in stacks:
    found |= {f"{stack}/{i}": x for i, x in enumerate(out[stack])}
  arrays = {f"{part}/out/{name}": x.detach().numpy() for name, x in found.items()}
  return arrays | sapt.gradient(loss, part)


@torch.no_grad()
def decoded(
  sapt: Sapt, part: str, given: dict[str, torch.Tensor], max_new: int, eos: int, pad: int
) -> dict[str, np.ndarray]:
  """Greedily decoded ids and their margins, by running the whole sequence anew for each token."""
  rows = len(given["labels"])
  ids = given["input_ids_wo_label"] if sapt.only else torch.zeros((rows, 1), dtype=torch.long)
  mask, ended = given.get("attention_mask_wo_label"), torch.zeros(rows, dtype=torch.bool)
  margins = []
  for _ in range(max_new):
    longer = {"input_ids": ids, "attention_mask": mask} if sapt.only else {"decoder_input_ids": ids}
    best = sapt.logits(given | longer).logits[:, -1].topk(2)
    margins.append(best.values[:, 0] - best.values[:, 1])
    token = torch.where(ended, pad, best.indices[:, 0])
    ids, ended = torch.cat([ids, token[:, None]], dim=1), ended | (token == eos)
    mask = None if mask is None else torch.cat([mask, torch.ones_like(token[:, None])], dim=1)
  return {
    f"{part}/out/generated_ids": ids.numpy(),
    f"{part}/out/generated_margin": torch.stack(margins, dim=1).numpy(),
  }


def replayed(
  sapt: Sapt, part: str, tokens: torch.Tensor, labels: torch.Tensor, prompts: torch.Tensor | None
) -> dict[str, np.ndarray]:
  """A golden's arrays of one earlier task's pseudo inputs."""

  def divergence(ids: torch.Tensor) -> torch.Tensor:
    scores = sapt.attention(sapt.model.get_input_embeddings()(ids))[1]
    target = labels.expand(len(ids), -1)
    log_mixture = torch.log_softmax(scores, dim=1)
    return torch.nn.functional.kl_div(log_mixture, target, reduction="batchmean")

  kl = divergence(tokens)
  arrays = {
    f"{part}/in/input_ids": tokens.numpy(),
    f"{part}/in/replay_labels": labels.numpy(),
    f"{part}/out/kl": kl.detach().numpy(),
  }
  if prompts is not None:
    arrays |= {
      f"{part}/in/input_ids_wo_label": prompts.numpy(),
      f"{part}/out/kl_if_prompt_only": divergence(prompts).detach().numpy(),
    }
  return arrays | sapt.gradient(kl, part)


def batch(sapt: Sapt, rng: np.random.Generator, padded: bool, pad: int) -> dict[str, torch.Tensor]:
  """Three random examples, with or without padding."""
  sources, targets = ([9, 4, 14], [5, 2, 3]) if padded else ([10] * 3, [6] * 3)

  def draw(n: int) -> np.ndarray:
    return rng.integers(4, sapt.model.config.vocab_size, n)

  rows = [(draw(n), draw(m)) for n, m in zip(sources, targets, strict=True)]

  def pad_rows(parts: list[np.ndarray], fill: int) -> torch.Tensor:
    padded = np.full((len(parts), max(map(len, parts))), fill)
    for row, part in zip(padded, parts, strict=True):
      row[slice(-len(part), None) if sapt.only else slice(len(part))] = part
    return torch.from_numpy(padded)

  ones = np.ones_like
  if not sapt.only:
    labels = pad_rows([y for _, y in rows], -100)
    decoder = torch.nn.functional.pad(labels[:, :-1], (1, 0)).clamp(min=0)
    return {
      "input_ids": pad_rows([x for x, _ in rows], pad),
      "attention_mask": pad_rows([ones(x) for x, _ in rows], 0),
      "labels": labels,
      "decoder_input_ids": decoder,
    }
  both = [np.concatenate(row) for row in rows]
  return {
    "input_ids": pad_rows(both, pad),
    "attention_mask": pad_rows([ones(x) for x in both], 0),
    "labels": pad_rows([np.concatenate([np.full_like(x, -100), y]) for x, y in rows], -100),
    "input_ids_wo_label": pad_rows([x for x, _ in rows], pad),
    "attention_mask_wo_label": pad_rows([ones(x) for x, _ in rows], 0),
  }


def write_golden(
  path: pathlib.Path, model: Any, tasks: int, eos: int, pad: int, parts: tuple[str, ...]
) -> None:
  """Writes a golden of a torch model with a random pool of `tasks` blocks;
  batches but for "eq" are padded.
  """
  torch.manual_seed(0)
  rng, sapt = np.random.default_rng(0), Sapt(model, tasks)
  tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
  named = {name: p for name, p in sapt.parameters().items() if name not in tied}
  arrays = {f"param/{name}": p.detach().numpy() for name, p in named.items()}
  for part in parts:
    given = batch(sapt, rng, part != "eq", pad)
    arrays |= {f"{part}/in/{name}": x.numpy() for name, x in given.items()}
    arrays |= outputs(sapt, part, given) | decoded(sapt, part, given, 6, eos, pad)
  for i in range(tasks - 1):
    given = batch(sapt, rng, i % 2 == 0, pad)
    labels = torch.nn.functional.pad(torch.softmax(torch.randn(i + 1), dim=0), (tasks - 1 - i, 0))
    tokens, prompts = given["input_ids"], given.get("input_ids_wo_label")
    arrays |= replayed(sapt, f"replay/{i}", tokens, labels, prompts)
  np.savez(path, **arrays)
