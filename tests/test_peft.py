"""Blocks out to peft and back: the same numbers on both sides."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sapt_jax import config
from sapt_jax.backbones import hf
from sapt_jax.config.learning import TARGETS
from sapt_jax.errors import InputError
from sapt_jax.interop import merged, peft
from sapt_jax.pet import blocks
from tests import torch_models
from tests.exchanged import PET, RAW, make_learned, make_method


@pytest.fixture(scope="module", params=list(RAW))
def backbone(request):
  return hf.build_model(RAW[request.param]).config


MISSING = "compares with peft, not installed here: pip install -e '.[torch]'"


@pytest.fixture(
  scope="module", params=["t5-v1.1", "umt5", "llama-gqa", "qwen3", "phi3", "gemma2", "gemma3"]
)
def pair(request, torch, tmp_path_factory):
  pytest.importorskip("peft", reason=MISSING)
  model = torch_models.make(request.param)
  folder = torch_models.save(model, tmp_path_factory.mktemp(request.param))
  return folder, hf.load_backbone(folder)


SOURCE, TARGET = (np.random.default_rng(3).integers(4, 96, (3, n)) for n in (8, 5))


def torch_model(folder):
  """A model folder as transformers loads it."""
  import transformers

  of_t5 = hf.read_config(folder)["model_type"].endswith("t5")
  kind = transformers.AutoModelForSeq2SeqLM if of_t5 else transformers.AutoModelForCausalLM
  return kind.from_pretrained(folder, attn_implementation="eager").eval()


def logits_in_peft(folder, adapter_folder, learning=False):
  """Logits with the adapter folder that peft loads."""
  import peft as their_peft

  base = torch_model(Path(folder))
  model = their_peft.PeftModel.from_pretrained(base, adapter_folder).train(learning)
  return torch_logits(model, base.config.is_encoder_decoder)


def torch_logits(model, has_encoder):
  """Logits of unpadded inputs."""
  import torch

  with torch.no_grad():
    if has_encoder:
      source, target = torch.from_numpy(SOURCE), torch.from_numpy(TARGET)
      mask = torch.ones_like(source)
      return model(input_ids=source, attention_mask=mask, labels=target).logits.numpy()
    both = torch.from_numpy(np.concatenate([SOURCE, TARGET], axis=1))
    logits = model(input_ids=both, attention_mask=torch.ones_like(both)).logits.numpy()
    return logits[:, -TARGET.shape[1] - 1 : -1]


def kept(shape):
  """Which entries (..., L, D) are kept, by place and feature alone: rows differ in length."""
  places, features = np.ogrid[: shape[-2], : shape[-1]]
  return np.broadcast_to((places * 3 + features * 7) % 5 >= 2, shape)


NOT_GATE = ("q", "k", "v", "o", "up", "down")
PETS = [
  config.Pet(rank=3, alpha=5),
  config.Pet(rank=3, alpha=5, scale="sqrt_rank", targets=TARGETS, dropout=0.4),
  config.Pet(kind="prompt", prompt_length=4),
]


# What peft and transformers warn of is among themselves.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("pet", PETS, ids=lambda pet: f"{pet.kind}-{len(pet.targets)}")
def test_a_block_and_a_fixed_mixture_do_the_same_in_peft(pair, pet, tmp_path):
  folder, ours = pair
  learned = make_learned(make_method(ours.config, pet))
  ones = [np.ones(x.shape, bool) for x in (SOURCE, TARGET)]

  @jax.jit
  def logits(mixture):
    adapters = blocks.mixed(learned.blocks, jnp.tile(mixture, (3, 1)), pet)
    return ours.model.apply({"params": ours.params}, SOURCE, ones[0], TARGET, ones[1], adapters)

  mixture = jnp.array([0.5, 0.2, 0.3, 0.0])
  peft.export_block(tmp_path / "block", blocks.read(learned.blocks, 1), pet, ours.config, folder)
  peft.export_mixture(tmp_path / "mixture", learned.blocks, mixture, pet, ours.config, folder)
  for export, weights in (("block", jnp.array([0.0, 1.0, 0.0, 0.0])), ("mixture", mixture)):
    theirs = logits_in_peft(folder, tmp_path / export)
    np.testing.assert_allclose(logits(weights), theirs, atol=1e-5)
    assert np.max(np.abs(logits(weights) - logits(0 * weights))) > 0.1  # the blocks do something
  if pet.kind == "lora":
    merged.export_merged(tmp_path / "merged", learned.blocks, mixture, pet, ours)
    model = torch_model(tmp_path / "merged")
    theirs = torch_logits(model, model.config.is_encoder_decoder)
    np.testing.assert_allclose(logits(mixture), theirs, atol=1e-5)
  again = peft.read_block(tmp_path / "block", pet, ours.config)
  jax.tree.map(np.testing.assert_array_equal, again, blocks.read(learned.blocks, 1))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", ["t5-v1.0", "llama-gqa"])
def test_dropout_stands_where_peft_has_it(name, torch, tmp_path, monkeypatch):
  """Both libraries drop what `kept` says: logits agree only if they drop at the same places."""
  pytest.importorskip("peft", reason=MISSING)
  folder = torch_models.save(torch_models.make(name, dropout_rate=0.0), tmp_path / "model")
  ours, pet = hf.load_backbone(folder), config.Pet(rank=3, alpha=5, targets=NOT_GATE, dropout=0.4)
  learned = make_learned(make_method(ours.config, pet))
  adapter = tmp_path / "t5" if "t5" in name else tmp_path / "llama"
  peft.export_block(adapter, blocks.read(learned.blocks, 1), pet, ours.config, name)

  def their_dropout(x, p=0.5, training=True, inplace=False):
    del inplace
    return x * torch.from_numpy(kept(tuple(x.shape)).copy()) / (1 - p) if training and p else x

  monkeypatch.setattr(torch.nn.functional, "dropout", their_dropout)
  monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.asarray(kept(shape)))
  ones = [np.ones(x.shape, bool) for x in (SOURCE, TARGET)]
  adapters = blocks.mixed(learned.blocks, jnp.tile(jnp.array([0.0, 1, 0, 0]), (3, 1)), pet)

  @jax.jit
  def logits(**rngs):
    return ours.model.apply(
      {"params": ours.params}, SOURCE, ones[0], TARGET, ones[1], adapters, **rngs
    )

  dropping = logits(rngs={"dropout": jax.random.key(0)})
  np.testing.assert_allclose(dropping, logits_in_peft(folder, adapter, True), atol=2e-5)
  np.testing.assert_allclose(logits(), logits_in_peft(folder, adapter), atol=1e-5)
  assert np.max(np.abs(dropping - logits())) > 0.1


def test_an_export_names_its_base_and_scale_and_never_overwrites(backbone, tmp_path):
  learned = make_learned(make_method(backbone))
  mixture, base = jnp.array([0.5, 0.5, 0.0, 0.0]), "some/base"
  peft.export_mixture(tmp_path, learned.blocks, mixture, PET, backbone, base)
  written = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (written["r"], written["lora_alpha"]) == (8, 64)
  assert written["base_model_name_or_path"] == base
  assert "0.5000 of block 2" in (tmp_path / "README.md").read_text()
  with pytest.raises(InputError, match="holds an adapter"):
    peft.export_block(tmp_path, blocks.read(learned.blocks, 0), PET, backbone, base)
  with pytest.raises(InputError, match="nothing to export"):
    peft.export_mixture(tmp_path / "b", learned.blocks, 0 * mixture, PET, backbone, base)


def adapter(folder, backbone, pet=PET, arrays=None, **values):
  """An adapter folder, in which some values of its configuration, or its arrays, are others."""
  learned = make_learned(make_method(backbone, pet))
  peft.export_block(folder, blocks.read(learned.blocks, 0), pet, backbone, "some/base")
  file = folder / "adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | values))
  if arrays is not None:
    weights = folder / "adapter_model.safetensors"
    changed = arrays(safetensors.numpy.load_file(weights))
    safetensors.numpy.save_file(changed, weights)
  return folder


def test_a_scale_of_its_own_goes_into_b(backbone, tmp_path):
  """peft: lora_alpha / r, or / sqrt(r) with use_rslora."""
  pet = config.Pet(rank=4, alpha=8)
  plain = peft.read_block(adapter(tmp_path / "a", backbone, pet), pet, backbone)["lora"]
  for number, (values, times) in enumerate(
    [({"lora_alpha": 24}, 3.0), ({"use_rslora": True}, 2.0), ({"lora_alpha": 2.0}, 0.25)]
  ):
    folder = adapter(tmp_path / str(number), backbone, pet, **values)
    block = peft.read_block(folder, pet, backbone)["lora"]
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(block), jax.tree.leaves(plain), strict=True
    ):
      np.testing.assert_allclose(x, times * y if path[-1].key == "b" else y, rtol=1e-6)


def test_an_adapter_of_bfloat16_is_read(backbone, tmp_path):
  def halved(arrays):
    return {name: x.astype(jnp.bfloat16) for name, x in arrays.items()}

  plain = peft.read_block(adapter(tmp_path / "a", backbone), PET, backbone)
  block = peft.read_block(adapter(tmp_path / "b", backbone, arrays=halved), PET, backbone)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), block, plain)
  assert {x.dtype for x in jax.tree.leaves(block)} == {jnp.dtype("float32")}


def first_of(arrays, factor):
  """The first of an adapter's arrays of a kind, as it is."""
  return [(name, arrays[name]) for name in sorted(arrays) if f"lora_{factor}" in name][:1]


def dropping(word):
  return lambda arrays: {name: x for name, x in arrays.items() if word not in name}


WRONG = {
  "a rank": (PET, {}, config.Pet(rank=8), "has rank 4, where pet.rank is 8"),
  "a map": (PET, {}, config.Pet(targets=("q",)), r"holds .*v.*pet.targets q has no place"),
  "no map": (PET, {}, config.Pet(targets=("q", "k", "v")), r"has no .*k.*pet.targets q k v ask"),
  "a layer": (PET, {"arrays": dropping("1.")}, PET, "has no .*1"),
  "nan": (
    PET,
    {"arrays": lambda arrays: {name: x * np.nan for name, x in arrays.items()}},
    PET,
    "no matrix of finite numbers",
  ),
  "a layer of another rank": (
    PET,
    {"arrays": lambda arrays: arrays | {name: x[:2] for name, x in first_of(arrays, "A")}},
    PET,
    r"has lora_A \(2, 32\) and lora_B \(\d+, 4\)",
  ),
  "a layer of other outputs": (
    PET,
    {"arrays": lambda arrays: arrays | {name: x[:2] for name, x in first_of(arrays, "B")}},
    PET,
    "has other shapes in some layers",
  ),
  "pissa": (PET, {"init_lora_weights": "pissa_niter_4"}, PET, "has init_lora_weights 'pissa_n"),
  "alora": (PET, {"alora_invocation_tokens": [1]}, PET, r"alora_invocation_tokens \[1\], which"),
  "dora": (PET, {"use_dora": True}, PET, "use_dora True, which a block cannot have"),
  "bias": (PET, {"bias": "all"}, PET, "bias 'all', which a block cannot have"),
  "alpha": (PET, {"lora_alpha": "32"}, PET, "lora_alpha '32' is no positive number"),
  "r": (PET, {"r": 0}, PET, "r 0 is no positive number"),
  "kind": (PET, {}, config.Pet(kind="prompt"), "holds LORA, where pet.kind prompt is asked"),
  "peft_type": (PET, {"peft_type": "IA3"}, PET, "holds IA3, where pet.kind lora is asked"),
  "length": (
    config.Pet(kind="prompt", prompt_length=4),
    {},
    config.Pet(kind="prompt", prompt_length=5),
    r"prompt_embeddings has shape \(4, 32\).*\(5, 32\)",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_adapter_that_is_no_such_block_is_refused_in_one_line(case, backbone, tmp_path):
  made, values, asked, message = WRONG[case]
  with pytest.raises(InputError, match=message) as error:
    peft.read_block(adapter(tmp_path / "a", backbone, made, **values), asked, backbone)
  assert "\n" not in str(error.value)


def test_a_folder_without_an_adapter_is_named(backbone, tmp_path):
  with pytest.raises(InputError, match=f"{tmp_path}.*adapter_config.json"):
    peft.read_block(tmp_path, PET, backbone)
  folder = adapter(tmp_path / "a", backbone)
  (folder / "adapter_model.safetensors").unlink()
  with pytest.raises(InputError, match=r"wanted one file adapter_model"):
    peft.read_block(folder, PET, backbone)
