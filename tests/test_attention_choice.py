"""Which implementation of attention a run takes, and why not another."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
import tiny

from sapt_jax.backbones import attention
from sapt_jax.backbones.attention import asked, tokamax, trial
from sapt_jax.errors import InputError
from tests.kernels_here import put_here

K = 16


@pytest.fixture
def as_here(monkeypatch):
  put_here(monkeypatch)


BFLOAT16 = attention.Asked(jnp.bfloat16, 128)


@pytest.mark.parametrize(
  ("by", "change", "reason"),
  [
    ("tokamax", {"platform": "cpu"}, "NVIDIA GPUs alone"),
    ("tokamax", {"dtype": jnp.float32}, "bfloat16, not float32"),
    ("tokamax", {"dropout": 0.1}, "drops no weights"),
    ("tokamax", {"cap": 50.0}, "no caps"),
    ("tokamax", {"head_width": 80}, "not 80"),
    ("cudnn", {"platform": "tpu"}, "NVIDIA GPUs alone"),
    ("cudnn", {"platform": "gpu"}, "can be run but not planned"),
    ("cudnn", {"dtype": jnp.float32}, "bfloat16, not float32"),
    ("cudnn", {"dropout": 0.1}, "drops no weights"),
    ("cudnn", {"biased": True}, "gradient of the frozen position bias"),
    ("cudnn", {"cap": 50.0}, "caps no scores"),
    ("cudnn", {"head_width": 256}, "at most 128, not 256"),
    ("splash", {"platform": "gpu"}, "TPUs alone"),
    ("splash", {"dropout": 0.1}, "drops no weights"),
    ("splash", {"biased": True}, "no position bias"),
    ("splash", {"window": attention.SOME}, "same in all layers"),
    ("splash", {"head_width": 64}, "multiple of 128 wide, not 64"),
  ],
)
def test_a_refusal_names_its_reason(by, change, reason, monkeypatch):
  monkeypatch.setattr(asked, "needs_library", lambda *what: None)
  attention.KERNELS[by].check(BFLOAT16)
  with pytest.raises(NotImplementedError, match=reason):
    attention.KERNELS[by].check(BFLOAT16._replace(**change))
  where = {"platform": "tpu" if by == "splash" else "gpu"}
  with pytest.raises(
    InputError, match=rf"backbone\.attention {by}: .*{reason}.*; give .*xla, or auto"
  ):
    attention.choose(by, BFLOAT16._replace(**where | change))


def test_a_missing_library_is_named_with_the_way_to_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"tokamax: .*pip install 'sapt-jax\[gpu\]'"):
    attention.choose("tokamax", BFLOAT16._replace(platform="gpu"))


def test_auto_takes_the_first_that_can(monkeypatch):
  monkeypatch.setattr(asked, "needs_library", lambda *what: None)
  on = {name: BFLOAT16._replace(platform=name) for name in ("cpu", "gpu", "tpu")}
  assert [attention.choose("auto", what)[0] for what in on.values()] == ["xla", "tokamax", "splash"]
  t5 = on["tpu"]._replace(biased=True)
  name, reasons = attention.choose("auto", t5)
  assert name == "xla"
  assert "splash: it adds no position bias" in reasons
  with pytest.raises(InputError, match=r"backbone\.attention 'flash': must be one of auto, xla"):
    attention.choose("flash", t5)


def on(by, **changes):
  """What a model asks for on devices that have the kernel, of no more than a CPU can run."""
  platform = "tpu" if by == "splash" else "gpu"
  return attention.Asked(jnp.float32, 128 if by == "splash" else K, platform=platform, **changes)


@pytest.mark.parametrize("window", [0, 5, attention.SOME])
@pytest.mark.parametrize("by", attention.KERNELS)
def test_a_kernel_that_computes_what_it_should_is_taken_after_a_trial(by, window, as_here):
  if by == "splash" and window == attention.SOME:
    pytest.skip("splash refuses it")
  assert trial.reason_against(attention.KERNELS[by], by, on(by, window=window)) == ""


def test_one_that_fails_or_computes_something_else_is_not(as_here, monkeypatch):
  t5 = on("tokamax", biased=True)
  assert attention.choose("tokamax", t5, here=True) == ("tokamax", "")
  right = tokamax.attend
  wrong = {
    "other answers of a source": lambda call: 1.1 * right(call),
    "other dq of a source": lambda call: right(call._replace(q=jax.lax.stop_gradient(call.q))),
    "other answers of an answer": lambda call: (
      right(call._replace(seen=attention.Seen())) if call.seen.causal else right(call)
    ),
    "fails here (ZeroDivisionError": lambda call: 1 // 0,
  }
  for words, attend in wrong.items():
    monkeypatch.setattr(tokamax, "attend", attend)
    trial._reason.cache_clear()
    name, reasons = attention.choose("auto", t5, here=True)
    assert (name, words in reasons) == ("xla", True), reasons
    with pytest.raises(InputError, match="give xla, or auto"):
      attention.choose("tokamax", t5, here=True)
    assert attention.choose("tokamax", t5) == ("tokamax", "")  # for a device that is not here
  trial._reason.cache_clear()


def test_a_model_that_is_asked_for_what_it_cannot_have_is_not_built():
  with pytest.raises(InputError, match=r"backbone\.attention splash: it adds no position bias"):
    tiny.hf.build_model(tiny.T5, "bfloat16", attention="splash", platform="tpu")
  model = tiny.hf.build_model(tiny.T5, attention="auto")
  assert model.config.attention == "xla"
