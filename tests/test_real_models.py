"""Real models against Hugging Face, on real text: the folders that SAPT_JAX_MODELS names.

SAPT_JAX_MODELS=SMOLLM2_FOLDER:GEMMA3_FOLDER pytest tests/test_real_models.py
"""

import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

from sapt_jax.backbones import hf
from sapt_jax.evaluation.decode import generate

FOLDERS = [name for name in os.environ.get("SAPT_JAX_MODELS", "").split(os.pathsep) if name]
ROOT = Path(__file__).resolve().parent.parent
NEW = 20


@pytest.fixture(scope="module", params=FOLDERS or [""], ids=lambda name: Path(name or "none").name)
def folder(request):
  if not request.param:
    pytest.skip("no real model here: name folders in SAPT_JAX_MODELS (benchmarks/make_gemma3.py)")
  return request.param


def texts():
  """Token-rich paragraphs of unlike lengths."""
  paragraphs = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")
  return [paragraphs[1], paragraphs[5], " ".join(paragraphs[1:8])]


def test_logits_and_greedy_answers_are_those_of_hugging_face(folder, torch):
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
  batch = tokenizer(texts(), padding=True, return_tensors="pt")
  with torch.no_grad():
    written = theirs.generate(**batch, max_new_tokens=NEW, do_sample=False)
    answers = written[:, batch["input_ids"].shape[1] :]
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, answers.shape[1]), value=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(written, attention_mask=mask, position_ids=places).logits.numpy()
    expected = expected[:, -answers.shape[1] - 1 : -1]

  ours = hf.load_backbone(folder)
  source, target = (x.numpy().astype(np.int32) for x in (batch["input_ids"], answers))
  there = batch["attention_mask"].numpy().astype(bool)
  with jax.default_matmul_precision("highest"):
    apply = jax.jit(partial(ours.model.apply, {"params": ours.params}))
    logits = np.asarray(apply(source, there, target, np.ones(target.shape, bool)))
    found = np.asarray(
      jax.jit(partial(generate, ours.model), static_argnums=4)(
        ours.params, source, there, None, target.shape[1]
      )
    )
  assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
  for one, other in zip(found, target, strict=True):
    ends = np.flatnonzero(other == ours.config.eos_id)
    length = ends[0] + 1 if ends.size else len(other)
    np.testing.assert_array_equal(one[:length], other[:length])
