"""Saved trees: they come back as they were, or the harm is named."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1

from sapt_jax import text_files
from sapt_jax.errors import InputError
from sapt_jax.snapshots import sound_snapshots
from sapt_jax.training import checkpoint

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"count": jnp.asarray(3, jnp.int32)}}


one_file_or_not = pytest.mark.parametrize("in_one_file", [True, False])


@one_file_or_not
def test_a_saved_tree_comes_back_bit_for_bit(tmp_path, in_one_file):
  checkpoint.save(tmp_path / "s", TREE, {"scores": [1.5]}, in_one_file)
  tree, record = checkpoint.load(tmp_path / "s", jax.tree.map(jnp.zeros_like, TREE))
  assert jax.tree.all(jax.tree.map(np.array_equal, tree, TREE))
  assert record == {"scores": [1.5]}
  tree = tmp_path / "s" / checkpoint.TREE
  assert ([path.name for path in tree.iterdir()] == [checkpoint.ONE_FILE]) == in_one_file


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "uint32", "bool"])
@one_file_or_not
def test_arrays_of_any_dtype_and_layout_come_back(tmp_path, dtype, in_one_file):
  x = np.arange(6).reshape(2, 3).T.astype(jnp.dtype(dtype))
  checkpoint.save(tmp_path / "s", {"x": x}, {}, in_one_file)
  found = checkpoint.read(tmp_path / "s", {"x": x})[0]["x"]
  assert (found.dtype, found.tolist()) == (x.dtype, x.tolist())


@one_file_or_not
def test_arrays_that_have_grown_keep_what_they_were(tmp_path, in_one_file):
  checkpoint.save(tmp_path / "s", {"x": np.ones((1, 2), np.float32)}, {}, in_one_file)
  larger = {"x": jnp.zeros((2, 2))}
  found, _ = checkpoint.load(tmp_path / "s", larger, grow=True)
  assert found["x"].tolist() == [[1, 1], [0, 0]]
  with pytest.raises(checkpoint.DamagedError, match="has the shape"):
    checkpoint.load(tmp_path / "s", larger)
  with pytest.raises(checkpoint.DamagedError, match="other arrays"):
    checkpoint.load(tmp_path / "s", {"y": jnp.zeros(2)})


def test_what_orbax_wrote_by_its_other_interface_for_earlier_versions_is_read(tmp_path):
  folder = tmp_path / "s"
  folder.mkdir()
  flat = {"a": TREE["a"], "b.count": TREE["b"]["count"]}
  v1.save(str(folder / checkpoint.TREE), flat)
  text_files.write_json(folder / checkpoint.RECORD, {})
  text_files.write_json(folder / checkpoint.MANIFEST, checkpoint._hashes(folder))
  tree, _ = checkpoint.load(folder, jax.tree.map(jnp.zeros_like, TREE))
  assert jax.tree.all(jax.tree.map(np.array_equal, tree, TREE))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("harm", ["truncate", "empty", "delete", "flip"])
@one_file_or_not
def test_any_harm_to_any_file_is_noticed_and_named(tmp_path, harm, in_one_file):
  checkpoint.save(tmp_path / "s", TREE, {}, in_one_file)
  files = [
    path.relative_to(tmp_path)
    for path in (tmp_path / "s").rglob("*")
    if path.is_file() and path.stat().st_size
  ]
  assert len(files) > (2 if in_one_file else 5)
  for file in files:
    whole = (tmp_path / file).read_bytes()
    middle = len(whole) // 2
    if harm == "delete":
      (tmp_path / file).unlink()
    else:
      (tmp_path / file).write_bytes(
        {
          "truncate": whole[:middle],
          "empty": b"",
          "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        }[harm]
      )
    with pytest.raises(checkpoint.DamagedError):
      checkpoint.load(tmp_path / "s", TREE)
    (tmp_path / file).write_bytes(whole)


def test_a_stray_file_does_not_take_the_place_of_what_orbax_wrote(tmp_path):
  checkpoint.save(tmp_path / "s", TREE, {})
  other = jax.tree.map(lambda x: x + 1, TREE)
  checkpoint.save(tmp_path / "other", other, {}, in_one_file=True)
  file = f"{checkpoint.TREE}/{checkpoint.ONE_FILE}"
  shutil.copy(tmp_path / "other" / file, tmp_path / "s" / file)
  tree, _ = checkpoint.load(tmp_path / "s", TREE)
  assert jax.tree.all(jax.tree.map(np.array_equal, tree, TREE))


def test_an_unfinished_save_is_not_finished(tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint, "_hashes", stop)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.save(tmp_path / "s", TREE, {})
  assert not checkpoint.is_finished(tmp_path / "s")


def test_what_is_saved_anew_stays_until_the_new_one_is_written(tmp_path, monkeypatch):
  checkpoint.save(tmp_path / "s", TREE, {"step": 1})
  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, "_hashes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      checkpoint.save(tmp_path / "s", TREE, {"step": 2})
  assert checkpoint.load(tmp_path / "s", TREE)[1] == {"step": 1}
  checkpoint.save(tmp_path / "s", TREE, {"step": 3})
  assert checkpoint.load(tmp_path / "s", TREE)[1] == {"step": 3}


def test_pruning_that_is_killed_leaves_all_arrays_or_none(tmp_path, monkeypatch):
  checkpoint.save(tmp_path / "s", TREE, {"step": 1})
  real = shutil.rmtree
  with monkeypatch.context() as patched:

    def killed(folder, **given):
      if folder.exists():
        real(folder / "state", ignore_errors=True)
        raise KeyboardInterrupt

    patched.setattr(checkpoint, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
      checkpoint.prune(tmp_path / "s")
  assert not checkpoint.has_arrays(tmp_path / "s")
  assert checkpoint.read_record(tmp_path / "s") == {"step": 1}
  checkpoint.verify(tmp_path / "s")
  checkpoint.settle(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_an_older_version_has_half_pruned_has_no_arrays(tmp_path):
  checkpoint.save(tmp_path / "s", TREE, {"step": 1})
  assert checkpoint.has_arrays(tmp_path / "s")
  sealed = {checkpoint.RECORD: checkpoint.sha256(tmp_path / "s" / checkpoint.RECORD)}
  checkpoint.write_json(tmp_path / "s" / checkpoint.MANIFEST, sealed)
  assert not checkpoint.has_arrays(tmp_path / "s")


def test_copies_of_snapshots_are_named_or_passed_over(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  newest = max((run / "snapshots").iterdir())
  shutil.copytree(newest, newest.with_name("01-old_of_mine"))
  assert [path.name for path in sound_snapshots(run)][-1] == newest.name
  shutil.copytree(newest, newest.with_name(newest.name + ".bak"))
  with pytest.raises(
    InputError, match=f"{newest.name} and {newest.name}.bak: two snapshots of one"
  ):
    sound_snapshots(run)
