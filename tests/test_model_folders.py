"""Model folders as other tools leave them: second names, stale files, quantised and odd ones."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sapt_jax.backbones import hf
from sapt_jax.errors import InputError
from tests import tiny, torch_models

TIED_T5 = tiny.T5 | {"tie_word_embeddings": True}


@pytest.fixture
def folder(tmp_path):
  """A T5 whose head is tied, and its weights."""
  place = tiny.model_folder(tmp_path / "t5", TIED_T5)
  return place, load_file(place / "model.safetensors")


def write(place, tensors):
  save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def table_of(place):
  return np.asarray(hf.load_backbone(str(place)).params["embedding"]["table"])


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_weight_must_equal_what_it_is_tied_to(folder, name):
  place, tensors = folder
  before = table_of(place)
  write(place, tensors | {name: tensors["shared.weight"].copy()})
  np.testing.assert_array_equal(table_of(place), before)
  changed = tensors["shared.weight"].copy()
  changed[3, 5] += 1
  write(place, tensors | {name: changed})
  with pytest.raises(InputError, match=rf"{name} differs from shared.weight.*tie_word_embeddings"):
    hf.load_backbone(str(place))


def test_a_tied_head_of_a_llama_that_differs_is_named(tmp_path):
  place = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  tensors = load_file(place / "model.safetensors")
  write(place, tensors | {"lm_head.weight": -tensors["model.embed_tokens.weight"]})
  with pytest.raises(InputError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
    hf.load_backbone(str(place))


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_the_shared_embedding_is_found_under_its_other_names(folder, name):
  place, tensors = folder
  before = table_of(place)
  write(place, {name: tensors.pop("shared.weight")} | tensors)
  np.testing.assert_array_equal(table_of(place), before)


def shards(place, tensors):
  """The same weights as two shards and an index."""
  names = sorted(tensors)
  parts = {
    "model-00001-of-00002.safetensors": names[::2],
    "model-00002-of-00002.safetensors": names[1::2],
  }
  for file, own in parts.items():
    save_file({name: tensors[name] for name in own}, place / file, metadata={"format": "pt"})
  where = {name: file for file, own in parts.items() for name in own}
  (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_of_a_single_file_and_shards_the_single_file_counts_and_both_must_agree(folder):
  place, tensors = folder
  shards(place, tensors)
  before = table_of(place)
  newer = tensors | {"shared.weight": tensors["shared.weight"] + 1}
  write(place, newer)
  with pytest.raises(InputError, match=r"hold different weights \(shared.weight\); remove"):
    hf.load_backbone(str(place))
  (place / "model-00002-of-00002.safetensors").unlink()  # half of an old download
  np.testing.assert_array_equal(table_of(place), before + 1)


def test_an_index_without_its_shards_does_not_hide_a_whole_single_file(folder):
  place, tensors = folder
  stale = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
  (place / "model.safetensors.index.json").write_text(json.dumps(stale))
  np.testing.assert_array_equal(table_of(place), tensors["shared.weight"])


def test_quantised_folders_are_named_as_such(folder):
  place, tensors = folder
  raw = json.loads((place / "config.json").read_text())
  method = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
  (place / "config.json").write_text(json.dumps(raw | method))
  with pytest.raises(
    InputError, match=r"quantised model \(bitsandbytes\); name the full-precision"
  ):
    hf.load_backbone(str(place))
  (place / "config.json").write_text(json.dumps(raw))
  name = next(name for name in tensors if name.endswith("SelfAttention.q.weight"))
  write(place, tensors | {name: tensors[name].astype(np.int8)})
  with pytest.raises(InputError, match=rf"{name} is kept as I8: a quantised model"):
    hf.load_backbone(str(place))


@pytest.mark.parametrize("name", ["pad_token_id", "eos_token_id", "decoder_start_token_id"])
def test_a_special_token_beyond_the_vocabulary_is_named(folder, name):
  place, _ = folder
  raw = json.loads((place / "config.json").read_text())
  (place / "config.json").write_text(json.dumps(raw | {name: 272}))
  with pytest.raises(
    InputError, match=rf"config.json: {name} 272 is no token of a vocabulary of 272"
  ):
    hf.load_backbone(str(place))


def test_a_special_token_may_be_null_or_a_list(folder):
  place, _ = folder
  raw = json.loads((place / "config.json").read_text())
  (place / "config.json").write_text(
    json.dumps(raw | {"eos_token_id": [7, 8], "pad_token_id": None})
  )
  config = hf.load_backbone(str(place)).config
  assert (config.eos_id, config.pad_id) == (7, 0)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu", "gelu_pytorch_tanh"])
def test_a_llama_computes_the_activation_that_it_names(activation, tmp_path, torch):
  model = torch_models.make("llama-gqa", hidden_act=activation)
  check_logits(model, tmp_path, torch)


@pytest.mark.parametrize("projection", ["gated-silu", "silu", "gated-relu"])
def test_a_t5_computes_the_activation_that_it_names(projection, tmp_path, torch):
  model = torch_models.make("t5-v1.1", feed_forward_proj=projection)
  check_logits(model, tmp_path, torch)


def check_logits(model, tmp_path, torch):
  ours = hf.load_backbone(torch_models.save(model, tmp_path))
  tokens = np.random.default_rng(0).integers(4, 96, (2, 6))
  mask = np.ones((2, 6), bool)
  with torch.no_grad():
    if ours.config.is_decoder_only:
      both = np.concatenate([tokens, tokens[:, :3]], axis=1)
      theirs = model(torch.tensor(both)).logits[:, 5:8]
    else:
      theirs = model(torch.tensor(tokens), labels=torch.tensor(tokens[:, :3])).logits
  logits = jax.jit(ours.model.apply)(
    {"params": ours.params}, tokens, mask, tokens[:, :3], mask[:, :3]
  )
  np.testing.assert_allclose(logits, theirs.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("kind", "change", "message"),
  [
    (tiny.T5, {"layer_norm_epsilon": 2**70 * 10**20}, "epsilon would be .*, which is no number"),
    (tiny.T5, {"layer_norm_epsilon": -1.0}, "epsilon would be -1.0, which is below 0"),
    (tiny.T5, {"d_ff": 10**30}, "mlp.* would be 10*, which is no size"),
    (tiny.T5, {"layer_norm_epsilon": None}, "epsilon would be None, which is no number"),
    (tiny.T5, {"tie_word_embeddings": "yes"}, "tied_head would be 'yes', which is not true or"),
    (tiny.LLAMA, {"rms_norm_eps": "small"}, "epsilon would be 'small', which is no number"),
    (tiny.LLAMA, {"rope_theta": "big"}, "theta would be 'big', which is no number"),
    (
      tiny.LLAMA,
      {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": None},
      "rope type 'dynamic' needs max_position_embeddings",
    ),
  ],
)
def test_a_value_of_the_wrong_kind_is_named(kind, change, message, tmp_path):
  place = tiny.model_folder(tmp_path / "model", kind)
  raw = json.loads((place / "config.json").read_text())
  raw.pop("rope_parameters", None)
  (place / "config.json").write_text(json.dumps(raw | change))
  with pytest.raises(InputError, match=message):
    hf.load_backbone(str(place))


def test_an_activation_that_is_not_known_is_named(tmp_path):
  place = tiny.model_folder(tmp_path / "llama", tiny.LLAMA)
  raw = json.loads((place / "config.json").read_text())
  (place / "config.json").write_text(json.dumps(raw | {"hidden_act": "mish"}))
  with pytest.raises(InputError, match="activation 'mish' is not supported: relu, gelu"):
    hf.load_backbone(str(place))


@pytest.mark.parametrize(
  "content",
  [
    "{}",
    "[]",
    "<html>",
    '{"weight_map": ["a"]}',
    '{"weight_map": {"a": 1}}',
    '{"weight_map": {}}',
    '{"weight_map": {"a": "../x"}}',
  ],
)
def test_a_broken_index_is_named_unless_a_single_file_counts(folder, content):
  place, tensors = folder
  (place / "model.safetensors.index.json").write_text(content)
  np.testing.assert_array_equal(table_of(place), tensors["shared.weight"])
  (place / "model.safetensors").unlink()
  with pytest.raises(InputError, match=r"index.json: (its weight_map|must hold|a page)"):
    hf.load_backbone(str(place))


@pytest.mark.parametrize(
  "change",
  [
    {"vocab_size": "272"},
    {"d_model": "32"},
    {"num_heads": 0},
    {"feed_forward_proj": 3},
    {"feed_forward_proj": "gated-mish"},
    {"model_type": ["t5"]},
    {"num_layers": None},
  ],
)
def test_a_value_of_the_wrong_kind_in_config_json_is_one_line(folder, change):
  place, _ = folder
  raw = json.loads((place / "config.json").read_text())
  (place / "config.json").write_text(json.dumps(raw | change))
  with pytest.raises(InputError, match=r"config\.json: "):
    hf.load_backbone(str(place))
  (place / "config.json").write_text("[]")
  with pytest.raises(InputError, match="must hold an object, not list"):
    hf.load_backbone(str(place))


def test_an_integer_buffer_is_no_quantised_model(folder):
  place, tensors = folder
  write(place, tensors | {"encoder.position_ids": np.arange(8)})
  with pytest.raises(InputError, match=r"not used: encoder\.position_ids"):
    hf.load_backbone(str(place))


def test_gguf_is_refused_with_the_way_to_a_folder_that_loads(folder, tmp_path):
  quantised = tmp_path / "gguf"
  quantised.mkdir()
  file = quantised / "model-Q4_K_M.gguf"
  file.write_bytes(b"GGUF")
  for named in (quantised, file):
    with pytest.raises(
      InputError, match=r"in GGUF.*from_pretrained.*gguf_file='model-Q4_K_M\.gguf'"
    ):
      hf.load_backbone(str(named))
  place, _ = folder
  (place / "model.gguf").write_bytes(b"GGUF")
  hf.load_backbone(str(place))  # it has safetensors too


def test_a_large_whole_number_is_one_for_the_device_too():
  model = hf.build_model(tiny.T5 | {"layer_norm_epsilon": 2**70})
  assert isinstance(model.config.epsilon, float)
  jax.eval_shape(lambda: hf.init_params(model, jax.random.key(0)))
