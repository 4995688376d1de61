"""Pools to and from the public code's files: the same numbers on both sides."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapt_jax import config, sals
from sapt_jax.backbones import hf
from sapt_jax.errors import InputError
from sapt_jax.interop import files, public
from tests.exchanged import RAW, TASKS, make_learned, make_method


@pytest.fixture(scope="module", params=list(RAW))
def backbone(request):
  return hf.build_model(RAW[request.param]).config


def assert_same(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


# The public code's files


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_a_pool_comes_back_as_it_was(backbone, suffix, tmp_path, request):
  if suffix == ".pt":
    request.getfixturevalue("torch")
  method = make_method(backbone)
  learned = make_learned(method)
  folders = [tmp_path / f"{task + 1}-task/saved_weights" for task in range(TASKS)]
  public.write_pool(learned, backbone, folders, suffix)
  again = public.read_pool(folders, method, backbone)
  assert_same(
    (again.blocks, again.keys, again.query, again.count, again.centre),
    (learned.blocks, learned.keys, learned.query, learned.count, learned.centre),
  )
  assert_same(again.memory.target, learned.memory.target)
  assert not np.any(again.memory.valid)  # pseudo inputs are not in those files


def test_the_last_folder_alone_holds_the_pool_but_not_the_mean_mixtures(backbone, tmp_path):
  method = make_method(backbone)
  learned, folders = make_learned(method), [tmp_path / str(task) for task in range(TASKS)]
  public.write_pool(learned, backbone, folders, ".npz")
  again = public.read_pool(folders[-1:], method, backbone)
  assert_same(
    (again.blocks, again.keys, again.query, again.count),
    (learned.blocks, learned.keys, learned.query, learned.count),
  )
  assert not np.any(again.memory.target)


def test_files_have_the_public_codes_names_shapes_and_order(tmp_path):
  backbone = hf.build_model(RAW["t5"]).config
  learned = make_learned(make_method(backbone))
  folders = [tmp_path / str(task) for task in range(TASKS)]
  public.write_pool(learned, backbone, folders, ".npz")
  a, b = (files.read_arrays(folders[1], f"lora_weights_{x}") for x in "AB")
  of_decoder = "0.SelfAttention", "1.EncDecAttention"
  stacks = [
    *(f"encoder.block.{i}.layer.0.SelfAttention" for i in range(2)),
    *(f"decoder.block.{i}.layer.{place}" for i in range(3) for place in of_decoder),
  ]
  owners = ["lora_q", "lora_v", "previous_lora_weights_q.0", "previous_lora_weights_v.0"]
  assert set(a) == {f"{stack}.{owner}.lora_A" for stack in stacks for owner in owners}
  assert set(b) == {f"{stack}.{owner}.lora_B" for stack in stacks for owner in owners}
  before, newest, *_ = learned.blocks["lora"]["decoder"]["cross"]["v"]["b"][2]
  site = "decoder.block.2.layer.1.EncDecAttention"
  np.testing.assert_array_equal(b[f"{site}.lora_v.lora_B"], newest.T)
  np.testing.assert_array_equal(b[f"{site}.previous_lora_weights_v.0.lora_B"], before.T)
  keys = files.read_arrays(folders[2], "prompts_keys_till_now")["prompts_keys_till_now"]
  np.testing.assert_array_equal(keys, learned.keys[:3][::-1])
  query = files.read_arrays(folders[2], "trans_input")
  assert {name: x.shape for name, x in query.items()} == {
    "0.weight": (sals.BOTTLENECK, 32),
    "1.weight": (32, sals.BOTTLENECK),
    "3.weight": (32,),
    "3.bias": (32,),
  }
  mixture = files.read_arrays(folders[1], "attention_weights")["attention_weights"]
  np.testing.assert_array_equal(mixture, learned.memory.target[1, :2][::-1])


def test_files_that_torch_and_pickle_wrote(torch, backbone, tmp_path):
  """bfloat16 tensors, and a numpy array in the pickle format of old numpy versions."""
  method = make_method(backbone)
  learned, folders = make_learned(method, 1), [tmp_path]
  public.write_pool(learned, backbone, folders, ".pt")
  for name in ("lora_weights_A", "prompts_keys_till_now"):
    value = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    as_half = jax.tree.map(lambda x: x.bfloat16(), value)
    torch.save(as_half, tmp_path / f"{name}.pt")
  new = pickle.dumps(np.array([1.0], np.float32), protocol=2)
  old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  (tmp_path / "attention_weights.pkl").write_bytes(old)
  again = public.read_pool(folders, method, backbone)
  np.testing.assert_allclose(again.keys, learned.keys, rtol=2**-8)
  assert again.memory.target[0, 0] == 1.0


class Trap:
  def __reduce__(self):
    return print, ("a pickle ran code",)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("attention_weights.pkl", pickle.dumps(Trap()), "no part of a numpy array"),
    ("trans_input.npz", b"nothing", "cannot be read"),
    ("trans_input.safetensors", b"", "wanted one file"),
    ("prompts_keys_till_now.npz", None, "no file prompts_keys_till_now"),
    ("lora_weights_A.npz", None, "lora_weights_A"),
  ],
)
def test_files_that_cannot_be_read_are_named(name, content, message, tmp_path, capsys):
  backbone = hf.build_model(RAW["llama"]).config
  method = make_method(backbone)
  public.write_pool(make_learned(method, 1), backbone, [tmp_path], ".npz")
  if name.startswith("attention"):
    (tmp_path / "attention_weights.npz").unlink()
  if content is None:
    (tmp_path / name).unlink()
  else:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    public.read_pool([tmp_path], method, backbone)
  assert capsys.readouterr().out == ""


def test_what_does_not_fit_is_refused(backbone, tmp_path):
  method = make_method(backbone)
  learned, folders = make_learned(method), [tmp_path / str(task) for task in range(TASKS)]
  public.write_pool(learned, backbone, folders, ".npz")
  with pytest.raises(InputError, match=r"block 1 has rank \d, where pet.rank is 2"):
    public.read_pool(folders, make_method(backbone, config.Pet(rank=2)), backbone)
  with pytest.raises(InputError, match="3 tasks, 2 folders"):
    public.read_pool(folders[1:], method, backbone)
  other = hf.build_model(RAW["llama" if not backbone.is_decoder_only else "t5"]).config
  with pytest.raises(InputError, match="not a pool of this backbone"):
    public.read_pool(folders, make_method(other), other)
  with pytest.raises(InputError, match="3 tasks"):
    public.write_pool(learned, backbone, folders[:2], ".npz")
  centred = learned.replace(centre=sals.Centre(jnp.ones(32), jnp.ones(())))
  with pytest.raises(InputError, match="no centre"):
    public.write_pool(centred, backbone, folders, ".npz")
  prompts = make_method(backbone, config.Pet(kind="prompt"))
  with pytest.raises(InputError, match="not soft prompts"):
    public.write_pool(make_learned(prompts), backbone, folders, ".npz")
